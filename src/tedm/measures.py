"""Measures beyond Dice, for who asks for them: overlap, volume, distances of surfaces, calibration."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tedm.errors import TedmError

OVERLAP = ("iou", "volume_similarity")
DISTANCES = ("hd95", "assd")
CALIBRATION = ("brier", "ece")
LOWER_IS_BETTER = ("hd95_mm", "hd95_px", "assd_mm", "assd_px", *CALIBRATION)
FRACTIONS = (*OVERLAP, *CALIBRATION)  # others have the unit in their name
NAMES = {  # of a metric, as a heading has them; what is not here is written as it is
    "iou": "IoU",
    "volume_similarity": "Volume similarity",
    "hd95": "95th-percentile Hausdorff distance",
    "assd": "Average symmetric surface distance",
    "brier": "Brier score",
    "ece": "Expected calibration error",
}
BINS = 15  # of the probability, for ECE and the reliability figure [Guo et al. 2017]
SUMS = ("pixels", "probability", "truth", "squared error")  # of each bin

Counts = NDArray[np.float64]


def named(metric: str) -> tuple[str, str]:
    """The name of a metric in a heading, and its unit: percent, mm or px."""
    name, _, unit = metric.partition("_") if metric.startswith(DISTANCES) else (metric, "", "percent")
    return NAMES.get(name, name[:1].upper() + name[1:]), unit


def decimals(metric: str) -> int:
    """Of a value in a table: as the study, and one more where background makes the numbers small."""
    return 2 if metric in CALIBRATION else 1


def scale(metric: str) -> float:
    """Fractions are told in percent, distances in their unit."""
    return 1.0 if metric.startswith(DISTANCES) else 100.0


def found_names(wanted: Collection[str], there: Collection[str]) -> list[str]:
    """The metrics of score files that answer to what was asked for: hd95 is hd95_mm, hd95_px or both."""
    names = {m: (f"{m}_mm", f"{m}_px") if m in DISTANCES else (m,) for m in wanted}
    return [name for m in wanted for name in names[m] if name in there]


def of_masks(
    predicted: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    subjects: Sequence[str],
    classes: Sequence[str],
    wanted: Collection[str],
    spacings_mm: NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """Overlap, volume and surface distances of each subject and class.

    - iou: |A∩B| / |A∪B|.
    - volume_similarity: 1 - ||A|-|B|| / (|A|+|B|), whatever lies where (Taha and Hanbury 2015).
    - hd95: the larger of the two 95th percentiles of the distances from one surface to the other.
    - assd: mean distance from both surfaces to the other one (average symmetric surface distance).

    Slices of a subject make a volume. A class that the truth does not contain is NaN, as its Dice. One that
    is there but was not predicted has no surface: its distances are the diagonal of the image or volume,
    the largest that there could be, so that all methods are judged on the same subjects.

    Args:
        predicted: masks of 0 and 1, (N, K, H, W).
        masks: the truth, likewise.
        subjects: to whom each image belongs, (N,).
        classes: names, (K,).
        wanted: names of OVERLAP and DISTANCES; others are ignored.
        spacings_mm: distance of slices, height and width of a pixel for each image, (N, 3); NaN or None
            where unknown: distances are then in pixels (and slices) for the whole data set.

    Returns:
        Columns subject, class, metric and value; hd95 and assd are called hd95_mm or hd95_px.
    """
    owner, names = pd.factorize(np.asarray(subjects, dtype=object))
    spacings_mm = usable_spacings(spacings_mm, list(names))
    unit = "px" if spacings_mm is None else "mm"
    rows: list[tuple[str, str, str, float]] = []
    for i, name in enumerate(names):
        of_subject = np.flatnonzero(owner == i)
        a, b = (x[of_subject].swapaxes(0, 1) != 0 for x in (predicted, masks))  # (K, D, H, W)
        spacing = np.ones(3) if spacings_mm is None else spacings_mm[of_subject[0]]
        for k, in_class in enumerate(classes):
            for metric, value in _of_one(a[k], b[k], wanted, spacing, unit):
                rows.append((str(name), in_class, metric, value))
    return pd.DataFrame(rows, columns=["subject", "class", "metric", "value"])


def usable_spacings(
    spacings_mm: NDArray[np.float64] | None, names: Sequence[str]
) -> NDArray[np.float64] | None:
    """The spacings of a data set's images, (N, 3), if all that its subjects need is known; else None.

    Args:
        spacings_mm: as for `of_masks`.
        names: of the subjects, each once. As many as images: these are flat, without a distance of slices.
    """
    if spacings_mm is None or np.isnan(spacings_mm[:, 1 if len(names) == len(spacings_mm) else 0 :]).any():
        return None
    return spacings_mm


def _of_one(
    a: NDArray[np.bool_],
    b: NDArray[np.bool_],
    wanted: Collection[str],
    spacing: NDArray[np.float64],
    unit: str,
) -> Iterator[tuple[str, float]]:
    """Measures of one subject and class, of masks (D, H, W)."""
    in_a, in_b, both = int(a.sum()), int(b.sum()), int((a & b).sum())
    there = in_b > 0
    if "iou" in wanted:
        yield "iou", both / (in_a + in_b - both) if there else np.nan
    if "volume_similarity" in wanted:
        yield "volume_similarity", 1 - abs(in_a - in_b) / (in_a + in_b) if there else np.nan
    names = [name for name in DISTANCES if name in wanted]
    if names:
        if not there:
            found = dict.fromkeys(DISTANCES, np.nan)
        elif in_a == 0:
            shape = np.array(a.shape) - 1
            found = dict.fromkeys(DISTANCES, float(np.linalg.norm(shape * spacing)))
        else:
            found = _distances(a, b, names, spacing)
        for name in names:
            yield f"{name}_{unit}", found[name]


def _distances(
    a: NDArray[np.bool_], b: NDArray[np.bool_], names: Sequence[str], spacing: NDArray[np.float64]
) -> dict[str, float]:
    try:
        from monai.metrics.hausdorff_distance import compute_hausdorff_distance
        from monai.metrics.surface_distance import compute_average_surface_distance
    except ImportError:
        raise TedmError(
            f"evaluation.metrics: {', '.join(names)} need MONAI; install it:   pip install 'tedm[metrics]'"
        ) from None
    axes = slice(1, None) if a.shape[0] == 1 else slice(None)  # one slice: a surface in the plane
    p, y = (x[:, None] if a.shape[0] == 1 else x[None, None] for x in (a, b))
    options: dict[str, Any] = {"include_background": True, "spacing": spacing[axes].tolist()}
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about its own calls
        if "hd95" in names:
            found["hd95"] = float(compute_hausdorff_distance(p, y, percentile=95, **options))
        if "assd" in names:
            found["assd"] = float(compute_average_surface_distance(p, y, symmetric=True, **options))
    return found


def bins(probabilities: NDArray[np.floating[Any]], masks: NDArray[np.uint8]) -> Counts:
    """Pixels by their probability, in BINS bins of equal width, and sums over them.

    Args:
        probabilities: of each class, in [0, 1], (N, K, H, W).
        masks: the truth, 0 or 1, (N, K, H, W).

    Returns:
        (N, K, BINS, 4): see SUMS.
    """
    p = np.clip(probabilities.astype(np.float64), 0, 1)
    y = (masks != 0).astype(np.float64)
    count, classes = p.shape[:2]
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    group = np.arange(count * classes).reshape(count, classes, 1, 1) * BINS + place
    made = [
        np.bincount(group.ravel(), weights=values.ravel(), minlength=count * classes * BINS)
        for values in (np.ones_like(p), p, y, (p - y) ** 2)
    ]
    return np.stack(made, axis=-1).astype(np.float64).reshape(count, classes, BINS, len(SUMS))


def of_bins(
    counts: Counts, subjects: Sequence[str], classes: Sequence[str], wanted: Collection[str]
) -> pd.DataFrame:
    """Calibration of each subject and class.

    - brier: mean squared difference between probability and truth, over pixels (Brier 1950).
    - ece: expected calibration error: |mean probability - share of foreground| of each bin, weighted by its
      pixels (Guo et al. 2017, eq. 3).

    Both are also of subjects that do not have the class: to be sure of nothing is right there.

    Args:
        counts: of `bins`, (N, K, BINS, 4); images of a subject are pooled.
        subjects: to whom each image belongs, (N,).
        classes: names, (K,).
        wanted: names of CALIBRATION; others are ignored.
    """
    owner, names = pd.factorize(np.asarray(subjects, dtype=object))
    pooled = np.zeros((len(names), *counts.shape[1:]))
    np.add.at(pooled, owner, counts)
    pixels, probability, truth, squared = np.moveaxis(pooled, -1, 0)
    total = pixels.sum(axis=-1)
    values = {
        "brier": squared.sum(axis=-1) / total,
        "ece": np.abs(probability - truth).sum(axis=-1) / total,
    }
    chosen = [name for name in CALIBRATION if name in wanted]
    return pd.DataFrame(
        {
            "subject": np.repeat([str(name) for name in names], len(classes) * len(chosen)),
            "class": np.tile(np.repeat(list(classes), len(chosen)), len(names)),
            "metric": chosen * (len(names) * len(classes)),
            "value": np.stack([values[name] for name in chosen], axis=-1).ravel() if chosen else [],
        }
    )
