"""The plane on which a radiograph is drawn."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tedm.data.phantoms.filters import blur
from tedm.data.phantoms.patient import Pair, Patient
from tedm.data.phantoms.shapes import Field
from tedm.data.phantoms.sites import Site

Points = NDArray[np.floating[Any]]  # (n, 2): x, y of points, cm


@dataclass(frozen=True)
class Plane:
    """Coordinates of every drawn pixel: in the image and, after pose, in the patient."""

    u: Field  # cm from the image's centre to the right, (1, n)
    v: Field  # cm from the image's centre down, (n, 1)
    x: Field  # the patient's, cm, (n, n)
    y: Field
    pixel: float  # cm in the patient
    to_image: Points  # (2, 3): from the patient's coordinates to the image's

    def pixels(self, points: Points) -> Points:
        """Fractional column and row of points of the patient."""
        n = self.x.shape[0]
        field = 2 * float(self.u[0, -1]) * n / (n - 1)
        image: Points = points @ self.to_image[:, :2].T + self.to_image[:, 2]
        pixels: Points = (image / field + 0.5) * n - 0.5
        return pixels

    def lines(self, points: Points, volume: Points, radius: float) -> Field:
        """Thickness in cm of thin strands.

        Each point's volume goes to the four nearest pixels and is spread, so that a strand weighs the same
        at any size.

        Args:
            points: along the strands.
            volume: what each point stands for, cm³.
            radius: of the strands, cm.
        """
        n = self.x.shape[0]
        at = self.pixels(points)
        low = np.floor(at).astype(np.int64)
        right, down = (at - low).T
        column = low[:, 0] + np.array([[0], [1], [0], [1]])
        row = low[:, 1] + np.array([[0], [0], [1], [1]])
        weight = volume * np.array([1 - right, right, 1 - right, right])
        weight *= np.array([1 - down, 1 - down, down, down])
        seen = (column >= 0) & (column < n) & (row >= 0) & (row < n)
        image = np.bincount((row * n + column)[seen], weight[seen], n * n)
        thickness = image.reshape(n, n).astype(np.float32) / self.pixel**2
        return blur(thickness, 0.6 * radius / self.pixel)

    def texture(self, rng: np.random.Generator, cells: int) -> Field:
        """Smooth random field of zero mean and about unit variance with `cells` bumps along each side."""
        values = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
        basis = _splines(self.x.shape[0], cells)
        # The spline averages its values; 2.1 restores the variance.
        field: Field = 2.1 * (basis @ values @ basis.T)
        return field


@functools.lru_cache(maxsize=64)
def _splines(n: int, cells: int) -> Field:
    """Weights of cells + 3 uniform cubic B-splines in n pixels, (n, cells + 3)."""
    at = (np.arange(n) + 0.5) / n * cells
    cell = np.floor(at).astype(np.int64)
    t = at - cell
    basis = np.zeros((n, cells + 3), np.float32)
    pixel = np.arange(n)
    basis[pixel, cell] = (1 - t) ** 3 / 6
    basis[pixel, cell + 1] = (3 * t**3 - 6 * t**2 + 4) / 6
    basis[pixel, cell + 2] = (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6
    basis[pixel, cell + 3] = t**3 / 6
    basis.flags.writeable = False
    return basis


def draw_plane(rng: np.random.Generator, look: Site, p: Patient, n: int) -> Plane:
    """Place a patient before a detector of n × n pixels: field of view, position, rotation, film format."""
    side = rng.uniform(*look.field)
    angle = np.deg2rad(look.tilt * np.clip(rng.standard_normal(), -2.5, 2.5)) * (1.5 if p.ap else 1)
    centre = rng.normal(0, look.off_centre, 2).clip(-2.2, 2.2) + np.array([0.0, 2.6])
    grow = p.scale * np.array([rng.uniform(*look.stretch), 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn * grow  # image = matrix @ (patient - centre)
    inverse = np.linalg.inv(matrix)
    axis = ((np.arange(n) + 0.5) / n - 0.5).astype(np.float32) * np.float32(side)
    u, v = axis[None, :], axis[:, None]
    x = float(inverse[0, 0]) * u + float(inverse[0, 1]) * v + float(centre[0])
    y = float(inverse[1, 0]) * u + float(inverse[1, 1]) * v + float(centre[1])
    (a, ka, fa), (b, kb, fb), (c, kc, fc), (d, kd, fd) = p.warp.tolist()
    x, y = (
        x + a * np.sin(ka * y + fa) + b * np.sin(kb * x + fb),
        y + c * np.sin(kc * x + fc) + d * np.sin(kd * y + fd),
    )
    pixel = side / n / float(np.sqrt(np.prod(grow)))
    return Plane(u, v, x, y, pixel, np.concatenate([matrix, -(matrix @ centre)[:, None]], axis=1))


def curve(rng: np.random.Generator, start: Pair, end: Pair, bend: float) -> Points:
    """48 points of a curve with two random bends, of `bend` times its length."""
    t = np.linspace(0, 1, 48)[:, None]
    one, four = np.array(start), np.array(end)
    two, three = one + (four - one) / 3, one + (four - one) * 2 / 3
    away = bend * float(np.hypot(*(four - one)))
    two, three = two + rng.normal(0, away, 2), three + rng.normal(0, away, 2)
    points: Points = (
        (1 - t) ** 3 * one + 3 * t * (1 - t) ** 2 * two + 3 * t**2 * (1 - t) * three + t**3 * four
    )
    return points


def steps(points: Points) -> Points:
    """Length that each point of a strand stands for, cm."""
    dx, dy = np.gradient(points, axis=0).T
    lengths: Points = np.hypot(dx, dy)
    return lengths
