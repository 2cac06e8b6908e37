"""What the web page refuses before anything is decoded, and how much it takes on at once."""

import warnings
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from tedm.data.decoders import dicom
from tedm.errors import TedmError
from tedm.models import images

MAX_BYTES = 48 * 2**20  # of a file: 20 million pixels of 16 bits, not compressed, and some
MAX_PIXELS = 25_000_000  # the largest radiographs of the public sets (Montgomery) have 19.7 million
MAX_SIDE, MIN_SIDE = 10_000, 8  # pixels
MAX_SCANS = 64  # of a progressive JPEG, each of which is a pass over all pixels; cameras write 10
MAX_REQUEST = 2**16  # bytes of a request that is no upload
HELD_FILES = 256 * 2**20  # bytes of all files that arrive or wait to be read
HELD_PICTURES = 256 * 2**20  # bytes of all images that were read and may be segmented again
KEPT = 30 * 60  # seconds that an image is kept
WAITING = 64  # requests in the queue; whoever comes then is asked to come again
SESSIONS = 128  # visitors whose choice is remembered; Gradio keeps a megabyte for each, 10,000 unless told
CONNECTIONS = 512  # each open page holds one or two

Format = Literal["raster", "dicom"]
FORMATS = ("PNG", "JPEG", "TIFF")
# A file of any size may hide behind a deflated header, and pydicom reads it whole (PS3.5 A.5).
DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1")
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags

TOO_LARGE = f"at most {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} million pixels are taken here"


def check(path: Path) -> Format:
    """Refuse what is no single image, or too large, by its first bytes and its header.

    The name plays no part. Takes milliseconds whatever the file says of itself.

    Raises:
        TedmError: for people, without a path.
    """
    if path.stat().st_size > MAX_BYTES:
        raise TedmError(f"The file is too large: {TOO_LARGE}.")
    kind = images.kind_of(path)
    if kind == "nifti":
        raise TedmError(
            "This is a volume, or compressed. This page takes one image; volumes: tedm segment."
        )
    if kind is None:
        raise TedmError("This is no PNG, JPEG, TIFF or DICOM image, or it is damaged.")
    width, height = _dicom_size(path) if kind == "dicom" else _raster_size(path)
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise TedmError(f"The image is too large ({width} × {height} pixels): {TOO_LARGE}. Scale it down.")
    if min(width, height) < MIN_SIDE:
        raise TedmError(f"The image is too small ({width} × {height} pixels).")
    return kind


def _raster_size(path: Path) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is refused here anyway.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.format == "TIFF":
                    _check_tiff(image)
                if image.format == "JPEG" and path.read_bytes().count(b"\xff\xda") > MAX_SCANS:
                    raise TedmError("This JPEG has too many passes. Save it again.")
                return image.size
    except TedmError:
        raise
    except Image.DecompressionBombError:
        raise TedmError(f"The image is too large: {TOO_LARGE}. Scale it down.") from None
    except UnidentifiedImageError:
        raise TedmError("This is no PNG, JPEG, TIFF or DICOM image, or it is damaged.") from None
    except Exception:  # decoders meet damaged files with nearly any exception
        raise TedmError("The file is damaged and cannot be read.") from None


def _check_tiff(image: Image.Image) -> None:
    tags = getattr(image, "tag_v2", {})
    if int(tags.get(TILE_WIDTH, 1)) * int(tags.get(TILE_LENGTH, 1)) > MAX_PIXELS:
        raise TedmError(f"The image is too large: {TOO_LARGE}. Scale it down.")
    try:
        image.seek(1)  # not n_frames, which walks through as many pages as the file claims
    except EOFError:
        image.seek(0)
    else:
        raise TedmError("This file has several pages. Save the one you mean as a file of its own.")


def _dicom_size(path: Path) -> tuple[int, int]:
    import pydicom
    from pydicom.filereader import read_file_meta_info

    try:
        syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, KeyError, NotImplementedError, EOFError):
        raise TedmError("The file is damaged and cannot be read.") from None
    if syntax in DEFLATED:
        raise TedmError("This DICOM file is deflated as a whole. Save it uncompressed, or as PNG.")
    try:
        return dicom.header(path).size
    except TedmError as error:
        raise TedmError(str(error).replace(str(path), "The file")) from None
