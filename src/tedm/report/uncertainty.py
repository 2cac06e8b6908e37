"""How well the disagreement between timesteps ranks test images by Dice: a table and its figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tedm import disagreement, evaluation
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.files import whole
from tedm.progress import say
from tedm.ranking import Ranking, rank
from tedm.report import figures
from tedm.scoring import read_masks, read_uncertainty

COLUMNS = ("dataset", "method", "n_train", "seed", "class", *Ranking._fields, "data")
EXAMPLES = (("usual", 0.5, "o"), ("most uncertain", 1.0, "s"))  # quantiles of the uncertainty, and markers
MAP, LARGEST = "cividis", 0.5  # bits at the top of the colours; told apart with any colour vision


def write_uncertainty(spec: Mapping[str, Any], data: Path, scores: Path, out: Path) -> None:
    """Write how well every voting head ranks the subjects of each test set, and draw one of them.

    Args:
        spec: sources (heads), train_sizes and seeds, which name the score files; readings of each head;
            datasets (pairs of name and label); synthetic (names); and what is drawn: shown (a head), size n
            and seed.
        data: directory of prepared data sets.
        scores: directory of score files and masks.
        out: table to write (.csv); the figure lies beside it as .png and .pdf.
    """
    rows = evaluation.read_scores(_score_files(spec, scores))
    table = rankings(rows)
    with whole(out) as partial:
        table.to_csv(partial, index=False, na_rep="nan", float_format="%.6g", lineterminator="\n")
    votes = list(dict.fromkeys(rows.loc[rows["metric"] == disagreement.METRIC, "method"]))
    shown = next((m for m in (spec["shown"], *votes) if m in votes), None)
    panels = [
        _panel(spec, shown, dataset, label, rows, data, scores)
        for dataset, label in spec["datasets"]
        if shown is not None
    ]
    for suffix in (".png", ".pdf"):
        draw(out.with_suffix(suffix), panels, _note(spec, shown))
    say(f"Uncertainty: {out} (.png, .pdf)")


def rankings(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per test set, voting method, training size, seed and class; `ranking.Ranking` says of what.

    Args:
        rows: as `evaluation.read_scores` gives them.
    """
    keys = ["dataset", "method", "n_train", "seed", "class"]
    votes = rows[rows["metric"] == disagreement.METRIC].set_index([*keys, "subject"])["value"]
    dice = rows[rows["metric"] == "dice"].set_index([*keys, "subject"])["value"]
    data = dict(zip(rows["dataset"], rows["data"], strict=True))
    made: list[tuple[Any, ...]] = []
    for run, of_run in votes.groupby(keys, sort=False):
        error = 1 - dice.reindex(of_run.index)
        found = rank(of_run.to_numpy(float), error.to_numpy(float))
        made.append((*run, *found, data[str(run[0])]))
    return pd.DataFrame(made, columns=list(COLUMNS))


@dataclass(frozen=True)
class Panel:
    """What the figure shows of one test set.

    Attributes:
        label: of the test set.
        uncertainty: of each subject, mean over classes, (N,).
        dice: likewise, in percent; NaN where the truth has no class.
        examples: positions among the subjects, as EXAMPLES names them.
        images: of the examples, in [0, 1], (E, C, H, W).
        truth: their masks, (E, K, H, W).
        predicted: likewise.
        maps: uncertainty in bits, the largest of all classes, (E, H, W).
    """

    label: str
    uncertainty: NDArray[np.float64]
    dice: NDArray[np.float64]
    examples: Sequence[int]
    images: NDArray[np.float32]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    maps: NDArray[np.float32]


def _panel(
    spec: Mapping[str, Any],
    method: str,
    dataset: str,
    label: str,
    rows: pd.DataFrame,
    data: Path,
    scores: Path,
) -> Panel:
    of_run = rows[
        (rows["dataset"] == dataset)
        & (rows["method"] == method)
        & (rows["n_train"] == spec["n"])
        & (rows["seed"] == spec["seed"])
    ]
    means = of_run.groupby(["metric", "subject"], sort=False)["value"].mean()
    uncertainty, dice = means[disagreement.METRIC], means["dice"]
    order = np.argsort(uncertainty.to_numpy(), kind="stable")
    examples = [int(order[round(quantile * (len(order) - 1))]) for _, quantile, _ in EXAMPLES]
    source = next(s for s in spec["sources"] if method == s or method in spec["readings"][s])
    path = scores / source / f"n{spec['n']}" / f"seed{spec['seed']}" / f"{dataset}.npz"
    with PreparedSet(data / f"{dataset}.h5") as prepared:
        first = {prepared.subjects[row]: row for row in reversed(prepared.rows("test"))}
        chosen = [first[str(uncertainty.index[i])] for i in examples]
        names = [prepared.ids[row] for row in chosen]
        _, masks = read_masks(path, [method], names)
        maps = read_uncertainty(path, method, names)
        if maps is None:
            raise TedmError(f"{path}: has no uncertainty of {method}; delete it and run again")
        return Panel(
            label,
            uncertainty.to_numpy(float),
            100 * dice[uncertainty.index].to_numpy(float),
            examples,
            prepared.images(chosen),
            prepared.masks(chosen),
            masks[method],
            maps.max(axis=1),
        )


