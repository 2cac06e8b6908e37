"""Layout of a feature store: where each array lies, what its attributes say, how it is opened."""

import contextlib
import hashlib
import json
import math
import random
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import tedm
from tedm import files
from tedm.config import AugmentationConfig, Augmenting
from tedm.data.splits import first_subjects
from tedm.digests import digest_of
from tedm.errors import TedmError
from tedm.features import shards
from tedm.features.place import ChangedError, Document, Source
from tedm.features.places import place_of
from tedm.features.shards import Codec, DamageError

FORMAT = "tedm features"
FORMAT_VERSION = 1
DIGEST_LENGTH = 32  # hexadecimal digits kept of a shard's SHA-256
READ_AT_ONCE = 1 << 26  # bytes

# Also where the manifest still exists, so that Snakemake would not extract by itself.
EXTRACT_AGAIN = (
    "snakemake --cores all --forcerun extract_features  (with the same --configfile, if there is one)"
)

EXTRACT_VIEWS_AGAIN = EXTRACT_AGAIN.replace("extract_features", "extract_views")

ATTEMPTS = 40  # to change a record that others change, too

Digests = dict[str, list[str | None]]  # of the shards of each array; None: not finished

LARGEST_METADATA = 1 << 28  # bytes of a zarr.json that we are ready to parse
LARGEST_IMAGE = 1 << 31  # bytes of one image's layer that we are ready to allocate
VIEW = re.compile(r"view(?P<view>[1-9]\d{0,5})-(?P<recipe>[0-9a-f]{8})")
OLD_DRAW = re.compile(r"t\d{4,9}/draw\d+/\w+")  # further noise of all images, before there were views
KEY = re.compile(rf"t(?P<timestep>\d{{4,9}})(/{VIEW.pattern})?(/(?P<layer>[A-Za-z]\w{{0,63}}))?")


@dataclass(frozen=True, order=True)
class Key:
    """Which array: its timestep, view and layer. Text: t0050/up2, or t0050/view1-3fa9c2d0/up2.

    Attributes:
        timestep: of the noise.
        view: 0: the images as they are; 1, 2, …: augmented views.
        recipe: of the views, `Recipe.digest`; "" for view 0.
        layer: of the backbone.
    """

    timestep: int
    view: int
    recipe: str
    layer: str

    @property
    def groups(self) -> list[str]:
        """Paths of the groups that the array is in, below the root."""
        timestep = f"t{self.timestep:04d}"
        return [timestep, f"{timestep}/view{self.view}-{self.recipe}"] if self.view else [timestep]

    def __str__(self) -> str:
        return f"{self.groups[-1]}/{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "Key":
        """The key that `text` spells, or a TedmError."""
        match = KEY.fullmatch(text)
        if match is not None and match["layer"] is not None:
            key = cls(
                int(match["timestep"]), int(match["view"] or 0), match["recipe"] or "", match["layer"]
            )
            if str(key) == text:
                return key
        raise TedmError(f"{text!r} is not an array of a feature store; they look like t0050/up2")


