"""Many image files to files of masks: resumable, and one bad file does not stop the others."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tedm.digests import digest_file, digest_of
from tedm.errors import TedmError
from tedm.files import only_one, read_json, whole, write_json
from tedm.models import images, outputs
from tedm.models.images import Picture, Scan
from tedm.models.model import Model
from tedm.models.segmentation import Segmentation
from tedm.models.together import Models
from tedm.progress import say, stage

TABLE = "segmentations.csv"
RECORDS = ".tedm"  # one file for each image and model that is finished
SIDES = ("height", "width", "x", "y", "z")  # of images and volumes, in pixels
AT_ONCE = 16  # images that are segmented together
SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".dcm", ".dicom")


@dataclass(frozen=True)
class Options:
    """What is wished of masks, and beside them."""

    keep_largest: int | None = None
    fill_holes: bool = False
    dicom_seg: bool = False


@dataclass(frozen=True)
class Task:
    """One image, its name in the output folder, and the models that have not segmented it yet."""

    path: Path
    name: str
    digest: str  # of the file
    models: tuple[str, ...]


def segment_files(models: Models, given: Sequence[Path], out: Path, options: Options) -> None:
    """Segment image files with all models; what is finished already stays.

    Args:
        models: with one its masks lie in `out`, with several in a folder for each.
        given: files, and folders that are searched in depth.
        out: folder to write: {name}_mask.png or .nii.gz, {name}_overlay.png, segmentations.csv.
        options: see there.

    Raises:
        TedmError: after all images, naming those that could not be segmented.
    """
    with only_one(out / TABLE, "the masks in this folder"):
        run = _Run(models, out, options)
        named = _named(_listed(given, models))
        todo = []
        for path, name in named:
            try:
                todo.append(run.task(path, name))
            except TedmError as error:
                run.failed.append(str(error))
        left = [task for task in todo if task.models]
        done = len(todo) - len(left)
        try:
            with stage("segment", len(named), "images", done) as progress:
                for some in _together(left):
                    run.segment(some)
                    progress.advance(len(some))
        finally:
            run.write_table()
    failed = run.failed
    say(f"{out}: {len(named) - len(failed)} of {len(named)} images segmented ({done} before); {TABLE}")
    if failed:
        lines = "\n".join(f"  {problem}" for problem in failed)
        raise TedmError(f"{len(failed)} of {len(named)} images could not be segmented:\n{lines}")


class _Run:
    """One call: models, options, and where files go."""

    def __init__(self, models: Models, out: Path, options: Options) -> None:
        self.models, self.out, self.options = models, out, options
        self.failed: list[str] = []
        # Of all that decides over a mask beside the image.
        self.identity = {
            name: digest_of([model.description.model_dump(mode="json"), asdict(options)])
            for name, model in models.items()
        }

    def task(self, path: Path, name: str) -> Task:
        """What is left to do for an image."""
        images.kind_of(path)  # says what is wrong with a file that is not there
        files = [path]
        scaling = next(iter(self.models.values())).preprocessing.volume
        if scaling is not None and images.kind_of(path) == "nifti":
            files = images.channel_files(path, scaling)
        digest = digest_of([digest_file(file) for file in files])
        task = Task(path, name, digest, tuple(self.models))
        return Task(path, name, digest, tuple(m for m in self.models if not self._finished(task, m)))

    def segment(self, tasks: Sequence[Task]) -> None:
        """Segment some images that lack the same models; those that cannot be are noted."""
        names = tasks[0].models
        first = self.models[names[0]].preprocessing
        alike = all(self.models[name].preprocessing == first for name in names)
        read: list[tuple[Task, Picture | Scan]] = []
        for task in tasks:
            try:
                read.append((task, images.read(task.path, first)))
            except TedmError as error:
                self.failed.append(str(error))
        for some in [read] if alike else [[one] for one in read]:
            if not some:
                continue
            try:
                found = self._found([p if alike else t.path for t, p in some], names)
            except TedmError as error:
                if len(some) == 1:
                    self._note(some[0][0], error)
                    continue
                found = None
            for i, (task, picture) in enumerate(some):
                try:  # one by one, to tell which of them it is
                    of_image = self._found([picture], names)[0] if found is None else found[i]
                    self._write(task, picture, of_image)
                except TedmError as error:
                    self._note(task, error)

    def _found(self, pictures: list[Any], names: Sequence[str]) -> list[dict[str, Segmentation]]:
        found: list[dict[str, Segmentation]] = self.models.segment(
            pictures,
            names=names,
            keep_largest=self.options.keep_largest,
            fill_holes=self.options.fill_holes,
        )
        return found

    def _note(self, task: Task, error: TedmError) -> None:
        message = str(error)
        self.failed.append(message if str(task.path) in message else f"{task.path}: {message}")

    def write_table(self) -> None:
        """One row per image and model, of all that lie in the folder."""
        records = [read_json(path) for path in sorted((self.out / RECORDS).glob("*.json"))]
        rows = sorted((record["row"] for record in records), key=lambda row: (row["file"], row["model"]))
        if rows:
            with whole(self.out / TABLE) as partial:
                table = pd.DataFrame(rows)  # the records' keys are sorted
                measured = [name for name in map(str, table) if name.startswith(("size_", "uncertainty_"))]
                first = [name for name in ("file", "model", *SIDES, "unit") if name in table]
                table = table[[*first, *measured, "seconds", "model_data"]]
                table.to_csv(partial, index=False, lineterminator="\n")

    def _write(self, task: Task, picture: Picture | Scan, found: dict[str, Segmentation]) -> None:
        """Write the files of an image, and at last the record that they are there."""
        for name, one in found.items():
            model, stem = self.models[name], self._stem(task, name)
            stem.parent.mkdir(parents=True, exist_ok=True)
            written = [stem.with_name(f"{stem.name}_overlay.png")]
            outputs.write_image(written[0], outputs.overlay(picture, one.mask))
            if isinstance(picture, Scan):
                written.append(stem.with_name(f"{stem.name}_mask.nii.gz"))
                outputs.write_nifti(written[1], one.mask, picture.path)
            else:
                written.append(stem.with_name(f"{stem.name}_mask.png"))
                outputs.write_image(written[1], outputs.mask_image(one.mask, one.classes))
            if self.options.dicom_seg and images.kind_of(task.path) == "dicom":
                written.append(stem.with_name(f"{stem.name}_seg.dcm"))
                outputs.write_dicom_seg(written[2], one.mask, one.classes, task.path, name)
            record = {
                "made_from": [task.digest, self.identity[name]],
                "files": [path.relative_to(self.out).as_posix() for path in written],
                "row": _row(task, model, one),
            }
            write_json(self._record(task, name), record)

    def _finished(self, task: Task, model: str) -> bool:
        path = self._record(task, model)
        if not path.is_file():
            return False
        try:
            record = read_json(path)
            return record["made_from"] == [task.digest, self.identity[model]] and all(
                (self.out / file).is_file() for file in record["files"]
            )
        except (TedmError, KeyError, TypeError):
            return False

    def _stem(self, task: Task, model: str) -> Path:
        folder = self.out
        if len(self.models) > 1:
            folder = folder / re.sub(r"[^A-Za-z0-9.-]+", "_", model)
        return folder / task.name

    def _record(self, task: Task, model: str) -> Path:
        stem = self._stem(task, model).relative_to(self.out).as_posix()
        return self.out / RECORDS / f"{hashlib.sha256(stem.encode()).hexdigest()[:24]}.json"


def _row(task: Task, model: Model, found: Segmentation) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"file": str(task.path), "model": model.name}
    sides = SIDES[2:] if found.mask.ndim == 3 else SIDES[:2]
    row |= dict(zip(sides, found.mask.shape, strict=True))
    row["unit"] = found.area_unit
    row |= {f"size_{name}": round(size, 3) for name, size in found.areas().items()}
    for name in found.classes:
        doubt = found.disagreement.get(name)
        row[f"uncertainty_{name}"] = None if doubt is None else round(doubt, 4)
    row["seconds"] = round(found.seconds, 3)
    row["model_data"] = "synthetic" if model.synthetic else "real"
    return row


def _together(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Some tasks at a time that lack the same models."""
    some: list[Task] = []
    for task in tasks:
        if some and (len(some) == AT_ONCE or some[0].models != task.models):
            yield some
            some = []
        some.append(task)
    if some:
        yield some


