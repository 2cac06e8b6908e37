"""Single-frame DICOM files, by way of pydicom."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from tedm.data.decoders.raster import Header, shares_of_grey, shares_of_indices
from tedm.errors import TedmError

PIXEL_LIMIT = 1 << 27  # as many as Pillow allows, about
GREY = ("MONOCHROME1", "MONOCHROME2")

Window = Sequence[float] | Literal["file"] | None


def header(path: Path, window: Window = None) -> Header:
    """Size and depth of an image, without its pixels."""
    return Header(*_described(_read(path, pixels=False), path, window))


def pixels(
    path: Path, channels: int, window: Window = None
) -> tuple[npt.NDArray[Any], tuple[float, float] | None]:
    """Pixels, black is low, (C, H, W), and the height and width of one in mm.

    Stored values go through the modality table or rescale slope and intercept (PS3.3 C.11.1), then through
    the window (PS3.3 C.11.2.1), which makes them 0 … 1. MONOCHROME1 is inverted within the range
    that the stored bits can express.

    Args:
        path: of the file.
        channels: 1 or 3.
        window: centre and width; `file`: the first that the file gives; None: all values.

    Returns:
        uint8 where at most 8 bits are stored and neither rescaled nor windowed, else float32. Spacing: of
        the patient (PixelSpacing) or else of the detector (ImagerPixelSpacing); None if neither is given.

    Raises:
        TedmError: not a DICOM image, several frames, a compression without its decoder, no window.
    """
    dataset = _read(path, pixels=True)
    _, deep = _described(dataset, path, window)
    values = _decoded(dataset, path)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in GREY:
        return _colour(values, dataset, channels), _spacing(dataset, path)
    bits = int(dataset.BitsStored)
    low, high = 0, 2**bits - 1
    if dataset.PixelRepresentation:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if not deep:
        shallow = np.asarray(high - values if photometric == "MONOCHROME1" else values, np.uint8)
        if bits < 8:
            shallow = np.asarray(np.rint(shallow * (255.0 / high)), np.uint8)
        return np.repeat(shallow[None], channels, axis=0), _spacing(dataset, path)
    ends = np.asarray(apply_modality_lut(np.array([low, high], values.dtype), dataset), np.float64)
    grey = np.asarray(apply_modality_lut(values, dataset), np.float64)
    if photometric == "MONOCHROME1" and window is None:
        grey = ends.sum() - grey
    if window is not None:
        grey = _windowed(grey, dataset, path, window)
        grey = 1 - grey if photometric == "MONOCHROME1" else grey
    return np.repeat(grey[None].astype(np.float32), channels, axis=0), _spacing(dataset, path)


def shares(path: Path, classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """Share of each class in each pixel of a mask, (K, H, W): stored values as they are."""
    values = _decoded(_read(path, pixels=True), path)
    if values.ndim != 2:
        raise TedmError(f"{path}: a colour mask; expected one of greys or class indices")
    if len(classes) > 1:
        return shares_of_indices(values, path, classes)
    return shares_of_grey(values, path, classes[0])


def patient(path: Path) -> str:
    """A name for who is shown: a hash, so that no patient's number gets into anything that is made."""
    number = str(_read(path, pixels=False).get("PatientID", "")).strip()
    if not number:
        raise TedmError(f"{path}: has no PatientID; set `subject: image` if every image is another patient")
    return hashlib.sha256(number.encode()).hexdigest()[:16]


def _read(path: Path, *, pixels: bool) -> FileDataset:
    try:
        if not path.stat().st_size:
            raise TedmError(f"{path}: is empty (0 bytes); copy it again or remove it")
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except TedmError:
        raise
    except FileNotFoundError:
        raise TedmError(f"{path}: no such file; correct the path or copy the file there") from None
    except InvalidDicomError:
        raise TedmError(f"{path}: not a DICOM file; mend or remove it") from None
    except Exception as error:  # damaged files fail in nearly any way
        raise TedmError(f"{path}: cannot be read ({error}); copy it again or remove it") from None


