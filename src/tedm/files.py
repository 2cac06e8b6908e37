"""Files that appear whole or not at all."""

import contextlib
import errno
import json
import os
import secrets
import stat
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
    In a directory that a group shares the group may write the file, too (`group_bits`).
    """
    with explained(path):
        make_directory(path.parent)
        # Not the process id, which two machines can have in common.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            if bits := group_bits(path.parent):
                partial.chmod(stat.S_IMODE(partial.stat().st_mode) | bits)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def group_bits(directory: Path) -> int:
    """What the group may do with a file made here, besides what the umask leaves it, as bits of its mode.

    A directory with the set-group-ID bit that its group may write (`chmod 2775`) is there to be shared:
    what is made in it belongs to the same group, but most umasks take its right to write. Elsewhere 0.
    """
    mode = directory.stat().st_mode
    return mode & (stat.S_IRGRP | stat.S_IWGRP) if mode & stat.S_ISGID and mode & stat.S_IWGRP else 0


def make_directory(path: Path) -> None:
    """Make a directory and those above it, unless they are there; below a shared one they are shared."""
    if path.is_dir():
        return
    make_directory(path.parent)
    if not group_bits(path.parent):
        path.mkdir(exist_ok=True)
        return
    # Under its name once the group may write it: another user may be about to.
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    fresh.mkdir()
    handed_down = path.parent.stat().st_mode & (stat.S_ISGID | stat.S_IRWXG)
    try:
        fresh.chmod(stat.S_IMODE(fresh.stat().st_mode) | handed_down)
        fresh.rename(path)
    except OSError:
        fresh.rmdir()
        if not path.is_dir():  # else the other one was faster
            raise


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
                f"{path}: no permission to write here ({error.strerror}{_whose(error.filename, path)})."
                " Change its permissions or choose another directory (`results`, `features.location`)."
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise TedmError(f"{path}: a file is where a directory should be ({error.filename})") from error
        raise


def _whose(culprit: str | None, path: Path) -> str:
    """Owner, group and mode of what refused, or of the directory that it would be in."""
    with contextlib.suppress(OSError, KeyError, NotImplementedError):
        there = Path(culprit or path)
        while not os.access(there, os.F_OK) and there != there.parent:
            there = there.parent
        state = there.stat()
        try:
            names = f"{there.owner()}, group {there.group()}"
        except KeyError:  # numbers without names, as on a cluster whose directory of users is away
            names = f"user {state.st_uid}, group {state.st_gid}"
        return f": {there} is of {names}, {stat.filemode(state.st_mode)}"
    return ""


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
        make_directory(path.parent)
        file = path.with_name(f".{path.name}.lock")
        bits = group_bits(path.parent)
        # A lock is opened for writing: what one user leaves here must not lock out the others.
        lock = FileLock(file, mode=0o644 | bits) if bits else FileLock(file)
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
