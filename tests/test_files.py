"""Files appear whole or not at all."""

import errno
import multiprocessing
import os
import signal
import time
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


def hold(path: Path, held: Path) -> None:
    with files.only_one(path, "it"):
        held.touch()
        time.sleep(60)


def test_a_lock_is_exclusive_and_dies_with_its_process(tmp_path: Path) -> None:
    path, held = tmp_path / "a", tmp_path / "held"
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(path, held))
    process.start()
    while not held.exists():
        time.sleep(0.01)
    with pytest.raises(TedmError, match="another process"), files.only_one(path, "it", patience=0):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with files.only_one(path, "it", patience=5):
        pass
