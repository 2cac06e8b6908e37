"""Figures: segmentations on their images, curves over the training size; the same bytes every time."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from tedm import evaluation
from tedm.errors import TedmError
from tedm.files import whole
from tedm.report.tables import Table

WIDTH = 8.3  # inches; at 200 dpi twice the width of a README
DPI = 200
GAP = 0.05  # inches between images
INK, GREY = "#24292f", "#6e7781"
# Okabe and Ito (2008): told apart with any colour vision. Markers differ too, for prints without colour.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = "osD^vPX"
# On radiographs the lighter ones come first; the same ones paler make the 15 classes of the study.
OVERLAY = (
    *("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2"),
    *("#B1DDF5", "#F4D38A", "#8AD1BD", "#F8F3AD", "#E8C2D7", "#ECB18A", "#8ABBDA", "#FFFFFF"),
)
TRUTH, PREDICTION = OVERLAY[:2]  # where there is one class
FORMATS = (".png", ".pdf", ".svg")

_STYLE: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the figure looks the same everywhere
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.parse_math": False,  # a label may contain a dollar sign
    "svg.hashsalt": "tedm",
    "pdf.fonttype": 42,
}


def segmentations(
    path: Path,
    images: NDArray[np.float32],
    truth: NDArray[np.uint8],
    predictions: Mapping[str, NDArray[Any]],
    *,
    dice: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    classes: Sequence[str],
    synthetic: bool,
    note: str = "",
) -> None:
    """Draw contours of truth and prediction on each image, its Dice and the pixels that differ.

    One row per image; columns: the truth alone, then each method. One class: truth in blue, prediction in
    orange, what only one of them contains tinted in its colour. Several classes: a colour each, the truth
    dashed.

    Args:
        path: .png, .pdf or .svg.
        images: in [0, 1], (N, C, H, W); three channels are shown in colour, else the first one in grey.
        truth: masks of 0 and 1, (N, K, H, W).
        predictions: for each method masks of 0 and 1 or probabilities, (N, K, H, W), as `evaluation.scores`
            takes them.
        dice: for each method the Dice of each image's subject, as a fraction, (N,).
        labels: of the rows, (N,).
        classes: names, (K,).
        synthetic: whether the images are drawn, not measured; the figure then says so.
        note: added to the last line.
    """
    count, height, width = images.shape[0], *images.shape[2:]
    if len(labels) != count or count == 0 or truth.shape != (count, len(classes), height, width):
        raise TedmError(
            f"{path.name}: {count} images {images.shape}, masks {truth.shape}, {len(labels)} labels and"
            f" {len(classes)} classes do not belong together"
        )
    masks = {method: _masks(predicted) for method, predicted in predictions.items()}
    columns = 1 + len(predictions)
    # Inches: labels on the left, titles above, legend and remarks below.
    left = 0.25 + 0.068 * max(len(line) for label in labels for line in label.split("\n"))
    cell = min((WIDTH - left) / columns - GAP, 2.1)
    tall = cell * height / width
    remarks = ["Numbers are the subject's Dice in %."] * bool(predictions)
    remarks += ["Synthetic images, drawn by a program: no patients."] * synthetic + [note] * bool(note)
    across = left + columns * (cell + GAP)
    lines = textwrap.wrap(" ".join(remarks), int(across * 17))
    handles = _segmentation_legend(classes, with_predictions=bool(predictions))
    across_legend, rows_of_legend = fitted([str(h.get_label()) for h in handles], across)
    bottom = 0.2 + 0.18 * rows_of_legend + 0.13 * len(lines)
    size = (across, 0.28 + count * (tall + GAP) + bottom)
    longest = max(map(len, ["Truth", *predictions]))
    with canvas(path, size) as figure:
        for row in range(count):
            for column, method in enumerate([None, *predictions]):
                x, y = left + column * (cell + GAP), bottom + (count - 1 - row) * (tall + GAP)
                ax = figure.add_axes((x / size[0], y / size[1], cell / size[0], tall / size[1]))
                show(ax, images[row])
                if method is not None and len(classes) == 1:
                    _tint(ax, masks[method][row, 0], truth[row, 0])
                outline(ax, truth[row], cell, truth=True)
                if method is not None:
                    outline(ax, masks[method][row], cell, truth=False)
                    mark(ax, dice[method][row], cell)
                if row == 0:
                    ax.set_title(
                        method or "Truth", pad=4, fontweight="bold", fontsize=min(8.5, 100 * cell / longest)
                    )
                if column == 0:
                    ax.set_ylabel(labels[row], rotation=0, ha="right", va="center", labelpad=6, fontsize=8)
        legend_below(figure, handles, across_legend, bottom - 0.12)
        figure.text(
            0.5, 0.06 / size[1], "\n".join(lines), ha="center", va="bottom", fontsize=7.5, color=GREY
        )


def _masks(predicted: NDArray[Any]) -> NDArray[np.uint8]:
    if np.issubdtype(predicted.dtype, np.floating):
        return evaluation.segment(predicted)
    foreground: NDArray[np.bool_] = predicted != 0
    return foreground.astype(np.uint8)


def show(ax: Axes, image: NDArray[np.float32]) -> None:
    """Draw an image, (C, H, W) in [0, 1], on axes without ticks."""
    shown = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    ax.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _tint(ax: Axes, predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
    colours = np.zeros((*truth.shape, 4))
    colours[(truth == 1) & (predicted == 0)] = to_rgba(TRUTH, 0.5)
    colours[(truth == 0) & (predicted == 1)] = to_rgba(PREDICTION, 0.5)
    ax.imshow(colours, interpolation="nearest")


def outline(ax: Axes, masks: NDArray[np.uint8], inches: float, *, truth: bool) -> None:
    """Draw the contours of masks, (K, H, W), on axes so many inches wide."""
    height, width = masks.shape[1:]
    x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
    for k, mask in enumerate(masks):
        if not mask.any():
            continue
        colour = OVERLAY[k % len(OVERLAY)] if len(masks) > 1 else TRUTH if truth else PREDICTION
        style = "--" if truth and len(masks) > 1 else "-"
        # A border of background closes the contour of what touches the edge.
        line: dict[str, Any] = {
            "colors": [colour],
            "linewidths": min(1.1, 0.8 * inches),
            "linestyles": style,
        }
        ax.contour(x, y, np.pad(mask, 1), levels=[0.5], **line)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def mark(ax: Axes, dice: float, inches: float) -> None:
    """Write a Dice (a fraction; NaN: a dash) into the corner of axes so many inches wide, in percent."""
    ax.text(
        0.97,
        0.03,
        "–" if np.isnan(dice) else f"{100 * dice:.1f}",
        transform=ax.transAxes,
        ha="right",
        va="bottom",
        fontsize=min(7.5, 8 * inches),
        color="white",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": (0, 0, 0, 0.6), "edgecolor": "none"},
    )


def fitted(labels: Sequence[str], inches: float) -> tuple[int, int]:
    """Columns and rows in which a legend of these labels, at 8 points, is at most so many inches wide."""
    wide = [0.068 * len(label) + 0.48 for label in labels]
    for rows in range(1, len(labels)):
        columns = [max(wide[i : i + rows]) for i in range(0, len(wide), rows)]  # filled downwards
        if sum(columns) <= inches:
            return -(-len(labels) // rows), rows
    return 1, max(len(labels), 1)


def legend_below(figure: Figure, handles: Sequence[Any], columns: int, top: float) -> None:
    """A legend whose upper edge is so many inches above the figure's lower one."""
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, top / float(figure.get_size_inches()[1])),
        ncols=columns,
        frameon=False,
        fontsize=8,
        handlelength=1.6,
        columnspacing=1.4,
        borderpad=0,
        borderaxespad=0,
    )


