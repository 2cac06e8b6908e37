"""Layout of a feature store: where each array lies, what its attributes say, how it is opened."""

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import tedm
from tedm import files
from tedm.errors import TedmError
from tedm.features import shards
from tedm.features.shards import Codec, DamageError

FORMAT = "tedm features"
FORMAT_VERSION = 1
DIGEST_LENGTH = 32  # hexadecimal digits kept of a shard's SHA-256
READ_AT_ONCE = 1 << 26  # bytes

# Also where the manifest still exists, so that Snakemake would not extract by itself.
EXTRACT_AGAIN = (
    "snakemake --cores all --forcerun extract_features  (with the same --configfile, if there is one)"
)

LARGEST_METADATA = 1 << 28  # bytes of a zarr.json that we are ready to parse
LARGEST_IMAGE = 1 << 31  # bytes of one image's layer that we are ready to allocate
KEY = re.compile(r"t(?P<timestep>\d{4,9})(/draw(?P<draw>[1-9]\d{0,5}))?(/(?P<layer>[A-Za-z]\w{0,63}))?")

DRAW = re.compile(r"draw[1-9]\d{0,5}")


@dataclass(frozen=True, order=True)
class Key:
    """Which array: its timestep, noise draw and layer. Text: t0050/up2, or t0050/draw1/up2."""

    timestep: int
    draw: int
    layer: str

    @property
    def groups(self) -> list[str]:
        """Paths of the groups that the array is in, below the root."""
        timestep = f"t{self.timestep:04d}"
        return [timestep, f"{timestep}/draw{self.draw}"] if self.draw else [timestep]

    def __str__(self) -> str:
        return f"{self.groups[-1]}/{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "Key":
        """The key that `text` spells, or a TedmError."""
        match = KEY.fullmatch(text)
        if match is not None and match["layer"] is not None:
            key = cls(int(match["timestep"]), int(match["draw"] or 0), match["layer"])
            if str(key) == text and not DRAW.fullmatch(key.layer):
                return key
        raise TedmError(f"{text!r} is not an array of a feature store; they look like t0050/up2")


@dataclass(frozen=True)
class Origin:
    """What the values of an array come from, besides its key. Readers take arrays of one origin only."""

    backbone_digest: str
    data_digest: str
    noise_seed: int
    shared_noise: bool
    input_range: str
    dtype: str
    keep_bits: int | None

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> "Origin | None":
        """The origin that attributes state; None where they state none."""
        names = [field.name for field in fields(cls)]
        if any(name not in attributes for name in names):
            return None
        return cls(**{name: attributes[name] for name in names})

    def differences(self, other: "Origin") -> list[str]:
        """What differs, in words: `noise_seed is 0, not 1`."""
        mine, its = asdict(self), asdict(other)
        return [f"{k} is {_short(mine[k])}, not {_short(its[k])}" for k in mine if mine[k] != its[k]]


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)


# ── opening ─────────────────────────────────────────────────────────────────────────────────────


class Location:
    """A store's place, and the few things done there that Zarr has no word for.

    The only class that knows that the place is a directory.
    """

    def __init__(self, store: Path | str) -> None:
        if "://" in str(store):
            raise TedmError(f"{store}: feature stores in object storage are not supported yet; give a path")
        self.path = Path(store)

    def __str__(self) -> str:
        return str(self.path)

    def lock_path(self, what: str = "") -> Path:
        """What to lock for the store as a whole, or for a part: beside the store, not in it."""
        return self.path.with_name(f"{self.path.name}.{what}" if what else self.path.name)

    def exists(self) -> bool:
        """Whether anything is there."""
        return self.path.exists()

    def metadata(self, node: str = "") -> dict[str, Any] | None:
        """The zarr.json of a node; None where there is none. Reads nothing huge."""
        file = self.inside(node) / "zarr.json"
        try:
            if file.stat().st_size > LARGEST_METADATA:
                raise TedmError(f"{file}: is larger than any metadata of a feature store; not read")
            values = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise TedmError(f"{file}: not valid JSON ({error}); `tedm store repair` it") from None
        if not isinstance(values, dict) or not isinstance(values.get("attributes", {}), dict):
            raise TedmError(f"{file}: is not the metadata of a Zarr node")
        return values

    def attributes(self, node: str = "") -> dict[str, Any] | None:
        """The attributes of a node; None where there is no node."""
        metadata = self.metadata(node)
        return None if metadata is None else metadata.get("attributes", {})

    def children(self, node: str = "") -> list[str]:
        """Names of what is below a node, sorted."""
        directory = self.inside(node)
        if not directory.is_dir():
            return []
        return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))

    def has(self, file: str) -> bool:
        """Whether a file is there and not empty."""
        path = self.inside(file)
        return path.is_file() and path.stat().st_size > 0

    def sizes(self, node: str) -> dict[str, int]:
        """Bytes of every file below a node, by its path below the node."""
        directory = self.inside(node)
        files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
        return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}

    def remove(self, node: str) -> None:
        """Delete a node and all below it, its metadata first: half of it is then nothing."""
        path = self.inside(node)
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            (path / "zarr.json").unlink(missing_ok=True)
            shutil.rmtree(path)

    def clear_litter(self, file: str) -> None:
        """Delete what killed writers of a file left half-written."""
        path = self.inside(file)
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            partial.unlink(missing_ok=True)

    def inside(self, node: str) -> Path:
        """Path of a node or file; refuses what lies outside the store."""
        path = self.path / node
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise TedmError(f"{node!r} lies outside the feature store {self.path}")
        return path


