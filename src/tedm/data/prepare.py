"""From a source of images to a prepared data set: split, checked, decoded in parallel, written."""

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from tedm.config import DatasetConfig, ImageConfig, Normalise
from tedm.data import prepared
from tedm.data.parts import Part, Parts
from tedm.data.preprocess import (
    Fit,
    image_to_square,
    mask_to_square,
    normalised,
    square_spacing,
    white_for,
)
from tedm.data.sources import Found, Picture, Source, open_source
from tedm.data.splits import SPLITS, assign, itemised
from tedm.errors import TedmError
from tedm.files import only_one, write_json
from tedm.progress import say, stage
from tedm.seeds import seed_of

T = TypeVar("T")
S = TypeVar("S")


class Unit(NamedTuple):
    """An image or a volume that is used."""

    id: str
    subject: str
    split: str


class Square(NamedTuple):
    """A picture as the network sees it."""

    id: str
    image: npt.NDArray[Any]  # (C, size, size), uint8 or float32
    mask: npt.NDArray[np.uint8] | None  # (K, size, size), 0 or 1
    spacing_mm: tuple[float, float, float]


def prepare(
    dataset: DatasetConfig,
    name: str,
    image: ImageConfig,
    seed: int,
    data_root: Path,
    out: Path,
    sidecar: Path,
    *,
    threads: int | None = None,
) -> None:
    """Make a prepared data set, and beside it a small JSON file that tells it from another.

    All problems of all files are reported at once; nothing is written unless there are none, or the source
    is told to skip what it cannot use. A call that was interrupted goes on from its last whole part.

    Args:
        dataset: source and split.
        name: the data set's key in the configuration; phantoms depend on it.
        image: size, channels, classes, and whether each image's greys are scaled.
        seed: of phantoms and drawn splits.
        data_root: relative paths of data start here.
        out: the HDF5 file.
        sidecar: the JSON file: digest, classes, synthetic, images per split.
        threads: images decoded at a time; None: one per core. No influence on the result.

    Raises:
        TedmError: up to 20 problems, one line each, and the number of the others.
    """
    where = f"datasets.{name}"
    threads = threads or os.cpu_count() or 1
    with only_one(out, f"the data set {name}"):
        # Phantoms are named by the data set too: two sets of one site must share no patient, or what is
        # learnt from one would be tested on the other.
        source = open_source(
            dataset, image, seed_of(seed, name), data_root, where, out.parent / f"{name}_volumes"
        )
        if not source.ids:
            raise _report(where, source.problems)
        if source.volumes and image.normalise != "none":
            raise TedmError(
                f"{where}: image.normalise is {image.normalise}, but its source scales each volume as a"
                " whole; set image.normalise: none"
            )
        try:
            chosen = assign(
                dataset.split, source.ids, source.subjects, seed, data_root, where, columns=source.columns
            )
        except TedmError as error:
            strays = [reason for _, reason in source.strays]
            raise _report(where, [*source.problems, *strays, str(error)]) from None
        units = [Unit(source.ids[i], source.subjects[i], split) for i, split in chosen]
        skip = getattr(dataset.source, "on_error", "fail") == "skip"
        work = _Work(source, units, image, where, threads, skip=skip)
        identity = {
            "name": name,
            "source": dataset.source.model_dump(exclude={"licence", "cite", "limit"}),
            "data_root": str(data_root),
            "image": image.model_dump(),
            "seed": seed,
        }
        parts = Parts(out.with_name(f".{out.stem}.parts"), identity)
        _write(out, dataset.label, image, work, parts)
        _summarise(out, sidecar)
        parts.clear()


def _write(out: Path, label: str, image: ImageConfig, work: "_Work", parts: Parts) -> None:
    source, blocks = work.source, work.run(parts)
    rows = [block.units[unit] for block in blocks for unit in block.rows]
    if not rows:
        raise TedmError(f"{work.where}: no image is left; all of them were skipped")
    pairs: Iterator[tuple[Any, Any]] = (
        pair
        for block in blocks
        for part in (parts.read(block.path),)
        for pair in zip(part.images, part.images if part.masks is None else part.masks, strict=True)
    )
    masks = None
    if source.has_masks:
        pairs, again = itertools.tee(pairs)  # the writer takes one of each in turn: tee holds one pair
        masks = (mask for _, mask in again)
    spacing = np.concatenate([block.spacing_mm for block in blocks])
    skipped = work.skipped + [pair for block in blocks for pair in block.skipped]
    unused = {name for name, _ in skipped}
    prepared.write(
        out,
        label,
        (pixels for pixels, _ in pairs),
        masks,
        [name for block in blocks for name in block.ids],
        [unit.subject for unit in rows],
        [unit.split for unit in rows],
        image.classes,
        intensity_range=work.intensity_range(blocks),
        normalise=image.normalise,
        spacing_mm=None if np.isnan(spacing[:, 1:]).all() else spacing,
        synthetic=source.synthetic,
        source=source.description,
        licence=source.licence,
        cite=source.cite,
        skipped=skipped,
        missing=Counter(unit.split for unit in work.units if unit.id in unused),
    )


