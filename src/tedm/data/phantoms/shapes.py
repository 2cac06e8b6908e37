"""Soft shapes: fields of signed distance in cm, positive inside, and thicknesses made of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]  # float32, a value per pixel of the drawing plane


def superellipse(dx: Field, dy: Field, a: Field, b: Field, power: float) -> Field:
    """Distance to |dx/a|^p + |dy/b|^p = 1, to first order; dx, dy ≥ 0; positive inside."""
    gx, gy = (dx / a) ** (power - 1), (dy / b) ** (power - 1)
    norm = np.maximum(gx * dx / a + gy * dy / b, np.float32(1e-4)) ** np.float32(1 / power)
    gradient = distance(gx / a, gy / b) / norm ** (power - 1)
    return (1 - norm) / np.maximum(gradient, np.float32(1e-3))


def distance(dx: Field, dy: Field) -> Field:
    """Length of (dx, dy); several times quicker than numpy's hypot, which guards against overflow."""
    return np.sqrt(dx * dx + dy * dy)


def ellipse(dx: Field, dy: Field, a: float, b: float) -> Field:
    """Distance to an ellipse with half axes a and b, to first order."""
    norm = distance(dx / a, dy / b)
    return norm * (1 - norm) / (distance(dx / a**2, dy / b**2) + np.float32(1e-4))


def capsule(
    x: Field, y: Field, start: tuple[float, float], end: tuple[float, float], radius: float
) -> Field:
    """Distance to a line with round ends; positive inside."""
    (ax, ay), (bx, by) = start, end
    ux, uy = bx - ax, by - ay
    t = np.clip(((x - ax) * ux + (y - ay) * uy) / (ux**2 + uy**2), 0, 1)
    return radius - distance(x - ax - t * ux, y - ay - t * uy)


def smooth_min(a: Field, b: Field, reach: float) -> Field:
    """The smaller of two, with the corner rounded over `reach` (polynomial of Quilez)."""
    h = np.clip(0.5 + (b - a) / (2 * reach), 0, 1)
    return b + h * (a - b) - reach * h * (1 - h)


def smooth_max(a: Field, b: Field, reach: float) -> Field:
    """The larger of two, likewise."""
    return -smooth_min(-a, -b, reach)


def edge(distance: Field, width: float) -> Field:
    """0 outside, 1 inside, rising smoothly over `width` around the border."""
    t: Field = np.clip(distance / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def chord(depth: Field, radius: Field | float) -> Field:
    """Share of a round body's thickness at a depth below its outline: 0 at the border, 1 from radius on."""
    t: Field = 1 - np.clip(depth / radius, 0, 1)
    return np.sqrt(1 - t * t)
