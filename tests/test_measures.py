"""Measures beyond Dice: against brute force in float64, scikit-learn and cases worked out by hand."""

import numpy as np
import pytest
import sklearn.metrics
from scipy import ndimage
from scipy.spatial.distance import cdist

from tedm import measures


def values(found, metric):
    return found[found["metric"] == metric]["value"].to_numpy()


def blobs(seed, shape):
    """Two smooth random masks that overlap, (D, H, W) each."""
    draw = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(draw.normal(size=shape), 2)
    other = field + 0.3 * ndimage.gaussian_filter(draw.normal(size=shape), 2)
    return (field > 0.02), (other > 0.02)


def surface(mask, spacing):
    inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1), border_value=0)
    return np.argwhere(mask & ~inner) * spacing


def distances_by_brute_force(a, b, spacing):
    """Larger 95th percentile, and mean over both, of the distances to the other surface."""
    table = cdist(surface(a, spacing), surface(b, spacing))
    there, back = table.min(axis=1), table.min(axis=0)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return hd95, np.concatenate([there, back]).mean()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [None, (np.nan, 0.7, 1.3)], ids=["pixels", "mm"])
def test_distances_in_the_plane_equal_brute_force(seed, spacing):
    pytest.importorskip("monai")
    a, b = blobs(seed, (1, 24, 30))
    known = None if spacing is None else np.array([spacing])
    found = measures.of_masks(
        *(a[None].astype(np.uint8), b[None].astype(np.uint8)), ["s"], ["x"], ["hd95", "assd"], known
    )
    scale = np.ones(2) if spacing is None else np.array(spacing[1:])
    hd95, assd = distances_by_brute_force(a[0], b[0], scale)
    unit = "px" if spacing is None else "mm"
    assert values(found, f"hd95_{unit}") == pytest.approx(hd95, rel=1e-5)
    assert values(found, f"assd_{unit}") == pytest.approx(assd, rel=1e-5)


def test_distances_of_a_volume_count_the_distance_of_its_slices():
    pytest.importorskip("monai")
    a, b = blobs(7, (6, 12, 12))
    spacing = np.tile([3.0, 0.5, 0.8], (6, 1))
    found = measures.of_masks(
        *(a[:, None].astype(np.uint8), b[:, None].astype(np.uint8)),
        ["v"] * 6,
        ["x"],
        ["hd95", "assd"],
        spacing,
    )
    hd95, assd = distances_by_brute_force(a, b, spacing[0])
    assert values(found, "hd95_mm") == pytest.approx(hd95, rel=1e-5)
    assert values(found, "assd_mm") == pytest.approx(assd, rel=1e-5)


def test_a_missed_object_is_as_far_as_could_be_and_an_absent_one_is_not_scored():
    truth = np.zeros((2, 1, 4, 5), np.uint8)
    truth[0, 0, 1, 1] = 1
    nothing = np.zeros_like(truth)
    found = measures.of_masks(nothing, truth, ["a", "b"], ["x"], ["iou", "hd95", "assd"])
    assert values(found, "hd95_px") == pytest.approx([5.0, np.nan], nan_ok=True)  # sqrt(3² + 4²)
    assert values(found, "assd_px") == pytest.approx([5.0, np.nan], nan_ok=True)
    assert values(found, "iou") == pytest.approx([0.0, np.nan], nan_ok=True)


def test_one_unknown_spacing_makes_all_distances_pixels():
    pytest.importorskip("monai")
    truth = np.zeros((2, 1, 4, 4), np.uint8)
    truth[:, 0, 1, 1] = 1
    spacing = np.array([[np.nan, 0.5, 0.5], [np.nan, np.nan, np.nan]])
    found = measures.of_masks(np.roll(truth, 1, axis=3), truth, ["a", "b"], ["x"], ["hd95"], spacing)
    assert values(found, "hd95_px").tolist() == [1.0, 1.0]


