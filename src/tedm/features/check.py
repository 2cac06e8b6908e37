"""Care of feature stores: what is there, whether it is sound, mending it, removing what nobody reads."""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tedm import files
from tedm.config import Experiment, FeaturesConfig
from tedm.data.prepared import PreparedSet
from tedm.digests import digest_of
from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.adopt import recipe_of
from tedm.features.job import Views
from tedm.features.shards import DamageError
from tedm.features.store import ArrayInfo, Key, Location, Origin, Recipe, Record, RootInfo

if TYPE_CHECKING:
    from tedm.backbones import Backbone

State = Literal["complete", "unfinished", "damaged", "stale", "foreign"]
ROOT = "/"  # key of a problem of the store as a whole
PARTIAL = re.compile(r"(.*/)?\.[^/]+\.partial")  # what a killed writer leaves
FACTS = (
    "dataset",
    "synthetic",
    "ids",
    "subjects",
    "splits",
    "image_shape",
    "layers",
    "diffusion_timesteps",
)


# missing, unfinished: not there; damaged: unreadable; stale: of another backbone, data or settings;
# foreign: in the place of one of ours; unknown: beside ours; litter: of killed writers
Kind = Literal["missing", "damaged", "unfinished", "stale", "foreign", "unknown", "litter"]


@dataclass(frozen=True)
class ArrayStatus:
    """One array of a store."""

    key: str  # t0050/up2
    state: State
    # unfinished: shards are yet to come; damaged: shards are gone or cut off; stale: of another backbone,
    # data or settings; foreign: not ours
    shape: tuple[int, ...]  # N, C, h, w
    dtype: str
    codec: str
    shards: int
    shards_done: int
    bytes: int  # on the disk
    ratio: float  # of these to the features at image size in float32
    made_by: str  # owner of the newest file; "" where the place knows none
    made_at: datetime | None  # when that was written
    note: str  # why it is not complete


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

    key: str  # of an array, a timestep or a view; / is the store as a whole
    kind: Kind
    shard: int | None
    ids: tuple[str, ...]  # images that cannot be read
    note: str
    file: str = ""  # litter: the file, below the store

    @property
    def mended(self) -> bool:
        """Whether `repair` mends it. It touches nothing that is not of this project."""
        return self.kind != "unknown"


@dataclass(frozen=True)
class Removal:
    """An array that is removed, or would be."""

    key: str
    bytes: int  # on the disk


# ── looking ─────────────────────────────────────────────────────────────────────────────────────


def ls(store: Path | str) -> list[ArrayStatus]:
    """The arrays of a store, with their sizes and states; reads metadata and the shards' indices only."""
    location = layout.located(store)
    root = layout.read_root(location)
    return [_status(location, root, key) for key in layout.list_keys(location)]


def info(store: Path | str) -> StoreInfo:
    """What a store says of itself, and its size."""
    location = layout.located(store)
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
    sizes = location.sizes(str(key))
    size = sum(sizes.values())
    made_by, made_at = location.made(str(key)) or ("", None)
    array, state, note = _judged(location, root, key)
    if array is None:
        return ArrayStatus(str(key), state, (), "", "", 0, 0, size, 0.0, made_by, made_at, note)
    vouched = [shard for shard, digest in enumerate(_recorded(location, array)) if digest is not None]
    found = (layout.shard_flaw(location, array, n, sizes.get(layout.shard_name(n))) for n in vouched)
    flaws = [flaw for flaw in found if flaw is not None]
    if state == "complete" and flaws:
        more = f" and {len(flaws) - 1} more" if len(flaws) > 1 else ""
        state, note = "damaged", f"{flaws[0]}{more}"
    elif state == "complete" and len(vouched) < array.shards:
        state, note = "unfinished", f"{len(vouched)} of {array.shards} shards are there"
    n, channels = array.shape[:2]
    upsampled = 4 * n * channels * root.image_shape[1] * root.image_shape[2]
    return ArrayStatus(
        str(key),
        state,
        array.shape,
        array.origin.dtype,
        array.codec,
        array.shards,
        len(vouched) - len(flaws),
        size,
        size / upsampled,
        made_by,
        made_at,
        note,
    )


