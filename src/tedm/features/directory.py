"""A feature store's place: a directory."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tedm import files
from tedm.errors import TedmError
from tedm.features.place import ChangedError, Document


class Directory:
    """Implements `tedm.features.places.Place` on a file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def directory(self) -> Path | None:
        return self.path

    def inside(self, name: str) -> Path:
        """Path of a file or folder; refuses what lies outside the store."""
        path = self.path / name
        try:
            within = path.resolve().is_relative_to(self.path.resolve())
        except (OSError, RuntimeError):  # links in a circle
            within = False
        if not within:
            raise TedmError(f"{name!r} lies outside the feature store {self.path}")
        return path

    def exists(self) -> bool:
        return self.path.exists()

    def get(self, name: str, largest: int) -> Document | None:
        file = self.inside(name)
        try:
            if file.stat().st_size > largest:
                raise TedmError(f"{file}: is larger than any metadata of a feature store; not read")
            return Document(file.read_bytes(), "")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, parts: Iterable[memoryview | bytes]) -> None:
        with files.whole(self.inside(name)) as partial, partial.open("wb") as out:
            for part in parts:
                out.write(part)

    def swap(self, name: str, before: Document | None, content: bytes) -> None:
        # The caller holds a lock. The comparison is for file systems on which locks are only promised.
        try:
            now: bytes | None = self.inside(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            now = None
        if now != (before and before.content):
            raise ChangedError(name)
        self.put(name, [content])

    @contextmanager
    def open(self, name: str) -> Iterator["_File"]:
        try:
            descriptor = os.open(self.inside(name), os.O_RDONLY)
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None
        try:
            yield _File(descriptor)
        finally:
            os.close(descriptor)

    def children(self, name: str) -> list[str]:
        directory = self.inside(name)
        if not directory.is_dir():
            return []
        return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))

    def sizes(self, name: str) -> dict[str, int]:
        directory = self.inside(name)
        found = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
        return {path.relative_to(directory).as_posix(): path.stat().st_size for path in found}

    def size(self, name: str) -> int:
        path = self.inside(name)
        return path.stat().st_size if path.is_file() else 0

    def made(self, name: str) -> tuple[str, datetime] | None:
        directory = self.inside(name)
        newest = max(
            (directory / file for file in self.sizes(name)),
            key=lambda path: path.stat().st_mtime,
            default=None,
        )
        if newest is None:
            return None
        state = newest.stat()
        try:
            owner = newest.owner()
        except (KeyError, NotImplementedError):  # unknown here, as in a container; Windows
            owner = str(state.st_uid)
        return owner, datetime.fromtimestamp(state.st_mtime, UTC)

    def remove(self, name: str) -> None:
        path = self.inside(name)
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            (path / "zarr.json").unlink(missing_ok=True)
            shutil.rmtree(path)

    def clear_litter(self, name: str) -> None:
        path = self.inside(name)
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            partial.unlink(missing_ok=True)

    def alone(self, what: str, label: str) -> AbstractContextManager[None]:
        return files.only_one(self._lock(what), label)

    def refuse_others(self, what: str, besides: str) -> None:
        name = self._lock(what).name
        for lock in self.path.parent.glob(f".{name}.*of*.lock"):
            part = lock.name.removeprefix(".").removesuffix(".lock")
            if not part.endswith(besides):
                label = f"block {part.removeprefix(f'{name}.')}"
                with files.only_one(lock.with_name(part), label, patience=0):
                    pass

    def _lock(self, what: str) -> Path:
        """What to lock for the store as a whole, or for a part: beside the store, not in it."""
        return self.path.with_name(f"{self.path.name}.{what}" if what else self.path.name)

    def explained(self) -> AbstractContextManager[None]:
        return files.explained(self.path)


class _File:
    """Implements `tedm.features.places.Source`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def tail(self, length: int) -> bytes:
        return os.pread(self.descriptor, length, max(self.size - length, 0))

    def expect(self, parts: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: the system reads ahead."""

    def read_into(self, offset: int, buffers: Sequence[memoryview | bytearray]) -> int:
        return os.preadv(self.descriptor, buffers, offset)
