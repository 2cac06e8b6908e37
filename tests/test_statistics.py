"""The bold rule against scipy, enumeration of all signs, and cases worked out by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tedm import statistics
from tedm.errors import TedmError


def frame(classes=("lungs",), **methods):
    subjects = len(next(iter(methods.values()))) // len(classes)
    index = pd.MultiIndex.from_product(
        [[f"s{i}" for i in range(subjects)], classes], names=["subject", "class"]
    )
    return pd.DataFrame({name: np.asarray(values, float) for name, values in methods.items()}, index=index)


def summary(values, level=0.05):
    return statistics.compare_with_best(values, level)[0].set_index("method")


def two_sided_by_enumeration(differences):
    """Exact p-value: how many of all 2^n signs give rank sums at least as far from the middle."""
    d = np.array([x for x in differences if x != 0])
    ranks = scipy.stats.rankdata(np.abs(d))
    middle = ranks.sum() / 2
    seen = abs(ranks[d > 0].sum() - middle)
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s)
        for signs in itertools.product([0, 1], repeat=len(d))
    ]
    return np.mean([abs(s - middle) >= seen - 1e-9 for s in sums])


# ── one test ────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 120))
def test_signed_rank_equals_scipy(seed, n):
    rng = np.random.default_rng(seed)
    a, b = rng.random(n), rng.random(n)
    expected = scipy.stats.wilcoxon(a, b, zero_method="wilcox", alternative="two-sided")
    found = statistics.signed_rank(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.statistic == expected.statistic
    assert (found.pairs, found.nonzero) == (n, n)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_few_pairs_with_ties_and_zeros_equal_the_enumeration_of_all_signs(differences):
    found = statistics.signed_rank(np.array(differences) / 8, np.zeros(len(differences)))
    expected = two_sided_by_enumeration(differences) if any(differences) else 1.0
    assert found.p_value == pytest.approx(expected, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=7).filter(any))
def test_few_pairs_with_ties_and_zeros_equal_scipy(differences):
    expected = scipy.stats.wilcoxon(np.array(differences) / 8)
    found = statistics.signed_rank(np.array(differences) / 8, np.zeros(len(differences)))
    assert (found.statistic, found.p_value) == pytest.approx(
        (expected.statistic, expected.pvalue), abs=1e-12
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=14, max_size=80).filter(any))
def test_many_pairs_with_ties_and_zeros_equal_scipy(differences):
    expected = scipy.stats.wilcoxon(np.array(differences) / 16)
    found = statistics.signed_rank(np.array(differences) / 16, np.zeros(len(differences)))
    assert (found.statistic, found.p_value) == pytest.approx(
        (expected.statistic, expected.pvalue), abs=1e-12
    )


def test_thirteen_pairs_with_ties_equal_scipy():
    differences = np.array([1, 1, 2, 2, 3, 3, -3, 4, 4, 5, -5, 6, 0]) / 8
    expected = scipy.stats.wilcoxon(differences)
    found = statistics.signed_rank(differences, np.zeros(13))
    assert (found.statistic, found.p_value) == pytest.approx(
        (expected.statistic, expected.pvalue), abs=1e-12
    )


def test_a_textbook_case():
    # Differences 1 … 6 in favour of a but for the smallest: sums of ranks 20 and 1; P(W <= 1) = 2/64.
    a, b = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), np.array([0.91, 0.78, 0.67, 0.56, 0.45, 0.34])
    found = statistics.signed_rank(a, b)
    assert found.statistic == 1
    assert found.p_value == pytest.approx(2 * 2 / 64)


def test_it_does_not_matter_which_of_the_two_comes_first():
    a, b = np.random.default_rng(0).random((2, 30))
    assert statistics.signed_rank(a, b) == statistics.signed_rank(b, a)


@pytest.mark.filterwarnings("error")
def test_equal_scores_cannot_be_told_apart():
    a = np.random.default_rng(0).random(20)
    assert statistics.signed_rank(a, a.copy()) == (20, 0, 0.0, 1.0)


@pytest.mark.filterwarnings("error")
def test_differences_of_round_off_are_zero():
    a = np.random.default_rng(0).random(20)
    assert statistics.signed_rank(a, a + 1e-16).p_value == 1


@pytest.mark.filterwarnings("error")
def test_one_subject_tells_nothing():
    assert statistics.signed_rank(np.array([0.1]), np.array([0.9])) == (1, 1, 0.0, 1.0)


def test_five_subjects_never_reach_the_level():
    assert statistics.signed_rank(np.arange(1.0, 6), np.zeros(5)).p_value == 2 / 32


@pytest.mark.filterwarnings("error")
def test_pairs_with_nan_are_dropped():
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    a[3], b[5] = np.nan, np.nan
    keep = [i for i in range(30) if i not in (3, 5)]
    assert statistics.signed_rank(a, b) == statistics.signed_rank(a[keep], b[keep])
    assert statistics.signed_rank(a, b).pairs == 28


@pytest.mark.filterwarnings("error")
def test_no_pair_at_all_tells_nothing():
    assert statistics.signed_rank(np.array([np.nan, 0.5]), np.array([0.5, np.nan])) == (0, 0, 0.0, 1.0)


# ── the rule ────────────────────────────────────────────────────────────────────────────────────


def test_bold_is_the_best_mean_and_what_the_test_does_not_tell_from_it():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.7, 0.9, 25)
    near, far = base - rng.normal(0.0005, 0.01, 25), base - rng.uniform(0.01, 0.05, 25)
    found, tests = statistics.compare_with_best(frame(far=far, best=base, near=near), 0.05)
    found = found.set_index("method")
    assert found["mean"].idxmax() == "best"
    for name, values in {"near": near, "far": far}.items():
        expected = scipy.stats.wilcoxon(base, values).pvalue
        assert found.loc[name, "p_value"] == pytest.approx(expected, rel=1e-12)
        assert found.loc[name, "bold"] == (expected >= 0.05)
    assert found["bold"].to_dict() == {"far": False, "best": True, "near": True}
    assert found.loc["best", "p_value"] == 1
    assert set(zip(tests["reference"], tests["method"], strict=True)) == {("best", "far"), ("best", "near")}


@pytest.mark.parametrize("pairs", [1, 2, 5, 6, 9])
def test_the_least_p_is_that_of_subjects_who_all_agree(pairs):
    agreeing = np.linspace(0.1, 0.2, pairs)
    assert statistics.least_p(pairs) == statistics.signed_rank(agreeing, np.zeros(pairs)).p_value


def test_where_lower_is_better_the_rule_is_that_of_the_negated_scores():
    rng = np.random.default_rng(4)
    base = rng.uniform(1, 9, (20, 2))
    values = {"a": base.ravel(), "b": (base + rng.normal(0.1, 1, (20, 2))).ravel(), "c": 2 * base.ravel()}
    found, tests = statistics.compare_with_best(frame(("x", "y"), **values), 0.05, lower_is_better=True)
    negated = frame(("x", "y"), **{m: -v for m, v in values.items()})
    expected, expected_tests = statistics.compare_with_best(negated, 0.05)
    assert found["bold"].tolist() == expected["bold"].tolist() == [True, True, False]
    assert found["mean"].tolist() == (-expected["mean"]).tolist()
    pd.testing.assert_frame_equal(tests, expected_tests)
    assert set(tests["reference"]) == {found.set_index("method")["mean"].idxmin()}


def test_mean_and_population_standard_deviation():
    found = summary(frame(a=[0.5, 0.7, 0.9]))
    assert found.loc["a", "mean"] == pytest.approx(0.7)
    assert found.loc["a", "std"] == pytest.approx(np.sqrt(0.08 / 3))
    assert found.loc["a", "subjects"] == 3


def test_methods_that_share_the_best_mean_are_all_bold_whatever_the_order():
    a = np.linspace(0.5, 0.9, 12)
    b, c = a[::-1].copy(), a - 0.1  # c is far from a on every subject, but not from b
    first, second = summary(frame(a=a, b=b, c=c)), summary(frame(c=c, b=b, a=a))
    assert first["bold"].to_dict() == second["bold"].to_dict() == {"a": True, "b": True, "c": True}
    against_b = two_sided_by_enumeration(np.round(b - c, 12))
    assert first.loc["c", "p_value"] == second.loc["c", "p_value"] == pytest.approx(against_b, rel=1e-12)


def test_a_single_method_is_bold_and_nothing_is_tested():
    found, tests = statistics.compare_with_best(frame(a=[0.5, 0.7]), 0.05)
    assert found["bold"].tolist() == [True]
    assert list(tests.columns) == list(statistics.TESTS)
    assert tests.empty


@pytest.mark.filterwarnings("error")
def test_with_one_subject_everything_is_bold():
    assert summary(frame(a=[0.5], b=[0.9]))["bold"].all()


@pytest.mark.filterwarnings("error")
def test_a_method_without_any_value_is_never_bold():
    found = summary(frame(a=[0.5, 0.6], b=[np.nan, np.nan]))
    assert found["bold"].to_dict() == {"a": True, "b": False}
    assert np.isnan(found.loc["b", "p_value"])
    assert found["subjects"].to_dict() == {"a": 2, "b": 0}


def test_several_classes_are_tested_one_by_one_and_corrected_by_their_number():
    rng = np.random.default_rng(1)
    best = rng.uniform(0.5, 0.9, (20, 3))
    other = best - rng.normal([0.004, 0.0, 0.001], 0.008, (20, 3))
    values = frame(("x", "y", "z"), best=best.ravel(), other=other.ravel())
    found, tests = statistics.compare_with_best(values, 0.05)
    p = [scipy.stats.wilcoxon(best[:, k], other[:, k]).pvalue for k in range(3)]
    assert tests["class"].tolist() == ["x", "y", "z"]
    np.testing.assert_allclose(tests["p_value"], p, rtol=1e-12)
    np.testing.assert_allclose(tests["p_adjusted"], np.minimum(3 * np.array(p), 1), rtol=1e-12)
    assert found.set_index("method").loc["other", "p_value"] == pytest.approx(min(3 * min(p), 1), rel=1e-12)
    assert found.set_index("method").loc["other", "mean"] == pytest.approx(other.mean())


def test_a_class_that_is_absent_everywhere_is_not_counted_in_the_correction():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 20, 2))
    a[:, 1] = b[:, 1] = np.nan
    found, _ = statistics.compare_with_best(frame(("x", "y"), a=a.ravel(), b=b.ravel()), 0.05)
    assert found["p_value"].min() == pytest.approx(scipy.stats.wilcoxon(a[:, 0], b[:, 0]).pvalue, rel=1e-12)


# ── subjects and seeds ──────────────────────────────────────────────────────────────────────────


def rows(values, method="a", n_train=1, seed=0, subjects=None):
    return pd.DataFrame(
        {
            "dataset": "jsrt",
            "subject": subjects or [f"s{i}" for i in range(len(values))],
            "class": "lungs",
            "method": method,
            "n_train": n_train,
            "seed": seed,
            "metric": "dice",
            "value": values,
        }
    )


def test_seeds_are_averaged_for_each_subject_first():
    scores = pd.concat(
        [rows([0.2, 0.4, np.nan]), rows([0.4, 0.8, np.nan], seed=7), rows([0.1, 0.2, 0.3], "b")]
    )
    found = statistics.subject_values(scores)
    np.testing.assert_allclose(found[(1, "a")], [0.3, 0.6, np.nan])
    np.testing.assert_allclose(found[(1, "b")], [0.1, 0.2, 0.3])
    assert found.index.get_level_values("subject").tolist() == ["s0", "s1", "s2"]


def test_the_order_of_rows_does_not_matter():
    draw = np.random.default_rng(0)
    scores = pd.concat([rows(draw.random(9), method, seed=seed) for method in "ab" for seed in range(3)])
    for state in range(5):
        mixed = scores.sample(frac=1, random_state=state)
        a, b = statistics.subject_values(scores), statistics.subject_values(mixed)
        pd.testing.assert_frame_equal(a, b, check_exact=True)


@pytest.mark.parametrize(
    "other",
    [
        rows([0.1], "b", subjects=["s0"]),
        rows([0.1], "a", seed=1, subjects=["s0"]),
        rows([0.1], "a", n_train=3, subjects=["s0"]),
    ],
    ids=["another method", "another seed", "another size"],
)
def test_scores_on_different_subjects_are_an_error_that_names_the_first_missing_one(other):
    with pytest.raises(
        TedmError, match=r"on jsrt \(n_train .*subject s1, class lungs.*1 values instead of 2"
    ):
        statistics.subject_values(pd.concat([rows([0.2, 0.4]), other]))


def test_other_subjects_in_equal_number_are_an_error_as_well():
    with pytest.raises(TedmError, match="same subjects"):
        statistics.subject_values(
            pd.concat([rows([0.2, 0.4]), rows([0.1, 0.1], "b", subjects=["s0", "t"])])
        )
