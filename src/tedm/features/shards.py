"""Shard files: the checksummed images that Zarr groups into one file, written whole and read one by one.

The format is that of Zarr's `sharding_indexed` codec: encoded chunks, each followed by its CRC-32C, then
an index of (offset, length) for each chunk, little-endian uint64, and the CRC-32C of the index. It is read
and written here, not through a codec pipeline: zarrs 0.2.3 leaves the checksum out when it reads part of a
shard, and writes in place; zarr-python 3.1.6 holds the interpreter's lock, and does not sync its writes.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

from tedm.features.place import Source

Codec = Literal["none", "zstd", "lz4"]
ZSTD_LEVEL = 1
LZ4_LEVEL = 5

ABSENT = (1 << 64) - 1  # offset and length of a chunk that a shard does not have
CHECKSUM = struct.Struct("<I")
WORTH_THREADS = 1 << 22  # bytes to encode or decode from which on threads pay


class DamageError(Exception):
    """A shard, or an image in it, that is not as it was written."""


def content(values: npt.NDArray[Any], images_per_shard: int, codec: Codec) -> Iterator[memoryview | bytes]:
    """The bytes of a shard, part by part; the same values give the same bytes.

    Args:
        values: images (n, C, h, w), little-endian, contiguous.
        images_per_shard: chunks in the index, at least n; those behind n are absent.
        codec: of each image.
    """
    index = np.full((images_per_shard, 2), ABSENT, "<u8")
    offset = 0
    for i, encoded in enumerate(_encoded(values, codec)):
        length = encoded.nbytes + CHECKSUM.size
        index[i] = offset, length
        offset += length
        yield encoded.data
        yield CHECKSUM.pack(google_crc32c.value(encoded))
    numbers = index.tobytes()
    yield numbers
    yield CHECKSUM.pack(google_crc32c.value(numbers))


def _encoded(values: npt.NDArray[Any], codec: Codec) -> Iterator[npt.NDArray[np.uint8]]:
    """Each image as the codec leaves it."""
    size = values.dtype.itemsize

    def encode(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        raw = image.reshape(-1).view(np.uint8)
        if codec == "zstd":
            return np.frombuffer(zstd.compress(raw, ZSTD_LEVEL), np.uint8)
        if codec == "lz4":
            packed = blosc.compress(image.reshape(-1), b"lz4", LZ4_LEVEL, blosc.BITSHUFFLE, 0, size)
            return np.frombuffer(packed, np.uint8)
        return raw

    if codec == "none":
        yield from map(encode, values)
        return
    with _threads(values.nbytes) as pool:
        yield from pool.map(encode, values)


def read(
    source: Source, positions: Sequence[int], out: npt.NDArray[Any], images_per_shard: int, codec: Codec
) -> None:
    """Read images of a shard; every byte used is checked.

    Args:
        source: the shard.
        positions: of the images in the shard.
        out: filled with them, (n, C, h, w), contiguous.
        images_per_shard: chunks in the index.
        codec: of each image.

    Raises:
        DamageError: an image is missing, truncated or altered.
    """
    index = _index(source, images_per_shard)
    parts = [(int(index[i, 0]), int(index[i, 1])) for i in positions]
    for offset, length in parts:
        # No codec makes an image much larger; a length beyond that is not ours, and is not allocated.
        largest = out[:1].nbytes
        if offset == ABSENT or not CHECKSUM.size < length <= largest + largest // 64 + 4096:
            raise DamageError("an image is missing")
    source.expect(parts)

    def one(i: int) -> None:
        _read_image(source, *parts[i], out[i].reshape(-1), codec)

    with _threads(out.nbytes) as pool:
        for _ in pool.map(one, range(len(positions))):
            pass


def length(source: Source, images_per_shard: int) -> int:
    """Bytes that a shard's file has by its index, which is all that is read.

    Raises:
        DamageError: its index is altered.
    """
    index = _index(source, images_per_shard)
    ends = [int(offset) + int(size) for offset, size in index if offset != ABSENT]
    return max(ends, default=0) + 16 * images_per_shard + CHECKSUM.size


def _index(source: Source, images_per_shard: int) -> npt.NDArray[np.uint64]:
    """Offset and length of each image of a shard."""
    length = 16 * images_per_shard + CHECKSUM.size
    content = source.tail(length)
    if len(content) < length or google_crc32c.value(content[:-4]) != CHECKSUM.unpack(content[-4:])[0]:
        raise DamageError("the index of the file is altered, or the file truncated")
    return np.frombuffer(content[:-4], "<u8").reshape(-1, 2)


def _read_image(source: Source, offset: int, length: int, out: npt.NDArray[Any], codec: Codec) -> None:
    raw = out.view(np.uint8)
    checksum = bytearray(CHECKSUM.size)
    if codec == "none":
        encoded = raw
        if length != raw.nbytes + CHECKSUM.size:
            raise DamageError("an image has another size")
    else:
        encoded = np.empty(length - CHECKSUM.size, np.uint8)
    if (
        source.read_into(offset, [encoded.data, checksum]) != length
        or google_crc32c.value(encoded) != CHECKSUM.unpack(checksum)[0]
    ):
        raise DamageError("an image is altered")
    if codec != "none":
        # Too short a content would leave the end as it was; features themselves are finite.
        out[-1] = np.nan
        try:
            (zstd if codec == "zstd" else blosc).decompress(encoded, raw)
        except (RuntimeError, ValueError) as error:
            raise DamageError(f"an image cannot be decoded ({error})") from None
        if np.isnan(out[-1]):
            raise DamageError("an image has another size")


@contextmanager
def _threads(size: int) -> Iterator[Any]:
    """A pool for work on so many bytes; where that is little, something that maps without threads."""
    if size < WORTH_THREADS:
        yield _Serial()
        return
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "codec") as pool:
        yield pool


class _Serial:
    map = staticmethod(map)
