"""Leads, tubes, catheters and pacemakers."""

import itertools

import numpy as np

from tedm.data.phantoms.chest import Chest
from tedm.data.phantoms.patient import Pair, middle_of
from tedm.data.phantoms.plane import Points, curve, steps
from tedm.data.phantoms.shapes import Field, distance, edge

METAL = 8.0  # attenuation of steel wire, 1/cm near 70 keV


def draw_devices(rng: np.random.Generator, chest: Chest) -> Field:
    """Attenuation of the devices that one patient bears, each drawn or not."""
    p, plane = chest.p, chest.plane
    x, y = plane.x, plane.y
    metal: Field = np.zeros_like(x)

    def wire(points: Points, area: float, radius: float) -> None:
        """Metal of a cross section in cm² along points that may be far apart."""
        at = np.linspace(0, len(points) - 1, 5 * len(points))
        fine = np.stack([np.interp(at, np.arange(len(points)), axis) for axis in points.T], axis=1)
        nonlocal metal
        metal = metal + METAL * plane.lines(fine, area * steps(fine), radius)

    def route(bends: float, *stops: Pair) -> Points:
        """A curve through all stops."""
        return np.concatenate([curve(rng, a, b, bends) for a, b in itertools.pairwise(stops)])

    between = rng.uniform
    middle, front = 0.6 * p.turn, 0.9 * p.turn
    cava = front - 1.4, -5.5
    # leads, breathing tube, feeding tube, central line, pacemaker, wires of a sternotomy
    shares = (0.55, 0.3, 0.25, 0.4, 0.2, 0.2) if p.ap else (0.25, 0.0, 0.05, 0.4, 0.2, 0.2)
    leads, airway, gastric, venous, pacemaker, sternum = (rng.random(6) < shares).tolist()
    if leads:
        exit_x, exit_y = -16.0 if rng.random() < 0.5 else 16.0, between(8, 20)
        for x0, y0 in ((-10, -7), (10, -7), (9.5, 10), (-9.5, 10))[: int(rng.integers(2, 5))]:
            at = x0 + 1.3 * rng.standard_normal(), y0 + 1.3 * rng.standard_normal()
            metal = metal + 0.5 * edge(between(0.5, 0.8) - distance(x - at[0], y - at[1]), 0.15)
            wire(route(0.14, at, (exit_x, exit_y + 2 * rng.standard_normal())), 0.012, 0.12)
    if airway:
        tip = between(-7.5, -4.5)
        for wall in (middle - 0.45, middle + 0.45):
            wire(route(0.0, (wall, -22.0), (wall, tip)), 0.008, 0.12)
    if gastric:
        down = p.dome[1]
        upper = route(0.015, (0.3, -22.0), (0.5, down - 1))
        lower = route(0.1, (0.5, down - 1), (between(3, 7), down + between(1, 4)))
        wire(np.concatenate([upper, lower]), 0.02, 0.2)
    if venous:
        side = -1 if rng.random() < 0.7 else 1
        start = side * between(3, 12), middle_of(p.apex) + between(-3, 1.5)
        wire(route(0.06, start, cava, (front - 1.8, between(-1, 4))), 0.012, 0.15)
        if rng.random() < 0.3:  # a port under the skin
            away = distance(x - side * between(7, 10), y - between(-6, -3))
            metal = metal + 0.8 * edge(0.3 - np.abs(away - 1.0), 0.2)
    if pacemaker:
        side = 1 if rng.random() < 0.8 else -1
        box = side * between(8.5, 11), between(-8, -4.5)
        away = np.abs(x - box[0]) ** 3 + np.abs((y - box[1]) * 1.15) ** 3
        metal = metal + 2.5 * edge(2.1 - np.cbrt(away), 0.15)
        wire(route(0.12, box, cava, (between(1, 4), p.heart[2] + between(1.5, 3.5))), 0.02, 0.15)
    if sternum:
        turns = np.linspace(0, 2 * np.pi, 40)
        for level in (np.linspace(-6, 6, 6) + rng.normal(0, 0.2, 6)).tolist():
            wire(np.stack([0.7 * np.cos(turns) + front, 0.35 * np.sin(turns) + level], axis=1), 0.015, 0.1)
    return metal
