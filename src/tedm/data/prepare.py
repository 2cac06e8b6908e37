"""From a source of images to a prepared data set: split, checked, decoded in parallel, written."""

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tedm.config import DatasetConfig, FolderSource, ImageConfig, PhantomSource
from tedm.data import prepared
from tedm.data.splits import SPLITS, assign, itemised
from tedm.errors import TedmError
from tedm.files import write_json
from tedm.progress import say, stage
from tedm.seeds import seed_of

T = TypeVar("T")
Pair = tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]


class Source(Protocol):
    """Where images come from; one module per format."""

    ids: Sequence[str]
    subjects: Sequence[str]
    problems: list[str]
    synthetic: bool
    spacing_mm: tuple[float, float] | None
    licence: str
    cite: str

    @property
    def has_masks(self) -> bool:
        """Whether `read` gives masks."""

    @property
    def description(self) -> str:
        """Where the images come from, for people."""

    def check(self, name: str, split: str) -> np.dtype[Any]:
        """Type of an image as `read` gives it, without decoding; TedmError if something is wrong."""

    def read(self, name: str, split: str) -> Pair:
        """Image (C, H, W) and mask (K, H, W) or None; TedmError if something is wrong."""


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

    All problems of all files are reported at once; nothing is written unless there are none.

    Args:
        dataset: source and split.
        name: the data set's key in the configuration; phantoms depend on it.
        image: size, channels and classes.
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
    # Phantoms are named by the data set too: two sets of one site must share no patient, or what is
    # learnt from one would be tested on the other.
    source = _open(dataset, image, seed_of(seed, name), data_root, where)
    if not source.ids:
        raise _report(where, source.problems)
    try:
        chosen = assign(dataset.split, source.ids, source.subjects, seed, data_root, where)
    except TedmError as error:
        raise _report(where, [*source.problems, str(error)]) from None
    reading = _Reading(source, [(source.ids[i], split) for i, split in chosen], where, threads)
    pairs = reading.pairs()
    masks = None
    if source.has_masks:
        pairs, again = itertools.tee(pairs)  # the writer takes one of each in turn: tee holds one pair
        masks = (mask for _, mask in again if mask is not None)
    prepared.write(
        out,
        dataset.label,
        (pixels for pixels, _ in pairs),
        masks,
        [source.ids[i] for i, _ in chosen],
        [source.subjects[i] for i, _ in chosen],
        [split for _, split in chosen],
        image.classes,
        intensity_range=reading.intensity_range,
        spacing_mm=source.spacing_mm,
        synthetic=source.synthetic,
        source=source.description,
        licence=source.licence,
        cite=source.cite,
    )
    with prepared.PreparedSet(out) as data:
        counts = Counter(data.splits)
        # No names for people: the workflow tracks this file, and a new label must make nothing again.
        write_json(
            sidecar,
            {
                "digest": data.digest,
                "classes": data.classes,
                "synthetic": data.synthetic,
                "splits": {split: counts[split] for split in SPLITS},
            },
        )
    say(f"{out}: " + ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split]))


def _open(dataset: DatasetConfig, image: ImageConfig, seed: int, data_root: Path, where: str) -> Source:
    # Imported here: drawing phantoms needs no image decoders, and the other way round.
    match dataset.source:
        case PhantomSource():
            return _Phantoms(dataset.source, image, seed, where)
        case FolderSource():
            from tedm.data.folder import FolderImages

            return FolderImages(dataset.source, image, data_root, where)


