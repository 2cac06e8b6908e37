"""From a finished experiment to a model folder."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import tedm
from tedm import config, files
from tedm.config import Experiment
from tedm.data.prepared import PreparedSet
from tedm.data.sources import Source, open_source
from tedm.data.sources.brats import LARGEST, SIDE, BraTS
from tedm.data.sources.ukbb import BRIGHTEST, SLICES, UKBiobank
from tedm.digests import digest_file
from tedm.errors import TedmError
from tedm.models import card, folder
from tedm.models.folder import Features, Preprocessing, VolumeScaling
from tedm.progress import say
from tedm.seeds import seed_of


class Chosen(NamedTuple):
    """What of an experiment a method is."""

    source: str  # head or baseline: the name of its directory
    is_head: bool
    timesteps: list[int]


def export(experiment: Experiment, results: Path, method: str, n: int, seed: int, out: Path) -> None:
    """Write one method of an experiment as a model folder.

    Args:
        experiment: that was run.
        results: directory of its results.
        method: row of the tables: a head, a reading of one, or a baseline.
        n: training images.
        seed: as in evaluation.seeds.
        out: folder to write.

    Raises:
        TedmError: no such method, size or seed; results that are missing, or that do not belong together.
    """
    chosen, description, parts = describe(experiment, results, method, n, seed)
    text = card.write(experiment, results, chosen.source, description)
    folder.write(out, description, parts, text)
    _try(out)
    say(f"{out}: {description.name}; read {out}/{folder.CARD} before handing it on")


def describe(
    experiment: Experiment, results: Path, method: str, n: int, seed: int
) -> tuple[Chosen, folder.Description, dict[str, Path]]:
    """What a model folder of a method says and has in it; arguments and errors as in `export`."""
    chosen = find(experiment, method)
    method = method if chosen.is_head else experiment.method_of(chosen.source)
    for name, value, known in (
        ("--n", n, experiment.evaluation.train_sizes),
        ("--seed", seed, experiment.evaluation.seeds),
    ):
        if value not in known:
            raise TedmError(f"{name}: {value} is not in the experiment ({', '.join(map(str, known))})")
    fitted = f"n{n}/seed{seed}"
    data = results / "data" / f"{experiment.evaluation.train_on}.h5"
    with PreparedSet(data) as prepared:
        said: dict[str, Any] = {
            "format": folder.FORMAT,
            "format_version": folder.VERSION,
            "name": folder.default_name(method, n, seed),
            "method": method,
            "n": n,
            "seed": seed,
            "classes": list(prepared.classes),
            "timesteps": chosen.timesteps,
            "synthetic": prepared.synthetic,
            "preprocessing": _preprocessing(experiment, results, prepared),
            "versions": {
                "tedm": tedm.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
    if chosen.is_head:
        backbone = results / "backbones" / experiment.backbone_of(chosen.source)
        head = _there(results / "heads" / chosen.source / fitted / "head.safetensors")
        parts = {folder.BACKBONE: _network(backbone), folder.HEAD: head}
        said |= {
            "kind": "head",
            "backbone": files.read_json(backbone / "digest.json")["digest"],
            "head": digest_file(head),
        }
        said["features"] = _features(experiment, results, chosen, said["backbone"])
    else:
        network = results / "baselines" / chosen.source / fitted
        parts = {folder.NETWORK: _network(network)}
        said |= {"kind": "network", "network": files.read_json(network / "digest.json")["digest"]}
    return chosen, folder.Description.model_validate(said), parts


def find(experiment: Experiment, method: str) -> Chosen:
    """What a row of the tables is made of.

    Raises:
        TedmError: there is no such row.
    """
    for name in experiment.baselines:
        if method in (name, experiment.method_of(name)):
            return Chosen(name, False, [])
    for name, head in experiment.heads.items():
        # As the workflow fits and scores them.
        if method == name:
            return Chosen(name, True, sorted(head.timesteps))
        if method in head.readings:
            return Chosen(name, True, list(head.readings[method]))
    raise TedmError(f"--method: no method {method} (methods: {', '.join(experiment.methods())})")


def _there(path: Path) -> Path:
    if not path.is_file():
        raise TedmError(
            f"{path}: no such file; `snakemake --cores all {path}` (with the experiment's --configfile, if"
            " any) makes it"
        )
    return path


def _network(directory: Path) -> Path:
    for file in ("digest.json", "model.safetensors", "config.json"):
        _there(directory / file)
    return directory


def _features(experiment: Experiment, results: Path, chosen: Chosen, digest: str) -> Features:
    """How the head's features were made: what the store says, since settings may have changed since."""
    backbone, train_on = experiment.backbone_of(chosen.source), experiment.evaluation.train_on
    step = min(experiment.heads[chosen.source].timesteps)
    manifest = files.read_json(_there(results / "features" / backbone / f"{train_on}.t{step:04d}.json"))
    if manifest["backbone_digest"] != digest:
        raise TedmError(
            f"{results}/features/{backbone}: made by another backbone than the one in"
            f" {results}/backbones/{backbone}; run the workflow again"
        )
    return Features(**{name: manifest[name] for name in Features.model_fields})