def _judged(location: Location, root: RootInfo, key: Key) -> tuple[ArrayInfo | None, State, str]:
    """An array's metadata, and what to think of it; "complete" says nothing of its shards yet."""
    try:
        array = layout.read_array_info(location, key, root.images)
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
    location = layout.located(store)
    flaw = _root_flaw(location)
    if flaw is not None:
        # Without it nobody knows what the rest should be; `repair` mends it first, then looks on.
        found = [Problem(ROOT, "damaged", None, (), flaw), *_broken_groups(location)]
        return found + list(_broken_arrays(location)) + list(_litter(location, {}))
    root = layout.read_root(location)
    present = layout.list_keys(location)
    wanted = present if keys is None else [Key.parse(key) for key in keys]
    problems = list(_broken_groups(location)) if keys is None else []
    broken = {problem.key for problem in problems}
    problems += _absent(location, root, wanted, present, everything=keys is None)
    arrays = []
    for key in wanted:
        if key not in present:
            continue
        array, state, note = _judged(location, root, key)
        if key.layer not in root.layers:
            problems.append(Problem(str(key), "unknown", None, (), _leave(location, str(key))))
        elif array is None or state != "complete":
            kind: Kind = "stale" if state == "stale" else "foreign"
            problems.append(Problem(str(key), kind, None, (), note))
        elif key.groups[0] not in broken:  # else nothing says what it should be
            arrays.append(array)
    total = sum(array.shards for array in arrays)
    done = 0
    for array in arrays:
        for shard, recorded in enumerate(_recorded(location, array)):
            problem = _shard_problem(location, root, array, shard, recorded)
            if problem is not None:
                problems.append(problem)
            done += 1
            if progress is not None:
                progress(done, total)
    if keys is None:
        problems += _litter(location, {str(array.key): array for array in arrays})
    return sorted(problems, key=lambda problem: problem.key)


def _root_flaw(location: Location) -> str | None:
    """What is wrong with the root of a store that is ours otherwise; None where it is sound.

    Raises:
        TedmError: nothing here says that this is a feature store of this version.
    """
    try:
        layout.read_root(location)
    except TedmError as error:
        try:
            attributes = location.attributes() or {}
        except TedmError:
            attributes = {}
        newer = attributes.get("format_version", layout.FORMAT_VERSION) != layout.FORMAT_VERSION
        if newer or not location.children():
            raise
        if not _origins(location):
            if attributes or not layout.list_timesteps(location):
                raise
            raise TedmError(
                f"{location}: its root is broken, and nothing in it says what it was made from.\n"
                f"  Delete it and make it again:  {layout.EXTRACT_AGAIN}"
            ) from None
        return str(error).split("\n")[0] if location.has("zarr.json") else "its zarr.json is gone or empty"
    return None


def _origins(location: Location) -> list[Origin]:
    """What the arrays of a store, and the manifests beside it, say that they come from."""
    origins = []
    for key in layout.list_keys(location):
        try:
            shape = (location.metadata(str(key)) or {}).get("shape")
            array = layout.read_array_info(location, key, shape[0] if isinstance(shape, list) else 0)
        except (TedmError, IndexError):
            continue
        if array is not None and array.origin not in origins:
            origins.append(array.origin)
    for timestep in layout.list_timesteps(location):
        origin = Origin.of(_manifest(location, timestep))
        if origin is not None and origin not in origins:
            origins.append(origin)
    return origins


def _broken_arrays(location: Location) -> Iterator[Problem]:
    for key in layout.list_keys(location):
        try:
            location.metadata(str(key))
        except TedmError as error:
            yield Problem(str(key), "foreign", None, (), str(error).split("\n")[0])


