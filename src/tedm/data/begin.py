"""A first configuration for a folder of images, written by looking at it."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tedm.data import decoders
from tedm.data.decoders import nifti, raster
from tedm.errors import TedmError

MASKS = re.compile(r"mask|label|seg|annot|truth|\bgt\b", re.IGNORECASE)  # in the name of a folder
FEWEST = 3  # labelled images: train, val and test get one each
LOOKED_AT = 24  # files of a folder
SIZES = (128, 64, 32, 16)

Family = Literal["folder", "dicom", "nifti"]


@dataclass
class Found:
    """A folder with images, and what is known of it."""

    path: Path  # relative to the folder that was looked at
    family: Family
    names: list[str]  # without suffix
    files: list[Path]
    masks: "Found | None" = None
    by_class: "dict[str, Found]" = field(default_factory=dict)  # where each class has a folder of masks
    mask_suffix: str = ""
    name: str = ""
    labelled: int = 0


@dataclass
class Looks:
    """What a first look tells about all images."""

    size: int = SIZES[0]
    channels: int = 1
    classes: list[str] = field(default_factory=lambda: ["structure"])


def first_config(folder: Path) -> str:
    """Look at a folder and write an experiment for it, as YAML.

    Folders whose names speak of masks (mask, label, seg, annotation, truth) are matched with those whose
    images have the same names, or the same with something behind them. Folders without are unlabelled.

    Raises:
        TedmError: no images, no masks, or too few of them to train and test.
    """
    if not folder.is_dir():
        raise TedmError(f"{folder}: no such folder")
    found = _folders(folder)
    if not found:
        raise TedmError(
            f"{folder}: no images ({', '.join((*decoders.SUFFIXES, *nifti.SUFFIXES))}) in it or below it"
        )
    images = [f for f in found if not MASKS.search(f.path.as_posix())]
    masks = [f for f in found if MASKS.search(f.path.as_posix())]
    for mask in masks:
        _match(mask, images)
    for image in images:
        image.by_class = _beside(image, masks)
    # A folder called train is trained on; others of its kind are tested on.
    labelled = sorted(
        (f for f in images if f.masks is not None), key=lambda f: (not _is_train(f.path), -f.labelled)
    )
    unlabelled = sorted((f for f in images if f.masks is None), key=lambda f: -len(f.names))
    if not labelled:
        seen = ", ".join(f"{f.path.as_posix()} ({len(f.names)} files)" for f in found)
        raise TedmError(
            f"{folder}: no masks that belong to images. Found: {seen}. Put masks into a folder of their"
            " own, called masks, say, with the names of their images"
        )
    if labelled[0].labelled < FEWEST:
        raise TedmError(
            f"{folder}: {labelled[0].labelled} images of {labelled[0].path} have masks; label {FEWEST} or"
            " more"
        )
    families = {f.family for f in (*labelled, *unlabelled)}
    if len(families) > 1 and "nifti" in families:
        raise TedmError(f"{folder}: has volumes and single images; look at them one by one")
    taken: set[str] = set()
    for f in (*labelled, *unlabelled):
        f.name = _name(f.path, taken)
    return _yaml(folder, labelled, unlabelled, _look(labelled))


def _folders(folder: Path) -> list[Found]:
    found = []
    for home, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for family, suffixes in (
            ("nifti", nifti.SUFFIXES),
            ("dicom", decoders.DICOM_SUFFIXES),
            ("folder", raster.SUFFIXES),
        ):
            mine = sorted(
                name for name in files if name.lower().endswith(suffixes) and not name.startswith(".")
            )
            if mine:
                names = [re.sub(r"\.nii$", "", Path(name).stem) for name in mine]
                paths = [Path(home, name) for name in mine]
                found.append(Found(Path(home).relative_to(folder), family, names, paths))  # type: ignore[arg-type]
    return found


def _match(mask: Found, images: Sequence[Found]) -> None:
    """Give the masks to the folder most of whose images they name."""
    best: tuple[int, str, Found] | None = None
    for image in images:
        known = set(image.names)
        endings = Counter(
            name[len(stem) :]
            for name in mask.names[:LOOKED_AT]
            for stem in (name[:cut] for cut in range(len(name), 0, -1))
            if stem in known
        )
        for ending, _ in endings.most_common(3):
            count = sum(name.endswith(ending) and name.removesuffix(ending) in known for name in mask.names)
            if best is None or count > best[0]:
                best = count, ending, image
    if best is not None and best[0] > best[2].labelled:
        best[2].labelled, best[2].mask_suffix, best[2].masks = *best[:2], mask


def _is_train(path: Path) -> bool:
    return any(part.lower() in ("train", "training") for part in path.parts)


def _beside(image: Found, masks: Sequence[Found]) -> dict[str, Found]:
    """Folders of masks of the same names beside those of an image folder: one for each class."""
    if image.masks is None or image.family != "folder":
        return {}
    home, names = image.masks.path.parent, set(image.masks.names)
    siblings = {m.path.name: m for m in masks if m.path.parent == home and set(m.names) == names}
    return siblings if len(siblings) > 1 and MASKS.search(home.as_posix()) else {}


def _look(labelled: Sequence[Found]) -> Looks:
    looks, first = Looks(), labelled[0]
    assert first.masks is not None
    values: set[int] = set()
    sides = []
    for path in first.masks.files[:LOOKED_AT]:
        values |= _values(path, first.masks.family)
    for path in first.files[:LOOKED_AT]:
        if first.family == "nifti":
            sides.append(min(nifti.shape(path)))
        else:
            sides.append(min(decoders.header(path).size))
            if first.family == "folder" and _coloured(path):
                looks.channels = 3
    looks.size = next((size for size in SIZES if size <= min(sides)), SIZES[-1])
    foreground = values - {0}
    if first.by_class:
        looks.classes = list(first.by_class)
    elif len(foreground) > 1 and max(foreground) <= 64 and min(values) >= 0:
        looks.classes = [f"class {k}" for k in range(1, max(foreground) + 1)]
    return looks


def _values(path: Path, family: Family) -> set[int]:
    if family == "nifti":
        return set(np.unique(nifti.labels(path).values).tolist())
    if family == "dicom":
        return set()
    raster.header(path)  # refuses what is no image
    with Image.open(path, formats=raster.FORMATS) as image:
        if image.mode not in ("1", "L", "P"):
            return set()
        return set(np.unique(np.asarray(image)).tolist())


def _coloured(path: Path) -> bool:
    pixels = raster.pixels(path, 3)
    return not (np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[1], pixels[2]))


def _name(path: Path, taken: set[str]) -> str:
    parts = [part for part in path.parts if part.lower() not in ("images", "image", "img", "imgs")]
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(parts)).strip("_") or "mine"
    plain = plain if plain[0].isalpha() else f"set_{plain}"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}_{number}", number + 1
    taken.add(name)
    return name


def _yaml(folder: Path, labelled: list[Found], unlabelled: list[Found], looks: Looks) -> str:
    first = labelled[0]
    test_on = [f.name for f in labelled]
    n_train, n_val, n_test = _parts(first.labelled)
    split = f"{{train: {n_train}, val: {n_val}, test: {n_test}}}"
    if _is_train(first.path) and len(labelled) > 1:
        test_on, n_train = test_on[1:], n_train + n_test
        split = f"{{train: {n_train}, val: {n_val}}}"
    backbone = unlabelled[0].name if unlabelled else first.name
    sizes = [n for n in (1, 3, 6, 12, 24, 49, 98, 197) if n < n_train] + [n_train]
    sets = "".join(
        [_dataset(f, split if f is first else "{test: 1.0}") for f in labelled]
        + [_dataset(f, "{unlabelled: 1.0}") for f in unlabelled]
    )
    # Views of a volume are views of all its slices.
    volumes = first.family == "nifti"
    views = 2 if volumes else 8
    few = (
        "features:\n  view_subjects: 3 # the first so many training volumes have views\n\n"
        if volumes
        else ""
    )
    return f"""\
