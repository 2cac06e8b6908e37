"""Two random views of an image, and where a place of the image lies in each of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tedm.augmentation import BRIGHTNESS, CONTRAST, CROP


@dataclass(frozen=True)
class View:
    """How some images are looked at: a crop that is resized back, then another brightness and contrast.

    Places are continuous: pixel i of an image reaches from i to i + 1.
    """

    boxes: Tensor  # top, left, height, width of each crop in pixels, (N, 4), float32
    brightness: Tensor  # added to intensities in [0, 1], (N,)
    contrast: Tensor  # factor around the mean, (N,)

    def __getitem__(self, part: slice) -> "View":
        """The view of some of the images."""
        return View(self.boxes[part], self.brightness[part], self.contrast[part])

    def of(self, images: Tensor) -> Tensor:
        """The images as they look in this view, bilinear.

        Args:
            images: (N, C, H, W) in [0, 1].

        Returns:
            (N, C, H, W) in [0, 1], channels-last.
        """
        n, _, height, width = images.shape
        rows = _source(self.boxes[:, 0], self.boxes[:, 2], height)
        columns = _source(self.boxes[:, 1], self.boxes[:, 3], width)
        grid = torch.stack(
            (columns[:, None, :].expand(n, height, width), rows[:, :, None].expand(n, height, width)), -1
        )
        cropped = F.grid_sample(images, grid, align_corners=False)
        mean = cropped.mean(dim=(1, 2, 3), keepdim=True)
        changed = (cropped - mean) * self.contrast.view(-1, 1, 1, 1) + mean
        changed = changed + self.brightness.view(-1, 1, 1, 1)
        return changed.clamp(0, 1).contiguous(memory_format=torch.channels_last)

    def where(self, places: Tensor) -> Tensor:
        """Where places of the images lie in this view.

        Args:
            places: row and column in the image, pixels, (N, …, 2).

        Returns:
            The same in the view, as a share of its height and width, (N, …, 2); outside 0 … 1 where the
            crop doesn't show them.
        """
        box = self.boxes.view(-1, *[1] * (places.dim() - 2), 4)
        return (places - box[..., :2]) / box[..., 2:]


def draw(random: np.random.Generator, count: int, height: int, width: int, device: torch.device) -> View:
    """Draw a view of `count` images: crops of up to a quarter off a side, as in the authors' code.

    Args:
        random: draws everything.
        count: images.
        height: of the images, pixels.
        width: likewise.
        device: of the view.
    """
    tops, heights = _windows(random, count, height)
    lefts, widths = _windows(random, count, width)
    brightness = random.uniform(-BRIGHTNESS, BRIGHTNESS, count)
    contrast = random.uniform(*CONTRAST, count)
    boxes = np.stack((tops, lefts, heights, widths), axis=1)

    def there(values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(device)

    return View(there(boxes), there(brightness), there(contrast))


def draw_regions(
    random: np.random.Generator, first: View, second: View, count: int, side: int, cell: tuple[float, float]
) -> Tensor:
    """Draw places of square regions that both views show.

    Args:
        random: draws everything.
        first: one view of N images.
        second: another.
        count: regions of each image.
        side: of a region, cells.
        cell: height and width of a cell of the decoder's map, pixels of the image.

    Returns:
        Row and column of the centre of each cell of each region in the image, pixels, (N, count, side², 2).
    """
    size = torch.tensor(cell, device=first.boxes.device)
    reach = size * side / 2
    low = torch.maximum(first.boxes[:, :2], second.boxes[:, :2]) + reach
    high = torch.minimum(*(view.boxes[:, :2] + view.boxes[:, 2:] for view in (first, second))) - reach
    share = torch.from_numpy(random.random((len(low), count, 2), np.float32)).to(low.device)
    centres = low[:, None] + share * (high - low)[:, None]
    offsets = torch.arange(side, device=low.device) - (side - 1) / 2
    cells = torch.cartesian_prod(offsets, offsets).view(-1, 2) * size
    return centres[:, :, None] + cells


def sample(maps: Tensor, view: View, places: Tensor) -> Tensor:
    """A decoder map at places of the image that its view shows, bilinear.

    Args:
        maps: of the images in the view, (N, D, h, w).
        view: of the images.
        places: of cells of regions, (N, R, cells, 2), as `draw_regions` gives them.

    Returns:
        Each region as one vector, (N, R, cells · D).
    """
    grid = 2 * view.where(places).flip(-1) - 1
    found = F.grid_sample(
        maps.float(), grid, padding_mode="border", align_corners=False
    )  # (N, D, R, cells)
    return found.permute(0, 2, 3, 1).flatten(2)


def _windows(
    random: np.random.Generator, count: int, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Starts and lengths of crops along one side: of 128 pixels, 0 … 31 and from 96 to the end."""
    most = max(1, round(CROP * length))
    starts = random.integers(most, size=count)
    return starts, random.integers(length - most, length - starts + 1)


def _source(start: Tensor, side: Tensor, length: int) -> Tensor:
    """Where each pixel along a side of a view is read, (N, length), -1 … 1 over the image.

    Kept between the centres of the crop's outermost pixels, as resizing the crop alone would.
    """
    pixels = (torch.arange(length, device=start.device) + 0.5) / length * side[:, None]
    pixels = start[:, None] + torch.minimum(pixels.clamp(min=0.5), side[:, None] - 0.5)
    return 2 * pixels / length - 1
