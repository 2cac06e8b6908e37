"""Our numbers beside the study's: difference, and whether it lies within the published spread."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from tedm.report import published

NEAR = 0.02  # sizes this close count as the same: a copy of JSRT may lack an image of the 197
COLUMNS = (
    *("table", "metric", "dataset", "method", "n_train", "mean", "std", "published_method", "published_n"),
    *("published_mean", "published_std", "difference", "within_spread"),
)


def compare(cells: pd.DataFrame, names: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Put each cell next to the published one.

    Args:
        cells: columns metric, dataset, method, n_train, mean and std (percent): `tables.Table.cells`.
        names: of `study.published_names`.

    Returns:
        A row per cell that the study prints (`COLUMNS`): difference is ours minus theirs in percent points;
        within_spread: whether its size is at most the published standard deviation over subjects. Cells
        that the study does not have, or that are illegible in it, are left out.
    """
    theirs = published.load().dropna(subset=["mean", "std"])
    rows = []
    shown: list[dict[Any, Any]] = cells[cells["mean"].notna()].to_dict("records")
    for cell in shown:
        if cell["dataset"] not in names["datasets"] or cell["method"] not in names["methods"]:
            continue
        method, n = names["methods"][cell["method"]], int(cell["n_train"])
        same = theirs[
            (theirs["metric"] == cell["metric"])
            & (theirs["dataset"] == names["datasets"][cell["dataset"]])
            & (theirs["method"] == method)
            & ((theirs["n_train"] - n).abs() <= NEAR * n)
        ]
        if same.empty:
            continue
        other: dict[str, Any] = same.to_dict("records")[0]  # Table 2 repeats TEDM's row of Table 1
        difference = cell["mean"] - other["mean"]
        rows.append(
            (
                *(int(other["table"]), cell["metric"], cell["dataset"], cell["method"], n),
                *(cell["mean"], cell["std"], method, int(other["n_train"]), other["mean"], other["std"]),
                *(difference, bool(abs(difference) <= other["std"])),
            )
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))
