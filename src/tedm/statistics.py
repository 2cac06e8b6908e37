"""The study's statistics: what is printed in bold, with every test behind it."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from tedm.errors import TedmError

DECIMALS = 12  # scores are fractions of pixel counts: differences beyond this are round-off
FEW = 13  # pairs; up to here scipy tries all signs where there are ties
SUMMARY = ("method", "mean", "std", "p_value", "bold", "subjects")
TESTS = ("reference", "method", "class", "pairs", "nonzero", "statistic", "p_value", "p_adjusted")


class SignedRank(NamedTuple):
    """Outcome of one Wilcoxon signed-rank test."""

    pairs: int  # where both have a value
    nonzero: int  # of them, where the two differ: what the test ranks
    statistic: float  # smaller sum of ranks
    p_value: float  # two-sided


def signed_rank(a: NDArray[np.float64], b: NDArray[np.float64]) -> SignedRank:
    """Paired two-sided Wilcoxon signed-rank test, zero_method 'wilcox' (zero differences are left out).

    The same numbers as scipy.stats.wilcoxon, which takes the exact distribution up to 50 pairs without ties
    and zeros, all signs up to 13 pairs with them, else the normal distribution. Differences are rounded to
    1e-12 first, so that no zero and no tie hangs on the last bit. Defined where the test is not:

    - a pair with NaN (class absent) is dropped;
    - all differences zero, or no pair left: nothing tells the two apart, p = 1, statistic 0;
    - one pair: p = 1, as the exact test gives (below six pairs p never falls under 0.05).

    Args:
        a: scores of one method, (N,).
        b: scores of the other for the same subjects, (N,).
    """
    difference = np.round(np.asarray(a, np.float64) - np.asarray(b, np.float64), DECIMALS)
    difference = difference[~np.isnan(difference)]
    nonzero = int(np.count_nonzero(difference))
    if nonzero == 0:
        return SignedRank(len(difference), 0, 0.0, 1.0)
    if len(difference) == 1:
        return SignedRank(1, 1, 0.0, 1.0)
    size = np.abs(difference[difference != 0])
    if len(difference) <= FEW and (nonzero < len(difference) or len(np.unique(size)) < nonzero):
        statistic, p_value = _all_signs(stats.rankdata(size), difference[difference != 0] > 0)
    else:
        result = stats.wilcoxon(difference, zero_method="wilcox", alternative="two-sided")
        statistic, p_value = float(result.statistic), float(result.pvalue)
    return SignedRank(len(difference), nonzero, statistic, p_value)


def _all_signs(ranks: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """The exact test with ties, as scipy's permutation test, which takes a second for it, not 1 ms."""
    signs = np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks)) & 1
    sums = signs @ ranks
    seen = ranks[positive].sum()
    p_value = 2 * min(np.mean(sums <= seen), np.mean(sums >= seen))
    return float(min(seen, ranks.sum() - seen)), float(min(p_value, 1.0))


def least_p(pairs: int) -> float:
    """The smallest two-sided p-value that a signed-rank test of so many pairs can give: all signs alike."""
    return min(2.0 ** (1 - pairs), 1.0)


def compare_with_best(
    values: pd.DataFrame, level: float, *, lower_is_better: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test every method against the one with the best mean; bold is what the test does not tell from it.

    The published rule (Rosnati et al. 2023, tables 1-3). With several classes, each is tested on its own
    and the smallest p-value counts, times the number of classes tested (Bonferroni, at most 1). Where
    several methods share the best mean (to 1e-12), all of them are bold, and another one is bold if any of
    them cannot be told from it: its p-value is the largest of those. The best itself has p = 1.

    Args:
        values: one row per subject and class (index levels subject, class), one column per method; NaN
            where a class is absent.
        level: p-values below it tell two methods apart.
        lower_is_better: the best mean is the smallest, as of distances and errors.

    Returns:
        A row per method (`SUMMARY`): mean and population standard deviation (ddof 0, numpy's and the
        study's) over all subjects and classes, p-value against the best, bold, number of subjects with a
        value. And a row per test (`TESTS`). A method without any value has mean NaN, p NaN, never bold.
    """
    by_class = values.index.get_level_values("class")
    classes = list(dict.fromkeys(by_class))
    means = values.mean(axis=0)
    goodness = -means if lower_is_better else means
    best = [m for m in values.columns if goodness[m] >= goodness.max() - 10.0**-DECIMALS]
    tests: list[tuple[object, ...]] = []
    p_values: dict[str, float] = {}
    for method in values.columns:
        if np.isnan(means[method]):
            p_values[method] = np.nan
            continue
        against = []
        for reference in (r for r in best if r != method):
            found = [
                signed_rank(
                    values.loc[by_class == c, reference].to_numpy(),
                    values.loc[by_class == c, method].to_numpy(),
                )
                for c in classes
            ]
            tested = max(sum(test.pairs > 0 for test in found), 1)
            adjusted = [min(test.p_value * tested, 1.0) for test in found]
            tests += [
                (reference, method, c, *test, p)
                for c, test, p in zip(classes, found, adjusted, strict=True)
            ]
            against.append(min(adjusted))
        p_values[method] = 1.0 if method in best else max(against)
    subjects = values.notna().groupby(level="subject").any().sum()
    summary = pd.DataFrame(
        [
            (m, means[m], values[m].std(ddof=0), p, bool(p >= level), int(subjects[m]))
            for m, p in p_values.items()
        ],
        columns=list(SUMMARY),
    )
    return summary, pd.DataFrame(tests, columns=list(TESTS))


def subject_values(rows: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds first: one value per subject and class (rows), training size and method (columns).

    Args:
        rows: scores of one data set and one metric, with the columns of a score file.

    Returns:
        Index levels subject, class; column levels n_train, method; all sorted, so that the order of rows
        has no effect on the last bit. NaN where a class is absent.

    Raises:
        TedmError: where methods, sizes or seeds were scored on different subjects or classes, which no
            paired test can compare.
    """
    run = ["n_train", "method", "seed"]
    # Unstacking keeps the order in which seeds appear, and so would the sum over them.
    rows = rows.sort_values("seed", kind="stable")
    indexed = rows.set_index(["subject", "class", *run])["value"]
    wide = indexed.unstack(run)  # noqa: PD010 (pivot_table would drop what is NaN everywhere)
    counts = rows.groupby(run).size()
    for n, method, seed in counts.index[counts < len(wide)]:
        of_run = (rows["n_train"] == n) & (rows["method"] == method) & (rows["seed"] == seed)
        there = pd.MultiIndex.from_frame(rows.loc[of_run, ["subject", "class"]])
        subject, in_class = wide.index.difference(there)[0]
        raise TedmError(
            f"scores of {method} on {rows['dataset'].iloc[0]} (n_train {n}, seed {seed}): nothing for"
            f" subject {subject}, class {in_class}, which others have ({len(there)} values instead of"
            f" {len(wide)}). A paired test needs the same subjects for all: delete the score files of the"
            " older data set and run again"
        )
    return wide.T.groupby(level=["n_train", "method"]).mean().T