def draw(path: Path, panels: Sequence[Panel], note: str) -> None:
    """Draw a row per test set: Dice over uncertainty, and examples with their maps.

    Args:
        path: .png, .pdf or .svg.
        panels: rows; none: the figure says so.
        note: the last line.
    """
    cells, cell, left, gap, top, bottom = 2 * len(EXAMPLES), 1.24, 0.62, 0.06, 0.3, 0.95
    apart = 0.62  # between rows: axis label and title
    across = figures.WIDTH
    wide = across - left - 0.25 - cells * (cell + gap)
    tall = top + max(len(panels), 1) * (cell + apart) - apart + bottom
    with figures.canvas(path, (across, tall)) as figure:
        for i, panel in enumerate(panels):
            y = tall - top - (i + 1) * cell - i * apart
            _scatter(figure.add_axes((left / across, y / tall, wide / across, cell / tall)), panel)
            for e, (name, _, marker) in enumerate(EXAMPLES):
                for k in range(2):
                    x = left + wide + 0.25 + (2 * e + k) * (cell + gap)
                    ax = figure.add_axes((x / across, y / tall, cell / across, cell / tall))
                    _example(ax, panel, e, cell, shows_map=bool(k))
                    if i == 0 and k == 0:
                        centre = (x + cell + gap / 2) / across
                        title = {"○": "o", "□": "s"}
                        sign = next(s for s, m in title.items() if m == marker)
                        figure.text(
                            centre,
                            (y + cell + 0.09) / tall,
                            f"{sign} {name}",
                            ha="center",
                            fontweight="bold",
                        )
        if panels:
            _legend(figure, left + wide + 0.25, cells * (cell + gap), bottom)
        figure.text(0.5, 0.06 / tall, note, ha="center", va="bottom", fontsize=7.5, color=figures.GREY)


def _scatter(ax: Axes, panel: Panel) -> None:
    ax.plot(
        panel.uncertainty,
        panel.dice,
        ".",
        color=figures.PALETTE[0],
        markersize=5,
        alpha=0.65,
        markeredgewidth=0,
    )
    for (_, _, marker), i in zip(EXAMPLES, panel.examples, strict=True):
        ring: dict[str, Any] = {
            "markerfacecolor": "none",
            "markeredgecolor": figures.PALETTE[1],
            "markeredgewidth": 1.2,
        }
        ax.plot(panel.uncertainty[i], panel.dice[i], marker, markersize=8, **ring)
    found = rank(panel.uncertainty, 1 - panel.dice / 100)
    ax.set_title(panel.label, loc="left", fontsize=8.5, fontweight="bold", pad=3)
    number = (
        "ρ undefined"
        if np.isnan(found.spearman)
        else (f"ρ = {found.spearman:.2f} [{found.low:.2f}, {found.high:.2f}]")
    )
    ax.text(0.98, 0.97, number, transform=ax.transAxes, ha="right", va="top", fontsize=7.5)
    ax.set_ylabel("Dice in %")
    ax.set_xlabel("Uncertainty", labelpad=1)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(length=2.5, labelsize=7.5)
    ax.margins(0.08, 0.12)
    ax.grid(color="#d0d7de", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _example(ax: Axes, panel: Panel, e: int, inches: float, *, shows_map: bool) -> None:
    if not shows_map:
        figures.show(ax, panel.images[e])
        figures.outline(ax, panel.truth[e], inches, truth=True)
        figures.outline(ax, panel.predicted[e], inches, truth=False)
        return
    ax.imshow(panel.maps[e], cmap=MAP, vmin=0, vmax=LARGEST, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _legend(figure: Figure, x: float, width: float, bottom: float) -> None:
    across, tall = figure.get_size_inches()
    y = (bottom - 0.3) / tall
    bar = figure.add_axes(((x + width / 2 + 0.1) / across, y, (width / 2 - 0.3) / across, 0.09 / tall))
    colours = ScalarMappable(Normalize(0, LARGEST), MAP)
    figure.colorbar(colours, cax=bar, orientation="horizontal", extend="max")
    bar.tick_params(length=2, labelsize=7)
    bar.set_xlabel("Disagreement in bits", fontsize=7.5, labelpad=1)
    for k, (colour, name) in enumerate(((figures.TRUTH, "truth"), (figures.PREDICTION, "prediction"))):
        start = x + 0.15 + k * 0.9
        figure.text(start / across, y, "▬", color=colour, fontsize=10, va="center")
        figure.text((start + 0.18) / across, y, name, fontsize=7.5, va="center")


def _note(spec: Mapping[str, Any], shown: str | None) -> str:
    if shown is None:
        return "No head of this experiment votes over several timesteps."
    synthetic = " Synthetic images, drawn by a program: no patients." if spec["synthetic"] else ""
    return f"{shown}, n = {spec['n']} labelled images. ρ: Spearman, with its 95 % interval.{synthetic}"


def _score_files(spec: Mapping[str, Any], scores: Path) -> list[Path]:
    return [
        scores / source / f"n{n}" / f"seed{seed}" / f"{dataset}.csv"
        for source in spec["sources"]
        for n in spec["train_sizes"]
        for seed in spec["seeds"]
        for dataset, _ in spec["datasets"]
    ]
