"""The source `table`: images, masks, subjects and splits as a CSV or Parquet table lists them."""

from pathlib import Path

import pandas as pd

from tedm.config import ImageConfig, TableSource
from tedm.data.sources.files import ImageFiles
from tedm.data.splits import enumerated
from tedm.errors import TedmError

OPTIONAL = {
    "mask": "mask",
    "subject": "subject",
    "id": "id",
}  # columns that may be absent under these names


class TableImages(ImageFiles):
    """PNG, JPEG, TIFF and DICOM images, one per row of a table."""

    def __init__(self, source: TableSource, image: ImageConfig, data_root: Path, where: str) -> None:
        super().__init__(image.classes, image.channels, where)
        self.fit, self.licence, self.cite = source.fit, source.licence, source.cite
        self.description = f"table {source.table}"
        self.mask_size = "resize" if source.resize_masks else "same"
        path = data_root / source.table
        rows = read_table(path, f"{where}.source.table")
        folder = path.parent if source.folder is None else data_root / source.folder
        chosen = self._columns(source, rows, path)
        if "image" not in chosen:
            return
        files = rows[chosen["image"]]
        empty = [str(i + 2) for i, file in enumerate(files) if not file]
        if empty:
            self.problems.append(f"{path}: no {chosen['image']} in line {enumerated(empty)}; add one")
        ids = (
            rows[chosen["id"]]
            if "id" in chosen
            else files.map(lambda f: Path(f).with_suffix("").as_posix())
        )
        twice = sorted(set(ids[ids.duplicated()]))
        if twice:
            self.problems.append(f"{path}: more than one row for {enumerated(twice)}; keep one of each")
        order = ids[~ids.duplicated()].sort_values(kind="stable").index[: source.limit]
        rows, ids, files = rows.loc[order], ids[order], files[order]
        self.images = {name: folder / file for name, file in zip(ids, files, strict=True)}
        if "mask" in chosen:
            masks = rows[chosen["mask"]]
            self.masks = {name: folder / mask for name, mask in zip(ids, masks, strict=True) if mask}
        self.keep(None)
        if "subject" in chosen:
            self.subjects = [
                subject or name for subject, name in zip(rows[chosen["subject"]], ids, strict=True)
            ]
        self.columns = {str(name): rows[name].tolist() for name in rows.columns}

    def _columns(self, source: TableSource, rows: pd.DataFrame, path: Path) -> dict[str, str]:
        chosen = {}
        for role in ("image", "mask", "subject", "id"):
            name = getattr(source, role)
            if name is None:
                continue
            if name in rows.columns:
                chosen[role] = name
            elif OPTIONAL.get(role) != name:
                self.problems.append(
                    f"{self.where}.source.{role}: {path} has no column {name} (it has"
                    f" {', '.join(map(str, rows.columns))})"
                )
        return chosen


def read_table(path: Path, where: str) -> pd.DataFrame:
    """Read a CSV or Parquet table as texts; what is missing is "".

    Raises:
        TedmError: missing, unreadable or empty.
    """
    if not path.is_file():
        raise TedmError(f"{where}: no file {path}; correct the path or data_root")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path)
            table = table.astype(object).where(table.notna(), "").map(str)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ImportError:
        raise TedmError(
            f"{where}: reading Parquet needs pyarrow; `pip install tedm[parquet]`, or save {path} as CSV"
        ) from None
    except Exception as error:  # parsers fail in many ways on what is no table
        raise TedmError(f"{where}: {path} is not a table in UTF-8 CSV or Parquet ({error})") from None
    if table.empty:
        raise TedmError(f"{where}: {path} has no rows")
    return table.map(str.strip)
