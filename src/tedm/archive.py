"""Archives of arrays (.npz) that are larger than memory: written batch by batch, read row by row."""

import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tedm.files import explained

CHUNK = 1 << 20  # bytes read at a time of what is skipped

Bytes = NDArray[np.uint8]


class Growing(NamedTuple):
    """An array of bytes, of which a spool has the pieces in order."""

    spool: "Spool"
    name: str
    shape: tuple[int, ...]


class Spool:
    """Pieces of arrays by name, deflated in one file that nobody else sees; a context manager.

    It goes with its process, however that ends. Nothing but the pieces' places is kept in memory.

    Args:
        folder: where there is room for it; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in close)
        self._lengths: dict[str, tuple[array[int], array[int]]] = {}
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything."""
        self._file.close()

    def append(self, name: str, piece: Bytes) -> None:
        """Add a piece to the array of this name."""
        deflated = zlib.compress(np.ascontiguousarray(piece).data, 1)
        with explained(self.folder):
            self._file.seek(self._end)
            self._file.write(deflated)
        starts, lengths = self._lengths.setdefault(name, (array("Q"), array("Q")))
        starts.append(self._end)
        lengths.append(len(deflated))
        self._end += len(deflated)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The pieces of an array in the order in which they came."""
        for start, length in zip(*self._lengths[name], strict=True):
            self._file.seek(start)
            yield zlib.decompress(self._file.read(length))


def write(file: IO[bytes], arrays: Mapping[str, NDArray[Any] | Growing]) -> None:
    """Write what `np.savez_compressed` would write, byte by byte, without holding what is growing."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if not isinstance(values, Growing):
                    np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)
                    continue
                header = {"descr": "|u1", "fortran_order": False, "shape": values.shape}
                np.lib.format.write_array_header_1_0(member, header)
                for piece in values.spool.pieces(values.name):
                    member.write(piece)


def read_spans(path: Path, name: str, starts: Sequence[int], length: int) -> list[Bytes]:
    """Bytes of an array of bytes, some spans of one length, without holding the rest.

    All of the array is decompressed, so that its checksum is compared.

    Args:
        path: the archive.
        name: of the array.
        starts: of the spans, ascending; spans may overlap.
        length: of each, bytes; less at the end of the array.
    """
    found, window, at = [], b"", 0  # window: what was read last, which begins at `at`
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"{name}: format {version}")
        _, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        if fortran or dtype != np.uint8:
            raise ValueError(f"{name}: type {dtype}")
        for start in starts:
            while at + len(window) < start and (read := member.read(CHUNK)):
                window, at = read, at + len(window)
            window, at = window[max(start - at, 0) :], max(start, at)
            if len(window) < length:
                window += member.read(length - len(window))
            found.append(np.frombuffer(window[:length], np.uint8))
        while member.read(CHUNK):
            pass
    return found
