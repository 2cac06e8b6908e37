"""Montgomery County chest X-rays (Jaeger et al. 2014), as downloaded."""

from pathlib import Path
from typing import Any

import numpy.typing as npt

from tedm.config import ImageConfig, MontgomerySource
from tedm.data import decoders
from tedm.data.sources.files import ImageFiles, listed
from tedm.errors import TedmError

SIDES = {"left lung": ["leftMask"], "right lung": ["rightMask"], "lungs": ["leftMask", "rightMask"]}
SPACING_MM = 0.0875  # of the full-size PNG [Jaeger 2014]


class Montgomery(ImageFiles):
    """138 radiographs, 8-bit PNG of 4020 × 4892 or 4892 × 4020 pixels of 0.0875 mm.

    Layout of MontgomerySet: CXR_png/MCUCXR_0001_0.png, ManualMask/leftMask and rightMask with the same
    names. The class `lungs` is the union of both. The last digit of a name is 1 for tuberculosis: the
    column `finding`. Resized to the network's square, masks thresholded at one half [Rosnati 2023, A].
    """

    def __init__(self, source: MontgomerySource, image: ImageConfig, data_root: Path, where: str) -> None:
        super().__init__(image.classes, image.channels, where)
        unknown = [name for name in self.classes if name not in SIDES]
        if unknown:
            raise TedmError(
                f"image.classes: Montgomery has no {', '.join(unknown)}; it has {', '.join(SIDES)}"
            )
        folder = data_root / source.folder
        self.fit = source.fit
        self.licence = source.licence or "free use (NLM), with citation"
        self.cite = source.cite or "Jaeger et al. 2014; Candemir et al. 2014"
        self.description = f"Montgomery in {source.folder}"
        self.images = listed(folder / "CXR_png", f"{where}.source.folder", self.problems)
        sides = {
            side: listed(folder / "ManualMask" / side, f"{where}.source.folder", self.problems)
            for side in ("leftMask", "rightMask")
        }
        complete = [name for name in sorted(self.images) if all(name in files for files in sides.values())]
        self.masks = {
            name: [[sides[side][name] for side in SIDES[label]] for label in self.classes]
            for name in complete
        }
        for side, files in sides.items():
            self.strays += [
                (name, f"{path}: mask without an image; add or remove one ({side})")
                for name, path in files.items()
                if name not in self.images
            ]
        self.keep(source.limit)
        self.columns = {"finding": [name.rpartition("_")[2] for name in self.ids]}

    def pixels(self, path: Path) -> tuple[npt.NDArray[Any], tuple[float, float] | None]:
        pixels, _ = decoders.pixels(path, self.channels)
        full_size = sorted(pixels.shape[1:]) == [4020, 4892]
        return pixels, (SPACING_MM, SPACING_MM) if full_size else None
