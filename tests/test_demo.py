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


@pytest.mark.parametrize("dataset", EXPERIMENT.evaluation.test_on)
def test_every_head_beats_the_best_constant_mask_by_far(table: pd.DataFrame, dataset: str) -> None:
    with PreparedSet(RESULTS / "data" / f"{EXPERIMENT.evaluation.train_on}.h5") as data:
        covered = data.masks(data.rows("train")).mean(axis=0)
    with PreparedSet(RESULTS / "data" / f"{dataset}.h5") as data:
        truth = data.masks(data.rows("test")).astype(float)
    constant = max(
        float(np.mean([2 * (t * mask).sum() / (t.sum() + mask.sum()) for t in truth]))
        for mask in (covered > threshold for threshold in (0.1, 0.3, 0.5))
    )
    # Lungs lie where they lie: the constant mask is a strong rival, and so measured by its error. Elsewhere
    # than where they learned, heads that concatenate timesteps do worse than others, as the study found
    # (LEDMe on Montgomery: 0.68 of its error on one machine, 0.75 on another), and heads with views better.
    abroad = dataset != EXPERIMENT.evaluation.train_on
    for head, settings in EXPERIMENT.heads.items():
        of_head = table[(table.dataset == dataset) & (table.method == head)]
        error = 100 - of_head.loc[of_head.n_train.idxmax(), "mean"]
        share = 2 / 3
        if abroad and settings.views:
            share = 3 / 5
        elif abroad and settings.settings.get("combine") == "concat":
            share = 4 / 5
        assert error < (100 - 100 * constant) * share, head


@pytest.mark.parametrize("head", ["LR", "TEDM"])
def test_with_one_label_views_are_worth_several_points_elsewhere(table: pd.DataFrame, head: str) -> None:
    mean = table[table.n_train == 1].set_index(["dataset", "method"])["mean"]
    for dataset in set(EXPERIMENT.evaluation.test_on) - {EXPERIMENT.evaluation.train_on}:
        assert mean[dataset, f"{head}-views"] > mean[dataset, head] + 3


def test_the_loss_of_the_diffusion_model_falls() -> None:
    losses = pd.read_csv(RESULTS / "backbones" / "ddpm" / "losses.csv")
    validation = losses["validation"].dropna()
    assert validation.iloc[-1] < 0.8 * validation.iloc[0]
    assert validation.min() == pytest.approx(validation.iloc[-1], rel=0.1)