def _segmentation_legend(classes: Sequence[str], *, with_predictions: bool) -> list[Any]:
    if len(classes) == 1:
        handles: list[Any] = [Line2D([], [], color=TRUTH, label="Truth")]
        if with_predictions:
            handles += [
                Line2D([], [], color=PREDICTION, label="Prediction"),
                Patch(color=_on_grey(TRUTH), label="False negative"),
                Patch(color=_on_grey(PREDICTION), label="False positive"),
            ]
    else:
        handles = [swatch(k, name) for k, name in enumerate(classes)]
        handles += [
            Line2D([], [], color=INK, linestyle="--", label="Truth"),
            Line2D([], [], color=INK, label="Prediction"),
        ]
    return handles


def swatch(k: int, name: str) -> Patch:
    """The k-th class in a legend; framed, since one colour is white."""
    return Patch(facecolor=OVERLAY[k % len(OVERLAY)], edgecolor=GREY, linewidth=0.4, label=name)


def _on_grey(colour: str) -> tuple[float, float, float]:
    red, green, blue = to_rgb(colour)
    return 0.5 * red + 0.25, 0.5 * green + 0.25, 0.5 * blue + 0.25


def learning_curves(path: Path, made: Table, summary: pd.DataFrame) -> None:
    """Draw the mean of each method over the training size, one panel per data set.

    The band is the 95 % interval of the mean (bootstrap over subjects): how sure the mean is, not how much
    subjects vary, which the table has. With one subject there is none.

    Args:
        path: .png, .pdf or .svg.
        made: the table whose cells are drawn; data sets without scores are left out.
        summary: of `comparisons.summarise`, for the bands.
    """
    datasets = [name for name in made.datasets if made.subjects(name)]
    if not datasets:
        raise TedmError(f"{path.name}: there are no scores to draw")
    columns = min(len(datasets), 3)
    rows = -(-len(datasets) // columns)
    size = (WIDTH if columns > 1 else WIDTH * 0.62, 2.75 * rows + 0.75)
    with canvas(path, size) as figure:
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for ax in grid.flat[len(datasets) :]:
            ax.remove()
        for i, (ax, dataset) in enumerate(zip(grid.flat, datasets, strict=False)):
            _curves(ax, made, dataset, summary)
            if i % columns == 0:
                ax.set_ylabel(f"Mean {named(made.metric)} in %, 95 % interval")
        handles = [
            Line2D([], [], label=method, **look(i))
            for i, method in enumerate(made.methods)
            if method in set(made.cells["method"])
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=evenly(len(handles), 6), frameon=False
        )


def named(metric: str) -> str:
    """A metric within a sentence: Dice was a person."""
    return "Dice" if metric == "dice" else metric


def _curves(ax: Axes, made: Table, dataset: str, summary: pd.DataFrame) -> None:
    cells = made.cells[made.cells["dataset"] == dataset]
    of_panel = summary[(summary["dataset"] == dataset) & (summary["metric"] == made.metric)]
    for i, method in enumerate(made.methods):
        curve = cells[cells["method"] == method].sort_values("n_train")
        band = of_panel[of_panel["method"] == method].sort_values("n_train")
        ends = band["low"].to_numpy(float), band["high"].to_numpy(float)
        line = look(i)
        ax.fill_between(
            band["n_train"].to_numpy(float), *ends, color=line["color"], alpha=0.13, linewidth=0
        )
        ax.plot(curve["n_train"].to_numpy(float), curve["mean"].to_numpy(float), **line)
    dress(ax, made, dataset)


def dress(ax: Axes, made: Table, dataset: str, prefix: str = "") -> None:
    """Axes and headings of a panel of curves over the training size; `prefix` starts its second line."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([float(n) for n in made.sizes]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(made.sizes[0] / 1.25, made.sizes[-1] * 1.25)
    ax.set_xlabel("Training size")
    ax.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    ax.tick_params(labelleft=True, length=2.5)
    ax.grid(axis="y", color="#d0d7de", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    count, data = made.subjects(dataset), made.data(dataset)
    ax.set_title(made.datasets[dataset], loc="left", fontsize=9, fontweight="bold", pad=16)
    ax.annotate(
        f"{prefix}{count} test subject{'s' * (count != 1)} · {data} data",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=7.5,
        color=GREY,
    )


def evenly(count: int, most: int) -> int:
    """Columns of a legend, at most so many, whose rows are about equally long."""
    rows = -(-count // most)
    return -(-count // max(rows, 1))


def look(i: int) -> dict[str, Any]:
    """Look of the i-th method: colours repeat after seven, then dashed."""
    turn, k = divmod(i, len(PALETTE))
    return {
        "color": PALETTE[k],
        "marker": MARKERS[k],
        "linestyle": ("-", "--", ":")[turn % 3],
        "linewidth": 1.4,
        "markersize": 4,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


@contextmanager
def canvas(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure that is written to `path` without dates, versions or the machine's settings."""
    if path.suffix not in FORMATS:
        raise TedmError(f"{path}: a figure is one of {', '.join(FORMATS)}")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        # No pyplot: nothing global, no display, and without a window toolkit the canvas is Agg.
        figure = Figure(figsize=inches, dpi=DPI, facecolor="white")
        yield figure
        metadata: dict[str, Any] = {"Software": None}
        if path.suffix == ".pdf":
            metadata = {"Creator": None, "Producer": None, "CreationDate": None}
        elif path.suffix == ".svg":
            metadata = {"Date": None, "Creator": None}
        with whole(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], metadata=metadata)
