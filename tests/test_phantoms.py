"""Synthetic radiographs: the same from the same names, anatomically plausible, different between sites."""

import functools

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import ndimage

from tedm.data.phantoms import SITES, draw
from tedm.errors import TedmError

COUNT = 24  # images per site
NAMES = list(SITES)


@functools.cache
def gallery(site, size=64):
    images, masks = zip(*(draw(site, index, size, seed=0) for index in range(COUNT)), strict=True)
    return np.stack(images) / 255, np.stack(masks)


def block_means(image, size):
    factor = image.shape[0] // size
    return image.reshape(size, factor, size, factor).mean((1, 3))


def dice(a, b):
    return 2 * np.sum(a * b) / (np.sum(a) + np.sum(b))


@pytest.mark.parametrize("site", NAMES)
@pytest.mark.parametrize("size", [32, 64, 100])
def test_images_are_bytes_and_masks_zero_or_one(site, size):
    image, mask = draw(site, 3, size, seed=1)
    assert image.shape == mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert np.ptp(image) > 60


@pytest.mark.parametrize("site", NAMES)
def test_the_same_names_draw_the_same_image(site):
    for a, b in zip(draw(site, 5, 64, seed=2), draw(site, 5, 64, seed=2), strict=True):
        assert_array_equal(a, b)


def test_an_image_does_not_depend_on_what_was_drawn_before():
    alone = draw("nih", 7, 48, seed=0)
    draw("nih", 6, 48, seed=0), draw("jsrt", 7, 96, seed=0)
    after = draw("nih", 7, 48, seed=0)
    assert_array_equal(alone[0], after[0])
    assert_array_equal(alone[1], after[1])


def test_another_index_seed_or_site_is_another_patient():
    drawings = [
        draw(*names)
        for names in [("jsrt", 0, 64, 0), ("jsrt", 1, 64, 0), ("jsrt", 0, 64, 1), ("montgomery", 0, 64, 0)]
    ]
    for i, (image, mask) in enumerate(drawings):
        for other_image, other_mask in drawings[:i]:
            assert np.mean(image != other_image) > 0.5
            assert dice(mask, other_mask) < 0.99


@pytest.mark.parametrize("site", NAMES)
@pytest.mark.parametrize(("small", "large"), [(32, 128), (40, 120), (64, 128), (64, 256)])
def test_anatomy_is_the_same_at_every_size(site, small, large):
    for index in range(3):
        image, mask = draw(site, index, small, seed=0)
        fine_image, fine_mask = draw(site, index, large, seed=0)
        covered = block_means(fine_mask, small)
        assert np.all(mask[covered == 1] == 1)
        assert np.all(mask[covered == 0] == 0)
        assert dice(mask, covered >= 0.5) > 0.95  # even blocks have ties
        assert np.corrcoef(image.ravel(), block_means(fine_image, small).ravel())[0, 1] > 0.98


def test_a_large_image_draws_the_same_lungs():
    _, mask = draw("jsrt", 0, 64, seed=0)
    _, large = draw("jsrt", 0, 512, seed=0)
    assert dice(mask, block_means(large, 64) >= 0.5) > 0.985


@pytest.mark.parametrize("site", NAMES)
def test_lungs_cover_as_much_of_the_image_as_in_real_sets(site):
    share = gallery(site)[1].mean((1, 2))
    assert np.all((share > 0.08) & (share < 0.5))
    assert 0.18 < share.mean() < 0.36
    assert share.std() > 0.02


@pytest.mark.parametrize("site", NAMES)
def test_nearly_all_patients_have_two_lungs_of_which_neither_is_tiny(site):
    parts = [ndimage.label(mask)[0] for mask in gallery(site)[1]]
    assert np.mean([part.max() == 2 for part in parts]) >= 0.9
    sizes = np.array([np.sort(np.bincount(part.ravel())[1:])[-2:] for part in parts])
    assert np.all(sizes[:, 0] > 0.25 * sizes[:, 1])


@pytest.mark.parametrize("site", NAMES)
def test_lungs_lie_left_and_right_of_the_middle(site):
    for mask in gallery(site)[1]:
        columns = mask.sum(0)
        assert columns[:28].sum() > 0.2 * columns.sum()
        assert columns[36:].sum() > 0.2 * columns.sum()


@pytest.mark.parametrize("site", NAMES)
def test_lungs_are_darker_than_what_lies_between_them(site):
    darker = []
    for image, mask in zip(*gallery(site), strict=True):
        # Between the lungs: pixels with lung on both sides in their row.
        between = (
            np.maximum.accumulate(mask, 1) & np.maximum.accumulate(mask[:, ::-1], 1)[:, ::-1]
        ) & ~mask
        darker.append(image[between == 1].mean() - image[mask == 1].mean())
    assert np.mean(np.array(darker) > 0.05) > 0.95


def test_the_heart_makes_the_left_lung_smaller_than_the_right():
    masks = gallery("jsrt")[1]
    right, left = masks[:, :, :32].sum((1, 2)), masks[:, :, 32:].sum((1, 2))
    assert np.mean(right > left) > 0.6


def test_lungs_differ_from_patient_to_patient():
    masks = gallery("jsrt")[1]
    overlaps = [dice(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    assert 0.7 < np.mean(overlaps) < 0.93


def test_sites_differ_in_grey_contrast_and_border():
    def border(images):
        return np.concatenate([images[:, :2].ravel(), images[:, :, :2].ravel(), images[:, :, -2:].ravel()])

    def lung_grey(site):
        images, masks = gallery(site)
        return images[masks == 1].mean()

    grey = {site: lung_grey(site) for site in NAMES}
    assert grey["montgomery"] + 0.05 < grey["nih"] < grey["jsrt"] - 0.05
    dark = {site: np.mean(border(gallery(site)[0]) < 0.1) for site in NAMES}
    assert dark["montgomery"] > 0.6
    assert dark["jsrt"] < 0.25
    spread = {site: gallery(site)[0].mean((1, 2)).std() for site in NAMES}
    assert spread["chestxray8"] > 1.2 * spread["jsrt"]  # the mixture


def test_sites_differ_in_noise():
    def grain(site):
        images = gallery(site, 128)[0]
        # Around the heart nothing is sharp but the noise.
        fine = images - ndimage.gaussian_filter(images, (0, 1.5, 1.5))
        return np.median(np.abs(fine[:, 70:80, 62:74]))

    assert grain("nih") > 1.5 * grain("jsrt")


@pytest.mark.parametrize("site", ["JSRT", "mars", ""])
def test_an_unknown_site_is_an_error_that_names_the_known_ones(site):
    with pytest.raises(TedmError, match="chestxray8, jsrt, nih, montgomery"):
        draw(site, 0, 64, seed=0)
