"""The study's claims, each with the test that supports or contradicts it in this run, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tedm import bootstrap, comparisons, statistics

ALL_SIZES = 0  # in the column n_train: the mean over all training sizes
COLUMNS = (
    *("claim", "dataset", "domain", "n_train", "better", "worse", "difference", "low", "high"),
    *("rank_biserial", "subjects", "p_value", "p_holm", "verdict", "reason"),
)
VERDICTS = ("supported", "contradicted", "undecided", "not tested")
FEW, INSIDE = "too few subjects", "in domain"  # reasons why something is not tested


class Sentence(NamedTuple):
    """What a run says about a claim on one test set."""

    claim: str
    compared: str  # the two sides
    dataset: str
    verdict: str
    difference: str  # with its interval
    lead: str  # the finding
    evidence: str  # whom it is about, the test, and what follows


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
    of all sizes at once (one per claim and test set), and over the sizes of one claim and test set. Not
    tested is what no test could decide: too few subjects for a p-value below the level even if all of them
    agreed, or a claim about other domains on the domain that the labels came from.

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
            inside = claim.get("out_of_domain", False) and dataset == train_on
            for row in _compared(values, claim, drawn):
                few = statistics.least_p(row["subjects"]) >= level
                reason = FEW if few else INSIDE if inside else ""
                who = {"claim": claim["claim"], "dataset": label, "domain": domain}
                parts.append({**who, **row, "reason": reason})
    found = pd.DataFrame(parts, columns=[c for c in COLUMNS if c not in ("p_holm", "verdict")])
    tested = found["reason"] == ""
    together = found["n_train"] == ALL_SIZES
    found["p_holm"] = np.nan
    overall = found[tested & together]
    found.loc[overall.index, "p_holm"] = comparisons.holm(overall["p_value"].tolist())
    by_size = found[tested & ~together]
    for _, of_one in by_size.groupby(["claim", "dataset", "better", "worse"], sort=False):
        found.loc[of_one.index, "p_holm"] = comparisons.holm(of_one["p_value"].tolist())
    apart = (found["low"] > 0) | (found["high"] < 0)
    decided = (found["p_holm"] < level) & apart
    found["verdict"] = np.select(
        [~tested, decided & (found["difference"] > 0), decided],
        [VERDICTS[3], *VERDICTS[:2]],
        VERDICTS[2],
    )
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


def sentences(found: pd.DataFrame) -> list[Sentence]:
    """One for each claim, comparison and test set: claim by claim, comparison by comparison.

    Args:
        found: of `assess`.
    """
    made = []
    for _, of_claim in found.groupby("claim", sort=False):
        for _, of_pair in of_claim.groupby(["better", "worse"], sort=False):
            for _, rows in of_pair.groupby("dataset", sort=False):
                overall = rows[rows["n_train"] == ALL_SIZES].iloc[0]
                made.append(_sentence(overall, rows[rows["n_train"] != ALL_SIZES]))
    return made


def _sentence(row: "pd.Series[Any]", by_size: pd.DataFrame) -> Sentence:
    verdict, sizes = str(row["verdict"]), len(by_size)
    size = f"{abs(row['difference']):.1f}"
    points = f"{size} point{'s' * (size != '1.0')} of Dice {'above' if row['difference'] > 0 else 'below'}"
    finding = (
        f"{row['better']} and {row['worse']} have the same Dice to 0.1 points"
        if size == "0.0"
        else f"{row['better']} is {points} {row['worse']}"
    )
    over = f", mean of {sizes} training sizes" if sizes > 1 else ""
    interval = "" if np.isnan(row["low"]) else f"{signed(row['low'])} to {signed(row['high'])}"
    who = f"{row['subjects']} subject" + ("" if row["subjects"] == 1 else "s")
    evidence = (
        f"{str(row['domain']).capitalize()}, {who}{over}:"
        f" difference {signed(row['difference'])}{f', 95 % interval {interval}' if interval else ''}"
    )
    if verdict != "not tested":
        evidence += (
            f"; Wilcoxon signed-rank, Holm-corrected p {_p(row['p_holm'])}; rank-biserial effect"
            f" {signed(row['rank_biserial'], 2)}"
        )
    evidence += (
        ". "
        + {
            "supported": "In this run, that supports the claim.",
            "contradicted": "In this run, that contradicts the claim.",
            "undecided": "Test and interval do not tell the two apart, which does not make them equal.",
            "not tested": "So few subjects could not show it, even if all of them agreed."
            if row["reason"] == FEW
            else "This is the domain of the labels, and the claim is about other ones.",
        }[verdict]
    )
    if sizes > 1 and verdict != "not tested":
        evidence += f" By training size: {_by_size(by_size)}."
    return Sentence(
        claim=str(row["claim"]),
        compared=f"{row['better']} against {row['worse']}",
        dataset=str(row["dataset"]),
        verdict=verdict,
        difference=signed(row["difference"]) + (f" ({interval})" if interval else ""),
        lead=f"On {row['dataset']}, {finding}.",
        evidence=evidence,
    )


def _by_size(rows: pd.DataFrame) -> str:
    parts = []
    for verdict in VERDICTS:
        sizes = [str(n) for n in rows.loc[rows["verdict"] == verdict, "n_train"]]
        if sizes:
            parts.append(f"{verdict} at n = {', '.join(sizes)}")
    return "; ".join(parts)


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign; what is rounded to zero has none."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def markdown(found: pd.DataFrame) -> str:
    """The sentences as a list under each claim."""
    text, last = "# The study's claims in this run\n", ""
    for said in sentences(found):
        if said.claim != last:
            text += f"\n## {said.claim}\n\n"
            last = said.claim
        text += f"- **{said.verdict}**: {said.lead} {said.evidence}\n"
    if not last:
        text += "\nThis experiment has no methods that the study's claims are about.\n"
    return text
