"""Figure 1: a drawing of this pipeline, with the names and numbers of one experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tedm.report import figures

ONCE, CHEAP, FILES = "#dbe9f6", "#fde6d2", "#ffffff"  # grounds: computed once, computed often, files


def draw(path: Path, spec: Mapping[str, Any]) -> None:
    """Draw what is computed once, what is computed for every head, and the files in between.

    Args:
        path: .png, .pdf or .svg.
        spec: unlabelled, train_on and test_on (labels of data sets), backbones, heads and baselines
            (names), timesteps (all that are read) and train_sizes.
    """
    with figures.canvas(path, (figures.WIDTH, 4.3)) as figure:
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, 83), ylim=(0, 43))
        ax.axis("off")
        _ground(ax, (0.8, 3.6, 51.4, 38.6), ONCE, "Once per image: the diffusion network runs")
        _ground(ax, (53, 3.6, 29.2, 38.6), CHEAP, "Per head, size and seed: it does not")
        unlabelled = _box(ax, (2, 30, 14, 7), "Unlabelled images", _listed(spec["unlabelled"], 20))
        train = _box(ax, (20, 30, 14.5, 7), "Train backbone", _listed(spec["backbones"], 21))
        model = _box(ax, (38, 30, 12.5, 7), "model.safetensors", "weights, digest", FILES)
        labelled = _box(
            ax, (2, 17, 14, 9), "Labelled images", _listed([spec["train_on"], *spec["test_on"]], 20)
        )
        steps = spec["timesteps"]
        extract = _box(
            ax,
            (20, 17, 14.5, 9),
            "Extract",
            f"decoder activations\nat {len(steps)} timestep{'s' * (len(steps) != 1)}"
            + (f",\nt = {steps[0]} … {steps[-1]}" if len(steps) > 1 else ""),
        )
        store = _box(
            ax, (38, 17, 12.5, 9), "Feature store", "Zarr v3: t0050/up2\nchecksummed,\nresumable", FILES
        )
        sizes = ", ".join(map(str, spec["train_sizes"]))
        heads = _box(ax, (55, 27, 12.2, 10), "Fit heads", f"{_listed(spec['heads'], 16)}\nn = {sizes}")
        score = _box(ax, (55, 15.5, 12.2, 7.5), "Predict, score", "masks and one row\nper subject")
        scores = _box(ax, (70, 15.5, 11, 7.5), "Score files", "CSV and masks", FILES)
        report = _box(ax, (70, 27, 11, 10), "Report", "tests, tables,\nfigures, one page")
        baselines = _box(ax, (55, 5.5, 12.2, 6.5), "Train baselines", _listed(spec["baselines"], 16))
        for a, b in (
            ((unlabelled, "e"), (train, "w")),
            ((train, "e"), (model, "w")),
            ((labelled, "e"), (extract, "w")),
            ((extract, "e"), (store, "w")),
            ((heads, "s"), (score, "n")),
            ((score, "e"), (scores, "w")),
            ((scores, "n"), (report, "s")),
        ):
            _arrow(ax, _edge(*a), _edge(*b))
        _arrow(ax, _edge(model, "s"), _edge(extract, "n"), "arc3,rad=0.12")
        _arrow(ax, _edge(store, "e"), (heads[0], heads[1] + 2), "arc3,rad=-0.1")
        _arrow(ax, _edge(store, "e"), _edge(score, "w"))
        if spec["baselines"]:
            _arrow(ax, _edge(labelled, "s"), _edge(baselines, "w"), "arc3,rad=0.15")
            _arrow(ax, _edge(baselines, "n"), _edge(score, "s"))
        ax.text(
            *(41.5, 1.6),
            "White: files that jobs pass on. Every arrow is a tracked dependency; a new head reads the"
            " store and repeats nothing on its left.",
            ha="center",
            va="center",
            fontsize=7.5,
            color=figures.GREY,
        )


Place = tuple[float, float, float, float]


def _ground(ax: Axes, place: Place, colour: str, title: str) -> None:
    x, y, w, h = place
    ax.add_patch(
        FancyBboxPatch(
            (x, y), w, h, boxstyle="round,pad=0,rounding_size=1.2", facecolor=colour, linewidth=0
        )
    )
    ax.text(x + 1.2, y + h - 1.2, title, va="top", fontsize=8.5, fontweight="bold")


def _box(ax: Axes, place: Place, title: str, text: str, colour: str = "#f6f8fa") -> Place:
    x, y, w, h = place
    ax.add_patch(
        FancyBboxPatch(
            (x, y),
            w,
            h,
            boxstyle="round,pad=0,rounding_size=0.8",
            facecolor=colour,
            edgecolor=figures.GREY,
            linewidth=0.8,
        )
    )
    ax.text(x + w / 2, y + h - 1, title, ha="center", va="top", fontsize=8, fontweight="bold")
    ax.text(x + w / 2, y + (h - 2.2) / 2, text, ha="center", va="center", fontsize=6.8, linespacing=1.25)
    return place


def _edge(place: Place, side: str) -> tuple[float, float]:
    x, y, w, h = place
    return {
        "e": (x + w, y + h / 2),
        "w": (x, y + h / 2),
        "n": (x + w / 2, y + h),
        "s": (x + w / 2, y),
    }[side]


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: str = "arc3") -> None:
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=9,
            connectionstyle=bend,
            color=figures.INK,
            linewidth=1,
            shrinkA=1,
            shrinkB=1,
        )
    )


def _listed(names: Sequence[str], width: int) -> str:
    """Names in at most two lines, the rest counted."""
    lines, line, shown = [], "", 0
    for name in dict.fromkeys(names):
        joined = f"{line}, {name}" if line else name
        if len(joined) > width and line:
            lines.append(line + ",")
            if len(lines) == 2:
                break
            line = name
        else:
            line = joined
        shown += 1
    else:
        lines.append(line)
    left = len(dict.fromkeys(names)) - shown
    text = "\n".join(lines[:2])
    return f"{text}\nand {left} more" if left else text or "none"