def _described(dataset: FileDataset, path: Path, window: Window) -> tuple[tuple[int, int], bool]:
    missing = [
        key
        for key in ("Rows", "Columns", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
        if dataset.get(key) in (None, "")
    ]
    if missing:
        raise TedmError(f"{path}: not an image (it has no {', '.join(missing)}); remove it")
    width, height = int(dataset.Columns), int(dataset.Rows)
    if not width * height:
        raise TedmError(f"{path}: has no pixels ({width}×{height}); remove it")
    if width * height > PIXEL_LIMIT:
        raise TedmError(
            f"{path}: too large to be read safely ({width}×{height} pixels); scale it down or remove it"
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise TedmError(
            f"{path}: has {frames} frames, expected one image; save them as single files,"
            " or a volume as NIfTI (`type: nifti`)"
        )
    grey = dataset.PhotometricInterpretation in GREY
    rescaled = (
        "ModalityLUTSequence" in dataset
        or float(dataset.get("RescaleSlope") or 1) != 1
        or float(dataset.get("RescaleIntercept") or 0) != 0
    )
    deep = dataset.BitsStored > 8 or bool(dataset.PixelRepresentation) or rescaled or window is not None
    return (width, height), grey and deep


def _decoded(dataset: FileDataset, path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(dataset.pixel_array)
    except MemoryError:
        raise TedmError(f"{path}: does not fit into memory; scale it down") from None
    except Exception as error:  # decoders meet damaged files with nearly any exception
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax is not None and not _known(syntax):
            raise TedmError(
                f"{path}: stored as {syntax.name}, which is not read; store it uncompressed, or remove it"
            ) from None
        if syntax is not None and not _decodes(syntax):
            raise TedmError(
                f"{path}: stored as {syntax.name}, for which no decoder is installed;"
                " `pip install tedm[dicom]` brings some"
            ) from None
        raise TedmError(f"{path}: cannot be read ({error}); copy it again or remove it") from None


def _known(syntax: Any) -> bool:
    try:
        get_decoder(syntax)
    except NotImplementedError:
        return bool(not syntax.is_transfer_syntax or not syntax.is_compressed)
    return True


def _decodes(syntax: Any) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _windowed(
    values: npt.NDArray[np.float64], dataset: FileDataset, path: Path, window: Window
) -> npt.NDArray[np.float64]:
    kind = "LINEAR"
    if window == "file":
        centres, widths = dataset.get("WindowCenter"), dataset.get("WindowWidth")
        if centres is None or widths is None:
            raise TedmError(f"{path}: gives no window; set `window: [centre, width]`, or leave it out")
        centre, width = (float(v[0] if isinstance(v, MultiValue) else v) for v in (centres, widths))
        kind = str(dataset.get("VOILUTFunction") or "LINEAR")
    else:
        assert window is not None
        centre, width = (float(v) for v in window)
    if not width > (1 if kind == "LINEAR" else 0):
        raise TedmError(f"{path}: a window of width {width:g}; it must be greater than 1")
    if kind == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - centre) / width)))
    if kind == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _colour(values: npt.NDArray[Any], dataset: FileDataset, channels: int) -> npt.NDArray[np.uint8]:
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = np.asarray(apply_color_lut(values, dataset))
    bits = 16 if values.dtype.itemsize > 1 else 8
    colour = np.asarray(values >> (bits - 8), np.uint8)
    if channels == 3:
        return np.ascontiguousarray(colour.transpose(2, 0, 1))
    # The greys that Pillow makes of a PNG (ITU-R 601-2).
    grey = colour @ np.array([19595, 38470, 7471]) + 0x8000 >> 16
    return np.asarray(grey, np.uint8)[None]


def _spacing(dataset: FileDataset, path: Path) -> tuple[float, float] | None:
    given = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if given is None:
        return None
    try:
        height, width = (float(x) for x in given)
    except (TypeError, ValueError):
        raise TedmError(f"{path}: has a pixel spacing of {given}, expected height and width") from None
    if not (height > 0 and width > 0):
        raise TedmError(f"{path}: has a pixel spacing of {height:g} × {width:g} mm; mend the file")
    return height, width
