"""Random crops, brightness and contrast for training on few images."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CROP = 0.25  # of a side, cut off at most [authors' code: 32 of 128 pixels]
BRIGHTNESS = 0.3  # added, at most, to intensities in [0, 1] [authors' code]
CONTRAST = (0.7, 1.3)  # factor around the mean [authors' code]


def augment(images: Tensor, masks: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Crop every image and its mask alike and resize them back; then change brightness and contrast.

    Args:
        images: (N, C, H, W) in [0, 1].
        masks: (N, K, H, W), resized to the nearest pixel so that they stay masks.
        random: draws everything.

    Returns:
        Images and masks of the same shapes; images stay in [0, 1].
    """
    size = images.shape[2:]
    seen, labels = [], []
    for image, mask in zip(images.split(1), masks.split(1), strict=True):
        window = tuple(_window(length, random) for length in size)
        rows, columns = window
        seen.append(F.interpolate(image[:, :, rows, columns], size=size, mode="bilinear"))
        labels.append(F.interpolate(mask[:, :, rows, columns].float(), size=size).to(mask.dtype))
    cropped = torch.cat(seen)
    n = len(cropped)
    brightness = torch.from_numpy(random.uniform(-BRIGHTNESS, BRIGHTNESS, (n, 1, 1, 1)).astype(np.float32))
    contrast = torch.from_numpy(random.uniform(*CONTRAST, (n, 1, 1, 1)).astype(np.float32))
    mean = cropped.mean(dim=(1, 2, 3), keepdim=True)
    changed = (cropped - mean) * contrast.to(cropped.device) + mean + brightness.to(cropped.device)
    return changed.clamp(0, 1), torch.cat(labels)


def _window(length: int, random: np.random.Generator) -> slice:
    most = max(1, round(CROP * length))
    start = int(random.integers(most))
    return slice(start, start + int(random.integers(length - most, length - start + 1)))