@dataclass(frozen=True)
class Recipe:
    """How views of training images are made; view 1, 2, … of an image differ in what is drawn.

    Its digest is part of a view's key: views of other ranges never collide.

    Attributes:
        augmentation: ranges of the changes, as in the configuration; "study": the authors'.
        subjects: the first so many of the split train have views.
    """

    augmentation: Augmenting
    subjects: int

    @property
    def stated(self) -> dict[str, Any]:
        """As JSON."""
        ranges = self.augmentation
        return {
            "augmentation": ranges if isinstance(ranges, str) else ranges.model_dump(),
            "subjects": self.subjects,
        }

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits."""
        return digest_of(self.stated)[:8]

    @classmethod
    def of(cls, stated: Any) -> "Recipe":
        """The recipe that JSON states; ValueError, TypeError or KeyError where it states none."""
        ranges = stated["augmentation"]
        if ranges != "study":
            ranges = AugmentationConfig.model_validate(ranges)
        return cls(ranges, int(stated["subjects"]))


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

    Args:
        store: path of a directory, or s3://bucket/prefix.
    """

    def __init__(self, store: Path | str) -> None:
        self.place = place_of(store)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def directory(self) -> Path | None:
        """The directory that the store is; None in object storage."""
        return self.place.directory

    def exists(self) -> bool:
        """Whether anything is there."""
        return self.place.exists()

    def metadata(self, node: str = "") -> dict[str, Any] | None:
        """The zarr.json of a node; None where there is none. Reads nothing huge."""
        document = self.document(node)
        return None if document is None else self.parsed(node, document)

    def document(self, node: str = "") -> Document | None:
        """The zarr.json of a node as it is; None where there is none."""
        return self.place.get(f"{node}/zarr.json" if node else "zarr.json", LARGEST_METADATA)

    def parsed(self, node: str, document: Document) -> dict[str, Any]:
        """What the zarr.json of a node says, or a TedmError."""
        file = f"{self}/{node}/zarr.json" if node else f"{self}/zarr.json"
        try:
            values = json.loads(document.content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise TedmError(
                f"{file}: not valid JSON ({error}).\n  Mend it:  {repair_command(self)}"
            ) from None
        if not isinstance(values, dict) or not isinstance(values.get("attributes", {}), dict):
            raise TedmError(f"{file}: is not the metadata of a Zarr node")
        return values

    def attributes(self, node: str = "") -> dict[str, Any] | None:
        """The attributes of a node; None where there is no node."""
        metadata = self.metadata(node)
        return None if metadata is None else metadata.get("attributes", {})

    def write_metadata(self, node: str, metadata: Mapping[str, Any]) -> None:
        """Write the zarr.json of a node."""
        self.place.put(f"{node}/zarr.json" if node else "zarr.json", [_as_json(metadata)])

    def children(self, node: str = "") -> list[str]:
        """Names of what is below a node, sorted."""
        return self.place.children(node)

    def has(self, file: str) -> bool:
        """Whether a file is there and not empty."""
        return self.place.size(file) > 0

    def sizes(self, node: str) -> dict[str, int]:
        """Bytes of every file below a node, by its path below the node."""
        return self.place.sizes(node)

    def made(self, node: str) -> tuple[str, datetime] | None:
        """Whose the newest file below a node is ("": not told), and since when; None: there is no file."""
        return self.place.made(node)

    def remove(self, node: str) -> None:
        """Delete a node and all below it, its metadata first: half of it is then nothing."""
        self.place.remove(node)

    def clear_litter(self, file: str) -> None:
        """Delete what killed writers of a file left half-written."""
        self.place.clear_litter(file)


def _as_json(metadata: Mapping[str, Any]) -> bytes:
    return (json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


@contextlib.contextmanager
def _opened(location: Location, file: str) -> Iterator[Source]:
    """A shard, open for reading; a DamageError where it is gone."""
    try:
        with location.place.open(file) as source:
            yield source
    except FileNotFoundError:
        raise DamageError("the file is gone") from None


def write_shard(location: Location, info: "ArrayInfo", shard: int, values: npt.NDArray[Any]) -> None:
    """Write a shard of an array, whole or not at all; values as `shards.content` wants them."""
    content = shards.content(values, info.images_per_shard, info.codec)
    location.place.put(f"{info.key}/{shard_name(shard)}", content)


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
        places = position[start:stop].tolist()
        with _opened(location, f"{info.key}/{shard_name(int(shard[start]))}") as source:
            shards.read(source, places, out[start:stop], info.images_per_shard, info.codec)


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


def shard_flaw(location: Location, info: "ArrayInfo", shard: int, size: int | None) -> str | None:
    """What is wrong with a shard's file, as far as its size and its index tell; None where nothing is.

    Args:
        location: the store.
        info: the array.
        shard: number of the shard.
        size: bytes of its file; None: there is none.
    """
    file = f"{info.key}/{shard_name(shard)}"
    if not size:
        return f"the file {file} is gone or empty"
    try:
        with _opened(location, file) as source:
            whole = size == shards.length(source, info.images_per_shard)
    except DamageError:
        whole = False
    return None if whole else f"the file {file} is cut off or altered"


def digest_values(values: npt.NDArray[Any]) -> str:
    """Digest of a shard's values, whatever codec they are stored with."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:DIGEST_LENGTH]


def repair_command(location: Location) -> str:
    """The command that mends a store, with the backbone and data set of the usual layout filled in."""
    backbone, data = "DIRECTORY", "FILE"
    store = location.directory
    if store is not None and store.parent.parent.name == "features":
        results = store.parent.parent.parent
        usual = results / "backbones" / store.parent.name, results / "data" / f"{store.stem}.h5"
        backbone, data = (
            shlex.quote(str(path)) if path.exists() else placeholder
            for path, placeholder in zip(usual, (backbone, data), strict=True)
        )
    return f"tedm store repair {shlex.quote(str(location))} --backbone {backbone} --data {data}"


# ── locks ───────────────────────────────────────────────────────────────────────────────────────


def lock_block(
    location: Location, timestep: int, block: tuple[int, int]
) -> contextlib.AbstractContextManager[None]:
    """Be the only process that extracts this block of a timestep; waits for another one to end.

    Object storage has no locks: there, processes at the same block do the same work twice.
    """
    k, n = block
    return location.place.alone(f"t{timestep:04d}.{k}of{n}", f"the features of t{timestep:04d}")


def lock_record(location: Location, timestep: int) -> contextlib.AbstractContextManager[None]:
    """Hold a timestep's record of shards, for a moment; in object storage, `Record` itself watches."""
    return location.place.alone(f"t{timestep:04d}", f"the record of t{timestep:04d}")


def lock_store(location: Location) -> contextlib.AbstractContextManager[None]:
    """Hold the root of a store, for a moment."""
    return location.place.alone("", "this feature store")


def refuse_while_extracted(location: Location, timestep: int, besides: int = 0) -> None:
    """Raise a TedmError if a process here extracts this timestep, other than in `besides` blocks."""
    location.place.refuse_others(f"t{timestep:04d}", f"of{besides}")


# ── writing metadata ────────────────────────────────────────────────────────────────────────────


def write_root(location: Location, attributes: Mapping[str, Any]) -> None:
    """Make the root group, or give the one that is there these attributes. The caller holds its lock."""
    stated = {"format": FORMAT, "format_version": FORMAT_VERSION, "tedm_version": tedm.__version__}
    write_group(location, "", {**stated, **attributes})


def write_group(location: Location, path: str, attributes: Mapping[str, Any]) -> None:
    """Make a group, or replace its attributes, in one rename."""
    metadata = _group(attributes)
    if location.metadata(path) != metadata:
        location.write_metadata(path, metadata)


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def create_array(location: Location, info: "ArrayInfo") -> None:
    """Make an array without shards: one image per chunk, checksummed, grouped into shards."""
    for group in info.key.groups:
        if location.metadata(group) is None:
            write_group(location, group, {})
    location.write_metadata(str(info.key), array_metadata(info))


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
        "attributes": {
            **_stated_key(info),
            **asdict(info.origin),
            "codec": info.codec,
            "units": "1",
        },
    }


def _stated_key(info: "ArrayInfo") -> dict[str, Any]:
    key = info.key
    if info.recipe is None:
        # `draw` is what view 0 was called before there were views: stores of then and now are the same.
        return {"timestep": key.timestep, "draw": 0, "layer": key.layer}
    view = {"view": key.view, "recipe": key.recipe, **info.recipe.stated}
    return {"timestep": key.timestep, **view, "layer": key.layer}


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
    recipe: Recipe | None = None  # of a view

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
    subjects: tuple[str, ...]
    splits: tuple[str, ...]
    image_shape: tuple[int, int, int]
    layers: dict[str, tuple[int, int, int]]
    attributes: dict[str, Any]

    def images(self, recipe: Recipe | None) -> Sequence[int]:
        """Rows of the images that an array has: all, or those with views."""
        if recipe is None:
            return range(len(self.ids))
        return first_subjects(self.splits, self.subjects, recipe.subjects)


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
        subjects, splits = attributes.get("subjects", ids), attributes.get("splits", [""] * len(ids))
        if not len(subjects) == len(splits) == len(ids):
            raise ValueError("subjects, splits")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TedmError(f"{location}: the attributes of the store are broken ({error!r})") from None
    return RootInfo(origin, tuple(ids), tuple(subjects), tuple(splits), image_shape, layers, attributes)


def read_array_info(
    location: Location, key: Key, images: int | Callable[[Recipe | None], Sequence[int]]
) -> ArrayInfo | None:
    """Read and check an array's metadata; None where there is no such array.

    Args:
        location: the store.
        key: of the array.
        images: that it must have; or which those are, by the recipe that it states, as `RootInfo.images`.

    Raises:
        TedmError: it is not an array as this project writes them, or has other images.
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
        recipe = Recipe.of(metadata["attributes"]) if key.view else None
        if recipe is not None and recipe.digest != key.recipe:
            raise ValueError(f"its views are of recipe {recipe.digest}")
        count = images if isinstance(images, int) else len(images(recipe))
        if shape[0] != count or shard[0] > count:
            raise ValueError(f"it has {shape[0]} images in shards of {shard[0]}, expected {count}")
        codec = metadata["attributes"]["codec"]
        info = ArrayInfo(key, (shape[0], shape[1], shape[2], shape[3]), shard[0], codec, origin, recipe)
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
    """All arrays that are there, by timestep, view and layer; what is not called like one is left out."""
    keys = []
    for group in location.children():
        for child in location.children(group) if KEY.fullmatch(group) else []:
            inner = location.children(f"{group}/{child}") if VIEW.fullmatch(child) else [""]
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
        self._read: Digests | None = None

    def read(self) -> Digests:
        """Digests by array key and shard; None where a shard is not finished."""
        attributes = self.location.attributes(self.path) or {}
        self._read = self._digests(attributes)
        return self._digests(attributes)

    def write(
        self, digests: Mapping[str, list[str | None]], settings: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the record. The caller holds the timestep's lock.

        Args:
            digests: as `read` gives them.
            settings: with which the timestep is extracted, for a repair; None: as they were.

        Raises:
            TedmError: another process changed what `read` gave; only where there are no locks.
        """
        seen, self._read = self._read, None

        def replaced(now: Digests) -> Mapping[str, list[str | None]]:
            if seen is not None and now != seen:
                raise TedmError(
                    f"{self.location}/{self.path}: another process changes it; run this again when it has"
                    " ended"
                )
            return digests

        self.update(replaced, settings)

    def update(
        self,
        change: Callable[[Digests], Mapping[str, list[str | None]]],
        settings: Mapping[str, Any] | None = None,
    ) -> Mapping[str, list[str | None]]:
        """Change the record; the caller holds the timestep's lock, if the place has any.

        Args:
            change: what the record says → what it is to say; called again, with what it says then, where
                another process was faster.
            settings: as in `write`.

        Returns:
            What it says now.
        """
        for attempt in range(ATTEMPTS):
            document = self.location.document(self.path)
            before: dict[str, Any] = {}
            if document is not None:
                before = self.location.parsed(self.path, document).get("attributes", {})
            digests = change(self._digests(before))
            attributes = {
                "timestep": self.timestep,
                "complete": all(digest is not None for shards in digests.values() for digest in shards),
                "settings": before.get("settings", {}) if settings is None else dict(settings),
                "shards": dict(digests),
            }
            if before == attributes:
                return digests
            try:
                content = _as_json(_group(attributes))
                self.location.place.swap(f"{self.path}/zarr.json", document, content)
            except ChangedError:
                # Longer and longer, and not all at the same moment.
                time.sleep(random.uniform(0, min(1.0, 0.02 * 2**attempt)))  # noqa: S311
            else:
                return digests
        raise TedmError(
            f"{self.location}/{self.path}: could not be written, as other processes changed it {ATTEMPTS}"
            " times; run the same command again"
        )

    def _digests(self, attributes: Mapping[str, Any]) -> Digests:
        digests = attributes.get("shards", {})
        if isinstance(digests, dict):
            digests = {key: shards for key, shards in digests.items() if not OLD_DRAW.fullmatch(str(key))}
        if not isinstance(digests, dict) or not all(
            KEY.fullmatch(str(k))
            and isinstance(v, list)
            and all(d is None or isinstance(d, str) for d in v)
            for k, v in digests.items()
        ):
            raise TedmError(f"{self.location}/{self.path}: its record of finished shards is broken")
        return {key: list(shards) for key, shards in digests.items()}


# ── where a store is ────────────────────────────────────────────────────────────────────────────


def store_of(manifest: Path) -> str:
    """Path or URL of the store that a manifest tells of."""
    values = files.read_json(manifest)
    stated = values.get("store") if isinstance(values, dict) else None
    if stated is None:  # as tedm 0.1 wrote them
        stated = f"{re.sub(r'[.]t[0-9]{4,}[.]json$', '', manifest.name)}.zarr"
    if not isinstance(stated, str) or not stated:
        raise TedmError(f"{manifest}: does not say where its feature store is.\n  {EXTRACT_AGAIN}")
    return stated if "://" in stated else str(manifest.parent / stated)


def located(store: Path | str) -> Location:
    """The store at a path or URL; where manifests of the workflow lie beside that path, the one they name.

    So `results/features/ddpm/jsrt.zarr` is that store's name also where the experiment keeps it elsewhere.
    """
    path = Path(store)
    manifests = path.parent.glob(f"{path.stem}.t*.json") if "://" not in str(store) else ()
    newest = max(manifests, key=lambda manifest: manifest.stat().st_mtime, default=None)
    return Location(store if newest is None else store_of(newest))


def stated_in(manifest: Path, location: Location) -> str:
    """What a manifest says of its store's place: relative where it lies beside, so that both can move."""
    store = location.directory
    if store is None:
        return str(location)
    here, there = manifest.parent.resolve(), store.resolve()
    return there.relative_to(here).as_posix() if there.is_relative_to(here) else str(there)


def shared_name(origin: Origin, codec: Codec, images_per_shard: int, backbone: str, dataset: str) -> str:
    """Name of a store among those of other experiments and users: what differs at all differs in it."""
    made_of = {**asdict(origin), "codec": codec, "images_per_shard": images_per_shard}
    return f"{backbone}-{origin.backbone_digest[:12]}/{dataset}-{digest_of(made_of)[:12]}.zarr"
