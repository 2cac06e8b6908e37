"""NIfTI volumes, by way of nibabel, turned so that their axes run to the right, the front and the top."""

import gzip
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from tedm.errors import TedmError

SUFFIXES = (".nii", ".nii.gz")
AXES = ("sagittal", "coronal", "axial")  # of a volume in canonical orientation: x, y, z
VOXEL_LIMIT = 1 << 29  # of a header, before anything is decoded: 2 GB as float32
BYTE_LIMIT = 1 << 32  # of a file in an archive, decompressed

Axis = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class Member:
    """A file within a ZIP archive."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"


Location = Path | Member


@dataclass(frozen=True)
class Volume:
    """A volume in canonical orientation (RAS+).

    Attributes:
        values: (X, Y, Z), float32; or int32 of a label volume.
        affine: from voxels to mm, (4, 4).
    """

    values: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxels along x, y and z."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)


def shape(location: Location) -> tuple[int, int, int]:
    """Size of a volume in canonical orientation, from its header alone."""
    image = _opened(location)
    order = nib.io_orientation(image.affine)[:, 0]
    turned = [0, 0, 0]
    for axis, place in enumerate(order):
        turned[int(place)] = image.shape[axis]
    return turned[0], turned[1], turned[2]


def volume(location: Location) -> Volume:
    """Read a volume of intensities, float32.

    Raises:
        TedmError: missing, damaged, not of three dimensions, too large, or with values that are not finite.
    """
    values, affine = _values(location)
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise TedmError(f"{location}: has voxels that are not finite; mend or remove it")
    return Volume(values, affine)


def labels(location: Location, like: Volume | None = None) -> Volume:
    """Read a volume of labels, int32; of the size and place of `like`, if it is given.

    Raises:
        TedmError: as for `volume`; values that are no whole numbers; another size or place.
    """
    values, affine = _values(location)
    whole = np.rint(values)
    if not np.array_equal(whole, values):
        raise TedmError(f"{location}: has values that are no whole numbers; expected labels")
    found = Volume(whole.astype(np.int32), affine)
    if like is not None:
        if found.values.shape != like.values.shape:
            sizes = ["×".join(map(str, v.values.shape)) for v in (found, like)]
            raise TedmError(
                f"{location}: {sizes[0]} voxels, but its image has {sizes[1]}; resample one of them"
            )
        if not np.allclose(found.affine, like.affine, atol=0.05):
            raise TedmError(
                f"{location}: lies elsewhere in space than its image (their affines differ by up to"
                f" {np.abs(found.affine - like.affine).max():.3g}); resample one of them"
            )
    return found


def plane(values: npt.NDArray[Any], axis: Axis, index: int) -> npt.NDArray[Any]:
    """One slice as it is looked at: top or front of the patient above, the right side on the left.

    Args:
        values: in canonical orientation, (X, Y, Z).
        axis: that the slice is perpendicular to. Sagittal slices have the front on the left.
        index: of the slice along it.

    Returns:
        (height, width).
    """
    return np.asarray(np.take(values, index, AXES.index(axis)).T[::-1, ::-1])


def plane_spacing(volume: Volume, axis: Axis) -> tuple[float, float, float]:
    """Distance between slices, height and width of a pixel, in mm."""
    along = AXES.index(axis)
    first, second = (volume.spacing_mm[a] for a in range(3) if a != along)
    return volume.spacing_mm[along], second, first


MM = {"meter": 1000.0, "micron": 0.001}  # others are mm, as the standard's readers take unknown ones


def _opened(location: Location) -> Any:
    try:
        if isinstance(location, Member):
            image = _from_archive(location)
        else:
            if not location.stat().st_size:
                raise TedmError(f"{location}: is empty (0 bytes); copy it again or remove it")
            image = nib.load(location)
        if not isinstance(image, nib.Nifti1Pair):
            raise TedmError(f"{location}: not a NIfTI file; convert it")
    except TedmError:
        raise
    except FileNotFoundError:
        raise TedmError(f"{location}: no such file; correct the path or copy the file there") from None
    except Exception as error:  # damaged files fail in nearly any way
        raise TedmError(f"{location}: not a NIfTI file, or damaged ({error}); copy it again") from None
    size = tuple(image.shape)
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    if len(size) != 3 or 0 in size:
        raise TedmError(
            f"{location}: has {'×'.join(map(str, size))} voxels, expected three dimensions; save each"
            " volume as a file of its own"
        )
    if np.prod(size, dtype=np.float64) > VOXEL_LIMIT:
        raise TedmError(
            f"{location}: too large to be read safely ({'×'.join(map(str, size))} voxels); scale it down"
        )
    scale = image.affine[:3, :3]
    if not (
        np.isfinite(image.affine).all() and np.linalg.matrix_rank(scale / (np.abs(scale).max() or 1)) == 3
    ):
        raise TedmError(f"{location}: its affine is singular, so voxels have no size; mend its header")
    if image.get_data_dtype().kind not in "iuf":
        raise TedmError(f"{location}: has voxels of type {image.get_data_dtype()}, expected real numbers")
    return (
        image.slicer[(slice(None),) * 3 + (0,) * (len(image.shape) - 3)] if len(image.shape) > 3 else image
    )


def _from_archive(member: Member) -> Any:
    with zipfile.ZipFile(member.archive) as archive, archive.open(member.name) as stored:
        stream = gzip.GzipFile(fileobj=stored) if member.name.endswith(".gz") else stored
        content = stream.read(BYTE_LIMIT)
    return nib.Nifti1Image.from_bytes(content)


def _values(location: Location) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    image = _opened(location)
    try:
        canonical = nib.as_closest_canonical(image)
        affine = np.array(canonical.affine, np.float64)
        affine[:3] *= MM.get(image.header.get_xyzt_units()[0], 1.0)
        return np.asanyarray(canonical.dataobj), affine
    except MemoryError:
        raise TedmError(f"{location}: does not fit into memory; scale it down") from None
    except Exception as error:
        raise TedmError(f"{location}: cannot be read ({error}); copy it again or remove it") from None