def _broken_groups(location: Location) -> Iterator[Problem]:
    """Timesteps and views whose group, or record of finished shards, is not as we write them."""
    for timestep in layout.list_timesteps(location):
        name = f"t{timestep:04d}"
        views = [f"{name}/{child}" for child in location.children(name) if layout.VIEW.fullmatch(child)]
        for group in (name, *views):
            try:
                metadata = location.metadata(group)
                if metadata is not None and (
                    metadata.get("node_type") != "group" or (group != name and metadata.get("attributes"))
                ):
                    raise TedmError(f"{location}/{group}: its zarr.json is not that of a group of ours")
                if group == name:
                    Record(location, timestep).read()
            except TedmError as error:
                yield Problem(group, "damaged", None, (), str(error).split("\n")[0])


def _absent(
    location: Location, root: RootInfo, wanted: Sequence[Key], present: Sequence[Key], *, everything: bool
) -> Iterator[Problem]:
    """Arrays that are asked for or recorded, and not there; timesteps whose record is broken."""
    names = {str(key) for key in present}
    claimed = {} if everything else {str(key): "no such array" for key in wanted}
    for timestep in layout.list_timesteps(location) if everything else []:
        with contextlib.suppress(TedmError):  # a broken record is a problem of its own
            record = Record(location, timestep).read()
            claimed |= dict.fromkeys(record, "the record of finished shards has it, but it is gone")
    for key, note in claimed.items():
        if key not in names:
            yield Problem(key, "missing", None, () if layout.VIEW.search(key) else root.ids, note)


def _litter(location: Location, known: dict[str, ArrayInfo]) -> Iterator[Problem]:
    """Files that no array and no group of the store has, and what killed writers left."""
    arrays = {str(key) for key in layout.list_keys(location)}
    unknown = set()
    for file in sorted(location.sizes("")):
        folder, _, name = file.rpartition("/")
        if PARTIAL.fullmatch(file):
            note = f"{name} was left half-written by a process that was killed"
            yield Problem(folder or ROOT, "litter", None, (), note, file)
        elif folder in known and name != "zarr.json":
            if name not in map(layout.shard_name, range(known[folder].shards)):
                yield Problem(folder, "litter", None, (), f"{name} is no part of the array", file)
        elif name == "zarr.json" and folder and folder not in arrays and not layout.KEY.fullmatch(folder):
            unknown.add(folder)
    for folder in sorted(unknown):
        yield Problem(folder, "unknown", None, (), _leave(location, folder))


def _leave(location: Location, key: str) -> str:
    remove = f"`tedm store rm {location} {key} --yes` removes it" if layout.KEY.fullmatch(key) else ""
    return f"nothing that tedm made; it is left alone{'; ' * bool(remove)}{remove}"


def _shard_problem(
    location: Location, root: RootInfo, array: ArrayInfo, shard: int, recorded: str | None
) -> Problem | None:
    key, rows, images = str(array.key), array.rows(shard), root.images(array.recipe)
    ids = tuple(root.ids[images[row]] for row in rows)
    there = location.has(f"{key}/{layout.shard_name(shard)}")
    if recorded is None:
        note = f"shard {shard} of {array.shards} is not finished"
        return Problem(key, "unfinished", shard, ids, note)
    if not there:
        note = f"the file {key}/{layout.shard_name(shard)} is gone or empty"
        return Problem(key, "missing", shard, ids, note)
    digest = layout.digest_shard(location, array, shard)
    if digest is None:
        bad = tuple(ids[i] for i, row in enumerate(rows) if not _readable(location, array, row))
        return Problem(key, "damaged", shard, bad, f"{len(bad)} of {len(rows)} images cannot be read")
    if digest != recorded:
        note = "it can be read, but its values are not those that were written"
        return Problem(key, "foreign", shard, ids, note)
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

    Arrays keep their layers, views, codec and shards. Manifests beside the store are written again.

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

    location = layout.located(store)
    problems = _mend_root(location, backbone, data)
    root = layout.read_root(location)
    problems += verify(store, progress=progress)
    mine = [problem for problem in problems if problem.key != ROOT and problem.mended]
    for timestep in sorted({int(problem.key[1:].split("/")[0]) for problem in mine}):
        left = [problem for problem in mine if problem.key.split("/")[0] == f"t{timestep:04d}"]
        with _alone_at(location, timestep):
            left = _restate(location, root, timestep, left)
            parts = _parts(location, root, timestep, left)
            _disown(location, timestep, left, parts[0].settings)
        for part in parts:
            extract(
                backbone,
                data,
                str(location),
                part.manifest,
                timestep,
                part.settings,
                root.origin.noise_seed,
                views=part.views,
                devices=devices,
            )
    for problem in problems:
        if problem.key == ROOT and problem.kind == "litter":
            location.remove(problem.file)
    return problems