# A first experiment on {folder.name}, written by looking at it. `tedm schema` lists every setting.
#
#   tedm data check THIS_FILE                          what is wrong with the images, and a sheet to look at
#   snakemake -n --configfile THIS_FILE                what would run
#   snakemake --cores all --configfile THIS_FILE

title: {_text(f"First look at {folder.name}")}
seed: 0
results: results/{_name(Path(folder.resolve().name), set())}
data_root: {_text(str(folder))}

image:
  size: {looks.size}        # pixels; larger is slower by its square
  channels: {looks.channels}
  classes: {_text(looks.classes)} # give them their names

datasets:
{sets}
backbones:
  ddpm:
    type: ddpm
    data: {backbone}
    width: 16 # the study's is 64, with 100,000 steps: for a GPU
    training: {{steps: 2000, batch_size: 16, learning_rate: 5.0e-4, warmup: 100, decay: cosine, ema: 0.995}}

{few}baselines:
  Supervised:
    width: 16
    training: {{steps: 300, batch_size: 4, learning_rate: 5.0e-4, validate_every: 50}}

heads:
  # views: each labelled image is also learned from in augmented views, so that heads hold on other machines
  LR: {{type: ridge, views: {views}}}
  TEDM: {{type: mlp, combine: share, views: {views}, steps: 400, learning_rate: 1.0e-3, validate_every: 50}}

evaluation:
  train_on: {first.name}
  test_on: [{", ".join(test_on)}]
  train_sizes: {sizes}
"""


def _parts(count: int) -> tuple[int, int, int]:
    """Images for train, val and test: three fifths, a fifth, a fifth, and at least one each."""
    val = test = max(1, count // 5)
    return count - val - test, val, test


def _dataset(found: Found, split: str) -> str:
    label = found.path.as_posix() if found.path.parts else "Mine"
    lines = [
        f"  {found.name}: # {len(found.names)} files",
        f"    label: {_text(label)}",
        "    source:",
        f"      type: {found.family}",
        f"      images: {_text(found.path.as_posix())}",
    ]
    if found.masks is not None:
        masks: object = {name: each.path.as_posix() for name, each in found.by_class.items()}
        lines.append(f"      masks: {_text(masks or found.masks.path.as_posix())} # {found.labelled} fit")
        if found.mask_suffix:
            lines.append(f"      mask_suffix: {_text(found.mask_suffix)}")
    if found.family == "folder":
        lines.append(
            r"      # subject: ^(P\d+)_ # if patients have several images: what in a name tells them"
        )
    if found.family == "dicom":
        lines.append("      subject: image # or patient, if PatientID is filled in")
    return "\n".join([*lines, f"    split: {split}"]) + "\n"


def _text(value: object) -> str:
    """A value as YAML on one line: JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
