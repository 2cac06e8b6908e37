"""Layout of a feature store: where each array lies, what its attributes say, how it is opened."""

import contextlib
import hashlib
import json
import math
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore

import tedm
from tedm import files
from tedm.errors import TedmError
from tedm.progress import say

FORMAT = "tedm features"
FORMAT_VERSION = 1
PYTHON_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"  # its writes are whole or absent
RUST_PIPELINE = "zarrs.ZarrsCodecPipeline"  # reads two to three times as fast; writes in place

DIGEST_LENGTH = 32  # hexadecimal digits kept of a shard's SHA-256
READ_AT_ONCE = 1 << 26  # bytes

LARGEST_METADATA = 1 << 28  # bytes of a zarr.json that we are ready to parse
LARGEST_IMAGE = 1 << 31  # bytes of one image's layer that we are ready to allocate
KEY = re.compile(r"t(?P<timestep>\d{4,9})(/draw(?P<draw>[1-9]\d{0,5}))?(/(?P<layer>[A-Za-z]\w{0,63}))?")

DRAW = re.compile(r"draw[1-9]\d{0,5}")

Codec = Literal["none", "zstd", "lz4"]


@dataclass(frozen=True, order=True)
class Key:
    """Which array: its timestep, noise draw and layer. Text: t0050/up2, or t0050/draw1/up2."""

    timestep: int
    draw: int
    layer: str

    @property
    def group(self) -> str:
        """Path of the group that the array is in."""
        return f"t{self.timestep:04d}" + (f"/draw{self.draw}" if self.draw else "")

    def __str__(self) -> str:
        return f"{self.group}/{self.layer}"

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

    def zarr_store(self, *, read_only: bool) -> LocalStore:
        """What zarr opens."""
        return LocalStore(self.path, read_only=read_only)

    def lock_path(self, what: str = "") -> Path:
        """What to lock for the store as a whole, or for a part: beside the store, not in it."""
        return self.path.with_name(f"{self.path.name}.{what}" if what else self.path.name)

    def exists(self) -> bool:
        """Whether anything is there."""
        return self.path.exists()

    def metadata(self, node: str = "") -> dict[str, Any] | None:
        """The zarr.json of a node; None where there is none. Reads nothing huge."""
        file = self._inside(node) / "zarr.json"
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
        directory = self._inside(node)
        if not directory.is_dir():
            return []
        return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))

    def has(self, file: str) -> bool:
        """Whether a file is there and not empty."""
        path = self._inside(file)
        return path.is_file() and path.stat().st_size > 0

    def sizes(self, node: str) -> dict[str, int]:
        """Bytes of every file below a node, by its path below the node."""
        directory = self._inside(node)
        files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
        return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}

    def remove(self, node: str) -> None:
        """Delete a node and all below it, its metadata first: half of it is then nothing."""
        path = self._inside(node)
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            (path / "zarr.json").unlink(missing_ok=True)
            shutil.rmtree(path)

    def clear_litter(self, node: str) -> None:
        """Delete what killed writers left half-written below a node."""
        directory = self._inside(node)
        if directory.is_dir():
            for path in directory.rglob("*.partial"):
                path.unlink(missing_ok=True)

    def _inside(self, node: str) -> Path:
        path = self.path / node
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise TedmError(f"{node!r} lies outside the feature store {self.path}")
        return path


_pipeline_choice = threading.Lock()  # zarr's configuration belongs to the whole process


@contextlib.contextmanager
def pipeline(path: str) -> Iterator[None]:
    """Arrays opened within use this codec pipeline, for as long as they live."""
    with _pipeline_choice, zarr.config.set({"codec_pipeline.path": path}):
        yield


def open_array(location: Location, key: Key, *, write: bool = False) -> "zarr.Array[Any]":
    """Open one array, to be read through zarrs or written through zarr-python."""
    with pipeline(PYTHON_PIPELINE if write else RUST_PIPELINE):
        store = location.zarr_store(read_only=not write)
        return zarr.open_array(store, path=str(key), mode="r+" if write else "r", zarr_format=3)


def read_into(array: "zarr.Array[Any]", start: int, out: npt.NDArray[Any]) -> None:
    """Read the images from `start` on into `out`, (n, C, h, w), contiguous."""
    buffer = default_buffer_prototype().nd_buffer.from_numpy_array(out)
    array.get_basic_selection((slice(start, start + len(out)),), out=buffer)