def _mend_root(location: Location, backbone: "Backbone", data: Path) -> list[Problem]:
    """Write a root anew that is broken, or that does not say what backbone and data say."""
    from tedm.features.extract import root_attributes, write_root

    flaw = _root_flaw(location)
    origins = _origins(location) if flaw is not None else [layout.read_root(location).origin]
    right = [origin for origin in origins if origin.backbone_digest == backbone.digest]
    if not right:
        raise TedmError(
            f"{location}: was made by backbone {origins[0].backbone_digest[:12]}…, this one is"
            f" {backbone.digest[:12]}…; extract the features again instead"
        )
    with PreparedSet(data) as prepared:
        others = [origin for origin in right if origin.data_digest != prepared.digest]
        right = [origin for origin in right if origin.data_digest == prepared.digest]
        if not right:
            raise TedmError(
                f"{location}: was made from data set {others[0].data_digest[:12]}…, but {data} is"
                f" {prepared.digest[:12]}… ({prepared.label}); nothing was changed"
            )
        if len(right) > 1:
            raise TedmError(
                f"{location}: its arrays were made with several settings"
                f" ({'; '.join(right[0].differences(right[1]))}), and its root no longer says which it"
                f" keeps; delete it, or the arrays of the wrong ones, and run\n  {layout.EXTRACT_AGAIN}"
            )
        kind: Kind = "damaged"
        if flaw is None:
            stated, facts = (
                layout.read_root(location).attributes,
                root_attributes(prepared, backbone, right[0]),
            )
            wrong = [name for name in FACTS if stated.get(name) != facts[name]]
            if not wrong:
                return []
            kind, flaw = "foreign", f"its {', '.join(wrong)} are not those of the backbone and the data set"
        else:
            location.remove("zarr.json")
        write_root(location, prepared, backbone, right[0])
    return [Problem(ROOT, kind, None, (), flaw)]


def manifest_of(location: Location, timestep: int) -> Path | None:
    """The manifest that the workflow keeps of a timestep: {dataset}.t0050.json beside {dataset}.zarr.

    None where no manifest lies beside it, as in object storage: nothing tells whose results have one.
    """
    store = location.directory
    if store is None or not any(store.parent.glob(f"{store.stem}.t*.json")):
        return None
    return store.with_name(f"{store.stem}.t{timestep:04d}.json")


def view_manifests(location: Location, timestep: int) -> list[Path]:
    """The manifests that the workflow keeps of a timestep's views: {dataset}.t0050.views8.json."""
    store = location.directory
    if store is None:
        return []
    name = re.compile(rf"{re.escape(store.stem)}\.t{timestep:04d}\.views[1-9]\d*\.json")
    return sorted(path for path in store.parent.glob("*.json") if name.fullmatch(path.name))


