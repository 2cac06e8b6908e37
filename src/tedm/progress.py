"""What people see of a long stage: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0
_muted = False


class Stage:
    """Counts the units of one stage and shows rate and time left."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.first = self.done = done
        self.started = self.shown = time.monotonic()
        self.note = ""
        self.bar: Progress | None = None
        if sys.stderr.isatty() and not _muted:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit + "  {task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(label, total=total, completed=done, rate="", note="")
            self.bar.start()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units; `note` is shown behind them (a loss, say)."""
        self.done += units
        self.note = note or self.note
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=self._rate(now), note=self.note)
        elif now - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = now
            self._line(now)

    def reach(self, done: int, total: int) -> None:
        """Say how far it is, where the stage itself counts."""
        self.total = total
        if self.bar is not None:
            self.bar.update(self.task, total=total)
        self.advance(done - self.done)

    def close(self) -> None:
        """Show the last state."""
        if self.bar is not None:
            self.bar.stop()
        else:
            self._line(time.monotonic())

    def _rate(self, now: float) -> str:
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        return f"{rate:.3g} {self.unit}/s"

    def _line(self, now: float) -> None:
        elapsed = now - self.started
        fresh = self.done - self.first
        left = (self.total - self.done) * elapsed / fresh if fresh else None
        parts = [
            f"{self.label}: {self.done}/{self.total} {self.unit}",
            self._rate(now),
            f"{_clock(elapsed)} elapsed",
        ]
        if left is not None and self.done < self.total:
            parts.append(f"{_clock(left)} left")
        if self.note:
            parts.append(self.note)
        say(", ".join(parts))


@contextmanager
def stage(label: str, total: int, unit: str, done: int = 0) -> Iterator[Stage]:
    """Show progress over `total` units, of which `done` were there already."""
    shown = Stage(label, total, unit, done)
    try:
        yield shown
    finally:
        shown.close()


def say(line: str) -> None:
    """One line to the person who watches, or to the log."""
    if not _muted:
        print(line, file=sys.stderr, flush=True)


def mute() -> None:
    """Say nothing from now on: of several processes that do one thing together, only the first speaks."""
    global _muted
    _muted = True


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
