"""Regions of an image that two of its views both show, and a decoder's map at them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tedm.augmentation import View

CANDIDATES = 16  # drawn for each region; turned views do not show all of the box that they share


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
        cell: height and width of a cell of the decoder's map, as a share of the image's.

    Returns:
        Row and column of the centre of each cell of each region, as a share of the image's height and
        width, (N, count, side², 2). Where fewer regions than asked for were found, some are there twice;
        where none was (two views far apart, with ranges much wider than the default), it is one that a view
        does not show as a whole.
    """
    size = torch.tensor(cell, dtype=torch.float32, device=first.maps.device)
    reach = size * side / 2
    corners = [view.corners() for view in (first, second)]
    low = torch.stack([c.amin(1) for c in corners]).amax(0).clamp(min=0) + reach
    high = torch.stack([c.amax(1) for c in corners]).amin(0).clamp(max=1) - reach
    share = torch.from_numpy(random.random((len(low), CANDIDATES * count, 2), np.float32)).to(low.device)
    centres = low[:, None] + share * (high - low)[:, None]
    ends = torch.tensor([-1.0, 1.0], device=low.device)
    outline = centres[:, :, None] + torch.cartesian_prod(ends, ends) * reach
    seen = torch.stack([view.where(outline) for view in (first, second)])
    both = ((seen >= 0) & (seen <= 1)).all(-1).all(-1).all(0)  # (N, candidates)
    # The first that both show, in the order drawn; again from the start where they are too few.
    order = torch.argsort((~both).to(torch.uint8), dim=1, stable=True)
    places = torch.arange(count, device=low.device) % both.sum(1, keepdim=True).clamp(min=1)
    chosen = centres.gather(1, order.gather(1, places)[..., None].expand(-1, -1, 2))
    offsets = torch.arange(side, device=low.device) - (side - 1) / 2
    return chosen[:, :, None] + torch.cartesian_prod(offsets, offsets).view(-1, 2) * size


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
