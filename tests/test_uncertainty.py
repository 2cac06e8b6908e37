"""The report on uncertainty: a row per run, the right ranking, a figure that is the same every time."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from tedm.report import figures, uncertainty


def score_rows(seed=0, datasets=("jsrt", "nih"), methods=("LR", "TEDM"), classes=("lungs",), votes=True):
    rng = np.random.default_rng(seed)
    rows = []
    for dataset in datasets:
        for method in methods:
            for n in (1, 6):
                for name in classes:
                    for subject in range(12):
                        dice = rng.uniform(0.6, 0.95)
                        run = (dataset, f"s{subject}", name, method, n, 0)
                        rows.append((*run, "dice", dice, "synthetic"))
                        if votes and method != "LEDM":
                            rows.append((*run, "uncertainty", rng.uniform(0, 1 - dice), "synthetic"))
    columns = ["dataset", "subject", "class", "method", "n_train", "seed", "metric", "value", "data"]
    return pd.DataFrame(rows, columns=columns)


def test_a_row_per_run_with_the_correlation_of_scipy():
    rows = score_rows(classes=("heart", "lungs"), methods=("TEDM", "LEDM"))
    found = uncertainty.rankings(rows.sample(frac=1, random_state=0))
    assert list(found.columns) == list(uncertainty.COLUMNS)
    assert len(found) == 2 * 1 * 2 * 2  # LEDM does not vote
    for row in found.itertuples():
        of_run = rows[
            (rows["dataset"] == row.dataset)
            & (rows["n_train"] == row.n_train)
            & (rows["method"] == row.method)
            & (rows["class"] == row[found.columns.get_loc("class") + 1])
        ]
        wide = of_run.pivot_table(index="subject", columns="metric", values="value")
        expected = stats.spearmanr(wide["uncertainty"], 1 - wide["dice"]).statistic
        assert row.spearman == pytest.approx(expected, abs=1e-12)
        assert row.risk_random == pytest.approx(1 - wide["dice"].mean())
        assert row.data == "synthetic"


def test_an_experiment_without_votes_has_an_empty_table_and_a_figure_that_says_so(tmp_path):
    assert uncertainty.rankings(score_rows(votes=False)).empty
    uncertainty.draw(tmp_path / "none.png", [], "No head votes.")
    assert Image.open(tmp_path / "none.png").width == pytest.approx(figures.WIDTH * figures.DPI, abs=1)


@pytest.mark.parametrize("classes", [1, 2])
def test_the_figure_is_the_same_every_time_and_survives_odd_input(tmp_path, classes):
    rng = np.random.default_rng(0)

    def panel(label, dice):
        masks = np.zeros((2, classes, 20, 20), np.uint8)
        masks[:, 0, 4:12, 4:12] = 1
        return uncertainty.Panel(
            label,
            rng.random(len(dice)) if len(dice) > 2 else np.zeros(len(dice)),
            np.array(dice),
            [0, len(dice) - 1],
            rng.random((2, 1, 20, 20)).astype(np.float32),
            masks,
            np.roll(masks, 2, axis=3),
            rng.random((2, 20, 20)).astype(np.float32),
        )

    panels = [panel("JSRT $", [80.0, 90.0, np.nan, 70.0]), panel("One", [50.0])]
    for suffix in (".png", ".pdf"):
        for name in ("a", "b"):
            uncertainty.draw(tmp_path / f"{name}{suffix}", panels, "A note.")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
