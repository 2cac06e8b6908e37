"""Splits: which image is train, val, test or unlabelled; drawn by subject, read from a CSV, or shipped."""

import csv
import difflib
import gzip
import io
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from tedm.config import SplitConfig
from tedm.errors import TedmError
from tedm.progress import say
from tedm.seeds import seed_of

SPLITS = ("train", "val", "test", "unlabelled")
XLSOR = "nih_xlsor.csv"  # no split: which images of ChestX-ray14 those of XLSor are
SHOWN = 20  # ids or lines in a message


def assign(
    split: SplitConfig,
    ids: Sequence[str],
    subjects: Sequence[str],
    seed: int,
    data_root: Path,
    where: str,
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> list[tuple[int, str]]:
    """Which images are used, in which order, and in which split.

    Args:
        split: counts or fractions to draw, a list to read, or a column.
        ids: names of the images that are there.
        subjects: the subject of each image.
        seed: of the draw.
        data_root: relative paths of lists start here.
        where: the data set's path in the configuration, for messages.
        columns: what else the source knows of each image, by name.

    Returns:
        (index into `ids`, split) of every image that is used. The order of a split is the list's; drawn
        splits are in the order of the draw, so that the first n of train are a random sample.

    Raises:
        TedmError: impossible numbers; a list that is missing, broken or names none of the images; a subject
            in two splits.
    """
    columns = columns or {}
    if split.file is not None:
        listed = _read_list(split.file, data_root, f"{where}.split.file")
        chosen = _listed(listed, ids, split.file, f"{where}.split.file")
    elif split.column is not None:
        values = _column(columns, split.column, f"{where}.split.column")
        chosen = _from_column(values, ids, f"{where}.split.column: {split.column}")
    else:
        strata = None
        if split.stratify is not None:
            strata = _column(columns, split.stratify, f"{where}.split.stratify")
        chosen = _drawn(split, ids, subjects, seed, f"{where}.split", strata)
    _no_subject_twice(chosen, subjects, f"{where}.split")
    if len(chosen) < len(ids):
        say(f"{where}: {len(ids) - len(chosen)} of {len(ids)} images are in no split and are left out")
    return chosen


def shipped() -> dict[str, str]:
    """Names of the lists that ship with tedm (the splits of the study's authors), and their files."""
    folder = resources.files("tedm.data") / "splits"
    files = [file.name for file in folder.iterdir() if ".csv" in file.name]
    return {name.split(".")[0]: name for name in files if name != XLSOR}


def enumerated(names: Sequence[str]) -> str:
    """Names for a message: all of them, or the first 20 and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def itemised(lines: Sequence[str]) -> str:
    """Lines for a message: all of them, or the first 20 and how many more."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])


def _no_subject_twice(chosen: Sequence[tuple[int, str]], subjects: Sequence[str], where: str) -> None:
    found: dict[str, set[str]] = {}
    for index, name in chosen:
        found.setdefault(subjects[index], set()).add(name)
    twice = [
        f"{subject} ({', '.join(name for name in SPLITS if name in names)})"
        for subject, names in found.items()
        if len(names) > 1
    ]
    if twice:
        raise TedmError(
            f"{where}: {len(twice)} subjects are in more than one split, so that what is learnt from them"
            f" would be tested on them: {enumerated(twice)}. Keep a subject's images together"
        )


def _column(columns: Mapping[str, Sequence[str]], name: str, where: str) -> Sequence[str]:
    if name not in columns:
        known = f"it has {', '.join(columns)}" if columns else "it has none"
        raise TedmError(f"{where}: the source has no column {name} ({known})")
    return columns[name]


def _from_column(values: Sequence[str], ids: Sequence[str], where: str) -> list[tuple[int, str]]:
    unknown = [
        f"{name}: {value!r}" for name, value in zip(ids, values, strict=True) if value not in (*SPLITS, "")
    ]
    if unknown:
        raise TedmError(f"{where}: expected {', '.join(SPLITS)} or nothing:{itemised(unknown)}")
    return [(index, value) for index, value in enumerate(values) if value]


def _drawn(
    split: SplitConfig,
    ids: Sequence[str],
    subjects: Sequence[str],
    seed: int,
    where: str,
    strata: Sequence[str] | None,
) -> list[tuple[int, str]]:
    # Each subject's place comes from its own name, so that the order of files has no influence and a
    # new subject leaves the others' order as it is.
    images: dict[str, list[int]] = {}
    for index in sorted(range(len(ids)), key=lambda i: ids[i]):
        images.setdefault(subjects[index], []).append(index)
    order = sorted(images, key=lambda subject: (seed_of(seed, "split", subject), subject))
    if strata is not None:
        order = _interleaved(order, [strata[images[subject][0]] for subject in order])
    chosen: list[tuple[int, str]] = []
    start = 0
    for name, count in _counts(split, len(order), where).items():
        for subject in order[start : start + count]:
            chosen.extend((index, name) for index in images[subject])
        start += count
    return chosen


def _interleaved(order: Sequence[str], strata: Sequence[str]) -> list[str]:
    """The subjects in an order of which every stretch has its share of each stratum.

    The r-th of a stratum's m subjects stands at (r + ½) / m. Splits are stretches of this order, and so are
    the first n of train.
    """
    members: dict[str, list[str]] = {}
    for subject, stratum in zip(order, strata, strict=True):
        members.setdefault(stratum, []).append(subject)
    drawn = {subject: place for place, subject in enumerate(order)}
    places = {
        subject: (rank + 0.5) / len(subjects)
        for subjects in members.values()
        for rank, subject in enumerate(subjects)
    }
    return sorted(order, key=lambda subject: (places[subject], drawn[subject]))


def _counts(split: SplitConfig, total: int, where: str) -> dict[str, int]:
    """Subjects of each split; fractions are of all subjects, rounded so that they add up."""
    wanted = {name: getattr(split, name) for name in SPLITS}
    wanted = {name: number for name, number in wanted.items() if number}
    counts: dict[str, int] = {}
    share = 0.0
    for name, number in wanted.items():
        if isinstance(number, int):
            counts[name] = number
            continue
        before, share = share, share + number
        counts[name] = round(min(share, 1.0) * total) - round(before * total)
        if not counts[name]:
            raise TedmError(f"{where}.{name}: {number} of {total} is not even one; give a number instead")
    if sum(counts.values()) > total:
        sizes = " + ".join(f"{name} {count}" for name, count in counts.items())
        raise TedmError(
            f"{where}: {sizes} = {sum(counts.values())}, but there are only {total}; ask for fewer"
        )
    return counts


def _listed(listed: Mapping[str, str], ids: Sequence[str], file: str, where: str) -> list[tuple[int, str]]:
    index_of = {name: index for index, name in enumerate(ids)}
    chosen = [(index_of[name], split) for name, split in listed.items() if name in index_of]
    missing = [name for name in listed if name not in index_of]
    if not chosen:
        raise TedmError(
            f"{where}: {file} names none of the {len(ids)} images (it has {enumerated(missing[:3])} …,"
            f" the images are {enumerated(sorted(ids)[:3])} …); it must have"
            " the images' names without suffix"
        )
    if missing:
        say(
            f"{where}: warning: {len(missing)} of {len(listed)} ids in {file} have no image and are"
            f" left out: {enumerated(missing)}"
        )
    return chosen


def _read_list(file: str, data_root: Path, where: str) -> dict[str, str]:
    """Split of each id, in the list's order."""
    known = shipped()
    if file in known:
        content = (resources.files("tedm.data") / "splits" / known[file]).read_bytes()
        name = known[file]
    else:
        path = data_root / file
        name = str(path)
        if not path.is_file():
            close = difflib.get_close_matches(file, known, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise TedmError(
                f"{where}: no file {path}, and no list of this name ships with tedm"
                f" ({', '.join(sorted(known))}).{meant}"
            )
        content = path.read_bytes()
    try:
        if name.endswith(".gz"):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TedmError(f"{where}: {name} is not a CSV in UTF-8 ({error})") from None
    return _parse(text, f"{where}: {name}")


def _parse(text: str, where: str) -> dict[str, str]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = reader.fieldnames or []
    key = next((c for c in ("id", "image") if c in columns), None)
    if key is None or "split" not in columns:
        raise TedmError(f"{where}: expected columns id and split, found {', '.join(columns) or 'none'}")
    listed: dict[str, str] = {}
    problems = []
    for row in reader:
        name, split = (row[key] or "").strip(), (row["split"] or "").strip()
        # `image` names files, as in the list of ChestX-ray14.
        name = unicodedata.normalize("NFC", Path(name).stem if key == "image" else name)
        if not name:
            problems.append(f"line {reader.line_num}: no id")
        elif split not in SPLITS:
            problems.append(f"line {reader.line_num}: split {split!r} is none of {', '.join(SPLITS)}")
        elif name in listed:
            problems.append(f"line {reader.line_num}: {name} is there a second time")
        listed[name] = split
    if problems:
        raise TedmError(f"{where}:{itemised(problems)}")
    if not listed:
        raise TedmError(f"{where}: has no rows")
    return listed


def first_subjects(splits: Sequence[str], subjects: Sequence[str], n: int) -> list[int]:
    """Rows of the first n subjects of the split train, subject by subject; of all where there are fewer."""
    rows = [row for row, split in enumerate(splits) if split == "train"]
    place: dict[str, int] = {}
    for row in rows:
        place.setdefault(subjects[row], len(place))
    return sorted((row for row in rows if place[subjects[row]] < n), key=lambda row: place[subjects[row]])
