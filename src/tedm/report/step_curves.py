"""Figures 2 and 5 (Rosnati et al. 2023): single timesteps over the training size, beside other methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tedm.errors import TedmError
from tedm.report import figures
from tedm.report.tables import Table

MAP = "cividis"  # of timesteps, dark to light; told apart with any colour vision
BANDS = (figures.PALETTE[1], figures.PALETTE[3])  # of the methods beside, which are no steps
HATCHES = ("", "///")
COLUMNS = 3  # panels beside each other


def draw(
    path: Path,
    made: Sequence[Table],
    summary: pd.DataFrame,
    steps: Sequence[tuple[int, str]],
    beside: Sequence[str],
) -> None:
    """Draw a row of panels for each metric, one panel per data set.

    A line is the mean of one timestep's classifier; a band is the 95 % interval (bootstrap) of the mean of
    a method that reads no single step.

    Args:
        path: .png, .pdf or .svg.
        made: tables whose cells are drawn, one per metric, of the same data sets.
        summary: of `comparisons.summarise`, for the bands.
        steps: timestep and method of each line.
        beside: methods of the bands, two at most.
    """
    datasets = [name for name in made[0].datasets if made[0].subjects(name)]
    if not datasets:
        raise TedmError(f"{path.name}: there are no scores to draw")
    columns = min(len(datasets), COLUMNS)
    rows_of_one = -(-len(datasets) // columns)
    rows = rows_of_one * len(made)
    size = (figures.WIDTH if columns > 1 else 0.62 * figures.WIDTH, 2.5 * rows + 0.8)
    colours = mpl.colormaps[MAP](np.linspace(0, 0.92, len(steps)))
    with figures.canvas(path, size) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat:
            ax.set_visible(False)
        for k, table in enumerate(made):
            for i, dataset in enumerate(datasets):
                ax = grid[k * rows_of_one + i // columns, i % columns]
                ax.set_visible(True)
                _panel(ax, table, dataset, summary, steps, beside, colours)
                if i % columns == 0:
                    ax.set_ylabel(f"Mean {figures.named(table.metric)} in %")
        handles: list[Any] = [
            Line2D([], [], label=f"t = {t}", **_look(i, colours)) for i, (t, _) in enumerate(steps)
        ]
        handles += [
            Patch(facecolor=BANDS[i], alpha=0.4, hatch=HATCHES[i], label=name)
            for i, name in enumerate(beside)
        ]
        columns = figures.evenly(len(handles), 6)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _look(i: int, colours: Any) -> dict[str, Any]:
    return {
        "color": colours[i],
        "marker": figures.MARKERS[i % len(figures.MARKERS)],
        "linewidth": 1.3,
        "markersize": 4,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }


def _panel(
    ax: Axes,
    made: Table,
    dataset: str,
    summary: pd.DataFrame,
    steps: Sequence[tuple[int, str]],
    beside: Sequence[str],
    colours: Any,
) -> None:
    cells = made.cells[made.cells["dataset"] == dataset]
    of_panel = summary[(summary["dataset"] == dataset) & (summary["metric"] == made.metric)]
    for i, method in enumerate(beside):
        band = of_panel[of_panel["method"] == method].sort_values("n_train")
        n = band["n_train"].to_numpy(float)
        ends = band["low"].to_numpy(float), band["high"].to_numpy(float)
        ax.fill_between(n, *ends, facecolor=BANDS[i], alpha=0.25, hatch=HATCHES[i], linewidth=0)
        ax.plot(n, band["mean"].to_numpy(float), color=BANDS[i], linewidth=0.8, linestyle=":")
    for i, (_, method) in enumerate(steps):
        line = cells[cells["method"] == method].sort_values("n_train")
        ax.plot(line["n_train"].to_numpy(float), line["mean"].to_numpy(float), **_look(i, colours))
    figures.dress(ax, made, dataset, f"{made.metric.capitalize()} · ")