def _listed(given: Sequence[Path], models: Models) -> list[Path]:
    """The image files that are meant, each once; of volumes with several files the first."""
    found: dict[Path, None] = {}
    for path in given:
        if not path.is_dir():
            found[path] = None
            continue
        below = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
        inside = [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        inside = [p for p in inside if images.kind_of(p) is not None]
        if not inside:
            raise TedmError(f"{path}: no image in this folder or below it")
        found |= dict.fromkeys(inside)
    scaling = next(iter(models.values())).preprocessing.volume
    others = tuple(scaling.channels[1:]) if scaling is not None else ()
    return [path for path in found if not (others and _stem_of(path).endswith(others))]


def _named(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """A name for each file: its own, without suffix; with what tells it from others of that name."""
    if not paths:
        raise TedmError("no image to segment; give files or folders")
    stems = [_stem_of(path) for path in paths]
    if len(set(stems)) < len(stems):
        home = Path(os.path.commonpath([path.absolute().parent for path in paths]))
        folders = [path.absolute().parent.relative_to(home) for path in paths]
        stems = [(folder / stem).as_posix() for folder, stem in zip(folders, stems, strict=True)]
    if len(set(stems)) < len(stems):  # 1.png and 1.jpg
        suffixes = [path.name[len(_stem_of(path)) :] for path in paths]
        stems = [stem + suffix for stem, suffix in zip(stems, suffixes, strict=True)]
    return list(zip(paths, stems, strict=True))


def _stem_of(path: Path) -> str:
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)] or path.name
