"""One run at a time on a folder of results: who runs, and whether they still do."""

import getpass
import json
import os
import socket
import threading
import time
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tedm import files
from tedm.errors import TedmError
from tedm.progress import say

BEAT = 10.0  # seconds between signs of life
PATIENCE = 3.5  # beats without one, until a run on another machine counts as dead


class RunLock:
    """The right to run on a folder of results.

    It is a lock of the operating system, which the death of its process frees at once. Some network file
    systems keep such locks to one machine, so the holder also gives signs of life: a run that lives on
    another machine is respected, and one that died there is known as dead after PATIENCE beats.

    Args:
        results: folder; made if absent.
    """

    def __init__(self, results: Path) -> None:
        self.results, self.record = results, results / ".run.json"
        self._lock = FileLock(results / ".run.lock")
        self._stop = threading.Event()

    def acquire(self) -> None:
        """Begin to run.

        Raises:
            TedmError: somebody else runs on these results.
        """
        with files.explained(self.record):
            self.results.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise self._refusal() from None
            if self._lives_elsewhere():
                self._lock.release()
                raise self._refusal()
            self._since = datetime.now().isoformat(" ", "seconds")
            self._sign(0)
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def release(self) -> None:
        """End; a run that is killed needs not, and one that was refused has nothing to end."""
        if not self._lock.is_locked:
            return
        self._stop.set()
        self._beats.join()
        self.record.unlink(missing_ok=True)
        self._lock.release()

    def _lives_elsewhere(self) -> bool:
        """Whether the run that the record tells of is alive on another machine; waits for its next sign."""
        first = self._read()
        if first.get("host") in (None, socket.gethostname()):
            return False  # on this machine the lock itself is the truth
        say(f"{self.results}: a run on {first['host']} did not end; looking whether it is alive …")
        deadline = time.monotonic() + PATIENCE * BEAT
        while time.monotonic() < deadline:
            time.sleep(BEAT / 4)
            if self._read() != first:
                return bool(self._read())
        return False

    def _refusal(self) -> TedmError:
        who = self._read()
        by = f" ({who['user']} on {who['host']}, process {who['pid']}, since {who['since']})" if who else ""
        return TedmError(
            f"{self.results}: another snakemake is running on these results{by}; wait for it, or choose"
            " another `results` directory"
        )

    def _read(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.record.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def _beat(self) -> None:
        number = 0
        while not self._stop.wait(BEAT):
            number += 1
            try:
                self._sign(number)
            except (OSError, TedmError):  # a full disk, say: the lock is still held
                continue

    def _sign(self, number: int) -> None:
        # A new file each time: of an old one, a network file system may show what it was a minute ago.
        about = {
            "host": socket.gethostname(),
            "user": _user(),
            "pid": str(os.getpid()),
            "since": self._since,
            "beat": str(number),
        }
        files.write_json(self.record, about)


def _user() -> str:
    """Who runs this: by number where the system knows no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
