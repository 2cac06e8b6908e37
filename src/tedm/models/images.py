"""What users give (files, arrays, Pillow images) as the network sees it, and the way back to its size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tedm.data.decoders import dicom, nifti, raster
from tedm.data.preprocess import Fit, image_to_square, normalised, white_for
from tedm.data.sources.volumes import percentile_range
from tedm.errors import TedmError
from tedm.models.folder import Preprocessing, VolumeScaling

Kind = Literal["raster", "dicom", "nifti"]
Float = NDArray[np.float32]
Given = Any  # path, Pillow image, array, Picture or Scan

SIGNATURES: dict[bytes, Kind] = {  # first bytes of the formats that are read
    b"\x89PNG": "raster",
    b"\xff\xd8\xff": "raster",
    b"II*\0": "raster",
    b"MM\0*": "raster",
    b"GIF8": "raster",
    b"\x1f\x8b": "nifti",  # gzip; what is in it shows when it is read
    b"\x5c\x01\0\0": "nifti",  # the size of its header, 348
    b"\0\0\x01\x5c": "nifti",
}


@dataclass(frozen=True)
class Picture:
    """One image that was read.

    Attributes:
        name: for messages.
        pixels: (C, H, W), uint8, or float32 where there are more than 8 bits.
        spacing_mm: height and width of a pixel; None where nobody knows.
        windowed: whether a DICOM window made the pixels 0 … 1.
    """

    name: str
    pixels: NDArray[Any]
    spacing_mm: tuple[float, ...] | None = None
    windowed: bool = False

    volume = False

    def names(self, name: str, like: Preprocessing) -> list[str]:  # noqa: ARG002 (as of a Scan)
        """What the workflow would call its only row."""
        return [name]

    def squares(self, like: Preprocessing) -> Float:
        """The image as the network sees it, (1, C, size, size), in [0, 1]."""
        pixels = self.pixels
        if len(pixels) != like.channels:
            if len(pixels) != 1 or like.channels != 3:
                raise TedmError(
                    f"{self.name}: has {len(pixels)} channels, the model sees {like.channels}; give an"
                    " image with as many"
                )
            pixels = np.repeat(pixels, 3, axis=0)
        pixels = normalised(pixels, like.normalise)
        black = min(0.0, float(pixels.min())) if like.black is None else like.black
        channels = [Image.fromarray(channel) for channel in pixels]
        square = image_to_square(channels, like.size, like.fit, black)
        return _scaled(square[None], *self._range(like))

    def back(self, maps: Float, like: Preprocessing) -> Float:
        """Bring a map (1, K, size, size) back to the image's size, (K, H, W)."""
        return restored(maps[0], cast("tuple[int, int]", self.pixels.shape[1:]), like.fit)

    def shown(self) -> NDArray[np.uint8]:
        """The image for people, (H, W) or (H, W, 3); more than 8 bits from the least to the greatest."""
        pixels = self.pixels
        if pixels.dtype != np.uint8:
            low, high = float(pixels.min()), float(pixels.max())
            pixels = np.rint((pixels - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
        return np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels[0]

    def _range(self, like: Preprocessing) -> tuple[float, float]:
        """Pixels that become 0 and 1: by the rule of `tedm prepare`, with what the training set tells."""
        if like.normalise != "none":
            return 0.0, 1.0
        if self.pixels.dtype == np.uint8:
            return 0.0, 255.0
        low, high = float(self.pixels.min()), float(self.pixels.max())
        if self.windowed or (low >= 0 and high <= 1):
            return 0.0, 1.0
        known = like.intensity_range
        comparable = like.deep and like.volume is None and like.dicom_window is None
        if comparable and (known[0] < 0 or (known[0] <= low and high <= known[1])):
            return known
        return (low, high) if low < 0 else (0.0, white_for(high))


@dataclass(frozen=True)
class Scan:
    """A volume that was read: each slice is an image to the network.

    Attributes:
        name: for messages.
        path: of the file of its first channel.
        channels: in canonical orientation.
        size: of the file's own voxel grid.
        orientation: from the file's grid to the canonical one, as nibabel has it.
        spacing_mm: of the file's voxels along each axis.
    """

    name: str
    path: Path
    channels: tuple[nifti.Volume, ...]
    size: tuple[int, int, int]
    orientation: NDArray[Any]
    spacing_mm: tuple[float, ...] | None

    volume = True

    def names(self, name: str, like: Preprocessing) -> list[str]:
        """What the workflow would call the slices."""
        scaling = _scaling(self.name, like)
        letter = "xyz"[nifti.AXES.index(scaling.axis)]
        return [f"{name}_{letter}{index:03d}" for index in self._kept(scaling)]

    def squares(self, like: Preprocessing) -> Float:
        """The slices as the network sees them, (n, C, size, size), in [0, 1]."""
        scaling = _scaling(self.name, like)
        values = scale(self.channels, scaling, self.name)
        black = min(0.0, float(values.min())) if like.black is None else like.black
        made = []
        for index in self._kept(scaling):
            planes = [_cropped(nifti.plane(channel, scaling.axis, index), scaling) for channel in values]
            images = [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes]
            made.append(image_to_square(images, like.size, like.fit, black))
        return _scaled(np.stack(made), *like.intensity_range)

    def back(self, maps: Float, like: Preprocessing) -> Float:
        """Bring maps (n, K, size, size) back to the file's grid, (K, X, Y, Z); 0 where nobody looked."""
        scaling = _scaling(self.name, like)
        along, shape = nifti.AXES.index(scaling.axis), self.channels[0].values.shape
        first, second = (shape[a] for a in range(3) if a != along)  # width and height as it is looked at
        top, left, height, width = _middle((second, first), scaling)
        out = np.zeros((maps.shape[1], *shape), np.float32)
        for index, plane in zip(self._kept(scaling), maps, strict=True):
            whole = np.zeros((len(plane), second, first), np.float32)
            whole[:, top : top + height, left : left + width] = restored(
                np.ascontiguousarray(plane), (height, width), like.fit
            )
            # The inverse of nifti.plane.
            np.moveaxis(out, along + 1, 0)[index] = whole[:, ::-1, ::-1].transpose(0, 2, 1)
        canonical = nib.orientations.axcodes2ornt(("R", "A", "S"))
        turn = nib.orientations.ornt_transform(canonical, self.orientation)
        return np.stack([nib.orientations.apply_orientation(part, turn) for part in out])

    def shown(self) -> NDArray[np.uint8]:
        """The middle axial slice for people, (H, W)."""
        values = self.channels[0].values
        plane = nifti.plane(values, "axial", values.shape[2] // 2)
        return Picture(self.name, np.ascontiguousarray(plane)[None]).shown()

    def _kept(self, scaling: VolumeScaling) -> range:
        count = self.channels[0].values.shape[nifti.AXES.index(scaling.axis)]
        some = min(count, scaling.slices or count)
        return range((count - some) // 2, (count - some) // 2 + some)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def kind_of(path: Path | str) -> Kind | None:
    """What a file holds, by its first bytes and not by its name; None: nothing that is read here.

    Raises:
        TedmError: no such file, an empty one, or no permission.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(352)
    except OSError as error:
        raise TedmError(f"{path}: cannot be read ({error.strerror}); correct the path") from None
    if not start:
        raise TedmError(f"{path}: is empty (0 bytes); copy it again or remove it")
    if start[128:132] == b"DICM":
        return "dicom"
    return next((kind for signature, kind in SIGNATURES.items() if start.startswith(signature)), None)


def read(
    path: Path | str, like: Preprocessing, *, max_pixels: int | None = None, name: str | None = None
) -> Picture | Scan:
    """Read an image file: PNG, JPEG, TIFF, GIF, DICOM (one frame) or NIfTI.

    Args:
        path: the file.
        like: preprocessing of the model that shall see it: channels, DICOM window, files of a volume.
        max_pixels: refuse more than that (of volumes: voxels) before anything is decoded.
        name: takes the place of the path in messages.

    Raises:
        TedmError: it cannot be read, is something else, shows nothing, or is too large.
    """
    path = Path(path)
    name = name or str(path)
    try:
        return _read(path, like, max_pixels, name)
    except TedmError as error:
        raise TedmError(str(error).replace(str(path), name)) from None


def _read(path: Path, like: Preprocessing, max_pixels: int | None, name: str) -> Picture | Scan:
    kind = kind_of(path)
    if kind is None:
        raise TedmError(
            f"{path}: not a PNG, JPEG, TIFF, GIF, DICOM or NIfTI file, or damaged; mend or remove it"
        )
    if kind == "nifti":
        return _read_volume(path, like, max_pixels, name)
    if like.channels not in (1, 3):
        raise TedmError(f"{path}: the model sees {like.channels} channels; give an array or volumes")
    header = dicom.header(path, like.dicom_window) if kind == "dicom" else raster.header(path)
    _limit(path, header.size, max_pixels)
    if kind == "dicom":
        pixels, spacing = dicom.pixels(path, like.channels, like.dicom_window)
    else:
        pixels, spacing = raster.pixels(path, like.channels), None
    return _checked(Picture(name, pixels, spacing, kind == "dicom" and like.dicom_window is not None))


def from_pil(image: Image.Image, like: Preprocessing, name: str = "the image") -> Picture:
    """A Pillow image of any mode, turned as its EXIF data say."""
    if like.channels not in (1, 3):
        raise TedmError(f"{name}: the model sees {like.channels} channels; give an array")
    return _checked(Picture(name, raster.of_image(image, like.channels)))


def from_array(array: NDArray[Any], like: Preprocessing, name: str = "the image") -> Picture:
    """An array, (H, W), (H, W, C) or (C, H, W).

    uint8 is black to white as 0 … 255. Other numbers are taken as more than 8 bits of grey: 0 … 1, or the
    range that the training images had, or the fewest bits (8, 10, 12, 14, 16) that hold them.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biuf" or 0 in array.shape:
        raise TedmError(f"{name}: an array of {array.dtype}, {array.shape}; expected numbers and pixels")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype != np.uint8:
        array = array.astype(np.float32)
    count = like.channels
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] == count and array.shape[2] != count:
        pass
    elif array.ndim == 3 and array.shape[2] == count:
        array = np.moveaxis(array, -1, 0)
    elif array.ndim == 3 and array.shape[2] in (3, 4) and count in (1, 3) and array.dtype == np.uint8:
        array = raster.of_image(Image.fromarray(array), count)
    else:
        raise TedmError(
            f"{name}: an array of shape {array.shape}; expected (H, W), (H, W, {count}) or ({count}, H, W)"
        )
    return _checked(Picture(name, np.ascontiguousarray(array)))


def as_picture(given: Given, like: Preprocessing) -> Picture | Scan:
    """Whatever a user gives, as an image."""
    if isinstance(given, Picture | Scan):
        return given
    if isinstance(given, str | Path):
        return read(given, like)
    if isinstance(given, Image.Image):
        return from_pil(given, like)
    if hasattr(given, "__array__") and not isinstance(given, list | tuple):
        return from_array(np.asarray(given), like)
    raise TedmError(f"an image of type {type(given).__name__}; expected a path, a Pillow image or an array")


def _read_volume(path: Path, like: Preprocessing, max_pixels: int | None, name: str) -> Scan:
    scaling = _scaling(str(path), like)
    paths = channel_files(path, scaling)
    _limit(path, nifti.shape(path), max_pixels)
    channels = tuple(nifti.volume(p) for p in paths)
    for other, channel in zip(paths[1:], channels[1:], strict=True):
        same = channel.values.shape == channels[0].values.shape
        if not same or not np.allclose(channel.affine, channels[0].affine, atol=0.05):
            raise TedmError(f"{other}: of another size or place than {path}; resample it")
    header = cast(Any, nib.load(path))
    size = tuple(int(s) for s in header.shape[:3])
    spacing = tuple(float(x) for x in np.sqrt((header.affine[:3, :3] ** 2).sum(axis=0)))
    orientation = nib.io_orientation(header.affine)
    return Scan(name, path, channels, cast("tuple[int, int, int]", size), orientation, spacing)


def channel_files(path: Path, scaling: VolumeScaling) -> list[Path]:
    """The files of all channels of a volume, by the file of the first."""
    suffix = next((s for s in (".nii.gz", ".nii") if path.name.endswith(s)), None)
    if suffix is None:
        raise TedmError(f"{path}: a NIfTI file, or compressed; its name must end in .nii or .nii.gz")
    first, *others = scaling.channels
    stem = path.name.removesuffix(suffix)
    if not others:
        return [path]
    if not stem.endswith(first):
        raise TedmError(
            f"{path}: the model sees {len(others) + 1} channels; give the file that ends in"
            f" {first}{suffix}, with those that end in {', '.join(others)} beside it"
        )
    found = [path, *(path.with_name(stem.removesuffix(first) + ending + suffix) for ending in others)]
    missing = [p.name for p in found if not p.is_file()]
    if missing:
        raise TedmError(f"{path}: there is no {', '.join(missing)} beside it, which the model needs, too")
    return found


def _limit(path: Path, size: Sequence[int], largest: int | None) -> None:
    if largest is not None and np.prod(size, dtype=np.float64) > largest:
        raise TedmError(
            f"{path}: too large ({'×'.join(map(str, size))} pixels; at most {largest} are allowed here);"
            " scale it down"
        )


def _checked(picture: Picture) -> Picture:
    pixels = picture.pixels
    if pixels.dtype != np.uint8 and not np.isfinite(pixels).all():
        raise TedmError(f"{picture.name}: has pixels that are not finite; mend or remove it")
    if (pixels.min(axis=(1, 2)) == pixels.max(axis=(1, 2))).all():
        raise TedmError(f"{picture.name}: all its pixels are equal, it shows nothing; remove it")
    return picture


# ── intensities and geometry ────────────────────────────────────────────────────────────────────


def scale(channels: Sequence[nifti.Volume], scaling: VolumeScaling, name: str) -> Float:
    """Intensities of a volume as the training set had them before they were stored, (C, X, Y, Z)."""
    out = []
    for k, channel in enumerate(channels):
        values: NDArray[Any] = channel.values
        if scaling.kind == "standardised":
            standard = (values.astype(np.float64) - scaling.means[k]) / scaling.deviations[k]
            out.append(np.clip(standard, -scaling.limit, scaling.limit))
            continue
        inside = values != 0
        if scaling.brightest is not None:
            values = np.clip(values, 0, scaling.brightest)
        black, white = scaling.window or percentile_range(values[inside], *scaling.percentiles, name)
        if scaling.kind == "brain":
            scaled = np.clip(2 * (values - black) / (white - black) - 1, -1, 1)
            scaled[~inside] = -1
            out.append(scaled)
        else:
            out.append(np.clip((values - black) / (white - black), 0, 1))
    return np.stack(out).astype(np.float32)


def restored(maps: Float, shape: tuple[int, int], fit: Fit) -> Float:
    """Undo `image_to_square` on maps, bilinearly: (K, size, size) to (K, H, W).

    Pixel centres lie at half-integers, as when the image was resized. What a crop cut off gets 0; the
    border of a padded image does not take part. Of the same size, values are the same to the bit.
    """
    rows, columns = (_way_back(axis, shape, maps.shape[-1], fit) for axis in (0, 1))
    return np.asarray((rows @ (torch.from_numpy(maps) @ columns.T)).numpy())


@lru_cache(maxsize=32)
def _way_back(axis: int, shape: tuple[int, int], size: int, fit: Fit) -> torch.Tensor:
    """From positions of the square to those of the image along one axis, (image, size)."""
    length = shape[axis]
    first, inner, start, used = 0, size, 0.0, float(length)
    if fit == "pad":
        inner = max(1, round(length * (size / max(shape))))
        first = (size - inner) // 2
    elif fit == "crop":
        used = float(min(shape))
        start = (length - used) / 2
    centres = np.arange(length) + 0.5
    position = (centres - start) * (inner / used) - 0.5
    outside = (centres < start) | (centres > start + used)
    position = position.clip(0, inner - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, inner - 1)
    matrix = np.zeros((length, size))
    np.add.at(matrix, (np.arange(length), first + low), 1 - (position - low))
    np.add.at(matrix, (np.arange(length), first + high), position - low)
    matrix[outside] = 0
    return torch.from_numpy(matrix.astype(np.float32))


def _scaled(squares: NDArray[Any], low: float, high: float) -> Float:
    """As `PreparedSet.images` does it, to the bit."""
    images = squares.astype(np.float32)
    images -= np.float32(low)
    images /= np.float32(high - low)
    return np.clip(images, 0, 1, out=images)


def _scaling(name: str, like: Preprocessing) -> VolumeScaling:
    if like.volume is None:
        raise TedmError(f"{name}: a volume, but the model learned from single images; give it those")
    return like.volume


def _middle(shape: tuple[int, int], scaling: VolumeScaling) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part of a plane that the network sees."""
    if scaling.crop is None:
        return 0, 0, *shape
    sizes = [min(length, side) for length, side in zip(shape, scaling.crop, strict=True)]
    return (shape[0] - sizes[0]) // 2, (shape[1] - sizes[1]) // 2, sizes[0], sizes[1]


def _cropped(plane: NDArray[Any], scaling: VolumeScaling) -> NDArray[Any]:
    top, left, height, width = _middle((plane.shape[0], plane.shape[1]), scaling)
    return plane[top : top + height, left : left + width]
