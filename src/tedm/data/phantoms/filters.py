"""Averages and blurs on the drawing plane."""

import numpy as np
from scipy.ndimage import gaussian_filter

from tedm.data.phantoms.shapes import Field


def block_means(field: Field, factor: int) -> Field:
    """Means of square blocks of factor × factor pixels."""
    n = field.shape[0] // factor
    means: Field = field.reshape(n, factor, n, factor).mean(axis=(1, 3))
    return means


def blur(field: Field, sigma: float) -> Field:
    """Gaussian filter, sigma in pixels; a wide one runs on a coarser grid, which is quick and no worse."""
    n, step = field.shape[0], max(1, int(sigma / 3))
    if step > 1:
        small = block_means(np.pad(field, (0, -n % step), mode="edge"), step)
        field, sigma = small, float(np.sqrt(sigma**2 - step**2 / 4)) / step
    blurred: Field = gaussian_filter(field, sigma, mode="nearest", truncate=3.0)
    return _enlarge(blurred, n, step) if step > 1 else blurred


def _enlarge(small: Field, n: int, factor: int) -> Field:
    """Linear interpolation of block means on n × n pixels."""
    at = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, small.shape[0] - 1)
    low = np.minimum(np.floor(at).astype(np.int64), small.shape[0] - 2)
    share = (at - low).astype(np.float32)
    rows = small[low] * (1 - share)[:, None] + small[low + 1] * share[:, None]
    field: Field = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    return field
