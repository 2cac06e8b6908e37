"""The source `nifti`: a folder of volumes, and a folder of label volumes with the same names."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tedm.config import ImageConfig, NiftiSource
from tedm.data.decoders import nifti
from tedm.data.decoders.nifti import Location, Volume
from tedm.data.sources.files import listed, matched
from tedm.data.sources.volumes import Files, Volumes, label_values, percentile_range
from tedm.errors import TedmError


class NiftiVolumes(Volumes):
    """Anybody's volumes: black and white are a window, or percentiles of each volume's non-zero voxels."""

    def __init__(self, source: NiftiSource, image: ImageConfig, data_root: Path, where: str) -> None:
        if len(source.channels) != image.channels:
            raise TedmError(
                f"{where}.source.channels: {len(source.channels)} endings, but image.channels is"
                f" {image.channels}"
            )
        known = source.labels or {name: k + 1 for k, name in enumerate(image.classes)}
        super().__init__(label_values(image.classes, known, where), where)
        self.source, self.fit, self.axis = source, source.fit, source.axis
        self.labelled_only = source.slices == "labelled"
        self.licence, self.cite = source.licence, source.cite
        self.description = f"{source.axis} slices of the volumes in {source.images}"
        self.intensity_range = (0.0, 1.0)
        folder = data_root / source.images
        found = _stems(listed(folder, f"{where}.source.images", self.problems, suffixes=nifti.SUFFIXES))
        first = source.channels[0]
        names = sorted(name.removesuffix(first) for name in found if name.endswith(first))
        if found and not names:
            self.problems.append(f"{folder}: no volume has {first} behind its name (source.channels)")
        self.volumes_of = {name: [found.get(name + ending) for ending in source.channels] for name in names}
        self.labels_of: dict[str, Path] = {}
        self.has_masks = source.masks is not None
        if source.masks is not None:
            folder = data_root / source.masks
            masks = _stems(listed(folder, f"{where}.source.masks", self.problems, suffixes=nifti.SUFFIXES))
            self.labels_of = matched(masks, names, folder, source.mask_suffix, self) or {}
        self.ids = names[: source.limit]
        self.subjects = self.ids

    def files(self, name: str) -> Files:
        channels: list[Location] = []
        for ending, path in zip(self.source.channels, self.volumes_of[name], strict=True):
            if path is None:
                raise TedmError(f"{name}: has no volume {name}{ending}; add it, or remove the others")
            channels.append(path)
        return Files(channels, self.labels_of.get(name))

    def scaled(self, channels: list[Volume], brain: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:  # noqa: ARG002
        scaled = []
        for channel in channels:
            values = channel.values
            black, white = self.source.window or percentile_range(
                values[values != 0], *self.source.percentiles, self.where
            )
            scaled.append(np.clip((values - black) / (white - black), 0, 1))
        return np.stack(scaled).astype(np.float32)


def _stems(files: dict[str, Path]) -> dict[str, Path]:
    return {name.removesuffix(".nii"): path for name, path in files.items()}
