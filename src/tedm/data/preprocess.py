"""From an image of any size to the network's square, and a mask with it."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tedm.config import Normalise

PERCENTILES = (1.0, 99.0)  # of a channel's pixels, that become 0 and 1
DEVIATIONS = 3.0  # from a channel's mean, that become 0 and 1
Fit = Literal["stretch", "pad", "crop"]


def white_for(high: float) -> float:
    """The stored value that stands for white in an image of more than 8 bits, from its greatest value.

    The full range of the fewest bits (10, 12, 14 or 16) that hold it, as detectors with 12 bits fill files
    of 16; floating-point numbers within 0 … 1 as they are.
    """
    whites = (1, *(2**bits - 1 for bits in (8, 10, 12, 14, 16)))
    return float(next((white for white in whites if high <= white), high))


def normalised(pixels: npt.NDArray[Any], how: Normalise) -> npt.NDArray[Any]:
    """Scale the greys of one image, each channel by itself; see `tedm.config.Normalising`.

    To be called before an image is resized or padded, so that padding does not count.

    Args:
        pixels: (C, H, W), uint8 or float32, finite.
        how: none: the pixels as they are.

    Returns:
        (C, H, W), float32 in [0, 1]; a channel whose pixels are all equal becomes 0.
    """
    if how == "none":
        return pixels
    out = np.zeros(pixels.shape, np.float32)
    for channel, scaled in zip(pixels, out, strict=True):
        low, high = _black_and_white(channel, how)
        if low < high:
            # In float64 a buffer at a time: large images are many, on many threads.
            np.subtract(channel, low, out=scaled, dtype=np.float64, casting="same_kind")
            np.divide(scaled, high - low, out=scaled, dtype=np.float64, casting="same_kind")
    return np.clip(out, 0, 1, out=out)


def _black_and_white(channel: npt.NDArray[Any], how: Normalise) -> tuple[float, float]:
    """The values of a channel that become 0 and 1; equal where it shows nothing."""
    least, greatest = float(channel.min()), float(channel.max())
    if least == greatest:
        return least, greatest  # rounding gives equal pixels a deviation above 0
    if how == "zscore":
        mean = float(channel.mean(dtype=np.float64))
        reach = DEVIATIONS * float(channel.std(dtype=np.float64))
        return mean - reach, mean + reach
    low, high = np.percentile(channel, PERCENTILES)
    # Where more than 98 % of the pixels are equal, what differs must not vanish.
    return (float(low), float(high)) if low < high else (least, greatest)


def image_to_square(
    channels: list[Image.Image], size: int, fit: Fit, black: float = 0.0
) -> npt.NDArray[Any]:
    """Resize an image to size × size.

    Bilinear with antialiasing (a triangle as wide as the step between new pixels), which is what the
    study's code does by way of Pillow. Plain bilinear would skip pixels when it shrinks 1024 to 128, and
    turn noise and ribs into moiré.

    Args:
        channels: each channel, in Pillow's mode L (uint8) or F (float32).
        size: pixels.
        fit: stretch the image; pad it with black to a square; crop its middle square.
        black: the grey around a padded image.

    Returns:
        (C, size, size), uint8 or float32.
    """
    method = Image.Resampling.BILINEAR
    return np.stack([_to_square(channel, size, fit, method, black) for channel in channels])


def mask_to_square(shares: npt.NDArray[Any], size: int, fit: Fit) -> npt.NDArray[np.uint8]:
    """Resize a mask to size × size: averaged over each new pixel, foreground where more than half of it is.

    The average is over the old pixels whose centres lie in the new one (Pillow's box filter).

    Args:
        shares: share of each class in each pixel, 0 … 1, (K, H, W).
        size: pixels.
        fit: as of the image.

    Returns:
        0 and 1, (K, size, size).
    """
    averaged = [
        _to_square(Image.fromarray(np.asarray(share, np.float32)), size, fit, Image.Resampling.BOX)
        for share in shares
    ]
    return (np.stack(averaged) > 0.5).astype(np.uint8)


def square_spacing(
    shape: tuple[int, int], spacing: Sequence[float], size: int, fit: Fit
) -> tuple[float, float]:
    """Height and width in mm of the square's pixels, from those of the image.

    Args:
        shape: height and width of the image, pixels.
        spacing: height and width of its pixels, mm.
        size: pixels along each side of the square.
        fit: as of the image.
    """
    height, width = shape
    if fit == "stretch":
        return spacing[0] * height / size, spacing[1] * width / size
    side = max(height, width) if fit == "pad" else min(height, width)
    return spacing[0] * side / size, spacing[1] * side / size


def _to_square(
    image: Image.Image, size: int, fit: Fit, method: Image.Resampling, black: float = 0.0
) -> npt.NDArray[Any]:
    width, height = image.size
    if fit == "pad":
        scale = size / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        x, y = (size - inner[0]) // 2, (size - inner[1]) // 2
        square = np.full((size, size), black, np.asarray(image).dtype)
        square[y : y + inner[1], x : x + inner[0]] = np.asarray(image.resize(inner, method))
        return square
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if fit == "crop" else None
    return np.asarray(image.resize((size, size), method, box=box))
