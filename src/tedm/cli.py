"""The command line: one subcommand per stage; each only reads its arguments and calls the stage."""

import enum
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tedm import cli_store, config, memory
from tedm.errors import TedmError

app = typer.Typer(
    help="Segmentation from a few labels, on cached features of a diffusion model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
backbone_app = typer.Typer(help="Models whose activations are kept.", no_args_is_help=True)
app.add_typer(backbone_app, name="backbone")
app.add_typer(cli_store.app, name="store")


class Sampler(enum.Enum):
    """How a diffusion model is sampled."""

    ddim = "ddim"
    ddpm = "ddpm"


Spec = Annotated[str, typer.Option(help="Settings of the job as JSON; the workflow fills them in.")]
Data = Annotated[Path, typer.Option(help="Prepared data set (.h5).")]
DataDir = Annotated[Path, typer.Option(help="Directory of prepared data sets: {dataset}.h5.")]
FeaturesDir = Annotated[str, typer.Option(help="Directory or URL of feature stores: {dataset}.zarr.")]
ScoresDir = Annotated[Path, typer.Option(help="Directory of scores: {head}/n{n}/seed{seed}/{dataset}.csv.")]
Threads = Annotated[int, typer.Option(help="CPU threads at most; never more than there are cores.", min=1)]


@app.command()
def prepare(
    spec: Spec,
    data: Annotated[Path, typer.Option(help="File to write (.h5).")],
    summary: Annotated[Path, typer.Option(help="Small JSON to write beside it.")],
    threads: Threads = 1,
) -> None:
    """Read a data set from its source, resize it, split it and write it as one HDF5 file."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm.data.prepare import prepare as run

    run(
        config.DatasetConfig.model_validate(settings["dataset"]),
        settings["name"],
        config.ImageConfig.model_validate(settings["image"]),
        settings["seed"],
        Path(settings["data_root"]),
        data,
        summary,
        threads=threads,
    )


@app.command()
def train(
    spec: Spec,
    data: Data,
    out: Annotated[Path, typer.Option(help="Backbone directory to write.")],
    threads: Threads = 1,
) -> None:
    """Train the denoising diffusion model on unlabelled images."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm.diffusion.train import train_backbone

    train_backbone(
        data,
        config.DDPMConfig.model_validate(settings["backbone"]),
        settings["seed"],
        out,
        settings["name"],
        device=_device(),
    )


@app.command()
def sample(
    backbone: Annotated[Path, typer.Argument(help="Backbone directory.")],
    out: Annotated[Path, typer.Option(help="Directory to write: samples.png and process.png.")],
    count: Annotated[int, typer.Option(help="Images.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    sampler: Annotated[Sampler, typer.Option(help="ddim: few steps; ddpm: all of them.")] = Sampler.ddim,
    steps: Annotated[int, typer.Option(help="DDIM steps.", min=2)] = 50,
    threads: Threads = 8,
) -> None:
    """Draw images from a diffusion model, and a figure of how they come about."""
    _limit_threads(threads)
    from tedm.diffusion.sample import sample_backbone

    sample_backbone(
        backbone, out, count=count, seed=seed, sampler=sampler.value, steps=steps, device=_device()
    )


@app.command()
def extract(
    spec: Spec,
    backbone: Annotated[Path, typer.Option(help="Backbone directory.")],
    data: Data,
    store: Annotated[str, typer.Option(help="Feature store (.zarr).")],
    manifest: Annotated[Path, typer.Option(help="Manifest to write, last.")],
    threads: Threads = 1,
) -> None:
    """Run the backbone once over a data set at one timestep and keep its decoder activations."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm import backbones
    from tedm.features.extract import extract as run

    run(
        backbones.load(backbone, device=_device()),
        data,
        Path(store),
        manifest,
        settings["timestep"],
        config.FeaturesConfig.model_validate(settings["features"]),
        settings["seed"],
    )


@app.command()
def fit(
    spec: Spec,
    data: Data,
    store: Annotated[str, typer.Option(help="Feature store (.zarr) of that data set.")],
    digest: Annotated[Path, typer.Option(help="digest.json of the backbone that made the features.")],
    out: Annotated[Path, typer.Option(help="Head to write (.safetensors).")],
    threads: Threads = 1,
) -> None:
    """Fit one head on the features of the first n labelled images."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm.fitting import fit_head

    fit_head(settings, data, store, digest, out)


@app.command()
def supervise(
    spec: Spec,
    data: Data,
    out: Annotated[Path, typer.Option(help="Model to write (.safetensors).")],
    threads: Threads = 1,
) -> None:
    """Train the supervised baseline on the first n labelled images."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm.seeds import seed_of
    from tedm.supervised import fit as run

    run(
        data,
        settings["n"],
        seed_of(settings["experiment_seed"], settings["name"], settings["n"], settings["seed"]),
        config.SupervisedConfig.model_validate(settings["supervised"]),
        out.parent,
        device=_device(),
    )


@app.command()
def score(
    spec: Spec,
    head: Annotated[Path, typer.Option(help="Head (.safetensors).")],
    data: DataDir,
    features: FeaturesDir,
    out: Annotated[Path, typer.Option(help="Directory to write: {dataset}.csv and {dataset}.npz.")],
    threads: Threads = 1,
) -> None:
    """Predict with one head on every test set; write its masks and the scores of each subject."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm.scoring import score_head

    score_head(settings, head, data, features, out)


@app.command()
def score_supervised(
    spec: Spec,
    model: Annotated[Path, typer.Option(help="Model (.safetensors).")],
    data: DataDir,
    out: Annotated[Path, typer.Option(help="Directory to write: {dataset}.csv and {dataset}.npz.")],
    threads: Threads = 1,
) -> None:
    """Predict with one supervised baseline on every test set; write its masks and scores."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm.scoring import score_supervised as run

    run(settings, model, data, out)


@app.command()
def table(
    spec: Spec,
    scores: ScoresDir,
    out: Annotated[Path, typer.Option(help="Table to write (.csv); other forms lie beside it.")],
) -> None:
    """Write Table 1: Dice of every method, data set and training size."""
    from tedm.report.results import write_table1

    write_table1(_settings(spec), scores, out)


@app.command()
def learning_curves(
    spec: Spec,
    scores: ScoresDir,
    out: Annotated[Path, typer.Option(help="Figure to write (.png).")],
) -> None:
    """Draw mean Dice over the training size, one panel per test set."""
    from tedm.report.results import draw_learning_curves

    draw_learning_curves(_settings(spec), scores, out)


@app.command()
def segmentations(
    spec: Spec,
    data: DataDir,
    scores: ScoresDir,
    out: Annotated[Path, typer.Option(help="Figure to write (.png).")],
) -> None:
    """Draw images of every test set with the contours of the truth and of each method."""
    from tedm.report.results import draw_segmentations

    draw_segmentations(_settings(spec), data, scores, out)


@app.command()
def check(path: Annotated[Path, typer.Argument(help="Experiment (.yaml).")]) -> None:
    """Check an experiment's settings without running anything."""
    experiment = config.load(path)
    print(f"{path}: fine. {len(experiment.methods())} methods: {', '.join(experiment.methods())}")


@app.command()
def schema() -> None:
    """Print the JSON schema of an experiment, for editors."""
    print(json.dumps(config.json_schema(), indent=2))


@backbone_app.command("import")
def import_backbone(
    file: Annotated[Path, typer.Argument(help="Checkpoint of the authors' code (.pt).")],
    out: Annotated[Path, typer.Option(help="Backbone directory to write.")],
    image_size: Annotated[
        int | None, typer.Option(help="Pixels per side; absent: as the checkpoint says.")
    ] = None,
) -> None:
    """Take over a checkpoint of the authors' code, without executing anything in its pickle."""
    from tedm.diffusion.official import import_checkpoint

    import_checkpoint(file, out, image_size)


def main() -> None:
    """Run the command line; a user's mistake ends in one message and status 1, without a traceback."""
    try:
        app()
    except TedmError as error:
        _stop(str(error))
    except ValidationError as error:
        _stop(f"--spec: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        _stop(f"{error.filename}: {error.strerror}")


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


class Settings(dict[str, Any]):
    """The settings of a job; one that is missing is named."""

    def __missing__(self, key: str) -> Any:
        raise TedmError(f"--spec: {key} is missing")


def _settings(spec: str) -> dict[str, Any]:
    try:
        settings = json.loads(spec)
    except json.JSONDecodeError as error:
        raise TedmError(f"--spec: not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise TedmError("--spec: expected a JSON object")
    return Settings(settings)


def _limit_threads(threads: int) -> None:
    """Use so many cores; before torch or a BLAS is loaded, since they read this once."""
    memory.keep_freed()
    allowed = min(threads, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(allowed)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
