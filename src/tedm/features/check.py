"""Care of feature stores: what is there, whether it is sound, mending it, removing what nobody reads."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tedm.config import Experiment, FeaturesConfig
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.shards import DamageError
from tedm.features.store import ArrayInfo, Key, Location, Record, RootInfo

if TYPE_CHECKING:
    from tedm.backbones import Backbone

State = Literal["complete", "unfinished", "stale", "foreign"]


@dataclass(frozen=True)
class ArrayStatus:
    """One array of a store."""

    key: str  # t0050/up2
    state: State
    # unfinished: shards are missing; stale: of another backbone, data or settings; foreign: not ours
    shape: tuple[int, ...]  # N, C, h, w
    dtype: str
    codec: str
    shards: int
    shards_done: int
    bytes: int  # on the disk
    ratio: float  # of these to the features at image size in float32
    note: str  # why it is stale or foreign


@dataclass(frozen=True)
class StoreInfo:
    """A whole store."""

    path: str
    dataset: str
    synthetic: bool
    images: int
    image_shape: tuple[int, int, int]
    timesteps: list[int]
    layers: dict[str, tuple[int, int, int]]
    bytes: int  # on the disk
    origin: dict[str, Any]  # backbone, data, noise seed, settings
    attributes: dict[str, Any]  # all that the root says


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not as it should be."""

    key: str  # of an array, or of a timestep
    kind: Literal["missing", "damaged", "unfinished", "stale", "foreign", "litter"]
    shard: int | None
    ids: tuple[str, ...]  # images that cannot be read
    note: str


@dataclass(frozen=True)
class Removal:
    """An array that is removed, or would be."""

    key: str
    bytes: int  # on the disk


# ── looking ─────────────────────────────────────────────────────────────────────────────────────


def ls(store: Path | str) -> list[ArrayStatus]:
    """The arrays of a store, with their sizes and states; reads metadata only."""
    location = Location(store)
    root = layout.read_root(location)
    return [_status(location, root, key) for key in layout.list_keys(location)]


def info(store: Path | str) -> StoreInfo:
    """What a store says of itself, and its size."""
    location = Location(store)
    root = layout.read_root(location)
    keys = layout.list_keys(location)
    return StoreInfo(
        path=str(location),
        dataset=str(root.attributes.get("dataset", "")),
        synthetic=bool(root.attributes.get("synthetic", False)),
        images=len(root.ids),
        image_shape=root.image_shape,
        timesteps=sorted({key.timestep for key in keys}),
        layers=root.layers,
        bytes=sum(location.sizes("").values()),
        origin=asdict(root.origin),
        attributes=root.attributes,
    )


def _status(location: Location, root: RootInfo, key: Key) -> ArrayStatus:
    size = sum(location.sizes(str(key)).values())
    array, state, note = _judged(location, root, key)
    if array is None:
        return ArrayStatus(str(key), state, (), "", "", 0, 0, size, 0.0, note)
    digests = _recorded(location, array)
    done = sum(digest is not None for digest in digests)
    if state == "complete" and done < array.shards:
        state, note = "unfinished", f"{done} of {array.shards} shards are there"
    n, channels = array.shape[:2]
    upsampled = 4 * n * channels * root.image_shape[1] * root.image_shape[2]
    return ArrayStatus(
        str(key),
        state,
        array.shape,
        array.origin.dtype,
        array.codec,
        array.shards,
        done,
        size,
        size / upsampled,
        note,
    )


def _judged(location: Location, root: RootInfo, key: Key) -> tuple[ArrayInfo | None, State, str]:
    """An array's metadata, and what to think of it; "complete" says nothing of its shards yet."""
    try:
        array = layout.read_array_info(location, key, len(root.ids))
    except TedmError as error:
        return None, "foreign", str(error)
    if array is None:
        return None, "foreign", "it has no metadata"
    if array.origin != root.origin:
        return array, "stale", "; ".join(array.origin.differences(root.origin))
    if root.layers.get(key.layer) != array.shape[1:]:
        return None, "foreign", f"its shape {array.shape[1:]} is not that of the backbone's {key.layer}"
    return array, "complete", ""


def _recorded(location: Location, array: ArrayInfo) -> list[str | None]:
    """Digest of each shard; None where the record has none."""
    try:
        digests = Record(location, array.key.timestep).read().get(str(array.key), [])
    except TedmError:
        digests = []
    return digests if len(digests) == array.shards else [None] * array.shards


# ── verifying ───────────────────────────────────────────────────────────────────────────────────


