"""The commands `tedm export` and `tedm segment`: models to hand on, and masks of new images."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tedm import config, memory
from tedm.errors import TedmError

app = typer.Typer()

Device = Annotated[str | None, typer.Option(help="cpu or cuda; absent: a GPU if there is one.")]


@app.command()
def export(
    method: Annotated[str, typer.Option(help="Row of the tables: TEDM, Supervised, `LR t=1`, …")],
    n: Annotated[int, typer.Option("--n", help="Training images.", min=1)],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    seed: Annotated[int, typer.Option(help="As in evaluation.seeds.", min=0)] = 0,
    experiment: Annotated[Path, typer.Option("--config", help="Experiment (.yaml) that was run.")] = Path(
        "config.yaml"
    ),
    results: Annotated[
        Path | None, typer.Option(help="Directory of its results; absent: as it says itself.")
    ] = None,
) -> None:
    """Write a method of a finished experiment as a model folder that segments new images."""
    settings = config.load(experiment)
    from tedm.models.export import export as run

    run(settings, results or Path(settings.results), method, n, seed, out)


@app.command()
def segment(
    files: Annotated[
        list[Path], typer.Argument(help="Images (PNG, JPEG, TIFF, DICOM, NIfTI), or folders of them.")
    ],
    model: Annotated[list[Path], typer.Option(help="Model folder; can be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder to write: masks, overlays, segmentations.csv.")],
    keep_largest: Annotated[
        int | None, typer.Option(help="Connected parts of each class that stay; absent: all.", min=1)
    ] = None,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Fill background that a class encloses.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Of DICOM images also DICOM SEG (tedm[dicomseg]).")
    ] = False,
    device: Device = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: one per core.", min=0)] = 0,
    allow_imports: Annotated[
        bool,
        typer.Option("--allow-imports", help="Import classes that a model names; runs their code."),
    ] = False,
) -> None:
    """Segment images; what is finished already is skipped, and a bad file does not stop the others."""
    memory.keep_freed()
    import torch

    from tedm.models import load_together
    from tedm.models.batch import Options, segment_files

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise TedmError(f"--device: {device}, but there is no GPU that torch can use; leave it out")
    torch.set_num_threads(threads or os.cpu_count() or 1)
    models = load_together(model, device, allow_imports=allow_imports)
    segment_files(models, files, out, Options(keep_largest, fill_holes, dicom_seg))
