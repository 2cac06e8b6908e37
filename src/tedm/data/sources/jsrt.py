"""JSRT (Shiraishi et al. 2000) with the masks of SCR (van Ginneken et al. 2006), as downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tedm.config import ImageConfig, JSRTSource
from tedm.data import decoders
from tedm.data.decoders.raster import Header
from tedm.data.sources.files import ImageFiles, MaskFiles, listed
from tedm.errors import TedmError

SIDE = 2048  # pixels of a raw image
WHITE = 4095  # 12 bits
SPACING_MM = 0.175  # of a raw image's pixels [Shiraishi 2000]
STRUCTURES = ("left lung", "right lung", "heart", "left clavicle", "right clavicle")
LUNGS = "lungs"  # a class of both lungs


class JSRT(ImageFiles):
    """247 chest radiographs: raw .IMG or PNG.

    A raw image has 2048 × 2048 pixels of 0.175 mm as big-endian unsigned 16-bit numbers, of which 12 bits
    are used, inverted: 0 is white. It becomes 8-bit grey, round((4095 - v) · 255 / 4095) [Rosnati 2023, A:
    8-bit grey]. PNG are taken as they are: the distributed ones are 8 bit and not inverted.

    SCR has one GIF of 1024 × 1024 for each structure and image, fold1/masks/{structure}/JPCLN002.gif or
    fold2/…; the class `lungs` is the union of the left and the right lung. The column `fold` says in which.
    """

    mask_size: Literal["same", "resize", "own"] = "own"

    def __init__(self, source: JSRTSource, image: ImageConfig, data_root: Path, where: str) -> None:
        super().__init__(image.classes, image.channels, where)
        self.fit = source.fit
        self.licence = source.licence or "research use"
        self.cite = source.cite or "Shiraishi et al. 2000; van Ginneken et al. 2006"
        self.description = f"JSRT in {source.images}"
        found = listed(
            data_root / source.images,
            f"{where}.source.images",
            self.problems,
            suffixes=(".img", *decoders.raster.SUFFIXES),
            deep=True,
        )
        self.images = {
            Path(name).name: path for name, path in found.items() if Path(name).name[:3] == "JPC"
        }
        if found and not self.images:
            self.problems.append(f"{data_root / source.images}: no JPCLN001.IMG … JPCNN093.IMG (or .png)")
        folds: dict[str, str] = {}
        if source.masks is not None:
            folds = self._scr(data_root / source.masks)
        self.keep(source.limit)
        self.has_masks = source.masks is not None
        if folds:
            self.columns = {"fold": [folds.get(name, "") for name in self.ids]}

    def header(self, path: Path) -> Header:
        if path.suffix.lower() == ".img":
            _check_raw(path)
            return Header((SIDE, SIDE), deep=False)
        return super().header(path)

    def pixels(self, path: Path) -> tuple[npt.NDArray[Any], tuple[float, float] | None]:
        if path.suffix.lower() != ".img":
            return super().pixels(path)
        _check_raw(path)
        values = np.fromfile(path, ">u2").reshape(SIDE, SIDE)
        if values.max() > WHITE:
            raise TedmError(
                f"{path}: has values up to {values.max()}, expected 12 bits (0 … {WHITE}), big-endian; is"
                " its byte order swapped?"
            )
        grey = np.rint((WHITE - values.astype(np.float32)) * np.float32(255 / WHITE)).astype(np.uint8)
        return np.repeat(grey[None], self.channels, axis=0), (SPACING_MM, SPACING_MM)

    def _scr(self, folder: Path) -> dict[str, str]:
        unknown = [name for name in self.classes if name not in (LUNGS, *STRUCTURES)]
        if unknown:
            raise TedmError(
                f"image.classes: SCR has no {', '.join(unknown)}; it has {LUNGS}, {', '.join(STRUCTURES)}"
            )
        if not folder.is_dir():
            self.problems.append(f"{self.where}.source.masks: no such folder {folder}; correct the path")
            return {}
        files: dict[str, dict[str, Path]] = {name: {} for name in STRUCTURES}
        folds: dict[str, str] = {}
        for path in sorted(folder.rglob("*.gif")):
            if path.parent.name in files:
                files[path.parent.name][path.stem] = path
                folds[path.stem] = path.parent.parent.parent.name
        groups = [("left lung", "right lung") if name == LUNGS else (name,) for name in self.classes]
        needed = {structure for group in groups for structure in group}
        complete = set.intersection(*(set(files[structure]) for structure in needed))
        if not complete:
            self.problems.append(
                f"{folder}: no masks; expected fold1/masks/left lung/JPCLN002.gif and so on"
            )
        self.masks = {name: _mask(files, groups, name) for name in sorted(complete)}
        return folds


def _mask(files: dict[str, dict[str, Path]], groups: Sequence[tuple[str, ...]], name: str) -> MaskFiles:
    return [[files[structure][name] for structure in group] for group in groups]


def _check_raw(path: Path) -> None:
    size = path.stat().st_size
    if size != 2 * SIDE * SIDE:
        raise TedmError(
            f"{path}: {size} bytes, expected {2 * SIDE * SIDE} ({SIDE} × {SIDE} of 16 bits); copy it again"
        )