def read_rows(
    location: Location, info: "ArrayInfo", rows: npt.NDArray[np.int64], out: npt.NDArray[Any]
) -> None:
    """Read images of an array, in any order, into `out`, (n, C, h, w).

    Raises:
        DamageError: one of them is missing or altered.
    """
    shard, position = np.divmod(rows, info.images_per_shard)
    cuts = np.flatnonzero(np.diff(shard)) + 1
    for start, stop in pairwise([0, *cuts.tolist(), len(rows)] if len(rows) else []):
        file = location.inside(f"{info.key}/{shard_name(int(shard[start]))}")
        places = position[start:stop].tolist()
        shards.read(file, places, out[start:stop], info.images_per_shard, info.codec)


def digest_shard(location: Location, info: "ArrayInfo", shard: int) -> str | None:
    """Digest of a shard's values as they are read back; None where they cannot be read."""
    digest = hashlib.sha256()
    rows = np.array(info.rows(shard))
    at_once = max(1, READ_AT_ONCE // info.bytes_per_image)
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        values = np.empty((len(part), *info.shape[1:]), info.origin.dtype)
        try:
            read_rows(location, info, part, values)
        except DamageError:
            return None
        digest.update(values.data)
    return digest.hexdigest()[:DIGEST_LENGTH]


def digest_values(values: npt.NDArray[Any]) -> str:
    """Digest of a shard's values, whatever codec they are stored with."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:DIGEST_LENGTH]


# ── locks ───────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def lock_block(location: Location, timestep: int, block: tuple[int, int]) -> Iterator[None]:
    """Be the only process that extracts this block of a timestep; waits for another one to end."""
    k, n = block
    path = location.lock_path(f"t{timestep:04d}.{k}of{n}")
    with files.only_one(path, f"the features of t{timestep:04d}"):
        yield


@contextlib.contextmanager
def lock_record(location: Location, timestep: int) -> Iterator[None]:
    """Hold a timestep's record of shards, for a moment."""
    with files.only_one(location.lock_path(f"t{timestep:04d}"), f"the record of t{timestep:04d}"):
        yield


def refuse_while_extracted(location: Location, timestep: int, besides: int = 0) -> None:
    """Raise a TedmError if a process extracts this timestep, other than in `besides` blocks."""
    name = f"{location.path.name}.t{timestep:04d}"
    for lock in location.path.parent.glob(f".{name}.*of*.lock"):
        if not lock.name.endswith(f"of{besides}.lock"):
            part = lock.name.removeprefix(".").removesuffix(".lock")
            with files.only_one(lock.with_name(part), f"block {part.removeprefix(name + '.')}", patience=0):
                pass


# ── writing metadata ────────────────────────────────────────────────────────────────────────────


def write_root(location: Location, attributes: Mapping[str, Any]) -> None:
    """Make the root group, or give the one that is there these attributes. The caller holds its lock."""
    stated = {"format": FORMAT, "format_version": FORMAT_VERSION, "tedm_version": tedm.__version__}
    write_group(location, "", {**stated, **attributes})


def write_group(location: Location, path: str, attributes: Mapping[str, Any]) -> None:
    """Make a group, or replace its attributes, in one rename."""
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if location.metadata(path) != metadata:
        files.write_json(location.inside(f"{path}/zarr.json" if path else "zarr.json"), metadata)


def create_array(location: Location, info: "ArrayInfo") -> None:
    """Make an array without shards: one image per chunk, checksummed, grouped into shards."""
    for group in info.key.groups:
        if location.metadata(group) is None:
            write_group(location, group, {})
    files.write_json(location.inside(f"{info.key}/zarr.json"), array_metadata(info))


def array_metadata(info: "ArrayInfo") -> dict[str, Any]:
    """The zarr.json of an array. That a file equals it is all that a reader has to check."""
    layer, size = info.key.layer, np.dtype(info.origin.dtype).itemsize
    chunk = list(info.shape[1:])
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(info.shape),
        "data_type": info.origin.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [info.images_per_shard, *chunk]},
        },
        # One file per shard, in the array's own directory.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        # What others see where a shard is missing must not look like features.
        "fill_value": "NaN",
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1, *chunk],
                    # The checksum comes last: it covers the bytes that lie on the disk.
                    "codecs": [little, *CODECS[info.codec](size), {"name": "crc32c"}],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        # Of a name's own for each layer, as xarray wants it.
        "dimension_names": ["image", f"{layer}_channel", f"{layer}_row", f"{layer}_column"],
        # What an array says of itself, so that it is known wherever it is copied to.
        "attributes": {**asdict(info.key), **asdict(info.origin), "codec": info.codec, "units": "1"},
    }


