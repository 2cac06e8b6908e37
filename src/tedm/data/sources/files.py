"""Sources whose units are single image files, with one mask file or several for each."""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tedm.data import decoders
from tedm.data.decoders.raster import Header
from tedm.data.sources.base import Found, Picture, Source, exclusive
from tedm.data.splits import enumerated
from tedm.errors import TedmError

# One file with all classes; or for each class the files that show it, whose union is meant.
MaskFiles = Path | list[list[Path]]


class ImageFiles(Source):
    """Image files and mask files, by id.

    A subclass fills `images`, `masks` and `subjects`, and may read formats of its own.

    Attributes:
        images: file of each id.
        masks: mask of each id; None: the source has none.
        classes: names of the K classes.
        channels: of an image, 1 or 3.
        mask_size: whether a mask must have its image's size (`same`), is resized to it (`resize`), or has
            its own, of the same field (`own`).
    """

    mask_size: Literal["same", "resize", "own"] = "same"

    def __init__(self, classes: Sequence[str], channels: int, where: str) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise TedmError(f"image.channels: {channels}; image files are grey (1) or colour (3) ({where})")
        self.classes, self.channels, self.where = classes, channels, where
        self.images: dict[str, Path] = {}
        self.masks: dict[str, MaskFiles] | None = None

    def keep(self, limit: int | None) -> None:
        """List the ids, at most `limit` of them, and forget the other images."""
        self.ids = sorted(self.images)[:limit]
        self.subjects = self.ids
        self.has_masks = self.masks is not None

    def header(self, path: Path) -> Header:
        """Size and depth of an image file."""
        return decoders.header(path)

    def pixels(self, path: Path) -> tuple[npt.NDArray[Any], tuple[float, float] | None]:
        """Pixels of an image file, (C, H, W), and height and width of one in mm."""
        return decoders.pixels(path, self.channels)

    def examine(self, name: str, split: str) -> Found:
        path, masks = self.images[name], self._mask_files(name, split)
        size, deep = self.header(path)
        for mask in masks:
            found = decoders.header(mask).size
            if found != size and self.mask_size == "same":
                raise TedmError(
                    f"{mask}: {found[0]}×{found[1]} pixels, but its image {path} has"
                    f" {size[0]}×{size[1]}; resize one of them to the other's size, or set"
                    " `resize_masks: true` if both show the same field"
                )
        return Found(np.dtype(np.float32 if deep else np.uint8), _stamp([path, *masks]))

    def read(self, name: str, split: str) -> list[Picture]:
        path = self.images[name]
        pixels, spacing = self.pixels(path)
        if pixels.dtype != np.uint8 and not np.isfinite(pixels).all():
            raise TedmError(f"{path}: has pixels that are not finite; mend or remove it")
        if (pixels.min(axis=(1, 2)) == pixels.max(axis=(1, 2))).all():
            raise TedmError(f"{path}: all its pixels are equal, it shows nothing; remove it")
        shares = self._shares(name, split)
        if shares is not None and self.mask_size == "resize" and shares.shape[1:] != pixels.shape[1:]:
            size = pixels.shape[2], pixels.shape[1]
            shares = np.stack(
                [np.asarray(Image.fromarray(s).resize(size, Image.Resampling.BOX)) for s in shares]
            )
        return [Picture(name, pixels, shares, None if spacing is None else (np.nan, *spacing))]

    def _mask_files(self, name: str, split: str) -> list[Path]:
        if self.masks is None:
            return []
        files = self.masks.get(name)
        if files is None:
            if split == "unlabelled":
                return []
            raise TedmError(
                f"{self.images[name]}: has no mask; add one named {name}, or list the image as unlabelled"
                " in a split file"
            )
        return [files] if isinstance(files, Path) else [file for group in files for file in group]

    def _shares(self, name: str, split: str) -> npt.NDArray[np.float32] | None:
        if not self._mask_files(name, split):
            return None
        assert self.masks is not None
        files = self.masks[name]
        if isinstance(files, Path):
            return decoders.shares(files, self.classes)
        groups = [
            [decoders.shares(file, [label])[0] for file in group]
            for label, group in zip(self.classes, files, strict=True)
        ]
        shapes = {share.shape for group in groups for share in group}
        if len(shapes) > 1:
            raise TedmError(f"{self.images[name]}: its masks have different sizes; redraw them alike")
        shares = np.stack([np.maximum.reduce(group) for group in groups])
        exclusive(shares, f"masks of {self.images[name]}", self.classes)
        return shares


