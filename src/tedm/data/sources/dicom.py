"""The source `dicom`: single-frame DICOM files of a folder and those below it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tedm.config import DicomSource, ImageConfig
from tedm.data import decoders
from tedm.data.decoders import dicom
from tedm.data.decoders.raster import Header
from tedm.data.sources.files import ImageFiles, listed, matched
from tedm.errors import TedmError


class DicomImages(ImageFiles):
    """DICOM files: rescaled, windowed as asked, MONOCHROME1 inverted, pixel spacing kept."""

    def __init__(self, source: DicomSource, image: ImageConfig, data_root: Path, where: str) -> None:
        super().__init__(image.classes, image.channels, where)
        self.fit, self.licence, self.cite = source.fit, source.licence, source.cite
        self.description = f"DICOM files in {source.images}"
        self.mask_size = "resize" if source.resize_masks else "same"
        self.window = source.window
        if self.window is not None:
            self.intensity_range = (0.0, 1.0)
        folder = data_root / source.images
        self.images = listed(
            folder,
            f"{where}.source.images",
            self.problems,
            suffixes=decoders.DICOM_SUFFIXES,
            deep=True,
            links=source.links,
        )
        if source.masks is not None:
            folder = data_root / source.masks
            masks = listed(folder, f"{where}.source.masks", self.problems, deep=True, links=source.links)
            found = matched(masks, self.images, folder, source.mask_suffix, self)
            self.masks = None if found is None else dict(found)
        self.keep(source.limit)
        self.has_masks = source.masks is not None
        if source.subject == "patient":
            self.subjects = [self._patient(name) for name in self.ids]

    def header(self, path: Path) -> Header:
        return dicom.header(path, self.window)

    def pixels(self, path: Path) -> tuple[npt.NDArray[Any], tuple[float, float] | None]:
        pixels, spacing = dicom.pixels(path, self.channels, self.window)
        # One set has rescaled files and plain ones; their values are compared as numbers.
        return (pixels if self.window is None else np.asarray(pixels, np.float32)), spacing

    def _patient(self, name: str) -> str:
        try:
            return dicom.patient(self.images[name])
        except TedmError as error:
            if "PatientID" in str(error):
                self.problems.append(str(error))
            return name  # what is wrong with the file is reported when it is read
