"""Disagreement between timesteps against brute force, scikit-learn and pencil."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
from scipy.spatial.distance import jensenshannon

from tedm import disagreement, evaluation


def draw(seed=0, steps=4, images=3, classes=1, size=6):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes + 1, 0.4), (steps, images, size, size))
    return np.moveaxis(p[..., 1:], -1, 2).astype(np.float32)


def test_information_by_hand():
    def bits(*p):
        return disagreement.information(np.array(p, np.float32).reshape(-1, 1, 1, 1, 1)).item()

    assert bits(0.0, 1.0) == 1
    assert bits(0.5, 0.5, 0.5) == 0  # unsure, but of one mind
    assert bits(1.0, 1.0) == bits(0.0, 0.0) == 0
    third = -(math.log2(1 / 3) / 3 + 2 * math.log2(2 / 3) / 3)
    assert bits(1.0, 0.0, 0.0) == pytest.approx(third)


def test_information_of_two_steps_is_the_jensen_shannon_divergence():
    steps = draw(steps=2)
    found = disagreement.information(steps)
    for place in itertools.product(*map(range, found.shape)):
        p, q = (float(s[place]) for s in steps)
        assert found[place] == pytest.approx(jensenshannon([p, 1 - p], [q, 1 - q], 2) ** 2, abs=1e-6)


def test_information_lies_between_0_and_1_and_is_finite_at_the_ends():
    steps = draw(classes=3)
    steps[:, :, :, 0] = 0
    steps[0, :, 0, 0] = 1
    found = disagreement.information(steps)
    assert found.shape == (3, 3, 6, 6)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (found <= 1).all()


@pytest.mark.parametrize("classes", [1, 3])
def test_score_is_one_minus_the_mean_dice_of_scikit_learn_over_all_pairs(classes):
    steps, subjects = draw(classes=classes, images=4), ["v", "w", "v", "x"]
    names = [f"class{k}" for k in range(classes)]
    found = disagreement.scores(disagreement.overlaps(steps), subjects, names)
    masks = np.stack([evaluation.segment(p) for p in steps])
    for subject in "vwx":
        of_subject = [i for i, s in enumerate(subjects) if s == subject]
        for k, name in enumerate(names):
            flat = masks[:, of_subject, k].reshape(len(masks), -1)
            dice = [
                sklearn.metrics.f1_score(a, b, zero_division=1) for a, b in itertools.combinations(flat, 2)
            ]
            row = found[(found["subject"] == subject) & (found["class"] == name)]
            assert row["value"].item() == pytest.approx(1 - np.mean(dice), abs=1e-12)
    assert list(found["subject"].unique()) == ["v", "w", "x"]
    assert set(found["metric"]) == {"uncertainty"}


def test_steps_that_all_see_nothing_agree():
    steps = np.zeros((3, 1, 1, 4, 4), np.float32)
    assert disagreement.scores(disagreement.overlaps(steps), ["a"], ["x"])["value"].item() == 0
