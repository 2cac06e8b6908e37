"""Features that are there already: found by their digests and taken over, without loading a network."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from tedm import files
from tedm.config import Experiment, FeaturesConfig
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.job import Job, Views, origin_of, planned
from tedm.features.store import Location, Recipe


def backbone_digest(directory: Path) -> str | None:
    """What a backbone's directory says that it is; None where it says nothing."""
    try:
        digest = files.read_json(directory / "digest.json")["digest"]
    except (TedmError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) else None


def shared_store(
    place: str, name: str, digest: str, data: Path, settings: FeaturesConfig, noise_seed: int
) -> str:
    """Path or URL of a store in a place that many experiments and users may share.

    Args:
        place: directory or URL.
        name: of the backbone, for people; digests tell apart.
        digest: of the backbone whose activations are kept.
        data: prepared data set.
        settings: of the features.
        noise_seed: of the experiment.
    """
    with PreparedSet(data) as images:
        origin = origin_of(digest, images.digest, settings, noise_seed)
        images_per_shard = min(settings.images_per_shard, len(images))
    named = layout.shared_name(origin, settings.codec, images_per_shard, name, data.stem)
    return f"{place.rstrip('/')}/{named}"


def adopt(
    store: Path | str,
    digest: str,
    data: Path,
    settings: FeaturesConfig,
    noise_seed: int,
    manifests: Mapping[int, Path],
    *,
    views: Views | None = None,
    read_last: bool = True,
) -> list[int]:
    """Write a manifest for each timestep whose features are complete; nothing else is written or locked.

    Args:
        store: that may hold them, a path or s3://bucket/prefix.
        digest: of the backbone.
        data: prepared data set.
        settings: of the features.
        noise_seed: of the experiment.
        manifests: to write, by timestep.
        views: as in `extract`.
        read_last: also read the last file of each array, as `extract` does.

    Returns:
        The timesteps taken over; none where the store is another one, broken, or not there: `extract`
        then makes it, or says what is wrong.
    """
    location = Location(store)
    with location.place.explained(), PreparedSet(data) as images:
        origin = origin_of(digest, images.digest, settings, noise_seed)
        try:
            root = layout.read_root(location)
        except TedmError:
            return []
        names = settings.layers or list(root.layers)
        rows = root.images(None if views is None else views.recipe)
        if (
            not rows
            or root.origin != origin
            or root.ids != tuple(images.ids)
            or not {*names} <= root.layers.keys()
        ):
            return []
        layers = {name: shape for name, shape in root.layers.items() if name in names}
        taken: list[int] = []
        for timestep, manifest in manifests.items():
            job = Job(
                location, planned(timestep, settings, len(rows), layers, origin, views), (0, 1), manifest
            )
            # Litter is for those to clear who may write here.
            if job.is_done(read_last=read_last, litter=True):
                job.finish()
                taken.append(timestep)
    return taken


def recipe_of(experiment: Experiment) -> Recipe:
    """How an experiment's views are made."""
    ranges = experiment.augmentation_of(experiment.evaluation.train_on)
    assert ranges is not None
    return Recipe(ranges, experiment.features.view_subjects)


def adopt_planned(experiment: Experiment) -> dict[str, list[int]]:
    """Take over what an experiment wants and others made in `features.location`: no job is needed for it.

    Only what is absent here is looked for, and only where backbone and data are there already, since their
    digests are its address. Sizes and records are compared; readers check every byte anyway. A bucket is
    left to the jobs: each look would be a request.

    Returns:
        Timesteps that were taken over, by store.
    """
    place, results, seed = experiment.features.location, Path(experiment.results), experiment.seed
    if not place or "://" in place:
        return {}
    tested = (experiment.evaluation.train_on, *experiment.evaluation.test_on)
    wanted: dict[tuple[str, str, int], set[int]] = {}
    for name, head in experiment.heads.items():
        asked = [(dataset, 0) for dataset in tested]
        asked += [(experiment.evaluation.train_on, head.views)] if head.views else []
        for dataset, count in asked:
            wanted.setdefault((experiment.backbone_of(name), dataset, count), set()).update(head.timesteps)
    taken: dict[str, list[int]] = {}
    for (backbone, dataset, count), timesteps in sorted(wanted.items()):
        data, folder = results / "data" / f"{dataset}.h5", results / "features" / backbone
        ending = f".views{count}" if count else ""
        manifests = {t: folder / f"{dataset}.t{t:04d}{ending}.json" for t in sorted(timesteps)}
        absent = {t: manifest for t, manifest in manifests.items() if not manifest.exists()}
        digest = backbone_digest(results / "backbones" / backbone) if absent and data.exists() else None
        if digest is None:
            continue
        with contextlib.suppress(TedmError):  # a job says what is wrong, if it needs one
            store = shared_store(place, backbone, digest, data, experiment.features, seed)
            views = Views.first(recipe_of(experiment), count) if count else None
            found = adopt(
                store, digest, data, experiment.features, seed, absent, views=views, read_last=False
            )
            taken |= {store: sorted({*taken.get(store, ()), *found})} if found else {}
    return taken
