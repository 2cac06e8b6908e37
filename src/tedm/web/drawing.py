"""Pictures and lines inside a page: PNG as data, contours as SVG paths."""

import base64
import io
from collections.abc import Iterable

import contourpy
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tedm.report.figures import OVERLAY, PREDICTION, TRUTH

Float = NDArray[np.float32]
COLOURS, TRUTH_COLOUR, PREDICTION_COLOUR = OVERLAY, TRUTH, PREDICTION
DOUBT = "cividis"  # told apart with any colour vision, and as grey
LARGEST_DOUBT = 0.5  # bits at the top of the colours, as in the report


def uri(image: Image.Image) -> str:
    """An image as the address of itself."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def grey(values: Float) -> str:
    """A map of 0 … 1, (h, w): black to white."""
    return uri(Image.fromarray(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)))


def doubt(bits: Float) -> str:
    """A map of uncertainty in bits, (h, w): dark blue to yellow."""
    colours = mpl.colormaps[DOUBT](np.clip(bits / LARGEST_DOUBT, 0, 1), bytes=True)
    return uri(Image.fromarray(np.ascontiguousarray(colours[..., :3])))


def counted(votes: NDArray[np.integer], of: int) -> str:
    """How many of some voted for a pixel, (h, w): black none, white all."""
    return grey(np.asarray(votes / of, np.float32))


def margins(probability: Float) -> Float:
    """By how much each class leads over the others and the background, (K, h, w)."""
    rivals = [1 - probability.sum(axis=0)]
    out = np.empty_like(probability)
    for k, own in enumerate(probability):
        others = [*rivals, *(p for j, p in enumerate(probability) if j != k)]
        out[k] = own - np.max(others, axis=0)
    return out


def contours(leads: Iterable[Float]) -> list[str]:
    """Where each map crosses zero, as SVG paths in pixels of the map; its corner is (0, 0)."""
    return [_path(lead) for lead in leads]


def contours_of_masks(masks: NDArray[np.uint8]) -> list[str]:
    """The same for masks of 0 and 1, (K, h, w)."""
    return contours([np.asarray(mask, np.float32) - np.float32(0.5) for mask in masks])


def _path(lead: Float) -> str:
    if not (lead > 0).any():
        return ""
    # A border of background closes the contour of what touches the edge.
    closed = np.pad(lead, 1, constant_values=-1)
    text = []
    for line in contourpy.contour_generator(z=closed).lines(0.0):
        # Index i of the padded map is the middle of pixel i - 1, at i - 0.5 from the corner.
        points = np.round(np.asarray(line) - 0.5, 1)
        text.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z")
    return "".join(text)
