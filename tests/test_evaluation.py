"""Scores against scikit-learn, monai and pencil; score files survive the trip to disk."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from tedm import evaluation
from tedm.errors import TedmError

CLASSES = ("liver", "spleen")


def value(found, subject, of_class, metric):
    row = found[(found["subject"] == subject) & (found["class"] == of_class) & (found["metric"] == metric)]
    assert len(row) == 1
    return row["value"].item()


def draw(seed, images=6, classes=2, size=9, density=0.3):
    rng = np.random.default_rng(seed)
    shape = (images, classes, size, size)
    return (rng.random(shape) < density).astype(np.uint8), (rng.random(shape) < density).astype(np.uint8)


def test_scores_by_hand():
    truth = np.array([[[[1, 1, 0, 0]]]], np.uint8)
    predicted = np.array([[[[0, 1, 1, 1]]]], np.uint8)
    found = evaluation.scores(predicted, truth, ["a"], ["lungs"])
    assert list(found.columns) == ["subject", "class", "metric", "value"]
    assert value(found, "a", "lungs", "dice") == 2 * 1 / (3 + 2)
    assert value(found, "a", "lungs", "precision") == 1 / 3
    assert value(found, "a", "lungs", "recall") == 1 / 2


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scores_equal_those_of_scikit_learn_on_the_pooled_pixels_of_a_subject(seed):
    predicted, truth = draw(seed)
    subjects = ["b", "a", "b", "c", "a", "b"]
    found = evaluation.scores(predicted, truth, subjects, CLASSES)
    assert list(found["subject"].unique()) == ["b", "a", "c"]
    assert len(found) == 3 * 2 * 3
    for subject in "abc":
        of_subject = [i for i, s in enumerate(subjects) if s == subject]
        for k, name in enumerate(CLASSES):
            p, t = predicted[of_subject, k].ravel(), truth[of_subject, k].ravel()
            expected = {
                "dice": sklearn.metrics.f1_score(t, p, zero_division=0),
                "precision": sklearn.metrics.precision_score(t, p, zero_division=0),
                "recall": sklearn.metrics.recall_score(t, p, zero_division=0),
            }
            for metric, truth_value in expected.items():
                assert value(found, subject, name, metric) == pytest.approx(truth_value, rel=1e-14)


def test_a_class_that_the_truth_lacks_is_nan_whatever_was_predicted():
    truth = np.zeros((2, 1, 2, 2), np.uint8)
    predicted = np.array([0, 1], np.uint8)[:, None, None, None] * np.ones((2, 1, 2, 2), np.uint8)
    assert evaluation.scores(predicted, truth, ["a", "b"], ["x"])["value"].isna().all()


def test_a_class_that_was_missed_scores_zero_in_all_metrics():
    truth = np.ones((1, 1, 2, 2), np.uint8)
    found = evaluation.scores(np.zeros_like(truth), truth, ["a"], ["x"])
    assert (found["value"] == 0).all()


def test_a_volume_is_scored_as_a_whole_even_where_some_slices_are_empty():
    truth = np.zeros((2, 1, 2, 2), np.uint8)
    truth[0, 0, 0] = 1
    found = evaluation.scores(np.ones_like(truth), truth, ["v", "v"], ["x"])
    assert value(found, "v", "x", "precision") == 2 / 8
    assert value(found, "v", "x", "dice") == 2 * 2 / (8 + 2)


def test_probabilities_are_segmented_before_they_are_scored():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], (4, 5, 5)).transpose(0, 3, 1, 2)[:, :2].astype(np.float32)
    _, truth = draw(0, images=4, size=5)
    left = evaluation.scores(probabilities, truth, list("abcd"), CLASSES)
    right = evaluation.scores(evaluation.segment(probabilities), truth, list("abcd"), CLASSES)
    pd.testing.assert_frame_equal(left, right)


def test_one_class_is_foreground_above_one_half_only():
    p = np.array([0.0, 0.5, np.nextafter(np.float32(0.5), 1), 1.0], np.float32).reshape(1, 1, 1, 4)
    assert evaluation.segment(p).ravel().tolist() == [0, 0, 1, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_several_classes_give_the_argmax_including_the_background(seed, classes):
    rng = np.random.default_rng(seed)
    whole = rng.dirichlet([1] * (classes + 1), (2, 6, 6)).transpose(0, 3, 1, 2)  # background first
    found = evaluation.segment(whole[:, 1:])
    expected = np.eye(classes + 1, dtype=np.uint8)[whole.argmax(axis=1)].transpose(0, 3, 1, 2)[:, 1:]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


def test_a_tie_with_the_background_is_background_and_between_classes_the_first():
    p = np.array([[0.5, 0.0], [0.4, 0.4]]).reshape(2, 2, 1, 1)
    assert evaluation.segment(p)[:, :, 0, 0].tolist() == [[0, 0], [1, 0]]


def test_probabilities_that_are_not_finite_are_refused():
    with pytest.raises(TedmError, match="not finite"):
        evaluation.segment(np.full((1, 1, 2, 2), np.nan, np.float32))


def test_shapes_that_do_not_belong_together_are_named():
    predicted, truth = draw(0)
    with pytest.raises(TedmError, match="6 images and 1 classes"):
        evaluation.scores(predicted, truth, list("abcdef"), ["x"])


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def rows(seed=0, method="TEDM", **labels):
    predicted, truth = draw(seed)
    truth[0, 0] = 0
    found = evaluation.scores(predicted, truth, ["001", "NA", "3.0", "d", "e", "nan"], CLASSES)
    return evaluation.labelled(
        found,
        **{"dataset": "jsrt", "method": method, "n_train": 3, "seed": 0, "synthetic": True} | labels,
    )


def test_a_score_file_gives_back_every_bit_and_every_name(tmp_path):
    written = pd.concat([rows(), rows(1, "TEDM_step1")], ignore_index=True)
    evaluation.write_scores(tmp_path / "a" / "jsrt.csv", written)
    read = evaluation.read_scores([tmp_path / "a" / "jsrt.csv"])
    assert list(read.columns) == list(evaluation.COLUMNS)
    assert read["subject"].tolist() == written["subject"].tolist()
    np.testing.assert_array_equal(read["value"].to_numpy(), written["value"].to_numpy())
    assert read["value"].isna().sum() == 6


def test_writing_the_same_scores_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.csv", "b.csv"):
        evaluation.write_scores(tmp_path / name, rows())
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()


def test_score_files_are_joined(tmp_path):
    evaluation.write_scores(tmp_path / "a.csv", rows())
    evaluation.write_scores(tmp_path / "b.csv", rows(seed=1, method="LEDM"))
    assert set(evaluation.read_scores(sorted(tmp_path.glob("*.csv")))["method"]) == {"TEDM", "LEDM"}


def test_a_missing_score_file_is_named(tmp_path):
    with pytest.raises(TedmError, match=r"nowhere\.csv: no such score file"):
        evaluation.read_scores([tmp_path / "nowhere.csv"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n1,2\n",
        b"dataset,subject,class,method,n_train,seed,metric,value\njsrt,a,x,TEDM,3,0,dice,much\n",
        b"dataset,subject,class,method,n_train,seed,metric,value\njsrt,a,x,TEDM,,0,dice,0.5\n",
        b"dataset,subject,class,method,n_train,seed,metric,value\njsrt,a,x,TEDM,3,0,dice,inf\n",
        b"\xff\xfe\x00",
    ],
    ids=["empty", "other columns", "a word", "no size", "infinite", "not text"],
)
def test_a_file_that_holds_no_scores_is_named(tmp_path, content):
    (tmp_path / "broken.csv").write_bytes(content)
    with pytest.raises(TedmError, match=r"broken\.csv"):
        evaluation.read_scores([tmp_path / "broken.csv"])


def test_a_score_that_two_files_claim_is_an_error_that_names_both(tmp_path):
    evaluation.write_scores(tmp_path / "a.csv", rows())
    evaluation.write_scores(tmp_path / "b.csv", rows(seed=1))
    with pytest.raises(TedmError, match=r"a\.csv and .*b\.csv: more than one score for dataset jsrt"):
        evaluation.read_scores([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_no_score_file_at_all_is_an_error():
    with pytest.raises(TedmError, match="no score file"):
        evaluation.read_scores([])