def test_overlap_and_volume_by_hand():
    truth = np.zeros((2, 1, 2, 4), np.uint8)
    truth[0, 0, 0] = [1, 1, 1, 0]
    truth[1, 0, 0] = [1, 0, 0, 0]
    predicted = np.zeros_like(truth)
    predicted[0, 0, 0] = [0, 1, 1, 1]
    predicted[1, 0, 0] = [1, 1, 1, 1]
    wanted = ["iou", "volume_similarity"]
    apart = measures.of_masks(predicted, truth, ["a", "b"], ["x"], wanted)
    assert values(apart, "iou").tolist() == [2 / 4, 1 / 4]
    assert values(apart, "volume_similarity").tolist() == [1.0, 1 - 3 / 5]
    pooled = measures.of_masks(predicted, truth, ["a", "a"], ["x"], wanted)  # slices of one subject
    assert values(pooled, "iou").tolist() == [3 / 8]
    assert values(pooled, "volume_similarity").tolist() == [1 - 3 / 11]


def test_the_iou_is_that_of_scikit_learn():
    a, b = blobs(3, (1, 20, 20))
    found = measures.of_masks(a[None].astype(np.uint8), b[None].astype(np.uint8), ["s"], ["x"], ["iou"])
    assert values(found, "iou") == pytest.approx(sklearn.metrics.jaccard_score(b.ravel(), a.ravel()))


def test_brier_is_that_of_scikit_learn_and_ece_that_of_a_plain_loop():
    draw = np.random.default_rng(0)
    p = draw.random((3, 2, 8, 8)).astype(np.float32)
    p[0, 0, 0, :2] = [0, 1]
    y = (draw.random(p.shape) < p**2).astype(np.uint8)
    found = measures.of_bins(measures.bins(p, y), ["a", "b", "a"], ["x", "z"], ["brier", "ece"])
    for subject, images in {"a": [0, 2], "b": [1]}.items():
        for k, name in enumerate("xz"):
            of = found[(found["subject"] == subject) & (found["class"] == name)]
            probability = p[images, k].ravel().astype(np.float64)
            truth = y[images, k].ravel()
            expected = sklearn.metrics.brier_score_loss(truth, probability)
            assert values(of, "brier") == pytest.approx(expected, rel=1e-12)
            ece = 0.0
            for i in range(measures.BINS):
                lower, upper = i / measures.BINS, (i + 1) / measures.BINS
                inside = (probability >= lower) & ((probability < upper) | (upper == 1))
                if inside.any():
                    ece += inside.mean() * abs(probability[inside].mean() - truth[inside].mean())
            assert values(of, "ece") == pytest.approx(ece, rel=1e-9)


def test_metrics_have_names_units_and_are_found_by_what_was_asked_for():
    assert measures.named("hd95_mm") == ("95th-percentile Hausdorff distance", "mm")
    assert measures.named("volume_similarity") == ("Volume similarity", "percent")
    assert measures.named("dice") == ("Dice", "percent")
    assert [measures.scale(m) for m in ("dice", "brier", "assd_px")] == [100, 100, 1]
    there = {"dice", "iou", "hd95_mm", "hd95_px", "assd_px"}
    assert measures.found_names(["assd", "iou", "hd95", "ece"], there) == [
        *("assd_px", "iou", "hd95_mm", "hd95_px"),
    ]


def test_what_is_sure_and_right_is_perfectly_calibrated():
    y = np.zeros((1, 1, 4, 4), np.uint8)
    y[0, 0, :2] = 1
    found = measures.of_bins(measures.bins(y.astype(np.float32), y), ["a"], ["x"], ["brier", "ece"])
    assert found["value"].tolist() == [0, 0]
    wrong = measures.of_bins(measures.bins(1 - y.astype(np.float32), y), ["a"], ["x"], ["brier", "ece"])
    assert wrong["value"].tolist() == [1, 1]
