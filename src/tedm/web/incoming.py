"""The directory where uploads arrive: it goes with its server, and with the next one if that was killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "tedm-page-"


@contextmanager
def directory() -> Iterator[Path]:
    """A temporary directory, gone afterwards.

    Its server holds a lock of the operating system on it, which ends with the process however that ends.
    So what nobody holds was left by a server that was killed, and is removed first.
    """
    remove_left()
    made = Path(tempfile.mkdtemp(prefix="tedm-")).resolve()
    with _opened(made) as opened:
        with suppress(OSError):  # some network file systems have no locks; there nobody removes it
            fcntl.flock(opened, fcntl.LOCK_EX)
        # Only now: what has this name and no lock is removed.
        folder = made.rename(made.with_name(PREFIX + made.name.removeprefix("tedm-")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_left() -> None:
    """Remove directories of this user whose server is gone; those in use, links and others' stay."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), _opened(left) as opened:
            if os.fstat(opened).st_uid == os.getuid():
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield opened
    finally:
        os.close(opened)
