"""The source `folder`: PNG, JPEG and TIFF images, with masks of the same names in a second folder."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tedm.config import FolderSource, ImageConfig
from tedm.data.preprocess import image_to_square, mask_to_square
from tedm.data.splits import enumerated
from tedm.errors import TedmError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "TIFF")  # whatever the suffix says; Pillow's other decoders are not tried
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's grey modes with more than 8 bits


class FolderImages:
    """Images of a folder, read one at a time; safe to call from several threads.

    Attributes:
        ids: file names without suffix, sorted.
        subjects: the ids; every image is a subject of its own.
        problems: what is wrong with the folders themselves, one line each.
    """

    synthetic = False
    spacing_mm: tuple[float, float] | None = None

    def __init__(self, source: FolderSource, image: ImageConfig, data_root: Path, where: str) -> None:
        if image.channels not in (1, 3):
            raise TedmError(
                f"image.channels: {image.channels}; a folder has grey (1) or colour (3) images ({where})"
            )
        self.source, self.config = source, image
        self.folder = data_root / source.images
        self.licence, self.cite = source.licence, source.cite
        self.problems: list[str] = []
        self.images = self._listed(self.folder, f"{where}.source.images")
        self.mask_of: dict[str, Path] | None = None
        if source.masks is not None:
            folder = data_root / source.masks
            self.mask_of = self._matched(self._listed(folder, f"{where}.source.masks"), folder)
        self.ids: Sequence[str] = sorted(self.images)[: source.limit]
        self.subjects: Sequence[str] = self.ids

    @property
    def has_masks(self) -> bool:
        """Whether the source has a folder of masks."""
        return self.mask_of is not None

    @property
    def description(self) -> str:
        """Where the images come from."""
        return f"folder {self.source.images}"

    def check(self, name: str, split: str) -> np.dtype[Any]:
        """Look at the header of an image and its mask.

        Returns:
            The type that `read` gives: uint8, or float32 for more than 8 bits.

        Raises:
            TedmError: unreadable, too large, without a mask, or with one of another size.
        """
        path, mask_path = self.images[name], self._mask_path(name, split)
        with _opened(path) as image:
            size, deep = _upright_size(image), image.mode in DEEP
        if mask_path is not None:
            with _opened(mask_path) as mask:
                mask_size = _upright_size(mask)
            if mask_size != size:
                raise TedmError(
                    f"{mask_path}: {mask_size[0]}×{mask_size[1]} pixels, but its image {path} has"
                    f" {size[0]}×{size[1]}; resize one of them to the other's size"
                )
        return np.dtype(np.float32 if deep else np.uint8)

    def read(self, name: str, split: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
        """Read an image and its mask and bring both to the network's square.

        Args:
            name: the image's id.
            split: its split; unlabelled images need no mask.

        Returns:
            Image (C, size, size), uint8 or, as stored in the file, float32; mask (K, size, size) of 0 and
            1, zeros where an unlabelled image has none, None where the source has no masks.

        Raises:
            TedmError: the file cannot be read, is not finite, or shows nothing.
        """
        size, fit = self.config.size, self.source.fit
        path, mask_path = self.images[name], self._mask_path(name, split)
        with _opened(path) as opened:
            channels = _channels(_upright(opened), self.config.channels)
        if channels[0].mode == "F" and not np.isfinite(np.asarray(channels[0])).all():
            raise TedmError(f"{path}: has pixels that are not finite; mend or remove it")
        if all(lo == hi for lo, hi in (channel.getextrema() for channel in channels)):
            raise TedmError(f"{path}: all its pixels are equal, it shows nothing; remove it")
        image = image_to_square(channels, size, fit)
        if mask_path is None:
            nothing = np.zeros((len(self.config.classes), size, size), np.uint8)
            return image, nothing if self.has_masks else None
        with _opened(mask_path) as opened:
            shares = _shares(_upright(opened), mask_path, self.config.classes)
        return image, mask_to_square(shares, size, fit)

    def _mask_path(self, name: str, split: str) -> Path | None:
        if self.mask_of is None:
            return None
        path = self.mask_of.get(name)
        if path is None and split != "unlabelled":
            raise TedmError(
                f"{self.images[name]}: has no mask; add one named {name}, or list the image as unlabelled"
                " in a split file"
            )
        return path

    def _listed(self, folder: Path, where: str) -> dict[str, Path]:
        if not folder.is_dir():
            self.problems.append(f"{where}: no such folder {folder}; correct the path or data_root")
            return {}
        files: dict[str, Path] = {}
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append(f"{where}: {folder} cannot be read ({error.strerror})")
            return {}
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") or path.suffix.lower() not in SUFFIXES or entry.is_dir():
                continue
            # One spelling of ä, whichever file system the names come from.
            name = unicodedata.normalize("NFC", path.stem)
            if not _is_text(name):
                self.problems.append(
                    f"{folder}: the name {entry.name!r} is not valid UTF-8; rename the file"
                )
            elif name in files:
                self.problems.append(f"{path}: {files[name].name} has the same name; remove one of them")
            else:
                files[name] = path
        if not files and not self.problems:
            self.problems.append(f"{where}: no image ({', '.join(SUFFIXES)}) in {folder}")
        return files

    def _matched(self, masks: dict[str, Path], folder: Path) -> dict[str, Path] | None:
        """The masks, or None where one line about all of them says more than one for each."""
        strangers = [name for name in masks if name not in self.images]
        if not masks or not self.images:
            return None
        if len(strangers) == len(masks):
            self.problems.append(
                f"{folder}: no mask has the name of an image (masks: {enumerated(strangers[:3])} …; images:"
                f" {enumerated(sorted(self.images)[:3])} …); rename them alike, apart from the suffix"
            )
            return None
        self.problems.extend(
            f"{masks[name]}: mask without an image; add or remove one" for name in strangers
        )
        return masks


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _shares(image: Image.Image, path: Path, classes: list[str]) -> npt.NDArray[np.float32]:
    """Share of each class in each pixel, (K, H, W)."""
    if len(classes) > 1:
        return _class_indices(image, path, classes)
    values = np.asarray(image if image.mode in DEEP else _flat(image).convert("L"))
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
            f" for {classes[0]}, or name all its classes in image.classes"
        )
    return np.asarray(values, np.float32)[None] / np.float32(full)


def _class_indices(image: Image.Image, path: Path, classes: list[str]) -> npt.NDArray[np.float32]:
    meaning = "; ".join(f"{i}: {name}" for i, name in enumerate(["background", *classes]))
    if image.mode not in ("1", "L", "P", *DEEP):
        raise TedmError(f"{path}: a colour mask; expected a grey or palette mask of indices ({meaning})")
    values = np.asarray(image)
    if values.min() < 0 or not values.max() <= len(classes):
        raise TedmError(f"{path}: has values {values.min():g} … {values.max():g}; expected {meaning}")
    # Resized, a pixel has at most one class with more than half of it: classes stay exclusive.
    return np.stack([np.asarray(values == k, np.float32) for k in range(1, len(classes) + 1)])
