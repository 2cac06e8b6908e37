"""What a feature store asks of the place where it lies, be it a directory or a bucket."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol


class ChangedError(Exception):
    """What was to be replaced is no longer what was read: somebody else was faster."""


@dataclass(frozen=True)
class Document:
    """A small file as it was read."""

    content: bytes
    version: str  # that the place calls it by; "" where its content is all that tells


class Source(Protocol):
    """A file that is read in parts."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def tail(self, length: int) -> bytes:
        """The last so many bytes; all, where there are fewer."""

    def expect(self, parts: Sequence[tuple[int, int]]) -> None:
        """These parts (offset, length) will be read next: they may be fetched at once."""

    def read_into(self, offset: int, buffers: Sequence[memoryview | bytearray]) -> int:
        """Fill the buffers, one after the other, from an offset on; the number of bytes read."""


class Place(Protocol):
    """Files by their name, a relative path such as t0050/up2/c.0.0.0.0; each appears whole or not at all.

    Errors of the place are TedmErrors that say what to do, or OSErrors of a directory.
    """

    @property
    def directory(self) -> Path | None:
        """The directory that it is; None where it is none."""

    def exists(self) -> bool:
        """Whether anything is there."""

    def get(self, name: str, largest: int) -> Document | None:
        """A small file; None where there is none, a TedmError where it is larger than `largest` bytes."""

    def put(self, name: str, parts: Iterable[memoryview | bytes]) -> None:
        """Write a file."""

    def swap(self, name: str, before: Document | None, content: bytes) -> None:
        """Write a small file if it still is what was read (None: absent), else raise a ChangedError."""

    def open(self, name: str) -> AbstractContextManager[Source]:
        """Open a file for reading; a FileNotFoundError where there is none."""

    def children(self, name: str) -> list[str]:
        """Names of what is below, sorted, without hidden ones."""

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of every file below, by its path from there."""

    def size(self, name: str) -> int:
        """Bytes of a file; 0 where there is none."""

    def made(self, name: str) -> tuple[str, datetime] | None:
        """Whose the newest file below is ("": not told), and since when; None where there is none."""

    def remove(self, name: str) -> None:
        """Delete a file, or all that is below, the metadata first: half of it is then nothing."""

    def clear_litter(self, name: str) -> None:
        """Delete what killed writers of a file left half-written."""

    def alone(self, what: str, label: str) -> AbstractContextManager[None]:
        """Be the only process that does `what` here, where the place knows locks; else do nothing."""

    def refuse_others(self, what: str, besides: str) -> None:
        """Raise a TedmError if a process does a part of `what`, parts whose name ends so excepted."""

    def explained(self) -> AbstractContextManager[None]:
        """Turn refusals of the place into TedmErrors."""