def _manifest(location: Location, timestep: int) -> dict[str, Any]:
    """What the manifests of a timestep say together; {} where there is none that can be read."""
    path = manifest_of(location, timestep)
    together: dict[str, Any] = {}
    for each in (*view_manifests(location, timestep), *([] if path is None else [path])):
        stated = _read_manifest(each)
        together |= stated | {"arrays": together.get("arrays", {}) | stated.get("arrays", {})}
    return together


def _read_manifest(path: Path) -> dict[str, Any]:
    """What a manifest says; {} where it cannot be read."""
    try:
        manifest = files.read_json(path)
    except (TedmError, OSError, RecursionError):
        return {}
    sound = isinstance(manifest, dict) and isinstance(manifest.get("arrays", {}), dict)
    return manifest if sound else {}


def _views_of(manifest: Path) -> Views | None:
    """The views that a manifest tells of; None where it tells of none."""
    stated = _read_manifest(manifest).get("views")
    try:
        numbers = tuple(int(number) for number in stated["numbers"])  # type: ignore[index]
        return Views(Recipe.of(stated), numbers) if numbers and min(numbers) > 0 else None
    except (KeyError, TypeError, ValueError):
        return None


def _restate(
    location: Location, root: RootInfo, timestep: int, problems: Sequence[Problem]
) -> list[Problem]:
    """Write broken metadata anew, as far as the rest tells what it was; what is then still wrong.

    Values are not computed again for it: shards whose digests are on record, or that together have the
    digest that the manifest states, are those that were written.
    """
    settings = _stated(location, root, timestep, problems)
    record = Record(location, timestep)
    groups = {p.key for p in problems if p.kind == "damaged" and p.shard is None}
    digests = {} if record.path in groups else record.read()
    recovered = _recovered(location, root, timestep, set(digests))
    foreign = [Key.parse(p.key) for p in problems if p.kind == "foreign" and p.shard is None]
    lost = foreign or any(None in found for found in recovered.values())
    if record.path in groups and lost and "batch_size" not in settings:
        raise _unknown(location, timestep)
    for group in sorted(groups):
        location.remove(f"{group}/zarr.json")
        layout.write_group(location, group, {})
    changed = set(recovered)
    recipes = _recipes(location)
    for key in foreign if {"images_per_shard", "codec"} <= {*settings} else []:
        if key.view and key.recipe not in recipes:
            raise _unknown(location, timestep, key)
        recipe = recipes[key.recipe] if key.view else None
        count = len(root.images(recipe))
        images, shape = min(count, settings["images_per_shard"]), (count, *root.layers[key.layer])
        layout.create_array(location, ArrayInfo(key, shape, images, settings["codec"], root.origin, recipe))
        recovered |= _recovered(location, root, timestep, {*digests, *recovered})
        changed.add(str(key))
    if changed or groups:
        record.write(digests | recovered, settings)
    left = [p for p in problems if p.key not in groups | changed or p.kind == "litter"]
    return left + verify(str(location), changed)


def _recovered(
    location: Location, root: RootInfo, timestep: int, known: Collection[str]
) -> dict[str, list[str | None]]:
    """Digests of a timestep's arrays that no record has: of their shards, where the manifest agrees."""
    stated = _manifest(location, timestep)
    arrays = stated.get("arrays") if Origin.of(stated) == root.origin else None
    recovered: dict[str, list[str | None]] = {}
    for key in layout.list_keys(location):
        array, state, _ = _judged(location, root, key)
        if key.timestep != timestep or str(key) in known or array is None or state != "complete":
            continue
        found = [layout.digest_shard(location, array, shard) for shard in range(array.shards)]
        agrees = isinstance(arrays, dict) and arrays.get(str(key)) == {
            "shape": list(array.shape),
            "digest": digest_of(found),
        }
        recovered[str(key)] = found if agrees else [None] * array.shards
    return recovered


