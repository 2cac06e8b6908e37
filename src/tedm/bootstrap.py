"""Bootstrap of means over subjects: percentile intervals of means and of paired differences."""

import numpy as np
from numpy.typing import NDArray

from tedm.seeds import generator

RESAMPLES = 10_000
COVERAGE = 0.95

Values = NDArray[np.float64]


def weights(subjects: int, *names: str | int, resamples: int = RESAMPLES) -> Values:
    """How often each subject is drawn in each resample of as many subjects, with replacement.

    One matrix for all methods of a data set keeps their differences paired.

    Args:
        subjects: number of subjects, S.
        names: of the draw; the same names give the same numbers.
        resamples: B.

    Returns:
        Counts, (B, S); each row adds up to S.
    """
    draw = generator(*names)
    return draw.multinomial(subjects, np.full(subjects, 1 / subjects), size=resamples).astype(np.float64)


def means(values: Values, drawn: Values) -> Values:
    """The mean over subjects and classes in every resample.

    A subject is drawn with all its classes (and a volume with all its slices, which its score pools), so
    that what belongs together stays together (Field and Welsh 2007, the cluster bootstrap).

    Args:
        values: scores, (S, K, M); NaN where a class is absent.
        drawn: of `weights`, (B, S).

    Returns:
        Means, (B, M); NaN where nothing was drawn that has a value.
    """
    there = ~np.isnan(values)
    sums = drawn @ np.where(there, values, 0.0).sum(axis=1)
    counts = drawn @ there.sum(axis=1).astype(np.float64)
    with np.errstate(invalid="ignore"):  # 0 / 0
        found: Values = sums / counts
    return found


def intervals(values: Values, drawn: Values) -> tuple[Values, Values]:
    """Percentile intervals of the means over subjects and classes (Efron and Tibshirani 1993, ch. 13).

    They cover 95 % where subjects are many; with few they are too short, as every percentile interval.

    Args:
        values: scores or paired differences, (S, K, M).
        drawn: of `weights`, (B, S).

    Returns:
        Lower and upper ends, (M,) each; NaN with fewer than two subjects that have a value.
    """
    sampled = means(values, drawn)
    there = (~np.isnan(values)).any(axis=1).sum(axis=0) >= 2
    low, high = np.full(values.shape[2], np.nan), np.full(values.shape[2], np.nan)
    if there.any():
        tails = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)
        low[there], high[there] = np.nanquantile(sampled[:, there], tails, axis=0)
    return low, high
