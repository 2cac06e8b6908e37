"""The reliability figure: share of foreground over the predicted probability, one panel per test set."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from tedm.measures import Counts
from tedm.report import figures

COLUMNS = 3  # panels beside each other
FEW = 20  # pixels of a bin; what fewer say is chance


def draw(path: Path, panels: Mapping[str, Mapping[str, Counts]], n: int, synthetic: bool) -> None:
    """Draw a line per method; on the diagonal, of all pixels predicted with p a share of p is foreground.

    Args:
        path: .png, .pdf or .svg.
        panels: by test set (label) and method the sums of `measures.bins` over images, (K, BINS, 4);
            classes are pooled.
        n: training size.
        synthetic: whether images are drawn, not measured; the figure then says so.
    """
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    methods = list(dict.fromkeys(method for of_panel in panels.values() for method in of_panel))
    side = figures.WIDTH / COLUMNS
    with figures.canvas(path, (max(columns, 1.5) * side, rows * (side - 0.25) + 0.95)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        grid = figure.subplots(rows, columns, squeeze=False)
        for ax in grid.flat[len(panels) :]:
            ax.remove()
        for ax, (label, of_panel) in zip(grid.flat, panels.items(), strict=False):
            ax.plot([0, 1], [0, 1], color=figures.GREY, linewidth=0.8)
            for i, method in enumerate(methods):
                pixels, probability, truth, _ = np.moveaxis(of_panel[method].sum(axis=0), -1, 0)
                enough = pixels >= FEW
                ax.plot(
                    probability[enough] / pixels[enough],
                    truth[enough] / pixels[enough],
                    **figures.look(i),
                )
            ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            ax.xaxis.set_major_locator(MultipleLocator(0.25))
            ax.yaxis.set_major_locator(MultipleLocator(0.25))
            ax.set_xlabel("Predicted probability")
            ax.set_ylabel("Share of foreground")
            ax.set_title(label, loc="left", fontsize=9, fontweight="bold")
            ax.grid(color="#d0d7de", linewidth=0.5)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
        handles = [Line2D([], [], label=method, **figures.look(i)) for i, method in enumerate(methods)]
        words = f"Training size {n}{'; synthetic images, no patients' * synthetic}"
        figure.legend(
            handles=handles,
            title=words,
            loc="outside lower center",
            ncols=figures.evenly(len(handles), 6),
            frameon=False,
            title_fontsize=7.5,
        )
