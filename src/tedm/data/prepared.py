"""The prepared data set: one HDF5 file of images, masks, ids, subjects and splits."""

import hashlib
import itertools
import json
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, cast, get_args

import h5py
import numpy as np
import numpy.typing as npt

from tedm.config import Normalise
from tedm.data.splits import SPLITS, enumerated, first_subjects
from tedm.digests import digest_of
from tedm.errors import TedmError
from tedm.files import whole

FORMAT = "tedm prepared data set"
VERSION = 2  # 1 had no checksums, and is read without them
SKIPPED = "skipped"
CHECKSUMS = "{}_crc32"  # of each row of images or masks
AGAIN = "check the disk, delete the file and prepare the data set again"
BUFFER_BYTES = 4 << 20  # written at a time: one HDF5 call per image would cost more than decoding it

Images = npt.NDArray[np.float32]
Masks = npt.NDArray[np.uint8]
Range = tuple[float, float]


def write(
    path: Path,
    label: str,
    images: Iterable[npt.NDArray[Any]],
    masks: Iterable[npt.NDArray[Any]] | None,
    ids: Sequence[str],
    subjects: Sequence[str],
    splits: Sequence[str],
    classes: Sequence[str],
    *,
    intensity_range: Range | Callable[[], Range],
    normalise: Normalise = "none",
    spacing_mm: npt.NDArray[np.float64] | None = None,
    synthetic: bool,
    source: str,
    licence: str,
    cite: str,
    skipped: Sequence[tuple[str, str]] = (),
    missing: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write a prepared data set, whole or not at all; the same content gives the same bytes.

    Images and masks are taken in turn, one of each, so that iterators over one source keep memory flat.

    Args:
        path: the HDF5 file.
        label: the data set's name in tables and figures.
        images: one (C, H, W) array per id, all uint8 or all float32.
        masks: one (K, H, W) array of 0 and 1 per id; None: the set has no masks.
        ids: names of the images, each once.
        subjects: who or what each image shows (2-D images: the id; slices: the volume).
        splits: train, val, test or unlabelled, for each image. The order of rows is kept: the first n
            training rows are the training subset of size n.
        classes: names of the K classes.
        intensity_range: stored intensities that become 0 and 1 on reading; a function is asked for it
            once all images are written.
        normalise: how each image's greys were scaled.
        spacing_mm: distance between slices (NaN: not a volume), height and width of a pixel, (N, 3), NaN
            where unknown; None: nothing is known.
        synthetic: whether the images are drawn, not measured.
        source: where the images come from.
        licence: their terms of use.
        cite: whom to cite.
        skipped: images or volumes that could not be used, as (id, reason).
        missing: how many of them each split lost.

    Raises:
        TedmError: no images, an id twice, a subject in two splits, wrong shapes, types or values.
    """
    _check_rows(path, ids, subjects, splits)
    # One process writes, under a temporary name: no lock needed, and some cluster file systems have none.
    with whole(path) as partial, h5py.File(partial, "w", locking=False) as file:
        pixels = _Writer(file, "images", path, ids)
        labels = None if masks is None else _Writer(file, "masks", path, ids)
        if masks is None or labels is None:
            for image in images:
                pixels.append(image, _image_problem(image))
        else:
            for image, mask in zip(images, masks, strict=True):
                pixels.append(image, _image_problem(image))
                labels.append(mask, _mask_problem(mask, (len(classes), *image.shape[1:])))
            labels.close()
        pixels.close()
        lo, hi = intensity_range() if callable(intensity_range) else intensity_range
        if not lo < hi:
            raise TedmError(f"{path}: intensity range {lo} … {hi} is empty; the images show nothing")
        for name, texts in (("id", ids), ("subject", subjects), ("split", splits)):
            file.create_dataset(name, data=list(texts), dtype=h5py.string_dtype())
        file.attrs["label"] = label
        file.attrs["classes"] = json.dumps(list(classes), ensure_ascii=False)
        file.attrs["intensity_range"] = np.array([lo, hi], np.float64)
        if normalise != "none":  # so that other files have the bytes they always had
            file.attrs["normalise"] = normalise
        if spacing_mm is not None:
            file.create_dataset("spacing_mm", data=np.asarray(spacing_mm, np.float64).reshape(len(ids), 3))
        if skipped:
            # Beside the rows; an attribute holds 64 kB at most.
            file.create_dataset(SKIPPED, data=[list(pair) for pair in skipped], dtype=h5py.string_dtype())
        file.attrs["missing"] = json.dumps({name: missing[name] for name in SPLITS if missing.get(name)})
        file.attrs["synthetic"] = synthetic
        file.attrs["source"] = source
        file.attrs["licence"] = licence
        file.attrs["cite"] = cite
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = VERSION
        about = _about(ids, subjects, splits, classes, (float(lo), float(hi)), normalise, spacing_mm)
        file.attrs["header_digest"] = digest_of(about)
        content = {
            **about,
            "images": pixels.digest(),
            "masks": None if labels is None else labels.digest(),
        }
        # Last: a file without it is not whole.
        file.attrs["digest"] = digest_of(content)


def _about(
    ids: Sequence[str],
    subjects: Sequence[str],
    splits: Sequence[str],
    classes: Sequence[str],
    intensity_range: Range,
    normalise: str,
    spacing_mm: npt.NDArray[np.float64] | None,
) -> dict[str, Any]:
    """All that digests are made of but pixels."""
    about: dict[str, Any] = {
        "ids": list(ids),
        "subjects": list(subjects),
        "splits": list(splits),
        "classes": list(classes),
        "intensity_range": list(intensity_range),
    }
    if normalise != "none":
        about["normalise"] = normalise
    if spacing_mm is not None:
        about["spacing_mm"] = np.nan_to_num(spacing_mm, nan=0.0).tolist()
    return about


class PreparedSet:
    """A prepared data set, opened for reading; a context manager.

    Rows are read when asked for, in any order; nothing is kept in memory but ids, subjects and splits.

    Attributes:
        label: name in tables and figures.
        classes: names of the K classes.
        normalise: how each image's greys were scaled.
        spacings_mm: distance between slices, height and width of a pixel, (N, 3), NaN where
            unknown; None: nothing is known.
        spacing_mm: height and width of a pixel in mm where all images have the same; else None.
        skipped: what could not be used, as (id, reason).
        missing: how many images or volumes each split lost by that.
        synthetic: whether the images are drawn, not measured.
        source: where the images come from.
        licence: their terms of use.
        cite: whom to cite.
        digest: SHA-256 of images, masks, ids, subjects, splits and classes, hexadecimal.
        ids: one per row.
        subjects: one per row.
        splits: one per row.
        image_shape: (C, H, W).
        deep: whether images are stored with more than 8 bits.
        has_masks: whether `masks` can be called.

    Raises:
        TedmError: on opening, if the file is missing, truncated, half-written or not a prepared data set.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = Path(path)
        if not path.is_file():
            raise TedmError(f"{path}: no such file; `tedm prepare` makes it")
        again = "Delete it and prepare the data set again."
        try:
            # Whole files never change under their name, so readers need no lock.
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise TedmError(f"{path}: truncated, or not an HDF5 file ({error}). {again}") from None
        try:
            self._read_header(again)
        except TedmError:
            self._file.close()
            raise
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            self._file.close()
            raise TedmError(f"{path}: damaged ({error}). {again}") from None

    def _read_header(self, again: str) -> None:
        file, attributes = self._file, self._file.attrs
        kind = attributes.get("format")
        if kind != FORMAT:
            raise TedmError(
                f"{self.path}: not a prepared data set of tedm (attribute format is {kind!r},"
                f" expected {FORMAT!r}). Give a file that `tedm prepare` made."
            )
        version = int(attributes["format_version"])
        if version not in (1, VERSION):
            raise TedmError(
                f"{self.path}: has format version {version}, this tedm reads 1 and {VERSION};"
                " prepare the data set again, or use the tedm that made it"
            )
        if "digest" not in attributes:
            raise TedmError(f"{self.path}: half-written (it has no digest). {again}")
        self.label = str(attributes["label"])
        self.classes: list[str] = json.loads(attributes["classes"])
        self.intensity_range: Range = (
            float(attributes["intensity_range"][0]),
            float(attributes["intensity_range"][1]),
        )
        normalise = str(attributes.get("normalise", "none"))
        if normalise not in get_args(Normalise):
            raise TedmError(
                f"{self.path}: its images are normalised by {normalise!r}, which this tedm does not know"
                f" (it knows {', '.join(get_args(Normalise))}); prepare the data set again, or use the tedm"
                " that made it"
            )
        self.normalise = cast("Normalise", normalise)
        self.spacings_mm = np.asarray(file["spacing_mm"]) if "spacing_mm" in file else None
        self.spacing_mm = _common(self.spacings_mm)
        self.skipped: list[tuple[str, str]] = (
            [(name, reason) for name, reason in file[SKIPPED].asstr()[...]] if SKIPPED in file else []
        )
        self.missing: dict[str, int] = json.loads(attributes.get("missing", "{}"))
        self.synthetic = bool(attributes["synthetic"])
        self.source, self.licence = str(attributes["source"]), str(attributes["licence"])
        self.cite, self.digest = str(attributes["cite"]), str(attributes["digest"])
        self.ids: list[str] = list(file["id"].asstr()[...])
        self.subjects: list[str] = list(file["subject"].asstr()[...])
        self.splits: list[str] = list(file["split"].asstr()[...])
        self.has_masks = "masks" in file
        channels, height, width = file["images"].shape[1:]
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.deep = bool(file["images"].dtype != np.uint8)
        lengths = {len(file[name]) for name in file if name != SKIPPED}
        if lengths != {len(self.ids)}:
            raise TedmError(f"{self.path}: damaged (its parts have {sorted(lengths)} rows). {again}")
        self._checksums: dict[str, npt.NDArray[np.uint32]] = {}
        if version == 1:
            return
        about = _about(
            self.ids,
            self.subjects,
            self.splits,
            self.classes,
            self.intensity_range,
            self.normalise,
            self.spacings_mm,
        )
        if attributes["header_digest"] != digest_of(about):
            raise TedmError(
                f"{self.path}: damaged (ids, subjects, splits, classes, intensity range, spacing or"
                f" normalise are not what was written). {again}"
            )
        for name in ("images", "masks") if self.has_masks else ("images",):
            self._checksums[name] = np.asarray(file[CHECKSUMS.format(name)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.ids)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def rows(self, split: str) -> list[int]:
        """Rows of a split (train, val, test, unlabelled), in stored order; [] where it has none."""
        if split not in SPLITS:
            raise TedmError(f"{self.path}: no split is called {split!r} (splits: {', '.join(SPLITS)})")
        return [row for row, s in enumerate(self.splits) if s == split]

    def training_rows(self, n: int) -> list[int]:
        """Rows of the first n subjects of the split train: a training subset [Rosnati 2023, 3].

        Where every image is a subject of its own these are the first n images; of volumes, all slices of
        the first n. Subject by subject, so that a smaller subset is the start of a larger one.

        Raises:
            TedmError: n is 0, or the split has fewer than n subjects.
        """
        rows = self.rows("train")
        subjects = {self.subjects[row] for row in rows}
        if not 1 <= n <= len(subjects):
            what = "images" if len(subjects) == len(rows) else "subjects"
            lost = self.missing.get("train", 0)
            without = f" without the {lost} that were skipped" if lost else ""
            raise TedmError(
                f"{self.label}: evaluation.train_sizes asks for {n} training {what}, but the split train"
                f" has {len(subjects)}{without}; choose a size from 1 to that, or enlarge the split"
            )
        return first_subjects(self.splits, self.subjects, n)

    def images(self, rows: Sequence[int] | npt.NDArray[np.integer] | range) -> Images:
        """Images of any rows in any order, float32 in [0, 1], (n, C, H, W)."""
        stored = self._read("images", rows)
        lo, hi = self.intensity_range
        images = stored.astype(np.float32)
        images -= np.float32(lo)
        images /= np.float32(hi - lo)
        return np.clip(images, 0, 1, out=images)

    def masks(self, rows: Sequence[int] | npt.NDArray[np.integer] | range) -> Masks:
        """Masks of any rows in any order, uint8 0 or 1, (n, K, H, W); rows that are unlabelled have 0."""
        if not self.has_masks:
            raise TedmError(f"{self.path}: {self.label} has no masks; give its source a folder of masks")
        return self._read("masks", rows)

    def _read(self, name: str, rows: Sequence[int] | npt.NDArray[np.integer] | range) -> npt.NDArray[Any]:
        dataset = self._file[name]
        wanted = np.asarray(rows, np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"{self.path}: rows {wanted.min()} … {wanted.max()} of {len(self)}")
        runs = list(_runs(wanted))
        try:
            if len(runs) == 1:  # the whole set, say: without a second copy
                out = np.asarray(dataset[int(wanted[0]) : int(wanted[-1]) + 1])
            else:
                out = np.empty((wanted.size, *dataset.shape[1:]), dataset.dtype)
                # h5py's own list indexing wants rows sorted and once each; a slice per run is as fast.
                for start, stop in runs:
                    out[start:stop] = dataset[int(wanted[start]) : int(wanted[stop - 1]) + 1]
        except OSError as error:
            raise TedmError(f"{self.path}: cannot be read ({error}); {AGAIN}") from None
        if name in self._checksums:
            for row, values, expected in zip(wanted, out, self._checksums[name][wanted], strict=True):
                if zlib.crc32(values) != expected:
                    raise TedmError(
                        f"{self.path}: damaged: {name} of {self.ids[row]} are not what was written; {AGAIN}"
                    )
        return out


def _common(spacings: npt.NDArray[np.float64] | None) -> tuple[float, float] | None:
    if spacings is None or not (spacings[:, 1:] == spacings[0, 1:]).all():
        return None
    return float(spacings[0, 1]), float(spacings[0, 2])


def _runs(rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Slices of `rows` in which each is its predecessor + 1."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), rows.size] if rows.size else [0]
    yield from itertools.pairwise(edges)


class _Writer:
    """Appends rows to one data set of the file, through a buffer, and digests them."""

    def __init__(self, file: h5py.File, name: str, path: Path, ids: Sequence[str]) -> None:
        self.file, self.name, self.path, self.ids = file, name, path, ids
        self.hash = hashlib.sha256()
        self.buffer: npt.NDArray[Any] = np.empty(0)
        self.checksums = array("L")
        self.written = self.filled = 0

    def append(self, row: npt.NDArray[Any], problem: str | None) -> None:
        """Add one row, unless there is a problem with it."""
        done = self.written + self.filled
        if done == len(self.ids):
            raise TedmError(f"{self.path}: more {self.name} than the {done} ids")
        if problem:
            raise TedmError(f"{self.path}: {self.ids[done]}: {problem}")
        if not done:
            capacity = min(len(self.ids), max(1, BUFFER_BYTES // row.nbytes))
            self.buffer = np.empty((capacity, *row.shape), row.dtype)
            # Contiguous, uncompressed: a random row is one seek.
            self.dataset = self.file.create_dataset(self.name, (len(self.ids), *row.shape), row.dtype)
            self.hash.update(f"{row.dtype.str} {row.shape}".encode())
        if row.shape != self.buffer.shape[1:] or row.dtype != self.buffer.dtype:
            raise TedmError(
                f"{self.path}: {self.ids[done]}: {self.name} of shape {row.shape} and type {row.dtype},"
                f" before it {self.buffer.shape[1:]} and {self.buffer.dtype}"
            )
        self.buffer[self.filled] = row
        self.checksums.append(zlib.crc32(self.buffer[self.filled]))
        self.filled += 1
        if self.filled == len(self.buffer):
            self._flush()

    def _flush(self) -> None:
        if self.filled:
            rows = self.buffer[: self.filled]
            self.dataset.write_direct(
                rows, np.s_[: self.filled], np.s_[self.written : self.written + self.filled]
            )
            self.hash.update(rows.data)
            self.written += self.filled
            self.filled = 0

    def close(self) -> None:
        self._flush()
        if self.written < len(self.ids):
            raise TedmError(f"{self.path}: {self.written} {self.name} for {len(self.ids)} ids")
        self.file.create_dataset(CHECKSUMS.format(self.name), data=np.array(self.checksums, np.uint32))

    def digest(self) -> str:
        return self.hash.hexdigest()


def _check_rows(path: Path, ids: Sequence[str], subjects: Sequence[str], splits: Sequence[str]) -> None:
    if not ids:
        raise TedmError(f"{path}: there are no images to write")
    if not len(ids) == len(subjects) == len(splits):
        raise TedmError(f"{path}: {len(ids)} ids, {len(subjects)} subjects and {len(splits)} splits")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise TedmError(f"{path}: ids must differ, but these are there twice: {enumerated(twice)}")
    split_of: dict[str, str] = {}
    for subject, split in zip(subjects, splits, strict=True):
        if split not in SPLITS:
            raise TedmError(f"{path}: no split is called {split!r} (splits: {', '.join(SPLITS)})")
        if split_of.setdefault(subject, split) != split:
            raise TedmError(
                f"{path}: subject {subject} is in two splits, {split_of[subject]} and {split}:"
                " what is learnt from it would be tested on it. Keep a subject's images together."
            )


def _image_problem(image: npt.NDArray[Any]) -> str | None:
    if image.ndim != 3 or 0 in image.shape:
        return f"image of shape {image.shape}, expected (C, H, W)"
    if image.dtype not in (np.uint8, np.float32):
        return f"image of type {image.dtype}, expected uint8 or float32"
    if not np.isfinite(image).all():
        return "the image has values that are not finite"
    return None


def _mask_problem(mask: npt.NDArray[Any], expected: tuple[int, ...]) -> str | None:
    if mask.shape != expected:
        return (
            f"mask of shape {mask.shape}, expected {expected}: classes, then the image's height and width"
        )
    if mask.dtype != np.uint8 or mask.max() > 1:
        return f"mask of type {mask.dtype} with greatest value {mask.max()}, expected uint8 of 0 and 1"
    return None