def _preprocessing(experiment: Experiment, results: Path, prepared: PreparedSet) -> Preprocessing:
    name = experiment.evaluation.train_on
    source = experiment.datasets[name].source
    channels, size, _ = prepared.image_shape
    volume, black = None, None
    if isinstance(source, config.NiftiSource):
        volume = VolumeScaling(
            kind="window" if source.window else "percentiles",
            axis=source.axis,
            channels=source.channels,
            window=None if source.window is None else (source.window[0], source.window[1]),
            percentiles=source.percentiles,
        )
    elif isinstance(source, config.UKBBSource | config.BraTSSource | config.BrainSource):
        volume = _of_the_study(experiment, results, prepared)
    window = source.window if isinstance(source, config.DicomSource) else None
    if volume is not None or window is not None:
        black = prepared.intensity_range[0]
    return Preprocessing(
        size=size,
        channels=channels,
        fit=getattr(source, "fit", "stretch"),
        black=black,
        intensity_range=prepared.intensity_range,
        normalise=prepared.normalise,
        deep=prepared.deep,
        dicom_window=(window[0], window[1]) if isinstance(window, list) else window,
        volume=volume,
    )


def _of_the_study(experiment: Experiment, results: Path, prepared: PreparedSet) -> VolumeScaling:
    """Scaling of the study's volumes; what it learned from the training volumes is learned again."""
    name = experiment.evaluation.train_on
    source: Source = open_source(
        experiment.datasets[name],
        experiment.image,
        seed_of(experiment.seed, name),
        Path(experiment.data_root),
        f"datasets.{name}",
        results / "data" / f"{name}_volumes",
    )
    if isinstance(source, UKBiobank):
        return VolumeScaling(
            kind="brain", axis=source.axis, channels=[""], brightest=BRIGHTEST, slices=SLICES
        )
    if not isinstance(source, BraTS):
        raise TedmError(f"datasets.{name}.source: models of this source cannot be exported yet")
    if source.problems:
        raise TedmError(
            "\n".join(["the training volumes are needed once more, for their means:", *source.problems])
        )
    training = dict.fromkeys(prepared.subjects[row] for row in prepared.rows("train"))
    units = [unit for unit, who in zip(source.ids, source.subjects, strict=True) if who in training]
    source.learn(units, map)
    return VolumeScaling(
        kind="standardised",
        axis=source.axis,
        channels=["_flair", "_t1", "_t1ce", "_t2"],
        means=tuple(source.means.tolist()),
        deviations=tuple(source.deviations.tolist()),
        limit=LARGEST,
        crop=(SIDE, SIDE),
    )


def _try(out: Path) -> Sequence[str]:
    """Load what was written: a folder that its own tedm cannot read must not be handed on."""
    from tedm.models.model import load

    return load(out, allow_imports=True).classes
