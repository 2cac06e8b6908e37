"""Files that appear whole or not at all."""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tedm.errors import TedmError
from tedm.progress import say


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` once the block has succeeded.

    A block that fails leaves `path` as it was. A full disk or a missing permission becomes a TedmError.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the process id, which two machines can have in common.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals around `path` into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TedmError(
                f"{path}: the disk is full. What was complete is kept: free some space, run the same"
                " command again and it goes on from there."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise TedmError(
                f"{path}: no permission to write here ({error.strerror}). Choose another `results`"
                " directory or change its permissions."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is a TedmError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TedmError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TedmError(f"{path}: not valid JSON ({error}); delete it and run again") from None


@contextlib.contextmanager
def only_one(path: Path, what: str, patience: float = -1.0) -> Iterator[None]:
    """Hold a lock for `path`, so that one process at a time makes it; whoever waits says so.

    The system frees the lock when its process dies, however it dies. The lock file stays: removing
    it would let two processes hold "the" lock at once.

    Args:
        path: what is made; the lock is `.{name}.lock` beside it.
        what: named in that line and in the error.
        patience: seconds to wait for another process; negative waits for ever.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            _acquire(lock, patience, f"{path}: waiting for another process that makes {what}")
        except Timeout:
            raise TedmError(f"{path}: another process is already making {what}") from None
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, patience: float, line: str) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if patience == 0:
            raise
        say(line)
        lock.acquire(timeout=patience)
