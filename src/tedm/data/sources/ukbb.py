"""UK Biobank T1 volumes with the subcortical structures that FIRST found, as downloaded."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tedm.config import ImageConfig, UKBBSource
from tedm.data.decoders.nifti import Location, Member, Volume
from tedm.data.sources.volumes import Files, Volumes, label_values, percentile_range
from tedm.errors import TedmError

# Labels of FIRST (Patenaude et al. 2011), in FreeSurfer's numbers.
STRUCTURES: dict[str, int | list[int]] = {
    "left thalamus": 10,
    "left caudate": 11,
    "left putamen": 12,
    "left pallidum": 13,
    "brain stem": 16,
    "left hippocampus": 17,
    "left amygdala": 18,
    "left accumbens": 26,
    "right thalamus": 49,
    "right caudate": 50,
    "right putamen": 51,
    "right pallidum": 52,
    "right hippocampus": 53,
    "right amygdala": 54,
    "right accumbens": 58,
}
IMAGE = "T1/T1.nii.gz"
BRAIN = "T1/T1_brain_mask.nii.gz"
FIRST = "T1/T1_first/T1_first_all_fast_firstseg.nii.gz"
BRIGHTEST = 1500.0  # scanner units; brighter voxels are clipped
SLICES = 189  # axial slices that are looked at, of 197 at 1 mm


class UKBiobank(Volumes):
    """T1 volumes of field 20252: {eid}_20252_2_0.zip as downloaded, or folders of that name.

    Preprocessing [Rosnati 2023, A]: intensities clipped to [0, 1500] (scanner units); the 1st and 99th
    percentiles inside the brain mask are mapped to -1 and 1, and what lies beyond is clipped; outside the
    mask is -1. Axial slices: the middle 189, of which those without any of the 15 structures are left out
    (about 100 stay). The paper does not say along which axis it cuts; the slices that fall away with the 8
    outermost show no structure anyway. Slices are padded to squares, so that proportions stay.

    A subject is a participant (the eid); the visit is part of the volume's name.
    """

    labelled_only = True
    intensity_range = (-1.0, 1.0)
    population = "participants of UK Biobank"

    def __init__(self, source: UKBBSource, image: ImageConfig, data_root: Path, where: str) -> None:
        if image.channels != 1:
            raise TedmError(f"image.channels: {image.channels}; T1 volumes have 1 channel ({where})")
        super().__init__(label_values(image.classes, STRUCTURES, where), where)
        folder = data_root / source.folder
        self.fit = source.fit
        self.licence = source.licence or "UK Biobank, by application only; not to be passed on"
        self.cite = source.cite or "Miller et al. 2016; Patenaude et al. 2011"
        self.description = f"axial slices of UK Biobank T1 volumes in {source.folder}"
        self.homes: dict[str, Path] = {}
        if not folder.is_dir():
            self.problems.append(
                f"{where}.source.folder: no such folder {folder}; correct the path or data_root"
            )
            return
        for path in sorted(folder.iterdir()):
            if path.suffix == ".zip" and "_20252_" in path.name:
                self.homes.setdefault(path.stem, path)
            elif (path / "T1").is_dir():
                self.homes[path.name] = path  # unpacked: faster to read
        if not self.homes:
            self.problems.append(
                f"{folder}: no volumes; expected 1000001_20252_2_0.zip, or 1000001_20252_2_0/{IMAGE}"
            )
        self.ids = sorted(self.homes)[: source.limit]
        self.subjects = [name.partition("_")[0] for name in self.ids]

    def files(self, name: str) -> Files:
        home = self.homes[name]
        locations: list[Location]
        if home.is_dir():
            locations = [home / member for member in (IMAGE, FIRST, BRAIN)]
            missing = [str(path) for path in locations if isinstance(path, Path) and not path.is_file()]
        else:
            locations = [Member(home, member) for member in (IMAGE, FIRST, BRAIN)]
            try:
                with zipfile.ZipFile(home) as archive:
                    present = set(archive.namelist())
            except (zipfile.BadZipFile, OSError) as error:
                raise TedmError(f"{home}: not a ZIP archive, or damaged ({error}); copy it again") from None
            missing = [member for member in (IMAGE, FIRST, BRAIN) if member not in present]
        if missing:
            raise TedmError(
                f"{home}: has no {', '.join(missing)}; FIRST or the extraction failed: remove it"
            )
        image, first, brain = locations
        return Files([image], first, brain)

    def scaled(self, channels: list[Volume], brain: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
        assert brain is not None
        values = np.clip(channels[0].values, 0, BRIGHTEST)
        low, high = percentile_range(values[brain], 1, 99, self.where)
        scaled = np.clip(2 * (values - low) / (high - low) - 1, -1, 1)
        scaled[~brain] = -1
        return np.asarray(scaled[None], np.float32)

    def kept(self, count: int) -> range:
        over = max(count - SLICES, 0)
        return range(over // 2, over // 2 + min(count, SLICES))

    def others_are_background(self) -> bool:
        return True
