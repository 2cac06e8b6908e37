"""Reading of a feature store: what heads, notebooks and data loaders open."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.shards import DamageError
from tedm.features.store import ArrayInfo, Key, Location, Record

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Features of some images: `features[timestep, layer]` is (n, C, h, w)."""

    rows: list[int]
    features: dict[tuple[int, str], Array]


class FeatureStore:
    """The features of one data set from one backbone; what `tedm.heads.base.FeatureSource` asks for.

    >>> features = FeatureStore.open("results/features/ddpm/jsrt.zarr")  # doctest: +SKIP
    >>> features.read([0, 1, 2], timestep=50, layers=["up2"])["up2"].shape  # doctest: +SKIP
    (3, 128, 64, 64)

    Only arrays that are complete, and that come from the backbone, data and settings that the store
    states, are there for it. Nothing is kept in memory. It may be used by several threads, and pickled.

    Attributes:
        path: of the store.
        ids: name of each image.
        subjects: whom each image shows.
        splits: train, val, test or unlabelled, of each image.
        image_shape: (C, H, W) of the images.
        image_size: (H, W) of the images.
        layer_shapes: (C, h, w) of every layer that is there at some timestep, coarsest first.
        timesteps: that are there.
        backbone_digest: of the backbone that the features come from.
        data_digest: of the prepared data set that they come from.
        noise_seed: that noise and views are drawn from.
        synthetic: whether the images are drawn, not measured.
        dtype: of the features.
        recipes: of the views that are there, by digest.
        recipe: of the views that are read; None where there are none.
        attributes: all that the store says of itself.
    """

    def __init__(self, location: Location, recipe: str | None = None) -> None:
        root = layout.read_root(location)
        self.location, self.path = location, str(location)
        self.attributes = root.attributes
        self.ids = root.ids
        self.subjects = tuple(root.attributes.get("subjects", root.ids))
        self.splits = tuple(root.attributes.get("splits", ()))
        self.image_shape = root.image_shape
        self.image_size = root.image_shape[1:]
        self.backbone_digest = root.origin.backbone_digest
        self.data_digest = root.origin.data_digest
        self.noise_seed = root.origin.noise_seed
        self.synthetic = bool(root.attributes.get("synthetic", False))
        self.dtype = np.dtype(root.origin.dtype)
        self._infos: dict[Key, ArrayInfo] = {}
        self._absent: dict[Key, str] = {}
        records: dict[int, dict[str, list[str | None]]] = {}
        for key in layout.list_keys(location):
            try:
                info = layout.read_array_info(location, key, root.images)
                if key.timestep not in records:
                    records[key.timestep] = Record(location, key.timestep).read()
            except TedmError as error:
                self._absent[key] = str(error)
                continue
            if info is None:
                continue
            digests = records[key.timestep].get(str(key), [])
            if info.origin != root.origin:
                differences = "; ".join(info.origin.differences(root.origin))
                self._absent[key] = f"{location}/{key} is stale: its {differences}"
            elif len(digests) != info.shards or None in digests:
                done = sum(digest is not None for digest in digests)
                self._absent[key] = (
                    f"{location}/{key} is not complete: {done} of {info.shards} shards are there"
                )
            else:
                self._infos[key] = info
        as_they_are = [key for key in self._infos if not key.view]
        kept = {key.layer for key in as_they_are}
        self.layer_shapes = {layer: shape for layer, shape in root.layers.items() if layer in kept}
        self.timesteps = tuple(sorted({key.timestep for key in as_they_are}))
        self.recipes = {info.key.recipe: info.recipe for info in self._infos.values() if info.recipe}
        self._asked = recipe
        chosen = next(iter(self.recipes)) if recipe is None and len(self.recipes) == 1 else recipe
        self.recipe = self.recipes.get(chosen or "")
        self._view_rows = tuple(root.images(self.recipe)) if self.recipe else ()

    @classmethod
    def open(
        cls,
        store: Path | str,
        *,
        backbone_digest: str | None = None,
        data_digest: str | None = None,
        recipe: str | None = None,
    ) -> Self:
        """Open a store for reading.

        Args:
            store: its path or URL, or the path that it has by default where it lies elsewhere.
            recipe: of the views that are read (eight digits, as in view1-3fa9c2d0); None: the only one.
            backbone_digest: of the backbone that the features must come from; None: any.
            data_digest: of the data set that they must come from; None: any.

        Raises:
            TedmError: no store of ours, a broken one, or features of another backbone or data set.
        """
        self = cls(layout.located(store), recipe)
        for what, asked, made in (
            ("backbone", backbone_digest, self.backbone_digest),
            ("data set", data_digest, self.data_digest),
        ):
            if asked is not None and asked != made:
                raise TedmError(
                    f"{store}: was made from {what} {made[:12]}…, but the one asked for is {asked[:12]}….\n"
                    f"  Extract them again:      {layout.EXTRACT_AGAIN}\n"
                    f"  or read another store:   one whose {what} is {asked[:12]}…"
                )
        return self

    @property
    def view_rows(self) -> tuple[int, ...]:
        """Images that have views, of the recipe that is read; a TedmError where it is not known which."""
        self._check_recipe()
        return self._view_rows

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"FeatureStore({self.path!r}: {len(self)} images, timesteps {list(self.timesteps)},"
            f" layers {', '.join(self.layer_shapes)}, {self.dtype})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (type(self), self.path, self._asked))

    def read(
        self, rows: Sequence[int], timestep: int, layers: Sequence[str] | None = None, view: int = 0
    ) -> dict[str, Array]:
        """Features of some images at one timestep.

        Args:
            rows: images, 0 … len - 1, in any order.
            timestep: one of `timesteps`.
            layers: names; None: all in `layer_shapes`.
            view: 0: of the images as they are; 1, 2, …: of views of them, which `view_rows` have.

        Returns:
            Per layer (n, C, h, w), of the stored dtype.

        Raises:
            TedmError: what is asked for is not there, stale, incomplete or damaged.
        """
        wanted = self._checked(rows)
        return {
            layer: self._read(self._key(timestep, view, layer), wanted) for layer in self._layers(layers)
        }

    def _key(self, timestep: int, view: int, layer: str) -> Key:
        if not view:
            return Key(timestep, 0, "", layer)
        self._check_recipe()
        # Where there are none, an array that is absent says so.
        return Key(timestep, view, self.recipe.digest if self.recipe else self._asked or "0" * 8, layer)

    def _check_recipe(self) -> None:
        if self.recipe is None and self._asked is None and self.recipes:
            raise TedmError(
                f"{self.path}: has views of several recipes ({', '.join(sorted(self.recipes))}); say which"
                " one to read: FeatureStore.open(…, recipe=…)"
            )

    def why_absent(self, timestep: int, layer: str, view: int = 0) -> str | None:
        """Why an array cannot be read, and what to do; None where it can be."""
        return self._why_absent(self._key(timestep, view, layer))

    def _why_absent(self, key: Key) -> str | None:
        if key in self._infos:
            return None
        there = ", ".join(f"t{t:04d}" for t in self.timesteps) or "none"
        kept = ", ".join(self.attributes["layers"])
        nothing = f"{self.path} has no {key} (timesteps: {there}; layers: {kept})"
        if key.view and self.recipe is None:
            asked = f" of recipe {self._asked}" if self._asked else ""
            nothing = f"{self.path} has no views{asked}; a head with `views` has them extracted"
        again = layout.EXTRACT_VIEWS_AGAIN if key.view else layout.EXTRACT_AGAIN
        return f"{self._absent.get(key, nothing)}.\n  Extract it:  {again}"

    def iterate(
        self,
        rows: Sequence[int] | None = None,
        timesteps: Sequence[int] | None = None,
        layers: Sequence[str] | None = None,
        batch: int | None = None,
        budget_bytes: int = 1 << 30,
        view: int = 0,
    ) -> Iterator[Batch]:
        """Features batch by batch, the next ones being read while one is worked on.

        Args:
            rows: images, in the order wanted; None: all.
            timesteps: None: all.
            layers: None: all.
            batch: images at once; None: as many as the budget allows, with one batch read ahead.
            budget_bytes: of all batches in memory together: the one given out and those read ahead.
            view: as in `read`.

        Raises:
            TedmError: as `read`; or one batch is more than the budget.
        """
        everything = self.view_rows if view else range(len(self))
        wanted = self._checked(everything if rows is None else rows)
        steps = self.timesteps if timesteps is None else tuple(timesteps)
        names = self._layers(layers)
        keys = [self._key(timestep, view, layer) for timestep in steps for layer in names]
        per_image = sum(self._info(key).bytes_per_image for key in keys)
        if batch is None:
            batch = max(1, budget_bytes // (2 * max(per_image, 1)))
        ahead = budget_bytes // max(batch * per_image, 1) - 1
        if ahead < 0:
            raise TedmError(
                f"{batch} images at {len(steps)} timesteps and {len(names)} layers are"
                f" {batch * per_image:,} bytes, the budget is {budget_bytes:,}: raise it or read less"
            )
        cuts = [wanted[start : start + batch] for start in range(0, len(wanted), batch)]

        def load(part: npt.NDArray[np.int64]) -> Batch:
            features = {(key.timestep, key.layer): self._read(key, part) for key in keys}
            return Batch([int(row) for row in part], features)

        yield from map(load, cuts) if ahead == 0 else _ahead(load, cuts, min(ahead, 8))

    def _checked(self, rows: Sequence[int]) -> npt.NDArray[np.int64]:
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise TedmError(
                f"{self.path}: rows {wanted.min()} … {wanted.max()} are not in 0 … {len(self) - 1}"
            )
        return wanted

    def _layers(self, layers: Sequence[str] | None) -> tuple[str, ...]:
        # Where no layer is complete, reading any of them says why.
        return tuple((self.layer_shapes or self.attributes["layers"]) if layers is None else layers)

    def _info(self, key: Key) -> ArrayInfo:
        info = self._infos.get(key)
        if info is None:
            raise TedmError(self._why_absent(key))
        return info

    def _read(self, key: Key, rows: npt.NDArray[np.int64]) -> Array:
        info = self._info(key)
        out = np.empty((len(rows), *info.shape[1:]), self.dtype)
        try:
            layout.read_rows(self.location, info, self._places(rows) if key.view else rows, out)
        except DamageError as error:
            raise self._damaged(key, f"{error}") from error
        return out

    def _places(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where images lie among those with views."""
        place = {row: i for i, row in enumerate(self.view_rows)}
        without = [int(row) for row in rows if int(row) not in place]
        if without:
            assert self.recipe is not None
            raise TedmError(
                f"{self.path}: {self.ids[without[0]]} (row {without[0]}) has no views; those of the first"
                f" {self.recipe.subjects} training subjects have some (features.view_subjects)"
            )
        return np.array([place[int(row)] for row in rows], np.int64)

    def _damaged(self, key: Key, reason: str) -> TedmError:
        return TedmError(
            f"{self.path}/{key}: damaged ({reason}).\n"
            f"  See all that is:  tedm store verify {self.path}\n"
            f"  mend it:          {layout.repair_command(self.location)}"
        )


def _reopened(kind: type[FeatureStore], path: str, recipe: str | None) -> FeatureStore:
    return kind.open(path, recipe=recipe)


def _ahead(load: Any, parts: Sequence[Any], depth: int) -> Iterator[Batch]:
    """`map(load, parts)` in a thread that is at most `depth` results ahead of the caller."""
    ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def run() -> None:
        try:
            for part in parts:
                room.acquire()
                if stopped.is_set():
                    return
                ready.put(load(part))
        except BaseException as error:
            ready.put(error)
        else:
            ready.put(None)

    thread = threading.Thread(target=run, name="read ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
    finally:
        stopped.set()
        room.release()
        thread.join()
