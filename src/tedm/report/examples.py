"""Figures 3 and 4 (Rosnati et al. 2023): image, truth, and each method at each training size."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from tedm.report import figures

GAP = 0.05  # inches


def draw(
    path: Path,
    image: NDArray[np.float32],
    truth: NDArray[np.uint8],
    predicted: Mapping[tuple[str, int], NDArray[np.uint8]],
    dice: Mapping[tuple[str, int], float],
    *,
    classes: Sequence[str],
    title: str,
    note: str,
) -> None:
    """Draw a row per method and a column per training size; image and truth stand on the left of every row.

    Args:
        path: .png, .pdf or .svg.
        image: in [0, 1], (C, H, W).
        truth: masks of 0 and 1, (K, H, W).
        predicted: masks by method and training size, (K, H, W) each; what is not there stays empty.
        dice: the subject's Dice, as a fraction, by method and training size.
        classes: names, (K,).
        title: above the figure.
        note: the last lines.
    """
    methods = list(dict.fromkeys(method for method, _ in predicted))
    sizes = sorted({n for _, n in predicted})
    height, width = truth.shape[1:]
    columns = 2 + len(sizes)
    left = 0.2 + 0.075 * max(map(len, methods))
    cell = min((figures.WIDTH - left) / columns - GAP, 1.25)
    tall = cell * height / width
    across = left + columns * (cell + GAP)
    lines = textwrap.wrap(note, int(across * 17))
    heading = textwrap.wrap(title, int(across * 12))
    handles = _legend(classes)
    across_legend, rows_of_legend = figures.fitted([str(h.get_label()) for h in handles], across)
    top, bottom = 0.4 + 0.15 * len(heading), 0.2 + 0.18 * rows_of_legend + 0.13 * len(lines)
    down = top + len(methods) * (tall + GAP) + bottom
    with figures.canvas(path, (across, down)) as figure:
        for i, method in enumerate(methods):
            y = bottom + (len(methods) - 1 - i) * (tall + GAP)
            for k, n in enumerate([None, None, *sizes]):
                if k > 1 and (method, n) not in predicted:
                    continue
                x = left + k * (cell + GAP)
                ax = figure.add_axes((x / across, y / down, cell / across, tall / down))
                figures.show(ax, image)
                if k >= 1:
                    figures.outline(ax, truth, cell, truth=True)
                if n is not None:
                    figures.outline(ax, predicted[method, n], cell, truth=False)
                    figures.mark(ax, dice[method, n], cell)
                if i == 0:
                    ax.set_title(
                        ("Image", "Truth")[k] if n is None else f"n = {n}", pad=4, fontweight="bold"
                    )
                if k == 0:
                    ax.set_ylabel(method, rotation=0, ha="right", va="center", labelpad=6)
        figure.text(
            *(0.5, 1 - 0.06 / down, "\n".join(heading)),
            ha="center",
            va="top",
            fontsize=9,
            fontweight="bold",
        )
        figures.legend_below(figure, handles, across_legend, bottom - 0.12)
        figure.text(
            *(0.5, 0.06 / down, "\n".join(lines)),
            ha="center",
            va="bottom",
            fontsize=7.5,
            color=figures.GREY,
        )


def _legend(classes: Sequence[str]) -> list[Line2D | Patch]:
    if len(classes) == 1:
        return [
            Line2D([], [], color=figures.TRUTH, label="Truth"),
            Line2D([], [], color=figures.PREDICTION, label="Prediction"),
        ]
    return [
        *(figures.swatch(k, name) for k, name in enumerate(classes)),
        Line2D([], [], color=figures.INK, linestyle="--", label="Truth"),
        Line2D([], [], color=figures.INK, label="Prediction"),
    ]
