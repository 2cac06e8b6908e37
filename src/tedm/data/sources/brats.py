"""BraTS training data (Menze et al. 2015; Bakas et al. 2017): four MR modalities and tumour labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tedm.config import BraTSSource, ImageConfig
from tedm.data.decoders import nifti
from tedm.data.decoders.nifti import Volume
from tedm.data.sources.base import Each
from tedm.data.sources.volumes import Files, Volumes, label_values
from tedm.errors import TedmError

MODALITIES = ("flair", "t1", "t1ce", "t2")  # order of the channels
SIDE = 176  # pixels of the middle of a slice that is kept
LARGEST = 5.0  # standard deviations; beyond is clipped


class BraTS(Volumes):
    """Patients as folders, {patient}/{patient}_flair.nii.gz, _t1, _t1ce, _t2 and _seg, at any depth.

    Preprocessing [Rosnati 2023, A]: each modality minus the mean and divided by the standard deviation of
    its brain pixels (BraTS is skull-stripped: those that are not 0) over the training set; all 155 axial
    slices; the middle 176 × 176 pixels of 1 mm. The paper names no range: values beyond 5 standard
    deviations are clipped, and -5 … 5 is what the network sees as black and white. Background
    becomes what 0 maps to.

    Classes: `enhancing tumour` (GD-enhancing, label 4; 3 from 2023 on), `oedema` (peritumoural, 2) and
    `necrotic core` (1).
    """

    intensity_range = (-LARGEST, LARGEST)
    crop = (SIDE, SIDE)

    def __init__(self, source: BraTSSource, image: ImageConfig, data_root: Path, where: str) -> None:
        if image.channels != len(MODALITIES):
            raise TedmError(
                f"image.channels: {image.channels}; BraTS has {len(MODALITIES)} modalities ({where})"
            )
        known: dict[str, int | list[int]] = {
            "enhancing tumour": source.enhancing,
            "oedema": 2,
            "necrotic core": 1,
        }
        super().__init__(label_values(image.classes, known, where), where)
        folder = data_root / source.folder
        self.fit = source.fit
        self.licence = source.licence or "research use, after registration"
        self.cite = source.cite or "Menze et al. 2015; Bakas et al. 2017; Bakas et al. 2018"
        self.description = f"axial slices of the BraTS volumes in {source.folder}"
        self.means = self.deviations = np.zeros(0)
        self.homes: dict[str, Path] = {}
        if not folder.is_dir():
            self.problems.append(
                f"{where}.source.folder: no such folder {folder}; correct the path or data_root"
            )
            return
        for path in sorted([*folder.rglob("*_flair.nii.gz"), *folder.rglob("*_flair.nii")]):
            self.homes[path.name.partition("_flair.nii")[0]] = path.parent
        if not self.homes:
            self.problems.append(
                f"{folder}: no volumes; expected BraTS19_2013_2_1/BraTS19_2013_2_1_flair.nii.gz and so on"
            )
        self.ids = sorted(self.homes)[: source.limit]
        self.subjects = self.ids
        self.columns = {"grade": [_grade(self.homes[name], folder) for name in self.ids]}

    def files(self, name: str) -> Files:
        found = {}
        for part in (*MODALITIES, "seg"):
            paths = [self.homes[name] / f"{name}_{part}{suffix}" for suffix in (".nii.gz", ".nii")]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                raise TedmError(
                    f"{self.homes[name]}: has no {paths[0].name}; copy it again or remove the folder"
                )
            found[part] = path
        return Files([found[modality] for modality in MODALITIES], found["seg"])

    def learn(self, training: Sequence[str], each: Each) -> None:
        """Mean and standard deviation of the brain pixels of each modality over the training volumes."""
        sums = np.zeros((3, len(MODALITIES)))
        for of_volume in each(self._sums, training):  # in order: the same sums whatever the threads
            sums += of_volume
        count, total, squares = sums
        if not count.all():
            raise TedmError(f"{self.where}: the training volumes have no pixels other than 0")
        self.means = total / count
        self.deviations = np.sqrt(np.maximum(squares / count - self.means**2, 0))
        if not self.deviations.all():
            raise TedmError(f"{self.where}: a modality of the training volumes is the same everywhere")

    def identity(self) -> Mapping[str, Any]:
        return {"means": self.means.tolist(), "deviations": self.deviations.tolist()}

    def scaled(self, channels: list[Volume], brain: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:  # noqa: ARG002
        values = np.stack([channel.values for channel in channels]).astype(np.float64)
        shape = (len(MODALITIES), 1, 1, 1)
        standardised = (values - self.means.reshape(shape)) / self.deviations.reshape(shape)
        return np.clip(standardised, -LARGEST, LARGEST).astype(np.float32)

    def others_are_background(self) -> bool:
        return True

    def _sums(self, name: str) -> npt.NDArray[np.float64]:
        sums = np.zeros((3, len(MODALITIES)))
        for k, location in enumerate(self.files(name).channels):
            values = nifti.volume(location).values.astype(np.float64)
            values = values[values != 0]
            sums[:, k] = values.size, values.sum(), (values**2).sum()
        return sums


def _grade(home: Path, folder: Path) -> str:
    return next((part for part in home.relative_to(folder).parts if part in ("HGG", "LGG")), "")
