"""Augmentation, compared with its definition in float64."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from tedm.augmentation import View, draw, joined
from tedm.config import VOLUME_AUGMENTATION, AugmentationConfig

WIDE = AugmentationConfig(gamma=1, contrast=1, brightness=0.4, zoom=0.5, rotation=180, shift=0.2)
TURNED = AugmentationConfig(zoom=0.3, rotation=180, shift=0.1)
NONE = AugmentationConfig(gamma=0, contrast=0, brightness=0, zoom=0, rotation=0, shift=0)
RANGES = [AugmentationConfig(), VOLUME_AUGMENTATION, WIDE, "study"]
MILD = [AugmentationConfig(), VOLUME_AUGMENTATION, TURNED, "study"]  # that keep discs recognisable
seeds = st.integers(0, 2**31)


def drawn(seed, count, ranges, size=(32, 32)) -> View:
    return draw(np.random.default_rng(seed), count, size, ranges)


def geometry(view: View) -> View:
    """The same view without changes of intensities."""
    one = torch.ones(len(view))
    return dataclasses.replace(view, gamma=one, contrast=one, brightness=0 * one)


def noise(seed, *shape) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


def label_maps(seed, count, classes, size) -> torch.Tensor:
    """Masks of which each pixel shows one class or none, uint8."""
    chosen = np.random.default_rng(seed).integers(0, classes + 1, (count, size, size))
    return torch.from_numpy((chosen[:, None] == np.arange(1, classes + 1)[:, None, None]).astype(np.uint8))


def parameters(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zoom, angle and shift of each image, from the maps."""
    maps = view.maps.double().numpy()
    scale = np.hypot(maps[:, 0, 0], maps[:, 1, 0])
    return 1 / scale, np.arctan2(maps[:, 1, 0], maps[:, 0, 0]), maps[:, :, 2] / 2


def looked_at(plane, zoom, angle, shift) -> np.ndarray:
    """A square plane through a zoom, a turn and a shift, from the definition; bilinear, float64.

    Pixel centres are at half-integers. The pixel at (x, y) from the view's centre shows the image at (x, y)
    turned, divided by the zoom and shifted by a share of the side.
    """
    size, c, s = len(plane), np.cos(angle), np.sin(angle)
    # scipy counts rows, then columns: (y, x) → (y, x).
    matrix = np.array([[c, s], [-s, c]]) / zoom
    centre = np.full(2, (size - 1) / 2)
    offset = centre - matrix @ centre + size * np.asarray(shift)[::-1]
    return affine_transform(np.asarray(plane, np.float64), matrix, offset, order=1, mode="nearest")


# ── what holds for all ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranges", RANGES)
@settings(max_examples=15)
@given(seed=seeds, size=st.integers(4, 40), classes=st.integers(1, 3))
def test_images_stay_images_and_masks_stay_masks(ranges, seed, size, classes):
    images, masks = noise(seed, 3, 2, size, size), label_maps(seed, 3, classes, size)
    for kind in (torch.uint8, torch.float32, torch.bool):
        view = drawn(seed, 3, ranges, (size, size))
        x, y = view.images(images), view.masks(masks.to(kind))
        assert (x.shape, x.dtype) == (images.shape, torch.float32)
        assert (y.shape, y.dtype) == (masks.shape, kind)
        assert x.min() >= 0
        assert x.max() <= 1
        assert set(y.int().unique().tolist()) <= {0, 1}
        assert y.int().sum(1).max() <= 1
        again = drawn(seed, 3, ranges, (size, size))
        assert torch.equal(again.images(images), x)
        assert torch.equal(again.masks(masks.to(kind)), y)


@pytest.mark.parametrize("ranges", RANGES)
def test_another_seed_and_each_image_get_a_change_of_their_own(ranges):
    image = noise(0, 1, 1, 24, 24).expand(40, -1, -1, -1)
    seen = torch.cat([drawn(seed, 40, ranges, (24, 24)).images(image) for seed in (0, 1)])
    assert len({x.numpy().tobytes() for x in seen}) == 80