def _stated(
    location: Location, root: RootInfo, timestep: int, problems: Sequence[Problem]
) -> dict[str, Any]:
    """Sizes and codec with which a timestep was extracted, from what is sound in it or else beside it."""
    settings: dict[str, Any] = {}
    for t in sorted(layout.list_timesteps(location), key=lambda t: t == timestep):
        with contextlib.suppress(TedmError):
            stated = (location.attributes(f"t{t:04d}") or {}).get("settings")
            settings |= stated if isinstance(stated, dict) else {}
    wrong = {problem.key for problem in problems}
    keys = [key for key in layout.list_keys(location) if key.timestep == timestep]
    for key in sorted(keys, key=lambda key: str(key) not in wrong):
        array, state, _ = _judged(location, root, key)
        if array is not None and state == "complete":
            # As the record has it, where that says the same: more than there are images is all of them.
            images = settings.get("images_per_shard")
            count = len(root.images(array.recipe))
            same = isinstance(images, int) and min(images, count) == array.images_per_shard
            settings |= {} if same else {"images_per_shard": array.images_per_shard}
            settings["codec"] = array.codec
    return settings


@dataclass(frozen=True)
class _Part:
    """What one extraction of a repair makes whole: the images as they are, or views of one recipe."""

    views: Views | None
    settings: FeaturesConfig
    manifest: Path | None  # that is written


def _parts(location: Location, root: RootInfo, timestep: int, problems: Sequence[Problem]) -> list[_Part]:
    """What to extract of a timestep, so that it becomes what it was."""
    keys = {key for key in layout.list_keys(location) if key.timestep == timestep}
    for problem in problems:
        with contextlib.suppress(TedmError):  # of a group
            keys.add(Key.parse(problem.key))
    stated = _stated(location, root, timestep, problems)
    computed = any(p.kind not in ("litter", "damaged") or p.shard is not None for p in problems)
    if computed and "batch_size" not in stated:
        raise _unknown(location, timestep)
    recipes, parts = _recipes(location), []
    # Where nothing of a timestep is left, it is made as if it were new.
    for digest in sorted({key.recipe for key in keys} or {""}):
        mine = [key for key in keys if key.recipe == digest]
        settings = _settings(location, root, timestep, stated, {key.layer for key in mine})
        if not digest:
            parts.append(_Part(None, settings, manifest_of(location, timestep)))
            continue
        if digest not in recipes:
            raise _unknown(location, timestep, min(mine))
        numbers = tuple(sorted({key.view for key in mine}))
        parts.append(_Part(Views(recipes[digest], numbers), settings, None))
        for path in view_manifests(location, timestep):
            told = _views_of(path)
            if told is not None and told.recipe.digest == digest and {*told.numbers} <= {*numbers}:
                parts.append(_Part(told, settings, path))
    return parts


def _recipes(location: Location) -> dict[str, Recipe]:
    """The recipes of a store's views by digest, as its arrays and the manifests beside it state them."""
    manifests = (
        _views_of(path)
        for timestep in layout.list_timesteps(location)
        for path in view_manifests(location, timestep)
    )
    recipes = {views.recipe.digest: views.recipe for views in manifests if views is not None}
    for key in layout.list_keys(location):
        if key.view:
            with contextlib.suppress(TedmError, KeyError, TypeError, ValueError):  # broken
                recipe = Recipe.of((location.metadata(str(key)) or {})["attributes"])
                recipes[recipe.digest] = recipe
    return recipes


def _settings(
    location: Location,
    root: RootInfo,
    timestep: int,
    stated: dict[str, Any],
    layers: Collection[str],
) -> FeaturesConfig:
    """Settings to extract some layers of a timestep with."""
    origin = {k: v for k, v in asdict(root.origin).items() if k in FeaturesConfig.model_fields}
    kept = [layer for layer in root.layers if layer in layers] or None
    try:
        return FeaturesConfig.model_validate({**stated, **origin, "layers": kept})
    except ValueError:
        raise _unknown(location, timestep) from None


