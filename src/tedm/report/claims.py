"""The study's claims, each with the test that supports or contradicts it in this run, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tedm import bootstrap, comparisons, statistics

ALL_SIZES = 0  # in the column n_train: the mean over all training sizes
COLUMNS = (
    *("claim", "dataset", "domain", "n_train", "better", "worse", "difference", "low", "high"),
    *("rank_biserial", "subjects", "p_value", "p_holm", "verdict"),
)
VERDICTS = ("supported", "contradicted", "undecided")


def assess(
    scores: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    datasets: Mapping[str, str],
    train_on: str,
    level: float,
    seed: int = 0,
) -> pd.DataFrame:
    """Test each claim on each test set: over all training sizes at once, and at each of them.

    A subject's Dice is averaged over seeds, classes, the methods of each side and, for the first row,
    training sizes; sides are compared by the Wilcoxon signed-rank test. Holm's correction is over all tests
    of all sizes at once (one per claim and test set), and over the sizes of one claim and test set.

    Args:
        scores: as `evaluation.read_scores` gives them.
        claims: of `study.claims`.
        datasets: names and labels.
        train_on: the data set that the labels came from; the others are out of domain.
        level: p-values below it decide, where the interval of the mean leaves zero out as well.
        seed: of the bootstrap.

    Returns:
        Rows of `COLUMNS`; n_train 0 stands for all sizes; differences in percent points of Dice.
    """
    dice = scores[scores["metric"] == "dice"]
    parts = []
    for dataset, label in datasets.items():
        rows = dice[dice["dataset"] == dataset]
        if rows.empty:
            continue
        values = comparisons.of_subjects(statistics.subject_values(rows))
        drawn = bootstrap.weights(len(values), seed, "bootstrap", dataset)
        domain = "in domain" if dataset == train_on else "out of domain"
        for claim in claims:
            parts += [
                {"claim": claim["claim"], "dataset": label, "domain": domain, **row}
                for row in _compared(values, claim, drawn)
            ]
    found = pd.DataFrame(parts, columns=[c for c in COLUMNS if c not in ("p_holm", "verdict")])
    together = found["n_train"] == ALL_SIZES
    found["p_holm"] = np.nan
    found.loc[together, "p_holm"] = comparisons.holm(found.loc[together, "p_value"].tolist())
    for _, of_one in found[~together].groupby(["claim", "dataset", "better", "worse"], sort=False):
        found.loc[of_one.index, "p_holm"] = comparisons.holm(of_one["p_value"].tolist())
    apart = (found["low"] > 0) | (found["high"] < 0)
    decided = (found["p_holm"] < level) & apart
    found["verdict"] = np.select([decided & (found["difference"] > 0), decided], VERDICTS[:2], VERDICTS[2])
    return found[list(COLUMNS)]


def _compared(
    values: pd.DataFrame, claim: Mapping[str, Any], drawn: bootstrap.Values
) -> Iterator[dict[str, Any]]:
    sides = []
    for methods in (claim["better"], claim["worse"]):
        columns = values.loc[:, values.columns.get_level_values("method").isin(methods)]
        sides.append(columns.T.groupby(level="n_train").mean().T)
    gaps = (sides[0] - sides[1]).dropna(axis=1, how="all")
    if gaps.empty:
        return
    gaps.insert(0, ALL_SIZES, gaps.mean(axis=1))
    low, high = bootstrap.intervals(gaps.to_numpy(np.float64)[:, None, :], drawn)
    for i, n in enumerate(gaps.columns):
        gap = gaps[n].to_numpy(np.float64)
        test = statistics.signed_rank(gap, np.zeros(len(gap)))
        yield {
            "n_train": int(n),
            "better": claim["names"][0],
            "worse": claim["names"][1],
            "difference": 100 * float(np.nanmean(gap)),
            "low": 100 * low[i],
            "high": 100 * high[i],
            "rank_biserial": comparisons.rank_biserial(gap),
            "subjects": test.pairs,
            "p_value": test.p_value,
        }


def sentences(found: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Claim, verdict and a plain sentence for each claim and test set.

    Args:
        found: of `assess`.
    """
    made = []
    for claim, of_claim in found.groupby("claim", sort=False):
        for _, rows in of_claim.groupby(["dataset", "better", "worse"], sort=False):
            overall = rows[rows["n_train"] == ALL_SIZES].iloc[0]
            by_size = rows[rows["n_train"] != ALL_SIZES]
            made.append((str(claim), str(overall["verdict"]), _sentence(overall, by_size)))
    return made


def _sentence(row: "pd.Series[Any]", by_size: pd.DataFrame) -> str:
    direction = "above" if row["difference"] >= 0 else "below"
    over = f", averaged over {len(by_size)} training sizes" if len(by_size) > 1 else ""
    interval = "" if np.isnan(row["low"]) else f", 95 % interval {row['low']:+.1f} to {row['high']:+.1f}"
    says = {
        "supported": "This supports the claim.",
        "contradicted": "This contradicts the claim.",
        "undecided": "Test and interval together do not tell the two apart.",
    }[str(row["verdict"])]
    text = (
        f"On {row['dataset']} ({row['domain']}, {row['subjects']} subjects{over}), {row['better']} is"
        f" {abs(row['difference']):.1f} points of Dice {direction} {row['worse']}"
        f" (difference {row['difference']:+.1f}{interval}; Wilcoxon signed-rank, Holm-corrected"
        f" p {_p(row['p_holm'])}; rank-biserial effect {row['rank_biserial']:+.2f}). {says}"
    )
    if len(by_size) > 1:
        text += f" By training size: {_by_size(by_size)}."
    return text


def _by_size(rows: pd.DataFrame) -> str:
    parts = []
    for verdict in VERDICTS:
        sizes = [str(n) for n in rows.loc[rows["verdict"] == verdict, "n_train"]]
        if sizes:
            parts.append(f"{verdict} at n = {', '.join(sizes)}")
    return "; ".join(parts)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def markdown(found: pd.DataFrame) -> str:
    """The sentences as a list under each claim."""
    text, last = "# The study's claims in this run\n", ""
    for claim, verdict, sentence in sentences(found):
        if claim != last:
            text += f"\n## {claim}\n\n"
            last = claim
        text += f"- **{verdict}**: {sentence}\n"
    if not last:
        text += "\nThis experiment has no methods that the study's claims are about.\n"
    return text
