"""Everything that can be wrong with data sets, found in one reading of all their files."""

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tedm.config import Experiment, ImageConfig
from tedm.data.prepare import in_order, squares
from tedm.data.preprocess import normalised
from tedm.data.sources import Picture, Source, open_source
from tedm.data.splits import assign
from tedm.errors import TedmError
from tedm.files import whole
from tedm.progress import stage
from tedm.seeds import seed_of

Severity = Literal["error", "warning"]

THUMBNAIL = 144  # pixels
SHOWN = 40  # images of a contact sheet
FLAT = 0.1  # of the set's median contrast: below it an image is suspicious
FAR = 8.0  # median absolute deviations of the set's mean grey


class Problem(NamedTuple):
    """One line of the report."""

    dataset: str
    image: str  # id; "" where the whole set is meant
    severity: Severity
    kind: str
    message: str


@dataclass(frozen=True)
class Seen:
    """What is kept of an image or a volume once it has been read, with greys as it will be prepared."""

    digest: str  # of the pixels as read
    low: float
    high: float
    mean: float
    contrast: float  # between the 5th and the 95th percentile
    share: list[float] | None  # of the pixels that each class covers; None: no mask
    thumbnail: npt.NDArray[np.float32] | None = None  # (T, T)
    outline: npt.NDArray[np.uint8] | None = None  # (K, T, T)


@dataclass
class Report:
    """All problems of some data sets, and the thumbnails for their contact sheets."""

    problems: list[Problem] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    shown: dict[str, list[tuple[str, str, Seen]]] = field(default_factory=dict)  # id, split, seen

    @property
    def errors(self) -> int:
        """Problems that preparing would refuse, or that make results worthless."""
        return sum(problem.severity == "error" for problem in self.problems)

    def text(self) -> str:
        """For people: every problem, by data set and kind."""
        lines = []
        for name, count in self.images.items():
            mine = [problem for problem in self.problems if problem.dataset == name]
            lines.append(f"{name}: {count} images or volumes, {_counted(mine)}")
            for kind in dict.fromkeys(problem.kind for problem in mine):
                of_kind = [problem for problem in mine if problem.kind == kind]
                lines.append(f"  {kind} ({len(of_kind)})")
                lines += [f"    {problem.severity}: {problem.message}" for problem in of_kind]
        return "\n".join(lines) + "\n"

    def write_csv(self, path: Path) -> None:
        """One row per problem."""
        with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Problem._fields)
            writer.writerows(self.problems)


def check(experiment: Experiment, names: Sequence[str], drawings: Path, threads: int) -> Report:
    """Read the data sets of an experiment once and report all problems at a time.

    Args:
        experiment: whose data sets.
        names: which of them.
        drawings: folder for the volumes of synthetic sources.
        threads: images read at a time.
    """
    report = Report()
    digests: dict[str, list[tuple[str, str, str]]] = {}  # content → data set, id, split
    people: dict[tuple[str, str], list[tuple[str, str]]] = {}  # population and subject → data set, split
    for name in names:
        _check_one(experiment, name, drawings / f"{name}_volumes", threads, report, digests, people)
    for alike in digests.values():
        if len(alike) > 1:
            report.problems.append(_duplicate(alike))
    for (population, subject), places in sorted(people.items()):
        tested = [place for place in places if place[1] == "test"]
        learnt = [place for place in places if place[1] in ("train", "val", "unlabelled")]
        across = {(test, other) for test in tested for other in learnt if test[0] != other[0]}
        for (test_set, _), (other_set, split) in sorted(across):
            message = (
                f"{subject} ({population}) is tested in {test_set} and {split} in {other_set}; leave it out"
                " of one of them, or say so beside the results"
            )
            report.problems.append(
                Problem(test_set, subject, "warning", "subject tested and learnt from", message)
            )
    return report


