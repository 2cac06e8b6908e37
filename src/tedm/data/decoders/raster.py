"""PNG, JPEG, TIFF and GIF files, by way of Pillow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tedm.errors import TedmError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "TIFF", "GIF")  # whatever the suffix says; Pillow's other decoders are not tried
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's grey modes with more than 8 bits


class Header(NamedTuple):
    """What a file says about its image before the pixels are decoded."""

    size: tuple[int, int]  # width and height, upright
    deep: bool  # whether it has more than 8 bits of grey


def header(path: Path) -> Header:
    """Size and depth of an image; Pillow refuses more than 2^27.4 pixels here, before decoding."""
    with _opened(path) as image:
        return Header(_upright_size(image), image.mode in DEEP)


def pixels(path: Path, channels: int) -> npt.NDArray[Any]:
    """Grey, or red, green and blue, (C, H, W); uint8, or float32 where the file has more than 8 bits.

    Raises:
        TedmError: the file cannot be read.
    """
    with _opened(path) as image:
        return of_image(image, channels)


def of_image(image: Image.Image, channels: int) -> npt.NDArray[Any]:
    """What `pixels` gives, of an image that is open."""
    found = [np.asarray(channel) for channel in _channels(_upright(image), channels)]
    return found[0][None] if channels == 1 else np.stack(found)  # spare a copy


def shares(path: Path, classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Share of each class in each pixel, 0 … 1, (K, H, W).

    One class: 0 and one other value, with soft edges at most. Several: indices, 0 is background.

    Raises:
        TedmError: the file cannot be read, or has other values.
    """
    with _opened(path) as opened:
        image = _upright(opened)
        if len(classes) > 1:
            if image.mode not in ("1", "L", "P", *DEEP):
                meaning = meaning_of(classes)
                raise TedmError(
                    f"{path}: a colour mask; expected a grey or palette mask of indices ({meaning})"
                )
            return shares_of_indices(np.asarray(image), path, classes)
        grey = image if image.mode in DEEP else _flat(image).convert("L")
        return shares_of_grey(np.asarray(grey), path, classes[0])


def shares_of_grey(values: npt.NDArray[Any], path: Path, name: str) -> npt.NDArray[np.float32]:
    """Share of the only class in each pixel, from greys, (1, H, W)."""
    top = values.max()
    if not np.isfinite(values).all() or values.min() < 0:
        raise TedmError(f"{path}: a mask of negative or non-finite values; expected 0 and one other value")
    if ((values == 0) | (values == top)).all():
        return np.asarray(values > 0, np.float32)[None]
    # Grey between: soft edges, or a JPEG's traces around them.
    full = next((full for full in (1, 255, 65535) if top <= full), top)
    if top <= full / 2:
        raise TedmError(
            f"{path}: a mask of many values, the greatest of them {top:g}; expected 0 and one other value"
            f" for {name}, or name all its classes in image.classes"
        )
    return np.asarray(values, np.float32)[None] / np.float32(full)


def shares_of_indices(
    values: npt.NDArray[Any], path: Path, classes: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Share of each class in each pixel, 0 or 1, from indices, (K, H, W)."""
    if values.min() < 0 or not values.max() <= len(classes):
        raise TedmError(
            f"{path}: has values {values.min():g} … {values.max():g}; expected {meaning_of(classes)}"
        )
    # Resized, a pixel has at most one class with more than half of it: classes stay exclusive.
    return np.stack([np.asarray(values == k, np.float32) for k in range(1, len(classes) + 1)])


def meaning_of(classes: Sequence[str]) -> str:
    """What the indices of a mask mean, for messages."""
    return "; ".join(f"{i}: {name}" for i, name in enumerate(["background", *classes]))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; whatever is wrong with it becomes an error with its name."""
    try:
        if not path.stat().st_size:
            raise TedmError(f"{path}: is empty (0 bytes); copy it again or remove it")
        with Image.open(path, formats=FORMATS) as image:
            if 0 in image.size:
                raise TedmError(f"{path}: has no pixels ({image.width}×{image.height}); remove it")
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # a camera's JPEG with previews behind it
                raise TedmError(f"{path}: has {pages} pages, expected one image; save them as single files")
            yield image
    except TedmError:
        raise
    except FileNotFoundError:
        raise TedmError(f"{path}: no such file; correct the path or copy the file there") from None
    except UnidentifiedImageError:
        raise TedmError(f"{path}: not a PNG, JPEG or TIFF image, or damaged; mend or remove it") from None
    except Image.DecompressionBombError as error:
        raise TedmError(
            f"{path}: too large to be read safely ({error}); scale it down or remove it"
        ) from None
    except MemoryError:
        raise TedmError(f"{path}: does not fit into memory; scale it down") from None
    except Exception as error:  # decoders meet damaged files with nearly any exception
        raise TedmError(f"{path}: cannot be read ({error}); copy it again or remove it") from None


def _orientation(image: Image.Image) -> int:
    # Pillow itself turns TIFFs; asking a PNG would decode all of it.
    return int(image.getexif().get(0x0112, 1)) if image.format in ("JPEG", "MPO") else 1


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _channels(image: Image.Image, count: int) -> list[Image.Image]:
    """Grey, or red, green and blue; mode L, or F where the file has more than 8 bits of grey."""
    if image.mode in DEEP:
        return [Image.fromarray(np.asarray(image).astype(np.float32))] * count
    flat = _flat(image)
    return [flat.convert("L")] if count == 1 else list(flat.convert("RGB").split())


def _flat(image: Image.Image) -> Image.Image:
    """Without transparency: whatever shows through is black."""
    if not image.has_transparency_data:
        return image
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image.convert("RGBA"))
