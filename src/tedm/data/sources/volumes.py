"""Sources whose units are NIfTI volumes, cut to slices."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tedm.data.decoders import nifti
from tedm.data.decoders.nifti import Axis, Location, Volume
from tedm.data.sources.base import Found, Picture, Source
from tedm.errors import TedmError


class Files(NamedTuple):
    """The files of one volume."""

    channels: list[Location]
    labels: Location | None
    brain: Location | None = None  # mask of the voxels that count


class Volumes(Source):
    """Volumes that become one picture per slice; a slice's id is the volume's, the axis and a number.

    A subclass fills `ids` and says which files a volume has and how its intensities are scaled.

    Attributes:
        axis: slices are perpendicular to it.
        values: of each class in the label volumes.
        labelled_only: leave out slices that show no class.
        crop: height and width of the middle of each slice that is kept; None: all of it.
    """

    volumes = True
    axis: Axis = "axial"
    labelled_only = False
    crop: tuple[int, int] | None = None

    def __init__(self, values: Sequence[Sequence[int]], where: str) -> None:
        super().__init__()
        self.values, self.where = values, where

    @abstractmethod
    def files(self, name: str) -> Files:
        """The files of a volume."""

    @abstractmethod
    def scaled(self, channels: list[Volume], brain: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
        """Intensities as the network shall see them, (C, X, Y, Z), float32."""

    def kept(self, count: int) -> range:
        """Which of the slices along the axis are looked at; all of them."""
        return range(count)

    def examine(self, name: str, split: str) -> Found:
        files = self.files(name)
        if files.labels is None and self.has_masks and split != "unlabelled":
            raise TedmError(
                f"{files.channels[0]}: has no label volume; add one, or list {name} as unlabelled in a"
                " split file"
            )
        shapes = {location: nifti.shape(location) for location in files.channels}
        for location in (files.labels, files.brain):
            if location is not None:
                shapes[location] = nifti.shape(location)
        if len(set(shapes.values())) > 1:
            sizes = "; ".join(f"{location}: {'×'.join(map(str, s))}" for location, s in shapes.items())
            raise TedmError(f"{name}: its files have different sizes ({sizes}); resample them to one grid")
        return Found(np.dtype(np.float32), " ".join(_stamp(location) for location in shapes))

    def read(self, name: str, split: str) -> list[Picture]:  # noqa: ARG002 (the base class's)
        files = self.files(name)
        channels = [nifti.volume(location) for location in files.channels]
        first = channels[0]
        for location, channel in zip(files.channels, channels, strict=True):
            if not np.allclose(channel.affine, first.affine, atol=0.05):
                raise TedmError(
                    f"{location}: lies elsewhere in space than {files.channels[0]}; resample it"
                )
        labels = None if files.labels is None else nifti.labels(files.labels, like=first).values
        if labels is not None:
            self._known(labels, files.labels)
        brain = None if files.brain is None else nifti.labels(files.brain, like=first).values > 0
        scaled = self.scaled(channels, brain)
        spacing, letter = nifti.plane_spacing(first, self.axis), "xyz"[nifti.AXES.index(self.axis)]
        pictures = []
        for index in self.kept(first.values.shape[nifti.AXES.index(self.axis)]):
            shares = None
            if labels is not None:
                plane = self._cropped(nifti.plane(labels, self.axis, index))
                shares = np.stack([np.isin(plane, values) for values in self.values])
            if self.labelled_only and (shares is None or not shares.any()):
                continue
            planes = [self._cropped(nifti.plane(channel, self.axis, index)) for channel in scaled]
            pictures.append(
                Picture(f"{name}_{letter}{index:03d}", np.ascontiguousarray(planes), shares, spacing)
            )
        if not pictures:
            raise TedmError(
                f"{files.labels or files.channels[0]}: no slice shows one of the classes; remove {name}"
            )
        return pictures

    def _known(self, labels: npt.NDArray[Any], location: Location | None) -> None:
        """Refuse label volumes that have nothing of what the classes stand for but other values."""
        present = set(np.unique(labels).tolist()) - {0}
        expected = {value for values in self.values for value in values}
        if present and not present & expected and not self.others_are_background():
            raise TedmError(
                f"{location}: has the labels {sorted(present)}, none of which is a class's"
                f" ({sorted(expected)}); correct `labels` of the source"
            )

    def others_are_background(self) -> bool:
        """Whether labels that are no class's are usual."""
        return False

    def _cropped(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.crop is None:
            return plane
        for axis, size in enumerate(self.crop):
            over = plane.shape[axis] - size
            if over > 0:
                plane = np.take(plane, range(over // 2, over // 2 + size), axis)
        return plane


def label_values(
    classes: Sequence[str], known: Mapping[str, int | list[int]], where: str
) -> list[list[int]]:
    """Values of each class in label volumes.

    Raises:
        TedmError: a class that has none.
    """
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise TedmError(
            f"image.classes: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the"
            f" labels of {where}.source ({', '.join(known)})"
        )
    values = [known[name] for name in classes]
    return [[value] if isinstance(value, int) else list(value) for value in values]


def percentile_range(
    values: npt.NDArray[np.float32], low: float, high: float, where: str
) -> tuple[float, float]:
    """Percentiles of some voxels, which must differ."""
    if not values.size:
        raise TedmError(f"{where}: has no voxels that count; is it empty?")
    black, white = np.percentile(values, [low, high])
    if not black < white:
        raise TedmError(f"{where}: all its voxels are equal, it shows nothing; remove it")
    return float(black), float(white)


def _stamp(location: Location) -> str:
    path = location if isinstance(location, Path) else location.archive
    stat = path.stat()
    return f"{stat.st_size}@{stat.st_mtime_ns}"
