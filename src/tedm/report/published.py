"""The numbers that the study prints (Rosnati et al. 2023, tables 1, 2, 3, 5 and 6)."""

from importlib import resources

import pandas as pd


def load() -> pd.DataFrame:
    """The published tables.

    Returns:
        Columns table, metric, dataset, method, n_train, mean, std (percent) and bold; one row per cell.
        Where a cell cannot be read in the source, mean and std are NaN and bold is missing.
    """
    with resources.files("tedm").joinpath("published/tables.csv").open("r", encoding="utf-8") as file:
        cells = pd.read_csv(file, dtype={"mean": "str", "std": "str", "bold": "str"}, keep_default_na=False)
    numbers = cells[["mean", "std", "bold"]].apply(pd.to_numeric, errors="coerce")
    # A cell is legible as a whole or not at all: one prints "?" for its mean and zeros for its std.
    numbers[numbers.isna().any(axis=1)] = float("nan")
    return cells.assign(mean=numbers["mean"], std=numbers["std"], bold=numbers["bold"].astype("boolean"))