CODECS: dict[Codec, Callable[[int], list[dict[str, Any]]]] = {
    "none": lambda _size: [],
    "zstd": lambda _size: [
        {"name": "zstd", "configuration": {"level": shards.ZSTD_LEVEL, "checksum": False}}
    ],
    "lz4": lambda size: [
        {
            "name": "blosc",
            "configuration": {
                "cname": "lz4",
                "clevel": shards.LZ4_LEVEL,
                "shuffle": "bitshuffle",
                "typesize": size,
                "blocksize": 0,
            },
        }
    ],
}


def shard_name(shard: int) -> str:
    """Name of a shard's file in its array's directory."""
    return f"c.{shard}.0.0.0"


# ── reading metadata that others may have written ───────────────────────────────────────────────


@dataclass(frozen=True)
class ArrayInfo:
    """What the metadata of one array states, checked."""

    key: Key
    shape: tuple[int, int, int, int]  # N, C, h, w
    images_per_shard: int
    codec: Codec
    origin: Origin

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's features, as numbers."""
        return math.prod(self.shape[1:]) * np.dtype(self.origin.dtype).itemsize

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.shape[0] // self.images_per_shard)

    def rows(self, shard: int) -> range:
        """Images of a shard."""
        first = shard * self.images_per_shard
        return range(first, min(first + self.images_per_shard, self.shape[0]))


@dataclass(frozen=True)
class RootInfo:
    """What the root of a store states, checked."""

    origin: Origin
    ids: tuple[str, ...]
    image_shape: tuple[int, int, int]
    layers: dict[str, tuple[int, int, int]]
    attributes: dict[str, Any]


def read_root(location: Location) -> RootInfo:
    """Read and check the root of a store; anything that is not ours is a TedmError."""
    attributes = location.attributes()
    if attributes is None:
        there = "is not a feature store" if location.exists() else "no such feature store"
        raise TedmError(f"{location}: {there}.\n  Make one:  {EXTRACT_AGAIN}")
    if attributes.get("format") != FORMAT:
        raise TedmError(f"{location}: is a Zarr group, but not a feature store of tedm")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise TedmError(
            f"{location}: has format version {attributes.get('format_version')}, this tedm"
            f" ({tedm.__version__}) reads {FORMAT_VERSION}; extract the features again.\n  {EXTRACT_AGAIN}"
        )
    try:
        origin = Origin.of(attributes)
        image_shape = _shape3(attributes["image_shape"])
        layers = {str(k): _shape3(v) for k, v in attributes["layers"].items()}
        ids = attributes["ids"]
        np.dtype(attributes["dtype"])
        if origin is None or origin.dtype not in ("float16", "float32"):
            raise ValueError("dtype")
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise ValueError("ids")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TedmError(f"{location}: the attributes of the store are broken ({error!r})") from None
    return RootInfo(origin, tuple(ids), image_shape, layers, attributes)


