"""Figure 1: a drawing of this pipeline, with the names and numbers of one experiment."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from numpy.typing import NDArray

from tedm.report import figures
from tedm.seeds import generator

ONCE, CHEAP = "#e8f0f8", "#fdf0e3"  # grounds: what is computed once; what for every head
LINE = "#8c959f"
DRAWN = 4  # timesteps of which a picture and a stack of features are drawn
PIXELS = 48  # side of a picture

Place = tuple[float, float, float, float]  # x, y, width, height; the unit is a tenth of an inch
Picture = NDArray[np.float64]


def draw(path: Path, spec: Mapping[str, Any]) -> None:
    """Draw what is computed once, what is computed for every head, and what passes between them.

    Args:
        path: .png, .pdf or .svg.
        spec: unlabelled, train_on and test_on (labels of data sets), backbones, heads and baselines
            (names), timesteps (all that are read) and train_sizes.
    """
    steps = spec["timesteps"]
    shown = (
        [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, DRAWN).astype(int))] if steps else []
    )
    with figures.canvas(path, (figures.WIDTH, 4.0)) as figure:
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, 83), ylim=(0, 40))
        ax.axis("off")
        _ground(ax, (0.8, 0.8, 52.6, 38.4), ONCE, "a", "Once: the diffusion network runs")
        _ground(ax, (54.2, 0.8, 28, 38.4), CHEAP, "b", "Per head, size and seed: it does not")
        _unlabelled(ax, spec)
        _labelled(ax, spec, shown)
        _heads(ax, spec)


def _unlabelled(ax: Axes, spec: Mapping[str, Any]) -> None:
    """Upper row: training of the backbone."""
    image = _image()
    _stack(ax, (2.5, 24.5, 7.4, 7.4), [image] * 3)
    _words(ax, 6.6, 23.6, "Unlabelled images", spec["unlabelled"], 20)
    _picture(ax, (16.4, 24.5, 7.4, 7.4), _noised(image, 400))
    _words(ax, 20.1, 23.6, "Noised", ["at random timesteps"], 20)
    _unet(ax, (31.4, 24.5, 10.4, 7.4))
    _words(ax, 36.6, 23.6, "Train backbone", spec["backbones"], 24)
    _arrow(ax, (11.4, 28.2), (15.9, 28.2))
    _arrow(ax, (24.3, 28.2), (30.9, 28.2))
    _arrow(ax, (36.6, 20.4), (36.6, 17.1))
    ax.text(37.3, 18.8, "weights", fontsize=6.8, va="center", color=figures.GREY)
    ax.text(43.2, 28.2, "predicts\nthe noise", fontsize=6.8, va="center", color=figures.GREY)


def _labelled(ax: Axes, spec: Mapping[str, Any], shown: Sequence[int]) -> None:
    """Lower row: extraction of features."""
    image = _image()
    _stack(ax, (2.5, 9.4, 7.4, 7.4), [image] * 2, outlined=True)
    _words(ax, 6.3, 8.5, "Labelled images", [spec["train_on"], *spec["test_on"]], 20)
    side, colours = 3.4, mpl.colormaps["cividis"](np.linspace(0.05, 0.92, max(len(shown), 1)))
    for i, step in enumerate(shown):
        x, y = 15.9 + (side + 1) * (i % 2), 13.8 - 4.9 * (i // 2)
        _picture(ax, (x, y, side, side), _noised(image, step))
        ax.text(x + side / 2, y - 0.25, f"t = {step}", fontsize=5.6, ha="center", va="top")
    count = len(spec["timesteps"])
    _words(ax, 19.9, 6.9, "Noised", [f"at {count} timestep{'s' * (count != 1)}"], 20)
    _unet(ax, (31.4, 9.4, 10.4, 7.4))
    _words(ax, 36.6, 8.5, "Extract", ["one pass per timestep, decoder activations"], 26)
    for i, colour in reversed(list(enumerate(colours))):
        for k in range(3):
            place = 45.3 + 0.55 * k + 0.5 * i, 10.2 + 0.55 * k + 1.2 * i
            box = Rectangle(place, 3, 3, facecolor=colour, edgecolor="white", linewidth=0.5)
            ax.add_patch(box)
    _words(ax, 48.4, 8.5, "Feature store", ["(timestep, layer)"], 22)
    for start, end in ((11.2, 15.3), (24.4, 30.9), (42.3, 44.8)):
        _arrow(ax, (start, 13.1), (end, 13.1))


def _heads(ax: Axes, spec: Mapping[str, Any]) -> None:
    """Right half: what reads the features."""
    sizes = ", ".join(map(str, spec["train_sizes"]))
    heads = _box(ax, (56.4, 24.6, 12.2, 9.2), "Fit heads", [*_lines(spec["heads"], 21, 3), f"n = {sizes}"])
    predict = _box(ax, (56.4, 9.6, 12.2, 9), "Predict", [])
    _picture(ax, (60, 10.3, 5, 5), _image(), outlined=True)
    baselines = _box(ax, (56.4, 1.8, 12.2, 4.4), "Train baselines", _lines(spec["baselines"], 21, 1))
    scores = _box(ax, (71, 9.6, 9.8, 9), "Scores", ["a row for every", "test subject", "and class"])
    report = _box(ax, (71, 24.6, 9.8, 9.2), "Report", ["tables, figures,", "tests, intervals,", "one page"])
    _arrow(ax, (51.6, 16), (56, 27), "arc3,rad=-0.15")
    _arrow(ax, (51.6, 13.6), (56, 13.6))
    _arrow(ax, _middle(heads, "s"), _middle(predict, "n"))
    _arrow(ax, _middle(predict, "e"), _middle(scores, "w"))
    _arrow(ax, _middle(scores, "n"), _middle(report, "s"))
    if spec["baselines"]:
        x, y = _middle(baselines, "w")
        ax.plot([6.3, 6.3], [4.2, y - 1], color=figures.INK, linewidth=1)
        _arrow(ax, (6.3, y - 1), (x, y - 1))
        _arrow(ax, _middle(baselines, "n"), _middle(predict, "s"))


def _image() -> Picture:
    """A chest as a child would draw it, in [0, 1]."""
    y, x = np.mgrid[:PIXELS, :PIXELS] / PIXELS
    body = np.exp(-(((x - 0.5) / 0.62) ** 6) - ((y - 0.5) / 0.75) ** 8)
    image: Picture = np.where(_lungs(), 0.3 + 0.04 * np.sin(45 * y), 0.75) * body
    return image


def _lungs() -> NDArray[np.bool_]:
    y, x = np.mgrid[:PIXELS, :PIXELS] / PIXELS
    sides = (np.abs(x - c) / 0.15 for c in (0.3, 0.7))
    lungs: NDArray[np.bool_] = np.any([s**2 + ((y - 0.5) / 0.32) ** 2 < 1 for s in sides], axis=0)
    return lungs


def _noised(image: Picture, step: int) -> Picture:
    """As the cosine schedule of 1000 steps noises it."""
    angle = np.pi / 2 * step / 1000
    noise = generator("figure1").normal(0, 0.25, image.shape)
    noised: Picture = np.cos(angle) * (image - 0.5) + np.sin(angle) * noise + 0.5
    return noised


def _picture(ax: Axes, place: Place, image: Picture, *, outlined: bool = False, layer: float = 2) -> None:
    x, y, w, h = place
    extent = (x, x + w, y, y + h)
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, zorder=layer, aspect="auto")
    if outlined:
        at = (np.arange(PIXELS) + 0.5) / PIXELS
        line: dict[str, Any] = {"colors": [figures.PREDICTION], "linewidths": 0.9, "zorder": layer + 0.1}
        ax.contour(x + w * at, y + h * (1 - at), _lungs().astype(float), levels=[0.5], **line)
    frame = Rectangle((x, y), w, h, fill=False, edgecolor=figures.INK, linewidth=0.6, zorder=layer + 0.1)
    ax.add_patch(frame)


def _stack(ax: Axes, place: Place, images: Sequence[Picture], *, outlined: bool = False) -> None:
    """Pictures behind each other, the last one in front."""
    x, y, w, h = place
    for k, image in reversed(list(enumerate(images))):
        behind = (x + 0.6 * k, y + 0.6 * k, w, h)
        _picture(ax, behind, image, outlined=outlined and k == 0, layer=3 - 0.3 * k)


def _unet(ax: Axes, place: Place) -> None:
    """Two trapezia that meet at their short sides: encoder and decoder, whose activations are kept."""
    x, y, w, h = place
    waist, middle = 0.28 * h, x + w / 2
    for outer, colour in ((x, "white"), (x + w, figures.PALETTE[5])):
        corners = [(outer, y), (outer, y + h), (middle, y + h - waist), (middle, y + waist)]
        ax.add_patch(Polygon(corners, facecolor=colour, edgecolor=figures.INK, linewidth=0.8))
    ax.text(x + w / 4, y + h / 2, "encoder", fontsize=6.2, ha="center", va="center")
    ax.text(x + 3 * w / 4, y + h / 2, "decoder", fontsize=6.2, ha="center", va="center")


def _ground(ax: Axes, place: Place, colour: str, letter: str, title: str) -> None:
    x, y, w, h = place
    style = "round,pad=0,rounding_size=1"
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=colour, linewidth=0))
    ax.text(x + 1.2, y + h - 1.3, letter, va="top", fontsize=10, fontweight="bold")
    ax.text(x + 3.2, y + h - 1.4, title, va="top", fontsize=8.5)


def _words(ax: Axes, x: float, top: float, title: str, names: Sequence[str], width: int) -> None:
    """A title and below it some names, from `top` downwards."""
    ax.text(x, top, title, ha="center", va="top", fontsize=7.6, fontweight="bold")
    text = "\n".join(_lines(names, width, 2))
    ax.text(x, top - 1.5, text, ha="center", va="top", fontsize=6.4, linespacing=1.25, color=figures.GREY)


def _box(ax: Axes, place: Place, title: str, lines: Sequence[str]) -> Place:
    x, y, w, h = place
    style = "round,pad=0,rounding_size=0.6"
    ax.add_patch(
        FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor="white", edgecolor=LINE, linewidth=0.8)
    )
    ax.text(x + w / 2, y + h - 0.8, title, ha="center", va="top", fontsize=7.6, fontweight="bold")
    text = "\n".join(lines)
    below = x + w / 2, y + h - 2.4
    ax.text(*below, text, ha="center", va="top", fontsize=6.4, linespacing=1.3, color=figures.GREY)
    return place


def _middle(place: Place, side: str) -> tuple[float, float]:
    x, y, w, h = place
    return {"e": (x + w, y + h / 2), "w": (x, y + h / 2), "n": (x + w / 2, y + h), "s": (x + w / 2, y)}[
        side
    ]


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: str = "arc3") -> None:
    look: dict[str, Any] = {"color": figures.INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 1, "zorder": 4}
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 8, "connectionstyle": bend}
    ax.add_patch(FancyArrowPatch(start, end, **arrow, **look))


def _lines(names: Sequence[str], width: int, most: int) -> list[str]:
    """Names in at most so many lines, the rest counted."""
    names = list(dict.fromkeys(names))
    for shown in range(len(names), 0, -1):
        left = len(names) - shown
        text = ", ".join(names[:shown]) + (f" and {left} more" if left else "")
        lines = textwrap.wrap(text, width, break_long_words=False)
        if len(lines) <= most or shown == 1:
            return lines
    return ["none"]
