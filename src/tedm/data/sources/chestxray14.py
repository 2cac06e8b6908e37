"""ChestX-ray8/14 of the NIH Clinical Center (Wang et al. 2017), as downloaded."""

from pathlib import Path

from tedm.config import ChestXray14Source, ImageConfig
from tedm.data.sources.files import ImageFiles
from tedm.data.sources.table import read_table
from tedm.data.splits import enumerated
from tedm.errors import TedmError

IMAGES = 112_120  # of the whole set; from 30,805 patients
LISTS = {"train_val_list.txt": "train_val", "test_list.txt": "test"}


class ChestXray14(ImageFiles):
    """8-bit PNG of 1024 × 1024 pixels, some of them with an alpha channel; no masks.

    Layout: images_001/images/00000001_000.png … images_012/images/…, or all in images/; beside them
    Data_Entry_2017*.csv, train_val_list.txt and test_list.txt, which are read where they are there.

    The columns of Data_Entry and `list` (train_val or test, as published) are for stratified splits. The
    subject is the patient: the first 8 digits of a name. Resized to the network's square, nothing else
    [Rosnati 2023, A].
    """

    population = "patients of ChestX-ray14"

    def __init__(self, source: ChestXray14Source, image: ImageConfig, data_root: Path, where: str) -> None:
        super().__init__(image.classes, image.channels, where)
        folder = data_root / source.folder
        self.fit = source.fit
        self.licence = source.licence or "free use (NIH Clinical Center)"
        self.cite = source.cite or "Wang et al. 2017, ChestX-ray8"
        self.description = f"ChestX-ray14 in {source.folder}"
        if not folder.is_dir():
            self.problems.append(
                f"{where}.source.folder: no such folder {folder}; correct the path or data_root"
            )
            return
        homes = [
            folder / "images",
            *sorted(folder.glob("images_*/images")),
            *sorted(folder.glob("images_*")),
        ]
        for home in (home for home in homes if home.is_dir()):
            self.images |= {path.stem: path for path in home.glob("*.png") if not path.name.startswith(".")}
        if not self.images:
            self.problems.append(
                f"{folder}: no images; expected images_001/images/*.png … images_012/images/*.png, or all"
                " in images"
            )
        self.keep(source.limit)
        if source.subject == "patient":
            self.subjects = [name.partition("_")[0] for name in self.ids]
        self.columns = self._table(folder) | self._lists(folder)

    def _table(self, folder: Path) -> dict[str, list[str]]:
        found = sorted(folder.glob("Data_Entry_2017*.csv"))
        if not found:
            return {}
        table = read_table(found[0], f"{self.where}.source.folder")
        if "Image Index" not in table.columns:
            raise TedmError(f"{found[0]}: has no column Image Index; is it the set's own list?")
        by_id = table.set_index(table["Image Index"].map(lambda name: Path(name).stem))
        strangers = [name for name in self.ids if name not in by_id.index]
        if strangers:
            self.problems.append(f"{found[0]}: does not list {enumerated(strangers)}; remove them")
            return {}
        chosen = by_id.loc[list(self.ids)]
        return {str(name): chosen[name].tolist() for name in table.columns}

    def _lists(self, folder: Path) -> dict[str, list[str]]:
        listed: dict[str, str] = {}
        for file, part in LISTS.items():
            path = folder / file
            if path.is_file():
                names = path.read_text(encoding="utf-8", errors="replace").split()
                listed |= dict.fromkeys((Path(name).stem for name in names), part)
        return {"list": [listed.get(name, "") for name in self.ids]} if listed else {}
