"""What the finished demo must show; skipped where `make demo` has not run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tedm import config
from tedm.data.prepared import PreparedSet

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "results"
EXPERIMENT = config.load(PROJECT / "config.yaml")

pytestmark = pytest.mark.skipif(
    not (RESULTS / "table1_long.csv").exists(), reason="results/table1.csv is not there: run `make demo`"
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "table1_long.csv")


def test_every_method_data_set_and_size_has_a_cell(table: pd.DataFrame) -> None:
    expected = {
        (dataset, method, n)
        for dataset in EXPERIMENT.evaluation.test_on
        for method in EXPERIMENT.methods()
        for n in EXPERIMENT.evaluation.train_sizes
    }
    assert set(zip(table.dataset, table.method, table.n_train, strict=True)) == expected
    assert table["mean"].between(0, 100).all()
    assert set(table["data"]) == {"synthetic"}


def share_of_error(table: pd.DataFrame, dataset: str, head: str) -> float:
    """Error of a head with all labels, as a share of that of the best constant mask.

    Lungs lie where they lie: the constant mask is a strong rival, and so measured by its error.
    """
    with PreparedSet(RESULTS / "data" / f"{EXPERIMENT.evaluation.train_on}.h5") as data:
        covered = data.masks(data.rows("train")).mean(axis=0)
    with PreparedSet(RESULTS / "data" / f"{dataset}.h5") as data:
        truth = data.masks(data.rows("test")).astype(float)
    constant = max(
        float(np.mean([2 * (t * mask).sum() / (t.sum() + mask.sum()) for t in truth]))
        for mask in (covered > threshold for threshold in (0.1, 0.3, 0.5))
    )
    of_head = table[(table.dataset == dataset) & (table.method == head)]
    return float(100 - of_head.loc[of_head.n_train.idxmax(), "mean"]) / (100 - 100 * constant)


ABROAD = [d for d in EXPERIMENT.evaluation.test_on if d != EXPERIMENT.evaluation.train_on]
# Elsewhere than where they learned these do worse than others, as the study found.
CONCATENATED = [name for name, h in EXPERIMENT.heads.items() if h.settings.get("combine") == "concat"]


@pytest.mark.parametrize("head", EXPERIMENT.heads)
def test_every_head_beats_the_best_constant_mask_by_far(table: pd.DataFrame, head: str) -> None:
    shares = {d: share_of_error(table, d, head) for d in EXPERIMENT.evaluation.test_on}
    assert shares[EXPERIMENT.evaluation.train_on] < 2 / 3
    for dataset in ABROAD:
        if head not in CONCATENATED:
            assert shares[dataset] < (3 / 5 if EXPERIMENT.heads[head].views else 2 / 3), dataset
        else:  # LEDMe on Montgomery: 0.68 on one machine, 0.75 on another
            assert shares[dataset] < 4 / 5, dataset
    if head in CONCATENATED:
        assert np.mean([shares[d] for d in ABROAD]) < 3 / 4


@pytest.mark.parametrize("head", ["LR", "TEDM"])
def test_with_one_label_views_are_worth_several_points_elsewhere(table: pd.DataFrame, head: str) -> None:
    mean = table[table.n_train == 1].set_index(["dataset", "method"])["mean"]
    for dataset in ABROAD:
        assert mean[dataset, f"{head}-views"] > mean[dataset, head] + 3


def test_the_loss_of_the_diffusion_model_falls() -> None:
    losses = pd.read_csv(RESULTS / "backbones" / "ddpm" / "losses.csv")
    validation = losses["validation"].dropna()
    assert validation.iloc[-1] < 0.8 * validation.iloc[0]
    assert validation.min() == pytest.approx(validation.iloc[-1], rel=0.1)
