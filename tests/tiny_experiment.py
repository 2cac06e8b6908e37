"""Runs all stages of a small experiment without Snakemake: what the workflow leaves behind."""

from pathlib import Path

from tedm import backbones, supervised
from tedm.config import Experiment
from tedm.data.prepare import prepare
from tedm.diffusion.train import train_backbone
from tedm.features.extract import extract
from tedm.files import read_json
from tedm.fitting import fit_heads
from tedm.scoring import score_heads, score_supervised
from tedm.seeds import seed_of


def finish(e: Experiment, results: Path) -> None:
    """Run an experiment with one diffusion backbone; files lie where the workflow has them."""
    data, (name,) = results / "data", e.backbones
    backbone, features = results / "backbones" / name, results / "features" / name
    for key, dataset in e.datasets.items():
        out = data / f"{key}.h5"
        prepare(dataset, key, e.image, e.seed, Path(e.data_root), out, out.with_suffix(".json"), threads=1)
    chosen = e.backbones[name]
    train_backbone(data / f"{chosen.data}.h5", chosen, e.seed, backbone, name, device="cpu")
    model = backbones.load(backbone)
    train_on, test_on = e.evaluation.train_on, e.evaluation.test_on
    for key in dict.fromkeys((train_on, *test_on)):
        for t in sorted({t for head in e.heads.values() for t in head.timesteps}):
            manifest = features / f"{key}.t{t:04d}.json"
            extract(model, data / f"{key}.h5", features / f"{key}.zarr", manifest, t, e.features, e.seed)
    fits = [(n, seed) for n in e.evaluation.train_sizes for seed in e.evaluation.seeds]
    for head, settings in e.heads.items():
        about = {"name": head, "type": settings.type, "settings": settings.settings, "fits": fits}
        about |= {"timesteps": sorted(settings.timesteps), "layers": None, "experiment_seed": e.seed}
        heads, store = results / "heads" / head, str(features / f"{train_on}.zarr")
        fit_heads(about, data / f"{train_on}.h5", store, backbone / "digest.json", heads)
        spec = {"method": head, "readings": settings.readings, "datasets": test_on, "fits": fits}
        score_heads(spec, heads, data, str(features), results / "scores" / head)
    for baseline, network in e.baselines.items():
        for n, seed in fits:
            place = f"{baseline}/n{n}/seed{seed}"
            drawn = seed_of(e.seed, baseline, n, seed)
            out = results / "baselines" / place
            supervised.fit(data / f"{train_on}.h5", n, drawn, network, out)
        spec = {"method": baseline, "datasets": test_on, "fits": fits}
        score_supervised(spec, results / "baselines" / baseline, data, results / "scores" / baseline)
    assert read_json(backbone / "digest.json")["digest"] == model.digest
