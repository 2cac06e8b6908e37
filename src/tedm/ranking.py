"""How well an uncertainty ranks subjects by their error."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tedm.seeds import generator

RESAMPLES = 2000  # of the bootstrap
LEVEL = 0.95

Values = NDArray[np.float64]


class Ranking(NamedTuple):
    """Of one test set."""

    subjects: int
    spearman: float  # rank correlation of uncertainty and error: 1 orders all subjects as the error does
    low: float  # its 95 % interval, bootstrapped over subjects
    high: float
    risk: float  # area under the risk-coverage curve: lower is better
    risk_random: float  # of a ranking by chance, on average: the mean error
    risk_oracle: float  # of the ranking by the error itself


def rank(uncertainty: Values, error: Values) -> Ranking:
    """Compare the ranking by uncertainty with that by error, 1 - Dice.

    Args:
        uncertainty: of each subject, (N,).
        error: of each subject, (N,); NaN where there is none (a class that is absent).

    Returns:
        NaN for all that is not defined: correlations where one side is constant.
    """
    known = ~np.isnan(error) & ~np.isnan(uncertainty)
    u, e = uncertainty[known], error[known]
    if len(u) < 2:
        return Ranking(len(u), *[np.nan] * 3, *[float(e.mean()) if len(e) else np.nan] * 3)
    chosen = generator("uncertainty", "bootstrap", len(u)).integers(0, len(u), (RESAMPLES, len(u)))
    resampled = _spearman(u[chosen], e[chosen])
    resampled = resampled[~np.isnan(resampled)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]) if len(resampled) else (np.nan, np.nan)
    return Ranking(
        len(u),
        float(_spearman(u[None], e[None])[0]),
        float(low),
        float(high),
        float(risk_coverage(u, e).mean()),
        float(e.mean()),
        float(risk_coverage(e, e).mean()),
    )


def risk_coverage(uncertainty: Values, error: Values) -> Values:
    """Mean error of the k least uncertain subjects, for k = 1 … N (Geifman and El-Yaniv 2017).

    Where uncertainties are equal, the mean over all orders of those subjects.
    """
    _, tied = np.unique(uncertainty, return_inverse=True)
    expected = (np.bincount(tied, weights=error) / np.bincount(tied))[np.sort(tied)]
    return np.asarray(np.cumsum(expected) / np.arange(1, len(error) + 1))


def _spearman(a: Values, b: Values) -> Values:
    """Rank correlation of each row, (M, N) → (M,); tied values share their mean rank."""
    ranks = [stats.rankdata(x, axis=1) for x in (a, b)]
    x, y = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))