def verify(
    store: Path | str,
    keys: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Read everything that a store keeps and compare it with what was written; [] where all is sound.

    Each image's checksum finds damage of the disk; the digest that was recorded when a shard was written
    finds values that are readable but belong somewhere else.

    Args:
        store: its path.
        keys: only these arrays; None: all.
        progress: called with shards read so far and shards to read.
    """
    location = Location(store)
    root = layout.read_root(location)
    present = layout.list_keys(location)
    wanted = present if keys is None else [Key.parse(key) for key in keys]
    problems = list(_absent(location, root, wanted, present, everything=keys is None))
    arrays = []
    for key in wanted:
        if key in present:
            array, state, note = _judged(location, root, key)
            if array is None or state != "complete":
                kind: Literal["stale", "foreign"] = "stale" if state == "stale" else "foreign"
                problems.append(Problem(str(key), kind, None, (), note))
            else:
                arrays.append(array)
    total = sum(array.shards for array in arrays)
    done = 0
    for array in arrays:
        problems += _litter(location, array)
        for shard, recorded in enumerate(_recorded(location, array)):
            problem = _shard_problem(location, root, array, shard, recorded)
            if problem is not None:
                problems.append(problem)
            done += 1
            if progress is not None:
                progress(done, total)
    return problems


def _absent(
    location: Location, root: RootInfo, wanted: Sequence[Key], present: Sequence[Key], *, everything: bool
) -> Iterator[Problem]:
    """Arrays that are asked for or recorded, and not there; timesteps whose record is broken."""
    names = {str(key) for key in present}
    claimed = {} if everything else {str(key): "no such array" for key in wanted}
    for timestep in layout.list_timesteps(location) if everything else []:
        try:
            record = Record(location, timestep).read()
            claimed |= dict.fromkeys(record, "the record of finished shards has it, but it is gone")
        except TedmError as error:
            yield Problem(f"t{timestep:04d}", "damaged", None, (), str(error))
    for key, note in claimed.items():
        if key not in names:
            yield Problem(key, "missing", None, root.ids, note)


def _litter(location: Location, array: ArrayInfo) -> Iterator[Problem]:
    """Files below an array that are no part of it."""
    own = {"zarr.json", *(layout.shard_name(shard) for shard in range(array.shards))}
    for name in sorted(set(location.sizes(str(array.key))) - own):
        yield Problem(str(array.key), "litter", None, (), f"{name} is no part of the array")


def _shard_problem(
    location: Location, root: RootInfo, array: ArrayInfo, shard: int, recorded: str | None
) -> Problem | None:
    key, rows = str(array.key), array.rows(shard)
    there = location.has(f"{key}/{layout.shard_name(shard)}")
    if recorded is None:
        note = f"shard {shard} of {array.shards} is not finished"
        return Problem(key, "unfinished", shard, root.ids[rows.start : rows.stop], note)
    if not there:
        note = f"the file {key}/{layout.shard_name(shard)} is gone or empty"
        return Problem(key, "missing", shard, root.ids[rows.start : rows.stop], note)
    digest = layout.digest_shard(location, array, shard)
    if digest is None:
        bad = tuple(root.ids[row] for row in rows if not _readable(location, array, row))
        return Problem(key, "damaged", shard, bad, f"{len(bad)} of {len(rows)} images cannot be read")
    if digest != recorded:
        note = "it can be read, but its values are not those that were written"
        return Problem(key, "foreign", shard, root.ids[rows.start : rows.stop], note)
    return None


def _readable(location: Location, array: ArrayInfo, row: int) -> bool:
    out = np.empty((1, *array.shape[1:]), array.origin.dtype)
    try:
        layout.read_rows(location, array, np.array([row]), out)
    except DamageError:
        return False
    return True


# ── mending ─────────────────────────────────────────────────────────────────────────────────────


def repair(
    store: Path | str,
    backbone: "Backbone",
    data: Path,
    *,
    devices: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Compute again what `verify` finds wrong, and nothing else.

    Arrays keep their layers, draws, codec and shards. Manifests beside the store are written again.

    Args:
        store: its path.
        backbone: that made the store.
        data: prepared data set that it was made from.
        devices: as in `extract`.
        progress: as in `verify`.

    Returns:
        What was wrong.

    Raises:
        TedmError: the store is of another backbone or data set.
    """
    from tedm.features.extract import extract

    location = Location(store)
    root = layout.read_root(location)
    if root.origin.backbone_digest != backbone.digest:
        raise TedmError(
            f"{location}: was made by backbone {root.origin.backbone_digest[:12]}…, this one is"
            f" {backbone.digest[:12]}…; extract the features again instead"
        )
    with PreparedSet(data) as prepared:
        if root.origin.data_digest != prepared.digest:
            raise TedmError(
                f"{location}: was made from data set {root.origin.data_digest[:12]}…, but {data} is"
                f" {prepared.digest[:12]}… ({prepared.label}); nothing was changed"
            )
    problems = verify(store, progress=progress)
    for timestep in sorted({int(problem.key[1:].split("/")[0]) for problem in problems}):
        mine = [p for p in problems if p.key.split("/")[0] == f"t{timestep:04d}"]
        settings = _settings(location, root, timestep, mine)
        _disown(location, timestep, mine)
        extract(
            backbone,
            data,
            store,
            manifest_of(location, timestep),
            timestep,
            settings,
            root.origin.noise_seed,
            devices=devices,
        )
    return problems


def manifest_of(location: Location, timestep: int) -> Path:
    """The manifest that the workflow keeps of a timestep: {dataset}.t0050.json beside {dataset}.zarr."""
    return location.path.with_name(f"{location.path.stem}.t{timestep:04d}.json")


def _settings(
    location: Location, root: RootInfo, timestep: int, problems: Sequence[Problem]
) -> FeaturesConfig:
    """Settings with which a timestep was extracted, from what is still sound, in it or beside it."""
    settings: dict[str, Any] = {}
    for t in sorted(layout.list_timesteps(location), key=lambda t: t == timestep):
        attributes = location.attributes(f"t{t:04d}") or {}
        stated = attributes.get("settings")
        settings |= stated if isinstance(stated, dict) else {}
    wrong = {problem.key for problem in problems}
    keys = [key for key in layout.list_keys(location) if key.timestep == timestep]
    for key in sorted(keys, key=lambda key: str(key) not in wrong):
        array, state, _ = _judged(location, root, key)
        if array is not None and state == "complete":
            settings |= {"images_per_shard": array.images_per_shard, "codec": array.codec}
    keys += [Key.parse(key) for key in wrong if "/" in key]
    layers = {key.layer for key in keys}
    stated = {k: v for k, v in asdict(root.origin).items() if k in FeaturesConfig.model_fields}
    try:
        return FeaturesConfig.model_validate(
            {
                **settings,
                **stated,
                "layers": [layer for layer in root.layers if layer in layers] or None,
                "draws": 1 + max((key.draw for key in keys), default=0),
            }
        )
    except ValueError as error:
        raise TedmError(f"{location}/t{timestep:04d}: its attributes are broken ({error})") from None


def _disown(location: Location, timestep: int, problems: Sequence[Problem]) -> None:
    """Strike bad shards from the record and delete them, so that extraction makes them anew."""
    record = Record(location, timestep)
    with _alone_at(location, timestep):
        try:
            digests = record.read()
        except TedmError:
            digests = {}
        for problem in problems:
            if problem.kind == "litter":
                location.remove(f"{problem.key}/{problem.note.split(' is no part')[0]}")
            elif problem.shard is not None and problem.key in digests:
                digests[problem.key][problem.shard] = None
            elif problem.shard is None:
                digests.pop(problem.key, None)
        record.write(digests)


# ── removing ────────────────────────────────────────────────────────────────────────────────────


def prune(
    store: Path | str, experiment: Experiment, backbone: str, *, dry_run: bool = True
) -> list[Removal]:
    """Remove arrays that no head of an experiment reads.

    Args:
        store: its path.
        experiment: whose heads say what is read.
        backbone: name of the backbone, in the experiment, that the store is of.
        dry_run: only say what would be removed.

    Returns:
        What is, or would be, removed.
    """
    location = Location(store)
    root = layout.read_root(location)
    read = keys_read(experiment, backbone, root.layers)
    doomed = [key for key in layout.list_keys(location) if str(key) not in read]
    return _remove(location, doomed, dry_run=dry_run)


def keys_read(experiment: Experiment, backbone: str, layers: Collection[str]) -> set[str]:
    """Paths of the arrays that the heads of an experiment read from one backbone's stores."""
    if backbone not in experiment.backbones:
        raise TedmError(f"no backbone {backbone} (backbones: {', '.join(experiment.backbones)})")
    kept = experiment.features.layers or layers
    return {
        str(Key(timestep, 0, layer))
        for name, head in experiment.heads.items()
        if experiment.backbone_of(name) == backbone
        for timestep in head.timesteps
        for layer in head.layers or kept
    }


def rm(store: Path | str, key: str, *, dry_run: bool = False) -> list[Removal]:
    """Remove one array (t0050/up2), one draw (t0050/draw1) or one timestep (t0050) of a store."""
    location = Location(store)
    layout.read_root(location)
    match = layout.KEY.fullmatch(key)
    if match is None:
        raise TedmError(f"{key!r} is not in a feature store; expected something like t0050 or t0050/up2")
    keys = layout.list_keys(location)
    doomed = [k for k in keys if str(k) == key or str(k).startswith(f"{key}/")]
    if not doomed:
        raise TedmError(f"{location}: has no {key} (it has {', '.join(map(str, keys)) or 'nothing'})")
    return _remove(location, doomed, dry_run=dry_run)


def _remove(location: Location, keys: Sequence[Key], *, dry_run: bool) -> list[Removal]:
    removals = [Removal(str(key), sum(location.sizes(str(key)).values())) for key in keys]
    if dry_run:
        return removals
    for timestep in sorted({key.timestep for key in keys}):
        record = Record(location, timestep)
        with _alone_at(location, timestep):
            digests = record.read()
            mine = [key for key in keys if key.timestep == timestep]
            record.write({k: v for k, v in digests.items() if k not in {str(key) for key in mine}})
            for key in mine:
                location.remove(str(key))
            if not any(key.timestep == timestep for key in layout.list_keys(location)):
                location.remove(record.path)
                # Otherwise the workflow would think that the timestep is there.
                manifest_of(location, timestep).unlink(missing_ok=True)
    return removals


@contextmanager
def _alone_at(location: Location, timestep: int) -> Iterator[None]:
    """Change a timestep while nobody extracts it."""
    with layout.lock_record(location, timestep):
        layout.refuse_while_extracted(location, timestep)
        yield
