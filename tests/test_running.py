"""One run at a time on a folder of results, also where locks do not reach another machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tedm import running
from tedm.errors import TedmError
from tedm.running import RunLock

HOLD = """
import sys, time
from pathlib import Path
from tedm.running import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_told_who_runs(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(TedmError, match=rf"another snakemake .* process {holder.pid}, since"):
        lock.acquire()
    lock.release()  # what a refused run does at its end
    assert json.loads(lock.record.read_text())["pid"] == str(holder.pid)


def test_a_killed_run_lets_the_next_one_begin_at_once(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    lock = RunLock(tmp_path)
    lock.acquire()
    assert time.monotonic() - began < 2
    lock.release()
    assert not lock.record.exists()


def elsewhere(results: Path, beat: int) -> None:
    """What a run on another machine leaves; its lock is invisible from here."""
    about = {"host": "node1", "user": "ann", "pid": "7", "since": "2026-01-01 00:00:00", "beat": str(beat)}
    (results / ".run.json").write_text(json.dumps(about))


def test_a_run_that_lives_on_another_machine_is_seen_without_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BEAT", 0.2)
    elsewhere(tmp_path, 1)
    sign = threading.Timer(0.3, elsewhere, (tmp_path, 2))
    sign.start()
    with pytest.raises(TedmError, match=r"another snakemake .*ann on node1, process 7"):
        RunLock(tmp_path).acquire()
    sign.join()
    assert json.loads((tmp_path / ".run.json").read_text())["host"] == "node1"


def test_a_run_that_died_on_another_machine_is_waited_for_and_then_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BEAT", 0.1)
    elsewhere(tmp_path, 1)
    began = time.monotonic()
    lock = RunLock(tmp_path)
    lock.acquire()
    assert time.monotonic() - began >= running.PATIENCE * 0.1
    first = json.loads(lock.record.read_text())
    time.sleep(0.35)
    assert json.loads(lock.record.read_text())["beat"] > first["beat"]
    lock.release()


def test_a_run_that_ended_on_another_machine_meanwhile_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BEAT", 0.4)
    elsewhere(tmp_path, 1)
    end = threading.Timer(0.2, (tmp_path / ".run.json").unlink)
    end.start()
    lock = RunLock(tmp_path)
    lock.acquire()
    end.join()
    lock.release()
