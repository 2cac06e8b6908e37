"""What an extraction has to make, and the record of what is made; knows nothing of networks."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tedm import files
from tedm.config import FeaturesConfig
from tedm.digests import digest_of
from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.store import ArrayInfo, Digests, Key, Location, Origin, Recipe, Record
from tedm.progress import say


def origin_of(backbone_digest: str, data_digest: str, settings: FeaturesConfig, noise_seed: int) -> Origin:
    """What features of these settings come from."""
    return Origin(
        backbone_digest=backbone_digest,
        data_digest=data_digest,
        noise_seed=noise_seed,
        shared_noise=settings.shared_noise,
        input_range=settings.input_range,
        dtype=settings.dtype,
        keep_bits=settings.keep_bits,
    )


@dataclass(frozen=True)
class Views:
    """Views that an extraction makes.

    Attributes:
        recipe: how.
        numbers: which of them, from 1 on.
    """

    recipe: Recipe
    numbers: tuple[int, ...]

    @classmethod
    def first(cls, recipe: Recipe, count: int) -> "Views":
        """The first so many views of a recipe."""
        return cls(recipe, tuple(range(1, count + 1)))


def planned(
    timestep: int,
    settings: FeaturesConfig,
    images: int,
    layers: Mapping[str, tuple[int, int, int]],
    origin: Origin,
    views: Views | None = None,
) -> list[ArrayInfo]:
    """The arrays that an extraction makes, of so many images; layers are (C, h, w) each."""
    recipe = None if views is None else views.recipe
    return [
        ArrayInfo(
            Key(timestep, view, "" if recipe is None else recipe.digest, layer),
            (images, *shape),
            min(settings.images_per_shard, images),
            settings.codec,
            origin,
            recipe,
        )
        for view in ((0,) if views is None else views.numbers)
        for layer, shape in layers.items()
    ]


@dataclass(frozen=True)
class Shard:
    """One shard to compute, and the arrays that lack it."""

    view: int
    number: int
    rows: range
    infos: list[ArrayInfo]


class Job:
    """The arrays that one call makes, and the record of their shards."""

    def __init__(
        self, location: Location, plan: Sequence[ArrayInfo], block: tuple[int, int], manifest: Path | None
    ) -> None:
        self.location, self.plan, self.manifest = location, plan, manifest
        self.timestep = plan[0].key.timestep
        self.record = Record(location, self.timestep)
        shards = plan[0].shards
        k, n = block
        self.shards = range(shards * k // n, shards * (k + 1) // n)
        self.images_per_shard = plan[0].images_per_shard
        self._within = threading.Lock()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the record against other processes and threads, for a moment."""
        with self._within, layout.lock_record(self.location, self.timestep):
            yield

    def is_done(self, *, read_last: bool = True, litter: bool = False) -> bool:
        """Whether everything is there, in all blocks; reads only.

        Args:
            read_last: also read the last shard of each array, as a power cut may have caught it.
            litter: whether files may lie about that a killed writer left.
        """
        attributes = self.location.attributes()
        if attributes is None or Origin.of(attributes) != self.plan[0].origin:
            return False
        digests = self.record.read()
        for info in self.plan:
            recorded = digests.get(str(info.key), [])
            names = {"zarr.json", *(layout.shard_name(shard) for shard in range(info.shards))}
            sizes = self.location.sizes(str(info.key))
            if litter:
                sizes = {name: size for name, size in sizes.items() if not name.endswith(".partial")}
            if (
                len(recorded) != info.shards
                or None in recorded
                or set(sizes) != names
                or not all(sizes.values())
                or self._state(info) != info
                or (read_last and layout.digest_shard(self.location, info, info.shards - 1) != recorded[-1])
            ):
                return False
        return True

    def prepare(self, settings: FeaturesConfig) -> None:
        """Make the arrays that are missing or stale; trust no shard that the record does not vouch for."""
        stale: list[ArrayInfo] = []

        def disown(digests: Digests) -> Digests:
            stale[:] = [info for info in self.plan if self._state(info) != info]
            for info in self.plan:
                recorded = digests.get(str(info.key), [])
                if info in stale or len(recorded) != info.shards:
                    digests[str(info.key)] = [None] * info.shards
            return digests

        # Before anything is changed: the record must never vouch for what is not there.
        sizes = {"images_per_shard": settings.images_per_shard, "batch_size": settings.batch_size}
        self.digests = dict(self.record.update(disown, {**sizes, "codec": settings.codec}))
        for info in stale:
            layout.create_array(self.location, info)
            # Shards of the same name are replaced one by one, since another process may have begun to.
            own = {"zarr.json", *(layout.shard_name(shard) for shard in range(info.shards))}
            for name in self.location.sizes(str(info.key)).keys() - own:
                self.location.remove(f"{info.key}/{name}")
        self._distrust()

    def _state(self, info: ArrayInfo) -> ArrayInfo | None:
        try:
            return layout.read_array_info(self.location, info.key, info.shape[0])
        except TedmError:
            return None

    def _distrust(self) -> None:
        """Forget own shards that are not whole, and clear what killed writers left."""
        for path in dict.fromkeys(("", *(group for info in self.plan for group in info.key.groups))):
            self.location.clear_litter(f"{path}/zarr.json".lstrip("/"))
        doubtful: list[tuple[str, int, str]] = []
        for info in self.plan:
            recorded = self.digests[str(info.key)]
            vouched = [shard for shard in self.shards if recorded[shard] is not None]
            for shard in self.shards:
                self.location.clear_litter(f"{info.key}/{layout.shard_name(shard)}")
            sizes = self.location.sizes(str(info.key)) if vouched else {}
            for shard in vouched:
                # The last one is read: a power cut may have caught it. The others are older.
                whole = sizes.get(layout.shard_name(shard), 0) > 0 and (
                    shard != vouched[-1]
                    or layout.digest_shard(self.location, info, shard) == recorded[shard]
                )
                if not whole:
                    doubtful.append((str(info.key), shard, str(recorded[shard])))

        def forget(digests: Digests) -> Digests:
            for key, shard, digest in doubtful:
                if digests[key][shard] == digest:
                    digests[key][shard] = None
            return digests

        if doubtful:
            self.digests = dict(self.record.update(forget))

    def missing(self) -> list[Shard]:
        """Shards to compute, view by view."""
        rows = self.plan[0].rows
        lacking = [
            Shard(view, n, rows(n), [i for i in self.plan if i.key.view == view and self._lacks(i, n)])
            for view in dict.fromkeys(info.key.view for info in self.plan)
            for n in self.shards
        ]
        return [shard for shard in lacking if shard.infos]

    def _lacks(self, info: ArrayInfo, shard: int) -> bool:
        return self.digests[str(info.key)][shard] is None

    def vouch(self, shard: int, digests: dict[str, str]) -> None:
        """Record that a shard is there in these arrays."""

        def add(record: Digests) -> Digests:
            for key, digest in digests.items():
                if shard >= len(record.get(key, [])):
                    raise TedmError(f"{self.location}/{key}: was removed while it was extracted")
                record[key][shard] = digest
            return record

        with self.locked():
            self.record.update(add)

    def finish(self) -> None:
        """Write the manifest, unless other blocks are still missing."""
        timestep = self.timestep
        digests = self.record.read()
        gaps = sum(d is None for info in self.plan for d in digests[str(info.key)])
        if gaps:
            say(f"{self.location}: t{timestep:04d} lacks {gaps} shards of other blocks; no manifest yet")
            return
        if self.manifest is None:
            return
        first = self.plan[0]
        files.write_json(
            self.manifest,
            {
                "format": f"{layout.FORMAT}: manifest",
                "format_version": layout.FORMAT_VERSION,
                "store": layout.stated_in(self.manifest, self.location),
                "timestep": timestep,
                "images": first.shape[0],
                "images_per_shard": first.images_per_shard,
                **self._stated_views(),
                **asdict(first.origin),
                "arrays": {
                    str(info.key): {"shape": info.shape, "digest": digest_of(digests[str(info.key)])}
                    for info in self.plan
                },
            },
        )

    def _stated_views(self) -> dict[str, object]:
        recipe = self.plan[0].recipe
        if recipe is None:
            return {}
        numbers = sorted({info.key.view for info in self.plan})
        return {"views": {"numbers": numbers, "recipe": recipe.digest, **recipe.stated}}
