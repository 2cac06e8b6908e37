"""Scores of segmentations, per subject and class: Dice, precision, recall and the files that keep them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tedm.errors import TedmError
from tedm.files import whole

METRICS = ("dice", "precision", "recall")
KEYS = ("dataset", "subject", "class", "method", "n_train", "seed", "metric")  # of one row, together unique
COLUMNS = (*KEYS, "value", "data")  # of a score file; data: synthetic or real
_TYPES = dict.fromkeys(("dataset", "subject", "class", "method", "metric", "data"), "str") | {
    "n_train": "int64",
    "seed": "int64",
    "value": "str",  # made a number by float(), which loses no bit
}


def segment(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The segmentation that the probabilities stand for (Rosnati et al. 2023, eq. 9).

    One class: foreground where p > 0.5. Several: the most probable of the classes and the background, whose
    probability is 1 - their sum; a tie goes to the background, then to the first class.

    Args:
        probabilities: of each class without the background, in [0, 1], (N, K, H, W).

    Returns:
        Masks, 0 or 1, (N, K, H, W); at most one class per pixel.

    Raises:
        TedmError: where a probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        raise TedmError(
            "probabilities: not finite; the head that made them has diverged (lower its learning rate)"
        )
    if probabilities.shape[1] == 1:
        return (probabilities > 0.5).astype(np.uint8)
    background = 1 - probabilities.sum(axis=1)
    winner = probabilities.argmax(axis=1)
    foreground = probabilities.max(axis=1) > background
    masks = np.zeros(probabilities.shape, np.uint8)
    np.put_along_axis(masks, winner[:, None], foreground[:, None].astype(np.uint8), axis=1)
    return masks


def scores(
    predicted: NDArray[Any],
    masks: NDArray[np.integer[Any] | np.bool_],
    subjects: Sequence[str],
    classes: Sequence[str],
) -> pd.DataFrame:
    """Dice 2|A∩B| / (|A|+|B|), precision |A∩B| / |A|, recall |A∩B| / |B| of prediction A against truth B.

    The pixels of all images (slices) of a subject are pooled first, so that a volume counts once.

    A class that the truth of a subject does not contain is not scored there: all three are NaN whatever
    was predicted, so that every method is judged on the same subjects. A class that is there but was not
    predicted scores 0 in all three, precision included.

    Args:
        predicted: probabilities in [0, 1] (a floating type; see `segment`) or masks of 0 and 1 (integer or
            bool), (N, K, H, W).
        masks: the truth, 0 or 1, (N, K, H, W).
        subjects: to whom each image belongs, (N,).
        classes: names, (K,).

    Returns:
        Columns subject, class, metric and value, a fraction in [0, 1] or NaN; subjects in order of
        appearance.

    Raises:
        TedmError: where shapes disagree or a probability is not finite.
    """
    expected = (len(subjects), len(classes))
    if predicted.shape != masks.shape or masks.ndim != 4 or masks.shape[:2] != expected:
        raise TedmError(
            f"scores: the prediction has shape {predicted.shape} and the truth {masks.shape}; expected"
            f" (images, classes, height, width) of {len(subjects)} images and {len(classes)} classes"
        )
    a = segment(predicted) if np.issubdtype(predicted.dtype, np.floating) else predicted
    owner, names = pd.factorize(np.asarray(subjects, dtype=object))
    pooled = np.zeros((len(names), len(classes), 3), np.int64)
    np.add.at(pooled, owner, counts(a, masks))
    return from_counts(pooled, [str(name) for name in names], classes)


def counts(
    predicted: NDArray[np.integer[Any] | np.bool_], masks: NDArray[np.integer[Any] | np.bool_]
) -> NDArray[np.int64]:
    """Pixels of each image and class in both masks, in the prediction and in the truth.

    Args:
        predicted: masks, foreground where not 0, (N, K, H, W).
        masks: the truth, likewise.

    Returns:
        (N, K, 3).
    """
    a, b = predicted != 0, masks != 0
    return np.stack([np.count_nonzero(pixels, axis=(2, 3)) for pixels in (a & b, a, b)], axis=-1)


def from_counts(pooled: NDArray[np.int64], subjects: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """What `scores` returns, from the sums of `counts` over the images of each subject.

    Args:
        pooled: (subjects, K, 3).
        subjects: names, each once.
        classes: names, (K,).
    """
    both, in_a, in_b = np.moveaxis(pooled.astype(np.float64), -1, 0)
    values = np.stack(
        [2 * both / _or_nan(in_a + in_b), both / np.maximum(in_a, 1), both / _or_nan(in_b)], axis=-1
    )
    values[in_b == 0] = np.nan
    return pd.DataFrame(
        {
            "subject": np.repeat(list(subjects), len(classes) * len(METRICS)),
            "class": np.tile(np.repeat(list(classes), len(METRICS)), len(subjects)),
            "metric": np.tile(METRICS, len(subjects) * len(classes)),
            "value": values.ravel(),
        }
    )


def _or_nan(count: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(count > 0, count, np.nan)


def labelled(
    found: pd.DataFrame, *, dataset: str, method: str, n_train: int, seed: int, synthetic: bool
) -> pd.DataFrame:
    """The rows of `scores` with the columns of a score file; pd.concat joins those of several methods."""
    data = "synthetic" if synthetic else "real"
    return found.assign(dataset=dataset, method=method, n_train=n_train, seed=seed, data=data)[
        list(COLUMNS)
    ]


def write_scores(path: Path, rows: pd.DataFrame) -> None:
    """Write a score file, whole or not at all; reading gives the same numbers to the last bit."""
    with whole(path) as partial:
        rows[list(COLUMNS)].to_csv(
            partial, index=False, na_rep="nan", lineterminator="\n", encoding="utf-8"
        )


def read_scores(paths: Iterable[Path]) -> pd.DataFrame:
    """Read score files into one table with the columns `COLUMNS`.

    Raises:
        TedmError: naming the file that is missing, is no score file or scores something a second time.
    """
    parts = {str(path): _read(path) for path in paths}
    if not parts:
        raise TedmError("scores: no score file was given")
    rows = pd.concat(parts, names=["file", "line"])
    repeated = rows.duplicated(subset=list(KEYS), keep=False)
    if repeated.any():
        row = rows[repeated].iloc[0]
        same = rows[repeated & (rows[list(KEYS)] == row[list(KEYS)]).all(axis=1)]
        files = " and ".join(dict.fromkeys(same.index.get_level_values("file")))
        raise TedmError(
            f"{files}: more than one score for {', '.join(f'{key} {row[key]}' for key in KEYS)};"
            " delete what is stale and run again"
        )
    return rows.reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    advice = "delete it and run again"
    try:
        # A subject can be called NA.
        rows = pd.read_csv(path, dtype=_TYPES, keep_default_na=False, encoding="utf-8")
        if list(rows.columns) == list(COLUMNS):
            rows["value"] = np.array([float(text) for text in rows["value"]])
    except FileNotFoundError:
        raise TedmError(
            f"{path}: no such score file; make it with   snakemake --cores all {path}"
        ) from None
    except (ValueError, pd.errors.ParserError) as error:
        raise TedmError(f"{path}: not a score file ({error}); {advice}") from None
    if list(rows.columns) != list(COLUMNS):
        raise TedmError(
            f"{path}: has the columns {', '.join(rows.columns)}, expected {', '.join(COLUMNS)}; {advice}"
        )
    if np.isinf(rows["value"]).any():
        raise TedmError(f"{path}: has an infinite value; {advice}")
    return rows
