"""Views of labelled images: drawn from named seeds, seen by the backbone, followed by the masks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tedm import seeds
from tedm.augmentation import View, draw, joined
from tedm.features.store import Recipe


def drawn(ids: Sequence[str], view: int, recipe: Recipe, noise_seed: int, size: tuple[int, int]) -> View:
    """The view of some images: each depends on its id, the view's number and the seed alone.

    Args:
        ids: of the images.
        view: 1, 2, ….
        recipe: ranges of the changes.
        noise_seed: of the store.
        size: (H, W) of the images, pixels.
    """
    return joined(
        [
            draw(seeds.generator(noise_seed, "view", name, view), 1, size, recipe.augmentation)
            for name in ids
        ]
    )


def seen(
    images: npt.NDArray[np.float32], ids: Sequence[str], view: int, recipe: Recipe, noise_seed: int
) -> npt.NDArray[np.float32]:
    """Images (n, C, H, W) in [0, 1] as they look in a view; arguments as in `drawn`."""
    height, width = images.shape[2:]
    look = drawn(ids, view, recipe, noise_seed, (height, width))
    return look.images(torch.from_numpy(images)).numpy()


def masks(
    truth: npt.NDArray[np.uint8], ids: Sequence[str], view: int, recipe: Recipe, noise_seed: int
) -> npt.NDArray[np.uint8]:
    """Masks (n, K, H, W) of these images in a view; arguments as in `drawn`."""
    height, width = truth.shape[2:]
    look = drawn(ids, view, recipe, noise_seed, (height, width))
    return look.masks(torch.from_numpy(truth)).numpy()
