"""Files appear whole or not at all."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from tedm import files
from tedm.errors import TedmError


def test_a_failed_block_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(TedmError, match=r"a\.txt: the disk is full"),
        files.whole(tmp_path / "a.txt") as partial,
    ):
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_forbidden_directory_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TedmError, match="no permission"), files.whole(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("content", ["{", "\xff"])
def test_broken_json_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(TedmError, match=r"a\.json: not valid JSON"):
        files.read_json(path)


def test_two_writers_of_a_file_share_no_partial_file(tmp_path: Path) -> None:
    """Not even with the same process id, which two machines can give to their processes."""
    path = tmp_path / "a.txt"
    with files.whole(path) as one, files.whole(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def hold(path: Path, held: Path) -> None:
    with files.only_one(path, "it"):
        held.touch()
        time.sleep(60)


def start_holding(path: Path) -> SpawnProcess:
    held = path.with_name("held")
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(path, held))
    process.start()
    while not held.exists():
        time.sleep(0.01)
    return process


def test_a_lock_is_exclusive_and_dies_with_its_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a"
    process = start_holding(path)
    with pytest.raises(TedmError, match="another process"), files.only_one(path, "it", patience=0):
        pass
    assert not capsys.readouterr().err  # an error, no wait
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with files.only_one(path, "it", patience=5):
        pass
    assert not capsys.readouterr().err


def test_who_waits_for_another_process_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a"
    process = start_holding(path)
    try:
        with pytest.raises(TedmError, match="another process"), files.only_one(path, "it", patience=0.1):
            pass
        assert capsys.readouterr().err == f"{path}: waiting for another process that makes it\n"
        threading.Timer(0.2, process.kill).start()
        with files.only_one(path, "it"):
            pass
    finally:
        process.kill()
        process.join()
    assert capsys.readouterr().err == f"{path}: waiting for another process that makes it\n"
