"""A contact sheet: small images with the outlines of their masks, to look at before anything is trained."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from tedm.data.check import THUMBNAIL, Seen
from tedm.files import whole

COLUMNS = 8
CAPTION = 28  # pixels below each image
COLOURS = ((255, 176, 0), (100, 143, 255), (220, 38, 127), (254, 97, 0), (120, 220, 160))
FRAMES = {"train": (70, 160, 70), "val": (200, 170, 60), "test": (200, 80, 80)}  # of each split
OTHER = (110, 110, 110)


def draw(path: Path, title: str, shown: Sequence[tuple[str, str, Seen]], classes: Sequence[str]) -> None:
    """Draw the sheet of a data set.

    Grey runs from the least to the greatest value of the images shown, as it will be prepared: an image
    whose range is odd looks odd.

    Args:
        path: of the PNG.
        title: above the images.
        shown: id, split and what was seen.
        classes: names, for the legend.
    """
    low = min((seen.low for _, _, seen in shown), default=0.0)
    high = max((seen.high for _, _, seen in shown), default=1.0)
    rows = -(-len(shown) // COLUMNS)
    cell, font = THUMBNAIL + 8, ImageFont.load_default(13)
    entries, x, y = [], 6.0, 24
    for colour, name in [*zip(_colours(len(classes)), classes, strict=True), *_legend()]:
        wide = 26 + font.getlength(name)
        if x + wide > COLUMNS * cell:
            x, y = 6.0, y + 18
        entries.append((x, y, colour, name))
        x += wide
    head = y + 20
    sheet = Image.new("RGB", (COLUMNS * cell, head + rows * (cell + CAPTION)), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    pen.text((6, 5), title, (235, 235, 235), font)
    for x, y, colour, name in entries:
        pen.rectangle((x, y + 4, x + 9, y + 13), colour)
        pen.text((x + 13, y), name, (200, 200, 200), font)
    for place, (name, split, seen) in enumerate(shown):
        if seen.thumbnail is None:
            continue
        left, top = place % COLUMNS * cell, head + place // COLUMNS * (cell + CAPTION)
        pen.rectangle((left + 1, top + 1, left + cell - 2, top + cell - 2), FRAMES.get(split, OTHER))
        sheet.paste(_overlaid(seen, low, high), (left + 4, top + 4))
        pen.text((left + 4, top + cell - 1), _caption(name, pen, font), (200, 200, 200), font)
    with whole(path) as partial:
        sheet.save(partial, "PNG")


def _legend() -> list[tuple[tuple[int, int, int], str]]:
    return [(colour, f"frame: {split}") for split, colour in FRAMES.items()] + [(OTHER, "frame: other")]


def _colours(count: int) -> list[tuple[int, int, int]]:
    """One for each class; beyond the list, hues that the golden angle keeps apart."""
    more = (colorsys.hsv_to_rgb(0.13 + 0.618 * k % 1, 0.45 + 0.1 * (k % 4), 1) for k in range(count))
    made = [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more]
    return [*COLOURS, *made][:count]


def _caption(
    name: str, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> str:
    """As much of an id's end as fits below an image: ids differ there."""
    cut = 0
    caption = name
    while pen.textlength(caption, font) > THUMBNAIL and cut < len(name):
        cut += 1
        caption = f"…{name[cut:]}"
    return caption


def _overlaid(seen: Seen, low: float, high: float) -> Image.Image:
    assert seen.thumbnail is not None
    grey = np.clip((seen.thumbnail - low) / max(high - low, 1e-12) * 255, 0, 255)
    colour = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if seen.outline is not None:
        for mask, tint in zip(seen.outline, _colours(len(seen.outline)), strict=True):
            colour[_edge(mask)] = tint
    return Image.fromarray(colour)


def _edge(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    inside = mask > 0
    return np.asarray(inside & ~ndimage.binary_erosion(inside, border_value=0))