def _summarise(out: Path, sidecar: Path) -> None:
    with prepared.PreparedSet(out) as data:
        counts = Counter(data.splits)
        # No names for people: the workflow tracks this file, and a new label must make nothing again.
        summary = {
            "digest": data.digest,
            "classes": data.classes,
            "synthetic": data.synthetic,
            "splits": {split: counts[split] for split in SPLITS},
        }
        if data.skipped:
            summary["skipped"] = len(data.skipped)
        write_json(sidecar, summary)
        if data.skipped:
            say(f"{out}: {len(data.skipped)} skipped:{itemised([reason for _, reason in data.skipped])}")
        if data.missing:
            # Who is tested must not depend on which files of others are damaged.
            lost = ", ".join(f"{count} of {split}" for split, count in data.missing.items())
            say(f"{out}: {lost} missing for that; no others take their places")
    say(f"{out}: " + ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split]))


def squares(
    pictures: Sequence[Picture],
    size: int,
    fit: Fit,
    classes: int | None,
    black: float | None = None,
    normalise: Normalise = "none",
) -> list[Square]:
    """Pictures of a source made square.

    Args:
        pictures: of one unit.
        size: pixels along each side.
        fit: how.
        classes: K, for the empty masks of unlabelled images; None: no masks at all.
        black: what padding is filled with; None: 0, or the least pixel where that is below 0.
        normalise: how each picture's greys are scaled before.
    """
    made = []
    for picture in pictures:
        mask = None
        if classes is not None:
            mask = np.zeros((classes, size, size), np.uint8)
            if picture.shares is not None:
                mask = mask_to_square(picture.shares, size, fit)
        height, width = picture.pixels.shape[1:]
        between, *inside = picture.spacing_mm or (np.nan,) * 3
        pixels = normalised(picture.pixels, normalise)
        channels = [Image.fromarray(channel) for channel in pixels]
        around = min(0.0, float(pixels.min())) if black is None else black
        image = image_to_square(channels, size, fit, around)
        made.append(
            Square(picture.id, image, mask, (between, *square_spacing((height, width), inside, size, fit)))
        )
    return made


@dataclass(frozen=True)
class _Block:
    """Units whose rows make one part; what is kept of them once the part is written."""

    units: list[Unit]
    path: Path
    ids: Sequence[str] = ()
    rows: Sequence[int] = ()  # position of each row's unit among `units`
    spacing_mm: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    extremes: tuple[float, float] = (np.inf, -np.inf)
    skipped: Sequence[tuple[str, str]] = ()


