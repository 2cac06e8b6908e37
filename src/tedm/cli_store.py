"""The commands `tedm store …`: look into feature stores, check them, mend them, make room."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tedm import config
from tedm.errors import TedmError
from tedm.progress import say, stage

if TYPE_CHECKING:
    from tedm.features.check import Problem, Removal

app = typer.Typer(help="Feature stores: look, check, mend, make room.", no_args_is_help=True)

Store = Annotated[str, typer.Argument(help="Feature store (.zarr).")]
Yes = Annotated[bool, typer.Option("--yes", help="Remove it; without this, only say what would go.")]


@app.command()
def ls(store: Store) -> None:
    """List the arrays of a store, with their sizes and whether they are complete."""
    from rich.console import Console
    from rich.table import Table

    from tedm.features import check

    table = Table(
        "array", "state", "shape", "type", "codec", "shards", "size", "of upsampled float32", "note"
    )
    for array in check.ls(store):
        table.add_row(
            array.key,
            array.state,
            " × ".join(map(str, array.shape)),
            array.dtype,
            array.codec,
            f"{array.shards_done}/{array.shards}",
            _size(array.bytes),
            f"1/{1 / array.ratio:.1f}" if array.ratio else "",
            array.note,
        )
    Console(width=None if Console().is_terminal else 160).print(table)


@app.command()
def info(store: Store) -> None:
    """Print what a store says of itself, as JSON."""
    from dataclasses import asdict

    from tedm.features import check

    print(json.dumps(asdict(check.info(store)), indent=2, ensure_ascii=False))


@app.command()
def verify(store: Store) -> None:
    """Read everything and compare it with what was written; status 1 if anything is bad."""
    from tedm.features import check

    with stage(f"verify {store}", 0, "shards") as progress:
        problems = check.verify(store, progress=progress.reach)
    if problems:
        _show(problems)
        raise TedmError(f"{store}: {len(problems)} problems; `tedm store repair` computes it again")
    say(f"{store}: sound")


@app.command()
def repair(
    store: Store,
    backbone: Annotated[Path, typer.Option(help="Backbone directory that the store was made from.")],
    data: Annotated[Path, typer.Option(help="Prepared data set (.h5) that it was made from.")],
) -> None:
    """Compute again what `verify` finds bad, and nothing else."""
    from tedm import backbones
    from tedm.features import check

    with stage(f"verify {store}", 0, "shards") as progress:
        problems = check.repair(store, backbones.load(backbone), data, progress=progress.reach)
    _show(problems)
    say(f"{store}: {f'mended {len(problems)} problems' if problems else 'nothing to mend'}")


@app.command()
def prune(
    store: Store,
    experiment: Annotated[Path, typer.Option(help="Experiment (.yaml) whose heads' features are kept.")],
    backbone: Annotated[str, typer.Option(help="Name of the backbone in that experiment.")],
    yes: Yes = False,
) -> None:
    """Remove the arrays that no head of an experiment reads."""
    from tedm.features import check

    _removed(check.prune(store, config.load(experiment), backbone, dry_run=not yes), yes)


@app.command()
def rm(
    store: Store,
    key: Annotated[str, typer.Argument(help="t0050, t0050/draw1 or t0050/up2.")],
    yes: Yes = False,
) -> None:
    """Remove one timestep, draw or array."""
    from tedm.features import check

    _removed(check.rm(store, key, dry_run=not yes), yes)


def _show(problems: "list[Problem]") -> None:
    for problem in problems:
        images = f" ({len(problem.ids)} images, from {problem.ids[0]})" if problem.ids else ""
        say(f"  {problem.key}: {problem.kind}: {problem.note}{images}")


def _removed(removals: "list[Removal]", done: bool) -> None:
    for removal in removals:
        print(f"{removal.key}\t{_size(removal.bytes)}")
    total = _size(sum(removal.bytes for removal in removals))
    hint = "" if done or not removals else "; --yes removes them"
    say(f"{'removed' if done else 'would remove'} {len(removals)} arrays, {total}{hint}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
