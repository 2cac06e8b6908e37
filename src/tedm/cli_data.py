"""The commands `tedm data …`: check data sets, and begin with a folder of images."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tedm import config
from tedm.errors import TedmError
from tedm.files import write_text

app = typer.Typer(help="Data sets: check them, begin with a folder.", no_args_is_help=True)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="Experiment (.yaml).")],
    dataset: Annotated[list[str] | None, typer.Option(help="Only this data set; can be repeated.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write: report.txt, report.csv, {dataset}.png. Absent: results/check."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Images read at a time; 0: one per core.", min=0)] = 0,
) -> None:
    """Read all images and masks once and report every problem, with sheets of overlays to look at."""
    from tedm.data import contact
    from tedm.data.check import check as run

    experiment = config.load(path)
    names = dataset or list(experiment.datasets)
    unknown = [name for name in names if name not in experiment.datasets]
    if unknown:
        raise TedmError(
            f"{path}: no data set {', '.join(unknown)} (data sets: {', '.join(experiment.datasets)})"
        )
    folder = out or Path(experiment.results, "check")
    report = run(experiment, names, Path(experiment.results, "data"), threads or os.cpu_count() or 1)
    write_text(folder / "report.txt", report.text())
    report.write_csv(folder / "report.csv")
    for name, shown in report.shown.items():
        if shown:
            label = experiment.datasets[name].label
            contact.draw(folder / f"{name}.png", label, shown, experiment.image.classes)
    print(report.text(), end="")
    print(f"{folder}: report.txt, report.csv and a sheet of overlays for each data set; look at those too")
    if report.errors:
        sys.exit(1)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder with images, and masks in a folder of their own.")],
    out: Annotated[
        Path | None, typer.Option(help="Experiment to write; absent: {folder}.yaml here.")
    ] = None,
) -> None:
    """Write a first experiment for a folder of images, by looking at it."""
    from tedm.data.begin import first_config

    path = out or Path(f"{folder.resolve().name.replace(' ', '_')}.yaml")
    if path.exists():
        raise TedmError(f"{path}: is there already; remove it, or give another name with --out")
    text = first_config(folder).replace("THIS_FILE", str(path))
    write_text(path, text)
    experiment = config.load(path)
    for name, dataset in experiment.datasets.items():
        print(f"{name}: {dataset.label}")
    print(f"{path}: written. Read it, then:  tedm data check {path}")