def digest_shard(array: "zarr.Array[Any]", info: "ArrayInfo", shard: int) -> str | None:
    """Digest of a shard's values as they are read back; None where they cannot be read."""
    digest = hashlib.sha256()
    rows = info.rows(shard)
    at_once = max(1, READ_AT_ONCE // info.bytes_per_image)
    for start in rows[::at_once]:
        values = np.empty((min(at_once, rows.stop - start), *info.shape[1:]), info.origin.dtype)
        try:
            read_into(array, start, values)
        except Exception:  # every codec has errors of its own
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
    what = f"the features of t{timestep:04d}"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.only_one(path, what, patience=0))
        except TedmError as error:
            say(f"{error}; waiting for it")
            held.enter_context(files.only_one(path, what))
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
    stated = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tedm_version": tedm.__version__,
        **attributes,
    }
    if location.attributes() != stated:
        group = zarr.open_group(location.zarr_store(read_only=False), mode="a", zarr_format=3)
        group.attrs.put(stated)


def write_group(location: Location, path: str, attributes: Mapping[str, Any]) -> None:
    """Make a group below the root, or replace its attributes, in one rename."""
    group = zarr.open_group(location.zarr_store(read_only=False), path=path, mode="a", zarr_format=3)
    group.attrs.put(dict(attributes))


def create_array(
    location: Location,
    key: Key,
    shape: tuple[int, int, int, int],
    origin: Origin,
    images_per_shard: int,
    codec: Codec,
) -> None:
    """Make an empty array of shape (N, C, h, w): one image per chunk, checksummed, grouped into shards."""
    with pipeline(PYTHON_PIPELINE):
        zarr.create_array(
            location.zarr_store(read_only=False),
            name=str(key),
            shape=shape,
            chunks=(1, *shape[1:]),
            shards=(min(images_per_shard, shape[0]), *shape[1:]),
            dtype=origin.dtype,
            compressors=_codecs(codec, np.dtype(origin.dtype).itemsize),
            fill_value=float("nan"),  # an image that is missing must not look like features
            dimension_names=("image", f"{key.layer}_channel", f"{key.layer}_row", f"{key.layer}_column"),
            attributes=array_attributes(key, origin, codec),
            # A chunk that happens to equal the fill value is written like any other.
            config={"write_empty_chunks": True},
        )


def array_attributes(key: Key, origin: Origin, codec: Codec) -> dict[str, Any]:
    """What an array says of itself, so that it is known wherever it is copied to."""
    return {**asdict(key), **asdict(origin), "codec": codec, "units": "1"}


def _codecs(codec: Codec, itemsize: int) -> tuple[Any, ...]:
    # The checksum is the outermost codec: it covers the bytes that lie on the disk.
    match codec:
        case "none":
            return (Crc32cCodec(),)
        case "zstd":
            return (ZstdCodec(level=1), Crc32cCodec())
        case "lz4":
            blosc = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=itemsize)
            return (blosc, Crc32cCodec())


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
        raise TedmError(f"{location}: {there}; `tedm extract`, or the workflow, makes one")
    if attributes.get("format") != FORMAT:
        raise TedmError(f"{location}: is a Zarr group, but not a feature store of tedm")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise TedmError(
            f"{location}: has format version {attributes.get('format_version')}, this tedm"
            f" ({tedm.__version__}) reads {FORMAT_VERSION}; extract the features again"
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
    where = f"{location}/{key}"
    try:
        attributes = metadata["attributes"]
        origin = Origin.of(attributes)
        shape = _shape(metadata["shape"], 4)
        grid = metadata["chunk_grid"]
        shards = _shape(grid["configuration"]["chunk_shape"], 4)
        (sharding,) = metadata["codecs"]
        inner = _shape(sharding["configuration"]["chunk_shape"], 4)
        dtype = np.dtype(metadata["data_type"])
        codec: Codec = attributes["codec"]
        names = [c["name"] for c in sharding["configuration"]["codecs"]]
        if origin is None or {k: attributes.get(k) for k in asdict(key)} != asdict(key):
            raise ValueError("its attributes are those of another array")
        if grid["name"] != "regular" or sharding["name"] != "sharding_indexed":
            raise ValueError("it is not sharded")
        if metadata.get("storage_transformers"):
            raise ValueError("it has storage transformers")
        if names != ["bytes", *{"none": [], "zstd": ["zstd"], "lz4": ["blosc"]}[codec], "crc32c"]:
            raise ValueError(f"its codecs are {names}")
        if dtype.name != origin.dtype:
            raise ValueError(f"its values are {dtype}")
        if shape[0] != images:
            raise ValueError(f"it has {shape[0]} images, the store {images}")
        if inner != (1, *shape[1:]) or shards[1:] != shape[1:] or shards[0] > shape[0]:
            raise ValueError("its chunks are not one image each")
        if math.prod(shape[1:]) * dtype.itemsize > LARGEST_IMAGE:
            raise ValueError("its images are larger than any feature")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TedmError(f"{where}: is not an array of this feature store ({error})") from None
    return ArrayInfo(key, (shape[0], shape[1], shape[2], shape[3]), shards[0], codec, origin)


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
                    keys.append(Key.parse(text))
    return sorted(key for key in keys if (location.metadata(str(key)) or {}).get("node_type") == "array")


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