class _Work:
    """One pass over the chosen units: headers first, then pixels; problems are gathered on the way."""

    def __init__(
        self, source: Source, units: list[Unit], image: ImageConfig, where: str, threads: int, *, skip: bool
    ) -> None:
        self.source, self.units, self.image, self.where = source, units, image, where
        self.threads, self.skip = threads, skip
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.problems = list(source.problems)
        self.skipped: list[tuple[str, str]] = []
        for name, reason in source.strays:
            self._cannot_use(name, reason)

    def run(self, parts: Parts) -> list[_Block]:
        """Make the parts that are not there yet.

        Raises:
            TedmError: once there is a problem, the rest is only looked at for more of them.
        """
        stamps = self._examined()
        good = [unit for unit in self.units if unit.id in stamps]
        if self.problems:
            say(f"{self.where}: {self.problems[0]}")
            say(f"{self.where}: reading on to report every problem at once")
        elif good:
            try:
                self.source.learn(
                    [u.id for u in good if u.split == "train"] or [u.id for u in good], self._each
                )
            except TedmError as error:
                self.problems.append(str(error))
        learnt = str(self.source.identity())
        blocks = [
            _Block(units, parts.path([(u.id, u.split, stamps[u.id], learnt) for u in units]))
            for units in self._blocks(good)
        ]
        missing = [block for block in blocks if not block.path.exists()]
        finished: dict[Path, _Block] = {}
        self._make(missing, len(good), parts, finished)
        if self.problems:
            raise _report(self.where, self.problems)
        return [finished.get(block.path) or _known(block, parts.read(block.path)) for block in blocks]

    def intensity_range(self, blocks: Sequence[_Block]) -> prepared.Range:
        """Stored intensities that stand for black and white.

        Of images that were scaled, by their source or each by itself: what they were scaled to. 8 bits:
        0 … 255. More: the full range of the fewest bits (10, 12, 14 or 16) that hold the set's greatest
        value, as detectors with 12 bits fill files of 16; files of floating-point numbers within 0 … 1 as
        they are; sets with negative values from their least to their greatest.
        """
        if self.image.normalise != "none":
            return 0.0, 1.0
        if self.source.intensity_range:
            return self.source.intensity_range
        if self.dtype == np.uint8:
            return 0.0, 255.0
        low, high = min(block.extremes[0] for block in blocks), max(block.extremes[1] for block in blocks)
        if low < 0:
            return low, high
        return 0.0, white_for(high)

    def _cannot_use(self, name: str, reason: str) -> None:
        if self.skip:
            self.skipped.append((name, reason))
        else:
            self.problems.append(reason)

    def _each(self, work: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
        for result in in_order(work, names, self.threads):
            if isinstance(result, TedmError):
                raise result
            yield result

    def _examined(self) -> dict[str, str]:
        """Stamps of the units whose headers are good."""
        stamps: dict[str, str] = {}
        types = Counter[np.dtype[Any]]()
        found: Iterator[Found | TedmError] = in_order(
            lambda unit: self.source.examine(unit.id, unit.split), self.units, self.threads
        )
        for unit, result in zip(self.units, found, strict=True):
            if isinstance(result, TedmError):
                self._cannot_use(unit.id, str(result))
            else:
                stamps[unit.id] = result.stamp
                types[result.dtype] += 1
        if self.image.normalise != "none":
            self.dtype = np.dtype(np.float32)  # whatever the files have: each is scaled by itself
        elif len(types) > 1:
            deep = types[np.dtype(np.float32)]
            self.problems.append(
                f"{self.where}: {deep} images have more than 8 bits and {types[np.dtype(np.uint8)]} have 8;"
                " save all of them with the same depth, as their greys cannot be compared, or set"
                " image.normalise"
            )
        elif types:
            (self.dtype,) = types
        return stamps

    def _blocks(self, units: list[Unit]) -> Iterator[list[Unit]]:
        image, classes = self.image, len(self.image.classes) if self.source.has_masks else 0
        row = image.size**2 * (image.channels * self.dtype.itemsize + classes)
        # A volume is a part of its own: how many slices it has is known when it is read.
        length = 1 if self.source.volumes else max(1, prepared.BUFFER_BYTES // row)
        for start in range(0, len(units), length):
            yield units[start : start + length]

    def _make(self, missing: list[_Block], total: int, parts: Parts, finished: dict[Path, _Block]) -> None:
        todo = [unit for block in missing for unit in block.units]
        name, noun = self.where.split(".")[1], "volumes" if self.source.volumes else "images"
        results = in_order(self._square, todo, self.threads, ahead=1 if self.source.volumes else 4)
        with stage(f"prepare {name}", total, noun, done=total - len(todo)) as progress:
            for block in missing:
                made: list[list[Square]] = []
                before = len(self.problems)
                skipped: list[tuple[str, str]] = []
                for unit, result in zip(
                    block.units, itertools.islice(results, len(block.units)), strict=True
                ):
                    progress.advance()
                    if not isinstance(result, TedmError):
                        made.append(result)
                        continue
                    made.append([])
                    if self.skip:
                        skipped.append((unit.id, str(result)))
                    else:
                        self.problems.append(str(result))
                if len(self.problems) == before:
                    part = self._part(made, skipped)
                    parts.write(block.path, part)
                    finished[block.path] = _known(block, part)

    def _square(self, unit: Unit) -> list[Square]:
        classes = len(self.image.classes) if self.source.has_masks else None
        pictures = self.source.read(unit.id, unit.split)
        known, image = self.source.intensity_range, self.image
        black = None if known is None or image.normalise != "none" else known[0]
        return squares(pictures, image.size, self.source.fit, classes, black, image.normalise)

    def _part(self, made: list[list[Square]], skipped: list[tuple[str, str]]) -> Part:
        rows = [square for unit in made for square in unit]
        size, image = self.image.size, self.image
        images = np.empty((len(rows), image.channels, size, size), self.dtype)
        masks = np.empty((len(rows), len(image.classes), size, size), np.uint8)
        for i, square in enumerate(rows):
            images[i] = square.image
            if square.mask is not None:
                masks[i] = square.mask
        extremes = (float(images.min()), float(images.max())) if rows else (np.inf, -np.inf)
        return Part(
            [square.id for square in rows],
            [i for i, unit in enumerate(made) for _ in unit],
            images,
            masks if self.source.has_masks else None,
            np.array([square.spacing_mm for square in rows], np.float64).reshape(-1, 3),
            extremes,
            skipped,
        )


def _known(block: _Block, part: Part) -> _Block:
    return replace(
        block,
        ids=part.ids,
        rows=part.units,
        spacing_mm=part.spacing_mm,
        extremes=part.extremes,
        skipped=part.skipped,
    )


def in_order(
    work: Callable[[S], T], items: Iterable[S], threads: int, ahead: int = 4
) -> Iterator[T | TedmError]:
    """Results of `work` in the items' order, from several threads; a TedmError is a result.

    Only `ahead` items per thread are ahead of the one asked for, so that memory does not grow with their
    number. Decoders free the interpreter's lock, so threads are as good as processes here.
    """

    def attempt(item: S) -> T | TedmError:
        try:
            return work(item)
        except TedmError as error:
            return error

    waiting: deque[Future[T | TedmError]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(attempt, item))
            if len(waiting) > ahead * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _report(where: str, problems: list[str]) -> TedmError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return TedmError(f"{where}: {count}, nothing was written:{itemised(problems)}")
