"""Random changes of images and their masks: geometry and intensities, for heads, baselines and contrast."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tedm.config import AugmentationConfig, Augmenting

# The authors' baselines and contrastive stages (augmentation: study).
STUDY_CROP = 0.25  # of a side, cut off at most: 32 of 128 pixels
STUDY_BRIGHTNESS = 0.3  # added at most
STUDY_CONTRAST = (0.7, 1.3)  # factor


@dataclass(frozen=True)
class View:
    """How some square images are looked at: an affine map, then gamma, contrast and brightness.

    What lies outside the image repeats its border, in images and masks alike.

    Attributes:
        maps: from places in the view to places in the image, both (x, y) in -1 … 1 from edge to edge,
            (N, 2, 3) as in `torch.nn.functional.affine_grid`.
        gamma: exponent of intensities, (N,).
        contrast: factor around each channel's mean, (N,).
        brightness: added, (N,).
    """

    maps: Tensor
    gamma: Tensor
    contrast: Tensor
    brightness: Tensor

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, part: slice) -> "View":
        """The view of some of the images."""
        return View(self.maps[part], self.gamma[part], self.contrast[part], self.brightness[part])

    def images(self, images: Tensor) -> Tensor:
        """The images as they look in this view, bilinear.

        All channels of an image change alike: what one says relative to another is kept.

        Args:
            images: (N, C, H, W) in [0, 1].

        Returns:
            (N, C, H, W) in [0, 1].
        """
        seen = self._warped(images)
        gamma, contrast, brightness = (
            value.view(-1, 1, 1, 1) for value in (self.gamma, self.contrast, self.brightness)
        )
        seen = seen.clamp(0, 1) ** gamma
        mean = seen.mean(dim=(2, 3), keepdim=True)
        changed: Tensor = (seen - mean) * contrast + mean + brightness
        return changed.clamp(0, 1)

    def masks(self, masks: Tensor) -> Tensor:
        """The masks of the images in this view.

        Each pixel gets the class, or the background, that fills most of it (bilinear shares; of equals the
        first, background before all).

        Args:
            masks: 0 or 1, classes exclude each other, (N, K, H, W).

        Returns:
            The same type and shape.
        """
        shares = self._warped(masks.float())
        of_all = torch.cat((1 - shares.sum(1, keepdim=True), shares), 1)
        winner = of_all.argmax(1, keepdim=True)
        return torch.zeros_like(of_all).scatter_(1, winner, 1)[:, 1:].to(masks.dtype)

    def where(self, places: Tensor) -> Tensor:
        """Where places of the images lie in this view.

        Args:
            places: row and column as a share of the image's height and width, (N, …, 2).

        Returns:
            The same of the view, (N, …, 2); outside 0 … 1 where the view does not show them.
        """
        flat = (2 * places.flip(-1) - 1).flatten(1, -2) - self.maps[:, None, :, 2]
        found = torch.linalg.solve(self.maps[:, :, :2], flat.mT).mT
        shares: Tensor = (found.flip(-1) + 1) / 2
        return shares.view(places.shape)

    def corners(self) -> Tensor:
        """Where the view's corners lie in the image: row and column as a share of it, (N, 4, 2)."""
        ends = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=self.maps.dtype)
        found = ends.to(self.maps.device) @ self.maps[:, :, :2].mT + self.maps[:, None, :, 2]
        return (found.flip(-1) + 1) / 2

    def _warped(self, values: Tensor) -> Tensor:
        grid = F.affine_grid(self.maps, list(values.shape), align_corners=False)
        return F.grid_sample(values, grid, padding_mode="border", align_corners=False)


def draw(
    random: np.random.Generator,
    count: int,
    size: tuple[int, int],
    ranges: Augmenting,
    device: torch.device | str = "cpu",
) -> View:
    """Draw a view of `count` images.

    Args:
        random: draws everything.
        count: images.
        size: (H, W) in pixels.
        ranges: of the changes, uniform within each (factors and exponents: their logarithms); or `study`:
            crops, brightness and contrast as in the authors' code.
        device: of the view.
    """
    if isinstance(ranges, AugmentationConfig):
        maps, gamma, contrast, brightness = _within(random, count, ranges)
    else:
        maps, gamma, contrast, brightness = _as_in_the_study(random, count, size)

    def there(values: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(device)

    return View(there(maps), there(gamma), there(contrast), there(brightness))


def joined(views: list[View]) -> View:
    """Views of some images each as the view of all of them."""
    return View(
        *(
            torch.cat([getattr(view, name) for view in views])
            for name in ("maps", "gamma", "contrast", "brightness")
        )
    )


_Drawn = tuple[npt.NDArray[np.float64], ...]


def _within(random: np.random.Generator, count: int, ranges: AugmentationConfig) -> _Drawn:
    def between(most: float, *shape: int) -> npt.NDArray[np.float64]:
        return random.uniform(-most, most, (count, *shape))

    angle, scale = np.deg2rad(between(ranges.rotation)), np.exp(-between(ranges.zoom))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # (2, 2, N)
    maps = np.concatenate(
        (np.moveaxis(scale * turn, -1, 0), 2 * between(ranges.shift, 2)[..., None]), axis=2
    )
    return (
        maps,
        np.exp(between(ranges.gamma)),
        np.exp(between(ranges.contrast)),
        between(ranges.brightness),
    )


def _as_in_the_study(random: np.random.Generator, count: int, size: tuple[int, int]) -> _Drawn:
    maps = np.zeros((count, 2, 3))
    for axis, length in ((1, size[0]), (0, size[1])):
        most = max(1, round(STUDY_CROP * length))
        start = random.integers(most, size=count)  # of 128 pixels: 0 … 31, and from 96 to the end
        side = random.integers(length - most, length - start + 1)
        maps[:, axis, axis] = side / length
        maps[:, axis, 2] = (2 * start + side) / length - 1
    brightness = random.uniform(-STUDY_BRIGHTNESS, STUDY_BRIGHTNESS, count)
    return maps, np.ones(count), random.uniform(*STUDY_CONTRAST, count), brightness