@pytest.mark.parametrize("ranges", RANGES)
@settings(max_examples=10)
@given(seed=seeds)
def test_intensities_are_bent_then_spread_around_the_mean_then_shifted(ranges, seed):
    images = noise(seed, 4, 2, 12, 12) ** 2
    view = drawn(seed, 4, ranges, (12, 12))
    x = geometry(view).images(images).double().numpy()
    gamma, contrast, brightness = (
        value.double().numpy()[:, None, None, None]
        for value in (view.gamma, view.contrast, view.brightness)
    )
    bent = x**gamma
    mean = bent.mean((2, 3), keepdims=True)
    expected = np.clip(mean + contrast * (bent - mean) + brightness, 0, 1)
    np.testing.assert_allclose(view.images(images), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("ranges", RANGES)
def test_all_channels_of_an_image_change_alike(ranges):
    images = noise(0, 6, 1, 20, 20).repeat(1, 3, 1, 1)
    seen = drawn(0, 6, ranges, (20, 20)).images(images)
    assert not torch.equal(seen, images)
    torch.testing.assert_close(seen[:, 1:], seen[:, :1].expand(-1, 2, -1, -1), rtol=0, atol=1e-6)


def test_ranges_of_0_change_nothing():
    images, masks = noise(0, 5, 2, 33, 33), label_maps(0, 5, 3, 33)
    view = drawn(0, 5, NONE, (33, 33))
    torch.testing.assert_close(view.images(images), images, rtol=0, atol=1e-5)
    assert torch.equal(view.masks(masks), masks)


@pytest.mark.parametrize("ranges", RANGES)
def test_views_of_single_images_joined_are_the_view_of_all(ranges):
    images, masks = noise(0, 5, 2, 16, 16), label_maps(0, 5, 2, 16)
    view = drawn(0, 5, ranges, (16, 16))
    parts = [view[i : i + 1] for i in range(5)]
    whole = joined(parts)
    assert len(whole) == 5
    assert torch.equal(whole.images(images), view.images(images))
    seen = torch.cat([part.images(images[i : i + 1]) for i, part in enumerate(parts)])
    torch.testing.assert_close(seen, view.images(images), rtol=0, atol=1e-6)
    labels = torch.cat([part.masks(masks[i : i + 1]) for i, part in enumerate(parts)])
    assert torch.equal(labels, view.masks(masks))


# ── the study's ─────────────────────────────────────────────────────────────────────────────────


def crops(view: View, height: int, width: int) -> np.ndarray:
    """Top, left, height and width of each crop in pixels, which are whole numbers."""
    maps = view.maps.double().numpy()
    assert not maps[:, [0, 1], [1, 0]].any()
    length = np.array([height, width])
    share = maps[:, [1, 0], [1, 0]]
    start, side = (maps[:, [1, 0], 2] - share + 1) / 2 * length, share * length
    boxes = np.concatenate((start, side), 1)
    np.testing.assert_allclose(boxes, boxes.round(), rtol=0, atol=1e-4)
    return boxes.round().astype(int)


@settings(max_examples=20)
@given(seed=seeds, height=st.integers(8, 60), width=st.integers(8, 60))
def test_a_view_of_the_study_is_its_crop_resized(seed, height, width):
    images = noise(seed, 3, 2, height, width)
    view = drawn(seed, 3, "study", (height, width))
    seen = geometry(view).images(images)
    for i, (top, left, tall, wide) in enumerate(crops(view, height, width)):
        crop = images[i : i + 1, :, top : top + tall, left : left + wide]
        resized = F.interpolate(crop, (height, width), mode="bilinear")[0]
        # At its border a view reads half a pixel beyond the crop, which resizing the crop alone cannot.
        inner = (slice(None), slice(1, -1), slice(1, -1))
        torch.testing.assert_close(seen[i][inner], resized[inner], rtol=0, atol=2e-5)
        matrix = np.array([tall / height, wide / width])
        offset = np.array([top, left]) + (matrix - 1) / 2
        for channel, plane in zip(seen[i], images[i].double().numpy(), strict=True):
            expected = affine_transform(plane, matrix, offset, order=1, mode="nearest")
            np.testing.assert_allclose(channel, expected, rtol=0, atol=2e-5)


def test_crops_brightness_and_contrast_are_those_of_the_published_code():
    view = drawn(0, 20_000, "study", (128, 128))
    boxes = crops(view, 128, 128)
    start, side = boxes[:, :2], boxes[:, 2:]
    assert (start.min(), start.max()) == (0, 31)
    assert side.min() == 96
    assert (start + side).max() == 128
    assert len(np.unique(start)) == 32
    for values, low, high in ((view.brightness, -0.3, 0.3), (view.contrast, 0.7, 1.3)):
        assert low - 1e-6 <= values.min() < low + 1e-3
        assert high - 1e-3 < values.max() <= high + 1e-6
    assert (view.gamma == 1).all()


# ── ranges ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranges", [AugmentationConfig(), VOLUME_AUGMENTATION, WIDE])
def test_draws_fill_their_ranges_and_never_leave_them(ranges):
    view = drawn(0, 20_000, ranges)
    zoom, angle, shift = parameters(view)
    for values, most in (
        (view.gamma.double().log().numpy(), ranges.gamma),
        (view.contrast.double().log().numpy(), ranges.contrast),
        (view.brightness.double().numpy(), ranges.brightness),
        (np.log(zoom), ranges.zoom),
        (np.rad2deg(angle), ranges.rotation),
        (shift[:, 0], ranges.shift),
        (shift[:, 1], ranges.shift),
    ):
        assert np.abs(values).max() <= most * (1 + 1e-5)
        # Uniform: each quantile within 5 of its standard deviations, at most 0.0036 of the width.
        quantiles = np.quantile(values, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
        expected = most * (2 * np.array([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]) - 1)
        np.testing.assert_allclose(quantiles, expected, rtol=0, atol=0.036 * most)
    maps = view.maps.double().numpy()[:, :, :2]
    # Turned and scaled, neither sheared nor mirrored.
    square = maps @ maps.transpose(0, 2, 1) * (zoom**2)[:, None, None]
    np.testing.assert_allclose(square, np.broadcast_to(np.eye(2), square.shape), rtol=0, atol=1e-5)
    assert (np.linalg.det(maps) > 0).all()


@pytest.mark.parametrize("ranges", [AugmentationConfig(), WIDE])
@settings(max_examples=20)
@given(seed=seeds, size=st.integers(4, 48))
def test_a_view_is_its_zoom_turn_and_shift(ranges, seed, size):
    images = noise(seed, 3, 2, size, size)
    view = drawn(seed, 3, ranges, (size, size))
    seen = geometry(view).images(images)
    for i, (zoom, angle, shift) in enumerate(zip(*parameters(view), strict=True)):
        for channel, plane in zip(seen[i], images[i], strict=True):
            np.testing.assert_allclose(channel, looked_at(plane, zoom, angle, shift), rtol=0, atol=3e-5)


def disc(size: int = 64, row: float = 0.5, column: float = 0.5, radius: float = 0.2) -> np.ndarray:
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    return np.hypot(rows - row, columns - column) < radius


def test_a_zoom_above_1_enlarges_by_its_square():
    view = drawn(0, 50, NONE.model_copy(update={"zoom": 0.5}))
    masks = torch.from_numpy(disc(256)).expand(50, 1, 256, 256)
    zoom, _, _ = parameters(view)
    assert zoom.max() > 1.4
    areas = view.masks(masks).sum((1, 2, 3)) / disc(256).sum()
    np.testing.assert_allclose(areas, zoom**2, rtol=0.02)


def test_a_shift_moves_by_a_share_of_the_side():
    view = drawn(0, 50, NONE.model_copy(update={"shift": 0.2}), (64, 64))
    image = torch.from_numpy(disc(radius=0.15).astype(np.float32)).expand(50, 1, 64, 64)
    seen = view.images(image)[:, 0]
    places = (torch.arange(64) + 0.5) / 64
    total = seen.sum((1, 2))
    row = (seen.sum(2) * places).sum(1) / total - 0.5
    column = (seen.sum(1) * places).sum(1) / total - 0.5
    _, _, shift = parameters(view)
    np.testing.assert_allclose(torch.stack((column, row), 1), -shift, rtol=0, atol=1e-3)
    assert np.abs(shift).max() > 0.19


# ── masks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranges", [AugmentationConfig(), WIDE])
@settings(max_examples=20)
@given(seed=seeds, size=st.integers(6, 40), classes=st.integers(1, 4))
def test_a_pixel_of_a_mask_gets_what_fills_most_of_it(ranges, seed, size, classes):
    masks = label_maps(seed, 2, classes, size)
    view = drawn(seed, 2, ranges, (size, size))
    seen = view.masks(masks).numpy()
    for i, change in enumerate(zip(*parameters(view), strict=True)):
        shares = np.stack([looked_at(mask, *change) for mask in masks[i]])
        shares = np.concatenate((1 - shares.sum(0, keepdims=True), shares))
        expected = shares.argmax(0)[None] == np.arange(1, classes + 1)[:, None, None]
        first, second = np.sort(shares, axis=0)[:-3:-1]
        clear = first - second > 1e-4
        assert clear.mean() > 0.95
        assert np.array_equal(seen[i][:, clear], expected[:, clear])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("ranges", MILD)
def test_image_and_mask_move_alike(ranges):
    """An image that shows its own mask still does so after augmentation, up to interpolated edges."""
    mask = torch.from_numpy(disc(row=0.47, column=0.56, radius=0.23)).expand(30, 1, 64, 64)
    view = drawn(0, 30, ranges, (64, 64))
    x, y = view.images(0.8 * mask.float()), view.masks(mask.to(torch.uint8))
    for image, label in zip(x, y, strict=True):
        threshold = (image.max() + image.min()) / 2
        assert dice((image > threshold).numpy(), label.bool().numpy()) > 0.95
    assert len({m.numpy().tobytes() for m in y}) > 20


@pytest.mark.parametrize("ranges", MILD)
def test_several_classes_move_alike(ranges):
    """Each class has its own grey, by which it is found again in the image."""
    size, greys = 64, (0.35, 0.65, 0.95)
    masks = torch.from_numpy(
        np.stack([disc(size, row, column, 0.12) for row, column in ((0.35, 0.4), (0.6, 0.35), (0.5, 0.65))])
    ).expand(20, 3, size, size)
    images = sum(grey * masks[:, k : k + 1].float() for k, grey in enumerate(greys))
    view = drawn(0, 20, ranges, (size, size))
    x, y = geometry(view).images(images), view.masks(masks)
    for image, labels in zip(x, y, strict=True):
        for grey, label in zip(greys, labels, strict=True):
            inside = np.abs(image[0].numpy() - grey) < 0.01
            # An edge between background and a brighter class also passes through this grey.
            assert (inside & label.numpy()).sum() > 0.7 * label.sum()
            assert (inside & ~label.numpy()).sum() < 0.1 * label.sum()


# ── places ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranges", RANGES)
@settings(max_examples=15)
@given(seed=seeds)
def test_where_is_the_inverse_of_the_map(ranges, seed):
    view = drawn(seed, 3, ranges)
    places = noise(seed, 3, 4, 5, 2)
    found = view.where(places)
    assert found.shape == places.shape
    xy = 2 * found.double().flip(-1) - 1
    maps = view.maps.double()
    back = torch.einsum("nij,n...j->n...i", maps[:, :, :2], xy) + maps[:, None, None, :, 2]
    torch.testing.assert_close((back.flip(-1) + 1) / 2, places.double(), rtol=0, atol=1e-6)
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]).expand(3, 4, 2)
    torch.testing.assert_close(view.where(view.corners()), corners, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ranges", RANGES)
@settings(max_examples=15)
@given(seed=seeds, size=st.integers(8, 48))
def test_a_pixel_shows_the_place_of_the_image_that_lies_there(ranges, seed, size):
    """Images whose intensities are their coordinates, which bilinear reading keeps."""
    rows = ((torch.arange(size) + 0.5) / size).view(1, 1, -1, 1).expand(4, 1, size, size)
    view = drawn(seed, 4, ranges, (size, size))
    read = geometry(view).images(torch.cat((rows, rows.mT), 1)).permute(0, 2, 3, 1)
    pixels = (torch.cartesian_prod(*[torch.arange(size)] * 2).view(size, size, 2) + 0.5) / size
    # Where the border is repeated, a coordinate is that of the border.
    inside = ((read > 0.5 / size + 1e-4) & (read < 1 - 0.5 / size - 1e-4)).all(-1)
    assert inside.float().mean() > 0.2
    found = view.where(read)[inside]
    torch.testing.assert_close(found, pixels.expand_as(read)[inside], rtol=0, atol=1e-5)