def _check_one(
    experiment: Experiment,
    name: str,
    drawings: Path,
    threads: int,
    report: Report,
    digests: dict[str, list[tuple[str, str, str]]],
    people: dict[tuple[str, str], list[tuple[str, str]]],
) -> None:
    where, dataset, image = f"datasets.{name}", experiment.datasets[name], experiment.image
    data_root = Path(experiment.data_root)

    def add(image_id: str, severity: Severity, kind: str, message: str) -> None:
        report.problems.append(Problem(name, image_id, severity, kind, message))

    report.images[name] = 0
    try:
        source = open_source(dataset, image, seed_of(experiment.seed, name), data_root, where, drawings)
    except TedmError as error:
        add("", "error", "settings", str(error))
        return
    report.images[name] = len(source.ids)
    for problem in source.problems:
        add("", "error", "source", problem)
    for image_id, reason in source.strays:
        add(image_id, "error", "mask without an image", reason)
    split_of: dict[str, str] = {}
    if source.ids:
        try:
            chosen = assign(
                dataset.split,
                source.ids,
                source.subjects,
                experiment.seed,
                data_root,
                where,
                columns=source.columns,
            )
            split_of = {source.ids[i]: split for i, split in chosen}
        except TedmError as error:
            kind = "subject in two splits" if "more than one split" in str(error) else "split"
            add("", "error", kind, str(error))
    seen: dict[str, Seen] = {}
    # Spread over the order of splits, so that every one is on the sheet.
    order = list(split_of) or list(source.ids)
    on_sheet = {order[i] for i in np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)}
    for image_id, found in _read_all(source, split_of, on_sheet, image, threads, name):
        if isinstance(found, TedmError):
            add(image_id, "error", _kind(str(found)), str(found))
            continue
        seen[image_id] = found
        digests.setdefault(found.digest, []).append((name, image_id, split_of.get(image_id, "in no split")))
        for kind, message in _mask_problems(found, image.classes):
            add(image_id, "warning", kind, f"{image_id}: {message}")
    fixed = source.intensity_range if image.normalise == "none" else (0.0, 1.0)
    for image_id, kind, message in _odd(seen, fixed):
        add(image_id, "warning", kind, f"{image_id}: {message}")
    if source.population:
        for image_id, subject in zip(source.ids, source.subjects, strict=True):
            place = (name, split_of.get(image_id, ""))
            places = people.setdefault((source.population, subject), [])
            if place not in places:
                places.append(place)
    report.shown[name] = [
        (image_id, split_of.get(image_id, "in no split"), seen[image_id])
        for image_id in order
        if image_id in on_sheet and image_id in seen
    ]


def _read_all(
    source: Source,
    split_of: Mapping[str, str],
    on_sheet: set[str],
    image: ImageConfig,
    threads: int,
    name: str,
) -> Iterator[tuple[str, Seen | TedmError]]:
    def look(image_id: str) -> Seen:
        split = split_of.get(image_id, "unlabelled")
        source.examine(image_id, split)
        return _seen(source, source.read(image_id, split), image, thumbnail=image_id in on_sheet)

    if source.ids and not source.problems:
        training = [i for i in source.ids if split_of.get(i) == "train"] or list(source.ids)
        try:
            source.learn(training, lambda work, names: (work(n) for n in names))
        except TedmError as error:
            yield "", error
            return
    with stage(f"check {name}", len(source.ids), "images") as progress:
        found = in_order(look, source.ids, threads, ahead=1 if source.volumes else 4)
        for image_id, result in zip(source.ids, found, strict=True):
            progress.advance()
            yield image_id, result


