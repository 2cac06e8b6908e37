"""The NIH chest X-rays with lung masks of XLSor (Tang et al. 2019), as downloaded."""

import csv
from importlib import resources
from pathlib import Path

from tedm.config import ImageConfig, XLSorSource
from tedm.data.sources.files import ImageFiles, listed, matched
from tedm.data.splits import XLSOR


class XLSor(ImageFiles):
    """100 images of ChestX-ray14 with lung masks: images/NIH_0010.png and masks/NIH_0010_mask.png.

    The list of the study's authors, which ships with tedm, tells which image of ChestX-ray14 each one is.
    The 100 images show 95 patients; the study used 95 [Rosnati 2023, A], which are taken to be the first
    image of each. Resized to the network's square, masks thresholded at one half.
    """

    population = "patients of ChestX-ray14"

    def __init__(self, source: XLSorSource, image: ImageConfig, data_root: Path, where: str) -> None:
        super().__init__(image.classes, image.channels, where)
        folder = data_root / source.folder
        self.fit = source.fit
        self.licence = source.licence or "images: free use (NIH Clinical Center); masks: research use"
        self.cite = source.cite or "Tang et al. 2019, XLSor; Wang et al. 2017"
        self.description = f"NIH images of XLSor in {source.folder}"
        patients = {name: scan.partition("_")[0] for name, scan in scans().items()}
        found = listed(folder / "images", f"{where}.source.folder", self.problems)
        masks = listed(folder / "masks", f"{where}.source.folder", self.problems)
        seen: set[str] = set()
        for name in sorted(found):
            patient = patients.get(name, name)
            if source.one_per_patient and patient in seen:
                continue
            seen.add(patient)
            self.images[name] = found[name]
        matched_masks = matched(masks, found, folder / "masks", "_mask", self) or {}
        self.masks = {name: path for name, path in matched_masks.items() if name in self.images}
        self.keep(source.limit)
        self.subjects = [patients.get(name, name) for name in self.ids]


def scans() -> dict[str, str]:
    """The image of ChestX-ray14, without suffix, that each image of XLSor is."""
    text = (resources.files("tedm.data") / "splits" / XLSOR).read_text(encoding="utf-8")
    return {row["NIH"]: Path(row["ChestX-ray14"]).stem for row in csv.DictReader(text.splitlines())}
