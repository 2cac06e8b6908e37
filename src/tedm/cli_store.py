"""The commands `tedm store …`: look into feature stores, check them, mend them, make room."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tedm import config
from tedm.errors import TedmError
from tedm.progress import Stage, say, stage

if TYPE_CHECKING:
    from tedm.features.check import Problem, Removal

app = typer.Typer(help="Feature stores: look, check, mend, make room.", no_args_is_help=True)

Store = Annotated[str, typer.Argument(help="Feature store (.zarr).")]
Yes = Annotated[bool, typer.Option("--yes", help="Remove it; without this, only say what would go.")]


@app.command()
def ls(
    store: Annotated[str, typer.Argument(help="Feature store (.zarr), or a place of many stores.")],
) -> None:
    """List the arrays of a store, or who made what and when in a place of many stores."""
    from rich.console import Console
    from rich.table import Table

    from tedm.features import catalogue, check

    if catalogue.has_stores(store):
        _show_place(store)
        return
    columns = ("array", "state", "shape", "type", "codec", "shards", "size", "of upsampled float32")
    table = Table(*columns, "made", "by", "note")
    for array in check.ls(store):
        table.add_row(
            array.key,
            array.state,
            " × ".join(map(str, array.shape)),
            array.dtype,
            array.codec,
            f"{array.shards_done}/{array.shards}",
            size_text(array.bytes),
            f"1/{1 / array.ratio:.1f}" if array.ratio else "",
            _moment(array.made_at),
            array.made_by,
            array.note,
        )
    Console(width=None if Console().is_terminal else 180).print(table)


def _show_place(place: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from tedm.features import catalogue

    table = Table("store", "data", "images", "timesteps", "size", "made", "by", "note")
    for part in catalogue.contributions(place):
        steps = [str(t) for t in part.timesteps] + [f"{t} (unfinished)" for t in part.unfinished]
        table.add_row(
            part.store,
            part.dataset,
            str(part.images or ""),
            ", ".join(steps),
            size_text(part.bytes) if steps else "",
            _moment(part.made_at),
            part.made_by,
            part.note,
        )
    Console(width=None if Console().is_terminal else 180).print(table)


def _moment(when: datetime | None) -> str:
    """In the reader's time zone."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M") if when else ""


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
    from tedm.features.store import Location, repair_command

    with _shards(f"verify {store}") as progress:
        problems = check.verify(store, progress=progress)
    _show(problems)
    if any(problem.mended for problem in problems):
        mend = repair_command(Location(store))
        raise TedmError(f"{store}: {_counted(problems)}.\n  Compute it again:  {mend}")
    if problems:
        raise TedmError(f"{store}: its arrays are sound; what is beside them is not of tedm")
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

    loaded = backbones.load(backbone, allow_imports=True)
    with _shards(f"verify {store}") as progress:
        problems = check.repair(store, loaded, data, progress=progress)
    _show(problems)
    mended = [problem for problem in problems if problem.mended]
    say(f"{store}: {f'mended {_counted(mended)}' if mended else 'nothing to mend'}")


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
    key: Annotated[str, typer.Argument(help="t0050, t0050/view1-3fa9c2d0 or t0050/up2.")],
    yes: Yes = False,
) -> None:
    """Remove one timestep, view or array."""
    from tedm.features import check

    _removed(check.rm(store, key, dry_run=not yes), yes)


@contextmanager
def _shards(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress over shards, from the first one on: where nothing is read, nothing is shown."""
    with ExitStack() as stack:
        shown: list[Stage] = []

        def reach(done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(stage(label, total, "shards")))
            shown[0].reach(done, total)

        yield reach


def _counted(problems: "list[Problem]") -> str:
    return f"{len(problems)} problem{'s' * (len(problems) != 1)}"


def _show(problems: "list[Problem]") -> None:
    for problem in problems:
        images = f" ({problem.ids[0]}{', …' if len(problem.ids) > 1 else ''})" if problem.ids else ""
        say(f"  {problem.key}: {problem.kind}: {problem.note}{images}")


def _removed(removals: "list[Removal]", done: bool) -> None:
    for removal in removals:
        print(f"{removal.key}\t{size_text(removal.bytes)}")
    total = size_text(sum(removal.bytes for removal in removals))
    hint = "" if done or not removals else "; --yes removes them"
    count = f"{len(removals)} array{'s' * (len(removals) != 1)}"
    say(f"{'removed' if done else 'would remove'} {count}, {total}{hint}")


def size_text(count: float) -> str:
    """A number of bytes for people: 3.02 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
