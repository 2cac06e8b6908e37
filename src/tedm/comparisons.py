"""How methods differ beyond bold: intervals, effect sizes, Holm's correction, ranks, spread of seeds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from tedm import bootstrap, measures, statistics

Values = NDArray[np.float64]

SUMMARY = (
    *("dataset", "metric", "n_train", "method", "mean", "low", "high", "std_subjects", "std_seeds"),
    *("mean_rank", "subjects", "seeds"),
)
DIFFERENCES = (
    *("dataset", "metric", "n_train", "reference", "method", "difference", "low", "high"),
    *("wins", "ties", "losses", "rank_biserial", "d_z", "pairs", "p_value", "p_holm"),
)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that the chance of any false alarm stays below the level.

    The step-down procedure of Holm (1979): uniformly more powerful than Bonferroni, and it assumes nothing
    about how the tests hang together. NaN stays NaN and counts for nothing.
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    there = np.flatnonzero(~np.isnan(p))
    order = there[np.argsort(p[there], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(value) for value in adjusted]


def rank_biserial(difference: Values) -> float:
    """Effect size of the signed-rank test: (W+ - W-) / (W+ + W-), from -1 to 1 (Kerby 2014).

    0 where all differences are zero. NaN differences are dropped; as in `statistics.signed_rank`, what is
    below 1e-12 is round-off.
    """
    d = np.round(difference[~np.isnan(difference)], statistics.DECIMALS)
    d = d[d != 0]
    if len(d) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(d))
    return float(np.sum(np.sign(d) * ranks) / ranks.sum())


def standardised(difference: Values) -> float:
    """Mean paired difference in units of its standard deviation (Cohen's d_z, ddof 1).

    NaN with fewer than two pairs or where all differences are the same.
    """
    d = np.round(difference[~np.isnan(difference)], statistics.DECIMALS)
    if len(d) < 2 or np.ptp(d) == 0:
        return float("nan")
    return float(d.mean() / d.std(ddof=1))


def of_subjects(values: pd.DataFrame) -> pd.DataFrame:
    """One value per subject: the mean over the classes that it has.

    What belongs to one subject is not independent, so tests across classes count subjects.
    """
    return values.groupby(level="subject").mean()


def summarise(rows: pd.DataFrame, methods: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Mean of every method with its interval, its two spreads and its mean rank.

    Args:
        rows: scores of one data set and one metric, with the columns of a score file.
        methods: which are compared; others are ignored.
        seed: of the bootstrap.

    Returns:
        A row per training size and method (`SUMMARY`), in percent (distances in their unit). mean, low,
        high: over subjects and classes after averaging over seeds, with the bootstrap's 95 % interval.
        std_subjects: of the subjects' means (ddof 0). std_seeds: of the means of the seeds (ddof 1), NaN
        with one seed. mean_rank: among the methods, 1 is best, ties share, averaged over subjects that all
        methods have.
    """
    rows = rows[rows["method"].isin(methods)]
    dataset, metric = rows["dataset"].iloc[0], rows["metric"].iloc[0]
    scale, lower = measures.scale(metric), metric in measures.LOWER_IS_BETTER
    values = statistics.subject_values(rows)
    cube = _cube(values)
    low, high = bootstrap.intervals(cube, bootstrap.weights(len(cube), seed, "bootstrap", dataset))
    ends = {key: (low[i], high[i]) for i, key in enumerate(map(tuple, values.columns))}
    # Sorted, so that the order of the files has no effect on the last bit.
    by_seed = rows.sort_values(["subject", "class"]).groupby(["n_train", "method", "seed"])["value"].mean()
    of_seeds = by_seed.groupby(level=["n_train", "method"])
    spreads, counts = of_seeds.std(ddof=1), of_seeds.count()
    found = of_subjects(values)
    made: list[tuple[object, ...]] = []
    for n in values.columns.unique("n_train"):
        chosen = [m for m in methods if (n, m) in values.columns]
        ranked = found[[(n, m) for m in chosen]].dropna().rank(axis=1, ascending=lower).mean()
        for m in chosen:
            of_method = found[n, m]
            made.append(
                (
                    *(dataset, metric, int(n), m),
                    *(scale * float(x) for x in (values[n, m].mean(), *ends[n, m])),
                    scale * float(of_method.std(ddof=0)),
                    scale * float(spreads[n, m]),
                    float(ranked[n, m]),
                    int(of_method.notna().sum()),
                    int(counts[n, m]),
                )
            )
    return pd.DataFrame(made, columns=list(SUMMARY))


def differences(rows: pd.DataFrame, methods: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Every method against the one with the best mean, at each training size.

    Args:
        rows: as in `summarise`.
        methods: likewise.
        seed: likewise; the same subjects are drawn, so that the differences are paired.

    Returns:
        A row per training size and method but the best (`DIFFERENCES`). difference, low, high: method minus
        reference in percent points (distances in their unit), mean over subjects and classes, and the
        bootstrap's 95 % interval. wins: subjects where the method is better than the reference (smaller,
        where lower is better); rank_biserial and d_z are positive where it is better, too.
        p_value: Wilcoxon signed-rank over subjects (mean of their classes); p_holm: corrected over the
        methods of this size.
    """
    rows = rows[rows["method"].isin(methods)]
    dataset, metric = rows["dataset"].iloc[0], rows["metric"].iloc[0]
    scale, lower = measures.scale(metric), metric in measures.LOWER_IS_BETTER
    values = statistics.subject_values(rows)
    drawn = bootstrap.weights(values.index.unique("subject").size, seed, "bootstrap", dataset)
    found = of_subjects(values)
    made: list[tuple[object, ...]] = []
    for n in values.columns.unique("n_train"):
        chosen = [m for m in methods if (n, m) in values.columns and values[n, m].notna().any()]
        if len(chosen) < 2:
            continue
        at_size = values[[(n, m) for m in chosen]].droplevel("n_train", axis=1)
        of_methods = at_size.mean()  # the first is taken, where several share the best
        reference = str(of_methods.idxmin() if lower else of_methods.idxmax())
        others = [m for m in chosen if m != reference]
        gaps = at_size[others].sub(at_size[reference], axis=0)
        low, high = bootstrap.intervals(_cube(gaps), drawn)
        tests = [(found[n, m] - found[n, reference]).to_numpy(np.float64) for m in others]
        p_values = [statistics.signed_rank(d, np.zeros(len(d))).p_value for d in tests]
        for i, (m, p) in enumerate(zip(others, holm(p_values), strict=True)):
            d = np.round(tests[i][~np.isnan(tests[i])], statistics.DECIMALS)
            d = -d if lower else d  # positive: better
            made.append(
                (
                    *(dataset, metric, int(n), reference, m),
                    *(scale * float(x) for x in (gaps[m].mean(), low[i], high[i])),
                    *(int((d > 0).sum()), int((d == 0).sum()), int((d < 0).sum())),
                    *(rank_biserial(d), standardised(d), len(d), p_values[i], p),
                )
            )
    return pd.DataFrame(made, columns=list(DIFFERENCES))


def _cube(values: pd.DataFrame) -> Values:
    """Scores as (subjects, classes, columns); NaN where a class is absent."""
    index = values.index
    subjects, classes = index.unique("subject"), index.unique("class")
    full = pd.MultiIndex.from_product([subjects, classes], names=index.names)
    shape = (len(subjects), len(classes), values.shape[1])
    return values.reindex(full).to_numpy(np.float64).reshape(shape)