def _seen(source: Source, pictures: Sequence[Picture], image: ImageConfig, *, thumbnail: bool) -> Seen:
    content = hashlib.sha256()
    for picture in pictures:
        content.update(f"{picture.pixels.dtype.str} {picture.pixels.shape}".encode())
        content.update(np.ascontiguousarray(picture.pixels).data)
    if image.normalise != "none":
        pictures = [replace(p, pixels=normalised(p.pixels, image.normalise)) for p in pictures]
    sample = np.concatenate(
        [picture.pixels[0].ravel()[:: 1 + picture.pixels.size // 65536] for picture in pictures]
    )
    low5, high95 = np.percentile(sample, [5, 95])
    masked = [picture for picture in pictures if picture.shares is not None]
    share = None
    if masked:
        covered = np.array([np.mean(p.shares, axis=(1, 2), dtype=np.float64) for p in masked])  # type: ignore[arg-type]
        share = covered.mean(axis=0).tolist()
    seen = Seen(
        content.hexdigest(),
        float(min(picture.pixels.min() for picture in pictures)),
        float(max(picture.pixels.max() for picture in pictures)),
        float(sample.mean()),
        float(high95 - low5),
        share,
    )
    if not thumbnail:
        return seen
    # Of a volume, the slice that shows most of the classes.
    shown = max(pictures, key=lambda p: 0.0 if p.shares is None else float(np.sum(p.shares)))
    classes = len(image.classes) if shown.shares is not None else None
    (small,) = squares([shown], THUMBNAIL, source.fit, classes)
    return Seen(
        **{k: getattr(seen, k) for k in ("digest", "low", "high", "mean", "contrast", "share")},
        thumbnail=small.image[0].astype(np.float32),
        outline=small.mask,
    )


def _mask_problems(seen: Seen, classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    if seen.share is None:
        return
    if not any(seen.share):
        yield "empty mask", "its mask is empty: no class anywhere"
    for name, share in zip(classes, seen.share, strict=True):
        if share > 0.98:
            yield "full mask", f"its mask covers {share:.0%} of the image with {name}; is it inverted?"


def _odd(seen: Mapping[str, Seen], fixed: tuple[float, float] | None) -> Iterator[tuple[str, str, str]]:
    """Images whose intensities are unlike the set's."""
    if len(seen) < 3:
        return
    means = np.array([s.mean for s in seen.values()])
    middle = float(np.median(means))
    usual = float(np.median([s.contrast for s in seen.values()]))
    brightest = float(np.median([s.high for s in seen.values()]))
    # Of 8-bit sets with little spread, single greys are nothing odd: at least 2 % of the usual contrast.
    deviation = max(float(np.median(np.abs(means - middle))), 0.02 * usual)
    for image_id, s in seen.items():
        if usual > 0 and s.contrast < FLAT * usual:
            yield (
                image_id,
                "odd intensities",
                f"nearly flat: contrast {s.contrast:.3g}, usual is {usual:.3g}",
            )
        elif fixed is None and brightest > 0 and not brightest / 3 <= s.high <= 3 * brightest:
            yield (
                image_id,
                "odd intensities",
                f"its greatest value is {s.high:.4g}, usual is {brightest:.4g}; are its units the others'?",
            )
        elif deviation > 0 and abs(s.mean - middle) > FAR * deviation:
            yield (
                image_id,
                "odd intensities",
                f"its mean is {s.mean:.3g}, usual is {middle:.3g} ± {deviation:.2g}; is it inverted?",
            )


def _duplicate(alike: Sequence[tuple[str, str, str]]) -> Problem:
    places = {(dataset, split) for dataset, _, split in alike}
    names = ", ".join(f"{image_id} ({dataset}, {split})" for dataset, image_id, split in alike[:5])
    more = f" and {len(alike) - 5} more" if len(alike) > 5 else ""
    dataset, image_id, _ = alike[0]
    if len(places) > 1:
        message = f"the same image in two splits: {names}{more}; keep one of them"
        return Problem(dataset, image_id, "error", "duplicate across splits", message)
    return Problem(dataset, image_id, "warning", "duplicate", f"the same image twice: {names}{more}")


def _kind(message: str) -> str:
    kinds = {
        "has no mask": "missing mask",
        "has no label volume": "missing mask",
        "but its image": "mask of another size or place",
        "different sizes": "mask of another size or place",
        "lies elsewhere": "mask of another size or place",
        "expected 0": "values of a mask",
        "mask of": "values of a mask",
        "colour mask": "values of a mask",
        "has the labels": "values of a mask",
        "two classes": "values of a mask",
        "all its": "nothing to see",
        "not finite": "nothing to see",
    }
    return next((kind for words, kind in kinds.items() if words in message), "unreadable")


def _counted(problems: Sequence[Problem]) -> str:
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    parts = [
        f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((errors, "error"), (warnings, "warning")) if n
    ]
    return ", ".join(parts) or "nothing wrong"