def _unknown(location: Location, timestep: int, view: Key | None = None) -> TedmError:
    name = view.groups[-1] if view else f"t{timestep:04d}"
    return TedmError(
        f"{location}/{name}: nothing states the settings that it was made with any more.\n"
        f"  Delete it:      tedm store rm {location} {name} --yes\n"
        f"  and make it:    {layout.EXTRACT_VIEWS_AGAIN if view else layout.EXTRACT_AGAIN}"
    )


def _disown(
    location: Location, timestep: int, problems: Sequence[Problem], settings: FeaturesConfig
) -> None:
    """Strike bad shards from the record and delete litter, so that extraction makes them anew."""
    record = Record(location, timestep)
    digests = record.read()
    for problem in problems:
        if problem.kind == "litter":
            location.remove(problem.file)
        elif problem.shard is not None and problem.kind != "unfinished":
            digests[problem.key][problem.shard] = None
        elif problem.shard is None:
            digests.pop(problem.key, None)
    record.write(digests, settings.model_dump(include={"images_per_shard", "batch_size", "codec"}))


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
    location = layout.located(store)
    root = layout.read_root(location)
    read = keys_read(experiment, backbone, root.layers)
    doomed = [key for key in layout.list_keys(location) if str(key) not in read]
    return _remove(location, doomed, dry_run=dry_run)


def keys_read(experiment: Experiment, backbone: str, layers: Collection[str]) -> set[str]:
    """Paths of the arrays that the heads of an experiment read from one backbone's stores."""
    if backbone not in experiment.backbones:
        raise TedmError(f"no backbone {backbone} (backbones: {', '.join(experiment.backbones)})")
    kept, recipe = experiment.features.layers or layers, recipe_of(experiment).digest
    return {
        str(Key(timestep, view, recipe if view else "", layer))
        for name, head in experiment.heads.items()
        if experiment.backbone_of(name) == backbone
        for timestep in head.timesteps
        for view in range(head.views + 1)
        for layer in head.layers or kept
    }


def rm(store: Path | str, key: str, *, dry_run: bool = False) -> list[Removal]:
    """Remove one array (t0050/up2), one view (t0050/view1-3fa9c2d0) or one timestep (t0050) of a store."""
    location = layout.located(store)
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
            mine = [key for key in keys if key.timestep == timestep]
            left = {str(k) for k in layout.list_keys(location) if k.timestep == timestep and k not in mine}
            if left:
                record.write({k: v for k, v in record.read().items() if k in left})
            for key in mine:
                location.remove(str(key))
            for view in {key.groups[-1] for key in mine if key.view}:
                if not any(key.startswith(f"{view}/") for key in left):
                    location.remove(view)
            if not left:
                location.remove(record.path)
            _tell_workflow(location, timestep, left)
    return removals


def _tell_workflow(location: Location, timestep: int, left: Collection[str]) -> None:
    """Take removed arrays out of a timestep's manifest, or delete it where none is left."""
    for path in view_manifests(location, timestep):
        if not _read_manifest(path).get("arrays", {}).keys() <= {*left}:
            path.unlink(missing_ok=True)  # it stands for all of its views
    base = manifest_of(location, timestep)
    if base is None:
        return
    manifest = _read_manifest(base)
    stated = manifest.get("arrays")
    arrays = {k: v for k, v in stated.items() if k in left} if isinstance(stated, dict) else {}
    if not arrays:
        base.unlink(missing_ok=True)
    elif arrays != stated:
        state = base.stat()
        files.write_json(base, manifest | {"arrays": arrays})
        # What is left did not change: heads that were fitted on it are not out of date.
        os.utime(base, ns=(state.st_atime_ns, state.st_mtime_ns))


@contextmanager
def _alone_at(location: Location, timestep: int) -> Iterator[None]:
    """Change a timestep while nobody extracts it."""
    with layout.lock_record(location, timestep):
        layout.refuse_while_extracted(location, timestep)
        yield