class _Phantoms:
    """The source `phantom`."""

    synthetic = True
    has_masks = True
    spacing_mm: tuple[float, float] | None = None
    licence = "MIT, as tedm"
    cite = ""

    def __init__(self, source: PhantomSource, image: ImageConfig, seed: int, where: str) -> None:
        if image.channels != 1 or len(image.classes) != 1:
            raise TedmError(
                f"{where}.source: phantoms have 1 channel and 1 class, but image.channels is"
                f" {image.channels} and image.classes are {', '.join(image.classes)}"
            )
        from tedm.data.phantoms import draw

        self.draw, self.site, self.size, self.seed = draw, source.site, image.size, seed
        self.ids: Sequence[str] = [f"{source.site}-{index:06d}" for index in range(source.count)]
        self.subjects: Sequence[str] = self.ids
        self.problems: list[str] = []
        self.description = f"synthetic: drawn by tedm in the style of {source.site}"

    def check(self, name: str, split: str) -> np.dtype[Any]:  # noqa: ARG002 (the protocol's)
        return np.dtype(np.uint8)

    def read(self, name: str, split: str) -> Pair:  # noqa: ARG002
        pixels, mask = self.draw(self.site, int(name.rsplit("-", 1)[1]), self.size, self.seed)
        return pixels[None], mask[None]


class _Reading:
    """One pass over the chosen images: headers first, then pixels; problems are gathered on the way."""

    def __init__(self, source: Source, chosen: list[tuple[str, str]], where: str, threads: int) -> None:
        self.source, self.chosen, self.where, self.threads = source, chosen, where, threads
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.lo, self.hi = np.inf, -np.inf

    def pairs(self) -> Iterator[Pair]:
        """Images and masks in order; once there is a problem, only looks for more and raises them all."""
        problems = list(self.source.problems)
        good = self._checked(problems)
        if problems:
            say(f"{self.where}: {problems[0]}")
            say(f"{self.where}: reading on to report every problem at once")
        with stage(f"prepare {self.where.split('.')[1]}", len(good), "images") as progress:
            for pair in in_order(lambda item: self.source.read(*item), good, self.threads):
                progress.advance()
                if isinstance(pair, TedmError):
                    problems.append(str(pair))
                elif not problems:
                    self.lo = min(self.lo, float(pair[0].min()))
                    self.hi = max(self.hi, float(pair[0].max()))
                    yield pair
        if problems:
            raise _report(self.where, problems)

    def intensity_range(self) -> prepared.Range:
        """Stored intensities that stand for black and white.

        8 bits: 0 … 255. More: the full range of the fewest bits (10, 12, 14 or 16) that hold the set's
        greatest value, as detectors with 12 bits fill files of 16; files of floating-point numbers
        within 0 … 1 as they are; sets with negative values from their least to their greatest.
        """
        if self.dtype == np.uint8:
            return 0.0, 255.0
        if self.lo < 0:
            return self.lo, self.hi
        whites = (1, *(2**bits - 1 for bits in (8, 10, 12, 14, 16)))
        return 0.0, float(next((white for white in whites if self.hi <= white), self.hi))

    def _checked(self, problems: list[str]) -> list[tuple[str, str]]:
        """The images whose headers are good."""
        good, types = [], Counter[np.dtype[Any]]()
        for item, found in zip(
            self.chosen,
            in_order(lambda item: self.source.check(*item), self.chosen, self.threads),
            strict=True,
        ):
            if isinstance(found, TedmError):
                problems.append(str(found))
            else:
                good.append(item)
                types[found] += 1
        if len(types) > 1:
            deep = types[np.dtype(np.float32)]
            problems.append(
                f"{self.where}: {deep} images have more than 8 bits and {types[np.dtype(np.uint8)]} have 8;"
                " save all of them with the same depth, as their greys cannot be compared"
            )
        elif types:
            (self.dtype,) = types
        return good


def in_order(
    work: Callable[[tuple[str, str]], T], items: Sequence[tuple[str, str]], threads: int
) -> Iterator[T | TedmError]:
    """Results of `work` in the items' order, from several threads; a TedmError is a result.

    Only a few items are ahead of the one asked for, so that memory does not grow with their number.
    """

    def attempt(item: tuple[str, str]) -> T | TedmError:
        try:
            return work(item)
        except TedmError as error:
            return error

    ahead: deque[Future[T | TedmError]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            ahead.append(pool.submit(attempt, item))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _report(where: str, problems: list[str]) -> TedmError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return TedmError(f"{where}: {count}, nothing was written:{itemised(problems)}")
