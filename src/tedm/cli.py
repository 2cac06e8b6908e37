"""The command line: one subcommand per stage; each only reads its arguments and calls the stage."""

import atexit
import enum
import gc
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tedm import cli_data, cli_models, cli_store, config, memory
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
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_models.app)


class Sampler(enum.Enum):
    """How a diffusion model is sampled."""

    ddim = "ddim"
    ddpm = "ddpm"


class Quantity(enum.Enum):
    """What a prediction takes."""

    gmac = "gmac"
    seconds = "seconds"


Spec = Annotated[str, typer.Option(help="Settings of the job as JSON; the workflow fills them in.")]
Data = Annotated[Path, typer.Option(help="Prepared data set (.h5).")]
DataDir = Annotated[Path, typer.Option(help="Directory of prepared data sets: {dataset}.h5.")]
FeaturesDir = Annotated[str, typer.Option(help="Directory or URL of feature stores: {dataset}.zarr.")]
ScoresDir = Annotated[Path, typer.Option(help="Directory of scores: {head}/n{n}/seed{seed}/{dataset}.csv.")]
ScoresOut = Annotated[
    Path, typer.Option(help="Directory to write: n{n}/seed{seed}/{dataset}.csv and .npz.")
]
TestSets = Annotated[int, typer.Option(help="Test sets at once, each on one core.", min=1)]
Fits = Annotated[str, typer.Option(help="Training sizes and seeds, as in `1/0 3/0`.")]
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
    """Train the denoising diffusion model on unlabelled images; under torchrun, by several processes."""
    _limit_threads(threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    from tedm import distributed

    with distributed.joined() as device:
        from tedm.diffusion.train import train_backbone

        settings = _settings(spec)
        train_backbone(
            data,
            config.DDPMConfig.model_validate(settings["backbone"]),
            settings["seed"],
            out,
            settings["name"],
            device=device,
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
    store: Annotated[
        str,
        typer.Option(
            help="Feature store (.zarr), a path or s3://bucket/prefix. With a / at its end: a place of many"
            " stores, where it gets a name of its own."
        ),
    ],
    manifest: Annotated[
        Path,
        typer.Option(help="Manifest to write, last; {timestep} in its name stands for four digits."),
    ],
    timesteps: Annotated[
        str, typer.Option(help="One after the other, as in `1 10 25`; absent: the one of --spec.")
    ] = "",
    views: Annotated[
        int,
        typer.Option(
            help="Augmented views of the first training subjects; 0: every image as it is.", min=0
        ),
    ] = 0,
    threads: Threads = 1,
) -> None:
    """Run the backbone over a data set and keep its activations, by timestep; torchrun deals images out."""
    settings = _settings(spec)
    from tedm.features.adopt import adopt, backbone_digest, shared_store
    from tedm.features.job import Views
    from tedm.features.store import Recipe
    from tedm.progress import say

    features = config.FeaturesConfig.model_validate(settings["features"])
    seed, digest = settings["seed"], backbone_digest(backbone)
    wanted = Views.first(Recipe.of(settings["recipe"]), views) if views else None
    asked = _timesteps(timesteps) if timesteps else [settings["timestep"]]
    if len(asked) > 1 and "{timestep}" not in manifest.name:
        raise TedmError(
            f"--manifest: {manifest} is one file for {len(asked)} timesteps; have {{timestep}} in its name,"
            f" as in {manifest.with_name('jsrt.t{timestep}.json')}"
        )
    manifests = {
        timestep: manifest.with_name(manifest.name.replace("{timestep}", f"{timestep:04d}"))
        for timestep in asked
    }
    if digest is not None:
        if store.endswith("/"):
            store = shared_store(store, backbone.name, digest, data, features, seed)
        what = f", {views} views," if views else ""
        for timestep in adopt(store, digest, data, features, seed, manifests, views=wanted):
            say(f"{store}: t{timestep:04d}{what} is there already; nothing to compute")
            del manifests[timestep]
        if not manifests:
            return
    _limit_threads(threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    from tedm import backbones, distributed
    from tedm.features.extract import extract as run

    block, device = distributed.share()
    # Its type was named in the experiment.
    model = backbones.load(backbone, device=device, allow_imports=True)
    for timestep, written in manifests.items():
        run(
            model,
            data,
            store,
            written,
            timestep,
            features,
            seed,
            views=wanted,
            block=block,
            devices=[str(device)],
        )


@app.command()
def fit(
    spec: Spec,
    data: Data,
    store: Annotated[str, typer.Option(help="Feature store (.zarr) of that data set.")],
    digest: Annotated[Path, typer.Option(help="digest.json of the backbone that made the features.")],
    fits: Fits,
    out: Annotated[Path, typer.Option(help="Directory to write: n{n}/seed{seed}/head.safetensors.")],
    threads: Annotated[int, typer.Option(help="Heads fitted at once, each on one core.", min=1)] = 1,
) -> None:
    """Fit one head for every training size and seed; those that are there already stay."""
    settings = _settings(spec)
    _limit_threads(1)
    from tedm.fitting import fit_heads

    settings["fits"] = _fits(fits)
    fit_heads(settings, data, store, digest, out, threads)


@app.command()
def pretrain(
    spec: Spec,
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    encoder: Annotated[
        Path | None, typer.Option(help="Directory of the global stage, which a local one starts from.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Pretrain the UNet contrastively on unlabelled images; under torchrun, by several processes."""
    _limit_threads(threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    from tedm import distributed

    with distributed.joined() as device:
        from tedm.contrastive.pretrain import pretrain as run

        settings = _settings(spec)
        stage = settings["pretraining"]
        local = isinstance(stage, dict) and stage.get("type") == "local"
        run(
            data,
            (config.LocalCLConfig if local else config.GlobalCLConfig).model_validate(stage),
            settings["seed"],
            out,
            settings["name"],
            encoder=encoder,
            device=device,
        )


@app.command()
def supervise(
    spec: Spec,
    data: Data,
    out: Annotated[Path, typer.Option(help="Model to write (.safetensors).")],
    pretrained: Annotated[
        Path | None, typer.Option(help="Directory of `tedm pretrain` to start from; absent: none.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Train a baseline on the first n labelled images: from random weights, or from pretrained ones."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm.seeds import seed_of
    from tedm.supervised import fit as run

    run(
        data,
        settings["n"],
        # Not of the name: baselines that are compared share initial weights, batches and augmentation.
        seed_of(settings["experiment_seed"], "baseline", settings["n"], settings["seed"]),
        config.SupervisedConfig.model_validate(settings["supervised"]),
        out.parent,
        pretrained=pretrained,
        device=_device(),
    )


@app.command()
def score(
    spec: Spec,
    fits: Fits,
    heads: Annotated[Path, typer.Option(help="Directory of heads: n{n}/seed{seed}/head.safetensors.")],
    data: DataDir,
    features: FeaturesDir,
    out: ScoresOut,
    threads: TestSets = 1,
) -> None:
    """Predict with one head of every training size and seed on every test set; write masks and scores."""
    settings = _settings(spec)
    _limit_threads(1)
    from tedm.scoring import score_heads

    settings["fits"] = _fits(fits)
    score_heads(settings, heads, data, features, out, threads)


@app.command()
def score_supervised(
    spec: Spec,
    fits: Fits,
    baselines: Annotated[Path, typer.Option(help="Directory of trained networks: n{n}/seed{seed}/.")],
    data: DataDir,
    out: ScoresOut,
    threads: TestSets = 1,
) -> None:
    """Predict with one baseline of every training size and seed on every test set; write its scores."""
    settings = _settings(spec)
    _limit_threads(1)
    from tedm.scoring import score_supervised as run

    settings["fits"] = _fits(fits)
    run(settings, baselines, data, out, threads, _device())


@app.command()
def search_timesteps(
    path: Annotated[Path, typer.Argument(help="Experiment (.yaml) whose features are extracted.")],
    head: Annotated[str, typer.Argument(help="Name of a head in it.")],
    n: Annotated[int, typer.Option(help="Training images.", min=1)],
    out: Annotated[
        Path | None, typer.Option(help="Directory to write; absent: search/{head}/n{n} in the results.")
    ] = None,
    seed: Annotated[int, typer.Option(help="As in evaluation.seeds.", min=0)] = 0,
    max_steps: Annotated[int, typer.Option(help="Largest number of timesteps.", min=1)] = 8,
    fits: Annotated[int | None, typer.Option(help="Heads fitted at most; absent: no limit.", min=1)] = None,
    seconds: Annotated[
        float | None, typer.Option(help="After which no further fit begins; absent: never.", min=0)
    ] = None,
    candidate: Annotated[
        list[int] | None, typer.Option(help="A timestep to choose from, once for each; absent: all.")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit a voting head for every subset, too.")
    ] = False,
    threads: Threads = 1,
) -> None:
    """Find a head's timesteps on the validation images, from cached features; test images are not read."""
    experiment = config.load(path)
    _limit_threads(threads)
    from tedm.search import Budget
    from tedm.search import search_timesteps as run

    out = out or Path(experiment.results) / "search" / head / f"n{n}"
    found = run(
        experiment,
        head,
        n,
        out,
        budget=Budget(max_steps, fits, seconds),
        seed=seed,
        candidates=candidate or (),
        refit=refit,
    )
    print(f"{head}: {list(found.subset)}, validation Dice {100 * found.dice:.2f}; {out}/timesteps.yaml")


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
def study_tables(
    spec: Spec,
    scores: ScoresDir,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
) -> None:
    """Write the study's further tables, the statistics, its claims, and its numbers beside ours."""
    from tedm.report.results import write_tables

    write_tables(_settings(spec), scores, out)


@app.command()
def study_figures(
    spec: Spec,
    scores: ScoresDir,
    summary: Annotated[Path, typer.Option(help="statistics/summary.csv of `tedm study-tables`.")],
    data: DataDir,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
) -> None:
    """Draw the study's figures 1 to 5."""
    from tedm.report.results import draw_figures

    draw_figures(_settings(spec), scores, summary, data, out)


@app.command()
def report(
    spec: Spec,
    results: Annotated[Path, typer.Option(help="Directory of the experiment's results.")],
    out: Annotated[Path, typer.Option(help="Page to write (.html).")],
) -> None:
    """Write the report: one HTML file with everything, which opens without a network."""
    from tedm.report.page import write_page

    write_page(_settings(spec), results, out)


@app.command()
def cost(
    spec: Spec,
    results: Annotated[Path, typer.Option(help="Directory of the experiment's results.")],
    out: Annotated[Path, typer.Option(help="Table to write (.csv).")],
    quantity: Annotated[
        Quantity,
        typer.Option(help="gmac: counted, the same everywhere; seconds: measured, of this machine."),
    ] = Quantity.gmac,
    threads: Threads = 1,
) -> None:
    """Count or measure what every network and head of an experiment takes to predict one image."""
    settings = _settings(spec)
    _limit_threads(threads)
    from tedm.costs import measure

    measure(settings, results, quantity.value, out, _device())


@app.command()
def cost_table(
    spec: Spec,
    gmac: Annotated[Path, typer.Option(help="What `tedm cost --quantity gmac` wrote.")],
    seconds: Annotated[Path, typer.Option(help="What `tedm cost --quantity seconds` wrote.")],
    out: Annotated[Path, typer.Option(help="Table to write (.csv); other forms lie beside it.")],
) -> None:
    """Write Table 4: GMAC and seconds per image of every method."""
    from tedm.report.cost import write_table4

    write_table4(_settings(spec), gmac, seconds, out)


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
def uncertainty(
    spec: Spec,
    data: DataDir,
    scores: ScoresDir,
    out: Annotated[Path, typer.Option(help="Table to write (.csv); the figure lies beside it.")],
) -> None:
    """Write and draw how well the disagreement between timesteps ranks test images by Dice."""
    from tedm.report.uncertainty import write_uncertainty

    write_uncertainty(_settings(spec), data, scores, out)


@app.command()
def demo(
    models: Annotated[
        list[Path] | None, typer.Option(help="Folder that `tedm export` wrote, once for each model.")
    ] = None,
    config_path: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Finished experiment (.yaml): its examples, and without --models its models. Absent and"
            " without --models: config.yaml.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1 is reached from this computer only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.", min=0, max=65535)] = 7860,
    threads: Threads = 8,
) -> None:
    """Show a web page where people segment images with exported models, or with those of an experiment."""
    from tedm.web import server

    server.require()
    if config_path is None and not models:
        config_path = Path("config.yaml")
    experiment = None if config_path is None else config.load(config_path)
    _limit_threads(threads)
    memory.one_heap()
    from tedm.web import catalogue, examples

    device = _device()
    if models:
        from tedm.models import load_together

        loaded = load_together(models, device)
    else:
        assert experiment is not None
        loaded = catalogue.finished(experiment, device)
    server.serve(loaded, {} if experiment is None else examples.examples(experiment), host, port)


@app.command()
def check(path: Annotated[Path, typer.Argument(help="Experiment (.yaml).")]) -> None:
    """Check an experiment's settings without running anything; say what its views will take."""
    from tedm.requests import images_with_views, views_taken

    experiment = config.load(path)
    print(f"{path}: fine. {len(experiment.methods())} methods: {', '.join(experiment.methods())}")
    for backbone, (passes, size) in views_taken(experiment).items():
        print(
            f"views of {images_with_views(experiment)} training images: {passes} forward passes of"
            f" {backbone}, about {cli_store.size_text(size)} in its feature store"
        )


@app.command()
def schema() -> None:
    """Print the JSON schema of an experiment, for editors."""
    print(json.dumps(config.json_schema(), indent=2))


@backbone_app.command("import")
def import_backbone(
    path: Annotated[Path, typer.Argument(help="The authors' checkpoint (.pt), or what --type says.")],
    out: Annotated[Path, typer.Option(help="Backbone directory to write.")],
    kind: Annotated[
        str, typer.Option("--type", help="imported (the authors'), diffusers, timm, package.module:Class.")
    ] = "imported",
    image_size: Annotated[
        int | None, typer.Option(help="Pixels per side; absent: as the authors' checkpoint says.", min=1)
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Of the images; absent: 1.", min=1)] = None,
    settings: Annotated[str, typer.Option(help="Further settings of the type, as JSON.")] = "{}",
    head: Annotated[
        Path | None, typer.Option(help="Head to write (.safetensors), of the authors' LEDM, LEDMe or TEDM.")
    ] = None,
) -> None:
    """Take over a pretrained network, without executing anything in its files."""
    options = _settings(settings, "--settings")
    if kind == "imported":
        from tedm.importing import import_authors

        if options:
            raise TedmError(f"--settings: the authors' checkpoints have none, got {', '.join(options)}")
        import_authors(path, out, head, image_size, channels)
        return
    if image_size is None:
        raise TedmError("--image-size: missing; it is image.size of the experiment")
    if head is not None:
        raise TedmError(f"--head: a backbone of type {kind} has no head; leave it out")
    from tedm.backbones.adapter import import_backbone as run

    run(path, out, kind, options, (channels or 1, image_size, image_size))


def main() -> None:
    """Run the command line; a user's mistake ends in one message and status 1, without a traceback."""
    # Python would look for garbage in all that torch consists of, again and again while it is imported and
    # once more at the end: a second of each job.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
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


def _settings(spec: str, option: str = "--spec") -> dict[str, Any]:
    try:
        settings = json.loads(spec)
    except json.JSONDecodeError as error:
        raise TedmError(f"{option}: not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise TedmError(f"{option}: expected a JSON object")
    return Settings(settings)


def _fits(text: str) -> list[tuple[int, int]]:
    """Pairs of training size and seed."""
    found = [re.fullmatch(r"(\d+)/(\d+)", pair) for pair in text.split()]
    if not found or None in found:
        raise TedmError(f"--fits: expected pairs of training size and seed such as 1/0 3/0, got {text!r}")
    return [(int(pair[1]), int(pair[2])) for pair in found if pair]


def _timesteps(text: str) -> list[int]:
    words = text.split()
    if not words or not all(word.isdecimal() for word in words):
        raise TedmError(f"--timesteps: expected whole numbers such as 1 10 25, got {text!r}")
    return list(dict.fromkeys(map(int, words)))


def _limit_threads(threads: int, processes: int = 1) -> None:
    """Use so many cores, shared by processes; before torch or a BLAS is loaded, as they read this once."""
    memory.keep_freed()
    allowed = min(threads, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads)
    allowed = max(1, allowed // processes)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(allowed)


def _device() -> str:
    from tedm import devices

    return devices.usable().type