def read_array_info(location: Location, key: Key, images: int) -> ArrayInfo | None:
    """Read and check an array's metadata; None where there is no such array.

    Raises:
        TedmError: it is not an array as this project writes them, or not of `images` images.
    """
    metadata = location.metadata(str(key))
    if metadata is None:
        return None
    try:
        origin = Origin.of(metadata["attributes"])
        shape = _shape(metadata["shape"], 4)
        shard = _shape(metadata["chunk_grid"]["configuration"]["chunk_shape"], 4)
        if origin is None:
            raise ValueError("it does not say what it was made from")
        if shape[0] != images or shard[0] > images:
            raise ValueError(f"it has {shape[0]} images in shards of {shard[0]}, the store {images}")
        codec = metadata["attributes"]["codec"]
        info = ArrayInfo(key, (shape[0], shape[1], shape[2], shape[3]), shard[0], codec, origin)
        if info.bytes_per_image > LARGEST_IMAGE:
            raise ValueError("its images are larger than any feature")
        ours = array_metadata(info)
        if metadata != ours:
            different = [name for name in {**ours, **metadata} if metadata.get(name) != ours.get(name)]
            raise ValueError(f"its {', '.join(sorted(different))} are not as they were written")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TedmError(f"{location}/{key}: is not an array of this feature store ({error})") from None
    return info


def list_timesteps(location: Location) -> list[int]:
    """Timesteps that have a group, finished or not."""
    matches = (KEY.fullmatch(name) for name in location.children())
    return sorted(int(match["timestep"]) for match in matches if match is not None)


def list_keys(location: Location) -> list[Key]:
    """All arrays that are there, by timestep, draw and layer; what is not called like one is left out."""
    keys = []
    for group in location.children():
        for child in location.children(group) if KEY.fullmatch(group) else []:
            inner = location.children(f"{group}/{child}") if DRAW.fullmatch(child) else [""]
            for text in (f"{group}/{child}/{layer}".rstrip("/") for layer in inner):
                with contextlib.suppress(TedmError):
                    key = Key.parse(text)
                    if location.has(f"{key}/zarr.json"):
                        keys.append(key)
    return sorted(keys)


def _shape(value: Any, dimensions: int) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or len(value) != dimensions
        or not all(type(size) is int and 0 < size < 1 << 31 for size in value)
    ):
        raise ValueError(f"{value!r} is not a shape of {dimensions} dimensions")
    return tuple(value)


def _shape3(value: Any) -> tuple[int, int, int]:
    first, second, third = _shape(value, 3)
    return first, second, third


# ── the record of finished shards ───────────────────────────────────────────────────────────────


class Record:
    """Digest of the values of each finished shard of one timestep's arrays.

    It is what says that a shard is there: written after it, as attribute `shards` of the timestep's
    group, and `complete` once none is missing.
    """

    def __init__(self, location: Location, timestep: int) -> None:
        self.location = location
        self.timestep = timestep
        self.path = f"t{timestep:04d}"

    def read(self) -> dict[str, list[str | None]]:
        """Digests by array key and shard; None where a shard is not finished."""
        attributes = self.location.attributes(self.path) or {}
        digests = attributes.get("shards", {})
        if not isinstance(digests, dict) or not all(
            KEY.fullmatch(str(k))
            and isinstance(v, list)
            and all(d is None or isinstance(d, str) for d in v)
            for k, v in digests.items()
        ):
            raise TedmError(f"{self.location}/{self.path}: its record of finished shards is broken")
        return digests

    def write(
        self, digests: Mapping[str, list[str | None]], settings: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the record. The caller holds the timestep's lock.

        Args:
            digests: as `read` gives them.
            settings: with which the timestep is extracted, for a repair; None: as they were.
        """
        before = self.location.attributes(self.path) or {}
        attributes = {
            "timestep": self.timestep,
            "complete": all(digest is not None for shards in digests.values() for digest in shards),
            "settings": before.get("settings", {}) if settings is None else dict(settings),
            "shards": dict(digests),
        }
        if before != attributes:
            write_group(self.location, self.path, attributes)
