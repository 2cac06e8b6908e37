"""Statistics beside the bold rule: against explicit resampling, scipy, and cases worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tedm import bootstrap, comparisons

NAN = float("nan")


def score_rows(values, metric="dice", dataset="jsrt", n_train=1):
    """Rows of a score file from {method: (seeds, subjects, classes)}."""
    rows = []
    for method, cube in values.items():
        for seed, of_seed in enumerate(np.asarray(cube, float)):
            for i, of_subject in enumerate(of_seed):
                for k, value in enumerate(of_subject):
                    rows.append((dataset, f"s{i}", f"c{k}", method, n_train, seed, metric, value))
    columns = ["dataset", "subject", "class", "method", "n_train", "seed", "metric", "value"]
    return pd.DataFrame(rows, columns=columns)


def one_seed(**methods):
    """One seed and one class: {method: values of the subjects}."""
    return score_rows({name: np.asarray(v, float)[None, :, None] for name, v in methods.items()})


# ── bootstrap ───────────────────────────────────────────────────────────────────────────────────


def test_resampled_means_are_those_of_subjects_drawn_with_all_their_classes():
    values = np.random.default_rng(0).random((5, 3, 2))
    values[1, 0, 0] = values[4, :, 1] = NAN
    drawn = bootstrap.weights(5, "test", resamples=50)
    assert (drawn.sum(axis=1) == 5).all()
    found = bootstrap.means(values, drawn)
    for counts, means in zip(drawn.astype(int), found, strict=True):
        sample = np.concatenate([values[i] for i in np.repeat(np.arange(5), counts)])
        for k in range(2):
            column = sample[:, k][~np.isnan(sample[:, k])]
            expected = column.mean() if len(column) else NAN
            np.testing.assert_allclose(means[k], expected, rtol=1e-13)


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    sample = np.random.default_rng(1).beta(8, 2, size=40)
    low, high = bootstrap.intervals(sample[:, None, None], bootstrap.weights(40, "test"))
    theirs = scipy.stats.bootstrap(
        (sample,), np.mean, n_resamples=10_000, method="percentile", random_state=np.random.default_rng(2)
    ).confidence_interval
    # Two draws of 10,000: the ends agree to a few hundredths of the interval.
    width = theirs.high - theirs.low
    assert abs(low[0] - theirs.low) < 0.05 * width
    assert abs(high[0] - theirs.high) < 0.05 * width


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(3)
    drawn = bootstrap.weights(40, "test", resamples=1000)
    samples = draw.normal(0.8, 0.1, size=(40, 1, 400))
    low, high = bootstrap.intervals(samples, drawn)
    assert 0.90 < np.mean((low < 0.8) & (high > 0.8)) < 0.98


def test_there_is_no_interval_of_one_subject_and_a_point_of_equal_ones():
    low, high = bootstrap.intervals(np.array([[[0.5]]]), bootstrap.weights(1, "test"))
    assert np.isnan([low[0], high[0]]).all()
    low, high = bootstrap.intervals(np.full((4, 1, 1), 0.5), bootstrap.weights(4, "test"))
    np.testing.assert_allclose([low[0], high[0]], 0.5, rtol=1e-13)


def test_the_interval_of_a_paired_difference_forgets_what_subjects_have_in_common():
    draw = np.random.default_rng(4)
    subject = draw.uniform(0.2, 0.9, 30)
    a, b = subject + 0.05 + draw.normal(0, 0.01, 30), subject
    drawn = bootstrap.weights(30, "test")
    low, high = bootstrap.intervals(np.stack([a, a - b], axis=-1)[:, None, :], drawn)
    assert high[1] - low[1] < 0.1 * (high[0] - low[0])
    assert 0.04 < low[1] < 0.05 < high[1] < 0.06


# ── one comparison ──────────────────────────────────────────────────────────────────────────────


def test_holm_by_hand():
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparisons.holm([0.6, 0.7]) == [1.0, 1.0]
    assert comparisons.holm([]) == []
    with_absent = comparisons.holm([0.02, NAN, 0.04])
    assert [with_absent[0], with_absent[2]] == pytest.approx([0.04, 0.04])
    assert np.isnan(with_absent[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = comparisons.holm(p_values)
    assert all(
        p <= a <= min(1.0, p * len(p_values)) + 1e-15 for p, a in zip(p_values, adjusted, strict=True)
    )
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_rank_biserial_by_hand_and_from_scipys_rank_sums():
    assert comparisons.rank_biserial(np.array([0.1, -0.2, 0.3])) == pytest.approx((1 + 3 - 2) / 6)
    assert comparisons.rank_biserial(np.array([0.0, NAN, 0.0])) == 0
    assert comparisons.rank_biserial(np.array([0.1, NAN, 0.0])) == 1
    d = np.random.default_rng(5).normal(0.3, 1, 20)
    smaller = scipy.stats.wilcoxon(d).statistic
    assert abs(comparisons.rank_biserial(d)) == pytest.approx(1 - 2 * smaller / (20 * 21 / 2))


def test_standardised_difference_by_hand():
    assert comparisons.standardised(np.array([0.0, 1.0, 2.0, NAN])) == pytest.approx(1.0)
    assert np.isnan(comparisons.standardised(np.array([1.0])))
    assert np.isnan(comparisons.standardised(np.array([0.5, 0.5])))


# ── all methods ─────────────────────────────────────────────────────────────────────────────────


def test_the_spread_of_seeds_is_apart_from_the_spread_of_subjects():
    subjects, seeds = np.array([0.5, 0.6, 0.9]), np.array([-0.02, 0.0, 0.05])
    cube = (subjects[None, :] + seeds[:, None])[:, :, None]
    found = comparisons.summarise(score_rows({"TEDM": cube}), ["TEDM"]).iloc[0]
    assert found["std_subjects"] == pytest.approx(100 * subjects.std())
    assert found["std_seeds"] == pytest.approx(100 * seeds.std(ddof=1))
    assert (found["subjects"], found["seeds"], found["mean_rank"]) == (3, 3, 1)
    assert found["mean"] == pytest.approx(100 * cube.mean())


def test_one_seed_has_no_spread_of_seeds():
    found = comparisons.summarise(one_seed(TEDM=[0.5, 0.7]), ["TEDM"]).iloc[0]
    assert np.isnan(found["std_seeds"])


def test_mean_ranks_by_hand():
    rows = one_seed(a=[0.9, 0.5, 0.7], b=[0.8, 0.5, 0.8], c=[0.1, 0.4, NAN])
    found = comparisons.summarise(rows, ["a", "b", "c"]).set_index("method")
    # Subject 2 has no value of c, so that it counts for nobody: ranks (1, 2, 3) and (1.5, 1.5, 3).
    assert found["mean_rank"].to_dict() == pytest.approx({"a": 1.25, "b": 1.75, "c": 3.0})


def test_differences_are_against_the_best_mean_and_corrected_over_methods():
    draw = np.random.default_rng(6)
    best = draw.uniform(0.6, 0.9, 20)
    values = {"weak": best - draw.uniform(0, 0.2, 20), "near": best + draw.normal(0, 0.02, 20) - 0.01}
    rows = one_seed(best=best, **values)
    found = comparisons.differences(rows, ["weak", "best", "near"]).set_index("method")
    assert list(found.index) == ["weak", "near"]
    assert set(found["reference"]) == {"best"}
    p_values = [scipy.stats.wilcoxon(values[m] - best).pvalue for m in found.index]
    assert found["p_value"].tolist() == pytest.approx(p_values)
    assert found["p_holm"].tolist() == pytest.approx(comparisons.holm(p_values))
    for m in found.index:
        row = found.loc[m]
        assert row["difference"] == pytest.approx(100 * (values[m] - best).mean())
        assert row["low"] < row["difference"] < row["high"]
        assert row[["wins", "ties", "losses"]].sum() == row["pairs"] == 20
        assert row["wins"] == (values[m] > best).sum()


def test_who_wins_where_lower_is_better_is_who_is_lower():
    near = [1.0, 2.0, 3.0, 4.0]
    rows = one_seed(near=near, far=[2.0, 3.0, 2.5, 9.0]).assign(metric="hd95_mm")
    [row] = comparisons.differences(rows, ["near", "far"]).to_dict("records")
    assert (row["reference"], row["method"]) == ("near", "far")
    assert row["difference"] == pytest.approx(np.mean([1.0, 1.0, -0.5, 5.0]))  # mm, not percent; larger
    assert (row["wins"], row["ties"], row["losses"]) == (1, 0, 3)
    # Ranks of 1, 1, 0.5, 5: 2.5, 2.5, 1, 4; better only on the third.
    assert row["rank_biserial"] == pytest.approx((1 - 9) / 10)
    assert row["d_z"] < 0


def test_tests_across_classes_count_subjects_not_pairs_of_subject_and_class():
    draw = np.random.default_rng(7)
    a = draw.uniform(0.5, 0.9, (1, 8, 15))
    rows = score_rows({"a": a, "b": a - 0.001})
    found = comparisons.differences(rows, ["a", "b"]).iloc[0]
    assert found["pairs"] == 8
    assert found["p_value"] == pytest.approx(2 / 2**8)  # 120 pairs would give nearly nothing


def test_a_single_method_has_no_differences():
    assert comparisons.differences(one_seed(a=[0.5, 0.6]), ["a"]).empty


def test_the_order_of_rows_changes_no_bit():
    draw = np.random.default_rng(8)
    rows = score_rows({m: draw.random((3, 9, 2)) for m in "abc"})
    shuffled = rows.sample(frac=1, random_state=0)
    for of in (comparisons.summarise, comparisons.differences):
        pd.testing.assert_frame_equal(of(rows, list("abc")), of(shuffled, list("abc")), check_exact=True)