def listed(
    folder: Path,
    where: str,
    problems: list[str],
    *,
    suffixes: Sequence[str] = decoders.SUFFIXES,
    deep: bool = False,
    links: bool = False,
) -> dict[str, Path]:
    """Image files of a folder by id: the name without suffix, behind the folders above it where there are.

    Args:
        folder: to look into.
        where: the setting that names it, for messages.
        problems: gets what is wrong.
        suffixes: lower case.
        deep: look into folders below, too; not through symbolic links.
        links: take symbolic links that lead out of the folder.
    """
    if not folder.is_dir():
        problems.append(f"{where}: no such folder {folder}; correct the path or data_root")
        return {}
    files: dict[str, Path] = {}
    before, home = len(problems), folder.resolve()
    try:
        for entry in _entries(folder, deep):
            path = Path(entry.path)
            if entry.name.startswith(".") or not entry.name.lower().endswith(tuple(suffixes)):
                continue
            if entry.is_symlink() and not links and not path.resolve().is_relative_to(home):
                problems.append(
                    f"{path}: a symbolic link out of {folder}; copy the file, or set `links: true`"
                )
                continue
            # One spelling of ä, whichever file system the names come from.
            name = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
            if not _is_text(name):
                problems.append(f"{folder}: the name {entry.name!r} is not valid UTF-8; rename the file")
            elif name in files:
                problems.append(f"{path}: {files[name].name} has the same name; remove one of them")
            else:
                files[name] = path
    except OSError as error:
        problems.append(f"{where}: {error.filename or folder} cannot be read ({error.strerror})")
        return {}
    if not files and len(problems) == before:
        problems.append(f"{where}: no image ({', '.join(suffixes)}) in {folder}")
    return files


def matched(
    masks: dict[str, Path], images: Iterable[str], folder: Path, suffix: str, source: Source
) -> dict[str, Path] | None:
    """Masks by the id of their image, or None where one line says more about all of them."""
    known = set(images)
    if not masks or not known:
        return None
    by_image = {name.removesuffix(suffix): path for name, path in masks.items() if name.endswith(suffix)}
    strangers = [
        name for name in masks if not name.endswith(suffix) or name.removesuffix(suffix) not in known
    ]
    if len(strangers) == len(masks):
        behind = f" with {suffix} behind them" if suffix else ""
        source.problems.append(
            f"{folder}: no mask has the name of an image{behind} (masks: {enumerated(strangers[:3])} …;"
            f" images: {enumerated(sorted(known)[:3])} …); rename them alike, apart from the suffix, or set"
            " `mask_suffix` to what masks have behind the name"
        )
        return None
    source.strays.extend(
        (name, f"{masks[name]}: mask without an image; add or remove one") for name in strangers
    )
    return {name: path for name, path in by_image.items() if name in known}


def _entries(folder: Path, deep: bool) -> Iterator["os.DirEntry[str]"]:
    below = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if deep and not entry.is_symlink() and not entry.name.startswith("."):
                below.append(Path(entry.path))
        else:
            yield entry
    for path in below:
        yield from _entries(path, deep)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stamp(paths: Sequence[Path]) -> str:
    stats = [path.stat() for path in paths]
    return " ".join(f"{stat.st_size}@{stat.st_mtime_ns}" for stat in stats)
