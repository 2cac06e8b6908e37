"""Image files of any format: their headers, pixels and masks; one module per family of formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tedm.data.decoders import raster
from tedm.data.decoders.raster import Header

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (*raster.SUFFIXES, *DICOM_SUFFIXES)

Spacing = tuple[float, float] | None  # height and width of a pixel in mm


def header(path: Path) -> Header:
    """Size, depth and spacing of an image file, without decoding its pixels."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        from tedm.data.decoders import dicom  # imports a tenth of a second; most users have none

        return dicom.header(path)
    return raster.header(path)


def pixels(path: Path, channels: int) -> tuple[npt.NDArray[Any], Spacing]:
    """Pixels of an image file, (C, H, W), and their spacing.

    uint8; float32 where the file has more than 8 bits. One channel is grey, three are red, green, blue.
    """
    if path.suffix.lower() in DICOM_SUFFIXES:
        from tedm.data.decoders import dicom

        return dicom.pixels(path, channels)
    return raster.pixels(path, channels), None


def shares(path: Path, classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Share of each class in each pixel of a mask file, 0 … 1, (K, H, W)."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        from tedm.data.decoders import dicom

        return dicom.shares(path, classes)
    return raster.shares(path, classes)
