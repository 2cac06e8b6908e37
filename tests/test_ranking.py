"""Rank correlation and risk-coverage against scipy, brute force and pencil."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tedm.ranking import rank, risk_coverage


def draw(seed=0, count=30, decimals=6):
    rng = np.random.default_rng(seed)
    error = rng.random(count)
    return np.round(error + rng.normal(0, 0.4, count), decimals), np.round(error, decimals)


@pytest.mark.parametrize("decimals", [6, 1], ids=["no ties", "ties"])
def test_correlation_is_that_of_scipy(decimals):
    u, e = draw(decimals=decimals)
    found = rank(u, e)
    assert found.spearman == pytest.approx(stats.spearmanr(u, e).statistic, abs=1e-12)
    assert found.subjects == 30


def test_interval_is_about_that_of_scipy_and_the_same_every_time():
    u, e = draw()

    def statistic(a, b, axis=-1):
        return stats.spearmanr(a, b).statistic

    expected = stats.bootstrap(
        (u, e), statistic, paired=True, vectorized=False, method="percentile", n_resamples=2000, rng=0
    ).confidence_interval
    found = rank(u, e)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.04)
    assert found == rank(u, e)


def test_risk_coverage_by_hand():
    error = np.array([0.4, 0.1, 0.1])
    assert risk_coverage(np.array([1.0, 2.0, 3.0]), error).tolist() == pytest.approx([0.4, 0.25, 0.2])
    assert risk_coverage(error, error).tolist() == pytest.approx([0.1, 0.1, 0.2])


def test_risk_of_ties_is_the_mean_over_their_orders():
    u, error = np.array([2.0, 1.0, 2.0, 2.0, 3.0]), np.array([0.3, 0.2, 0.9, 0.5, 0.1])
    curves = []
    for order in itertools.permutations([0, 2, 3]):
        e = error[[1, *order, 4]]
        curves.append(np.cumsum(e) / np.arange(1, 6))
    np.testing.assert_allclose(risk_coverage(u, error), np.mean(curves, axis=0), atol=1e-12)


def test_risk_lies_between_the_oracle_and_chance_where_the_ranking_is_good():
    u, e = draw()
    found = rank(u, e)
    assert found.risk_oracle < found.risk < found.risk_random
    assert rank(e, e).risk == found.risk_oracle
    assert found.risk_random == pytest.approx(e.mean())


def test_a_subject_without_the_class_is_left_out():
    u, e = draw()
    with_nan = np.append(e, np.nan), np.append(u, 5.0)
    assert rank(with_nan[1], with_nan[0]) == rank(u, e)


@pytest.mark.parametrize("u", [np.zeros(5), np.zeros(1), np.zeros(0)], ids=["constant", "one", "none"])
def test_a_correlation_that_is_not_defined_is_nan(u):
    found = rank(u, np.linspace(0.1, 0.5, len(u)))
    assert np.isnan([found.spearman, found.low, found.high]).all()
