"""What a radiologist would report: disease of the lungs, fluid around them, devices."""

from dataclasses import dataclass

import numpy as np

from tedm.data.phantoms.chest import Chest
from tedm.data.phantoms.devices import draw_devices
from tedm.data.phantoms.plane import Plane, curve, steps
from tedm.data.phantoms.shapes import Field, chord, distance, edge
from tedm.data.phantoms.sites import Range, Site


@dataclass
class Findings:
    """Disease and devices, as fields."""

    lung: Field  # distance to the border of what counts as lung, cm, positive inside
    filled: Field  # share of the lung's air that is replaced, 0 … 1
    solid: Field  # soft tissue added to the lung, cm
    metal: Field  # attenuation of devices

    def fill(self, share: Field) -> None:
        """Replace this share of the air, where less has been replaced before."""
        self.filled = np.maximum(self.filled, share)


def draw_findings(rng: np.random.Generator, look: Site, chest: Chest) -> Findings:
    """Draw what ails a patient of this site."""
    none = np.zeros_like(chest.plane.x)
    found = Findings(chest.lung, none, none, none)
    if rng.random() < look.nodule:
        _nodules(rng, chest, found, look.nodule_radius)
    for share, disease in (
        (look.consolidation, _consolidation),
        (look.upper_lobe, _tuberculosis),
        (look.interstitial, _interstitial),
        (look.effusion, _effusion),
    ):
        if rng.random() < share:
            disease(rng, chest, found)
    if rng.random() < look.devices * (3 if chest.p.ap else 1):
        found.metal = draw_devices(rng, chest)
    return found


def _nodules(rng: np.random.Generator, chest: Chest, found: Findings, radii: Range) -> None:
    x, y = chest.plane.x, chest.plane.y
    for _ in range(int(rng.integers(1, 3))):
        _, x0, y0 = _place(rng, chest, 0.15, 0.9)
        radius = rng.uniform(*radii)
        depth = radius - distance(x - x0, (y - y0) * rng.uniform(0.85, 1.2))
        found.solid = found.solid + 2 * radius * rng.uniform(0.5, 1) * chord(depth, radius)


def _consolidation(rng: np.random.Generator, chest: Chest, found: Findings) -> None:
    for _ in range(int(rng.integers(1, 4))):
        side, x0, y0 = _place(rng, chest, 0.2, 1.0)
        cloud = _cloud(rng, chest.plane, x0, y0, rng.uniform(2, 5.5))
        if rng.random() < 0.3:  # bounded by a fissure
            cloud = cloud * edge((chest.plane.y - y0) * (1 if rng.random() < 0.5 else -1) + 1, 0.5)
        found.fill(rng.uniform(0.4, 0.95) * cloud * (chest.left == bool(side)))


def _tuberculosis(rng: np.random.Generator, chest: Chest, found: Findings) -> None:
    for _ in range(int(rng.integers(3, 8))):
        side, x0, y0 = _place(rng, chest, 0.08, 0.4)
        cloud = _cloud(rng, chest.plane, x0, y0, rng.uniform(0.8, 2.6))
        found.fill(rng.uniform(0.35, 0.8) * cloud * (chest.left == bool(side)))
    for _ in range(int(rng.integers(3, 9))):  # scars towards the hilum
        side, x0, y0 = _place(rng, chest, 0.05, 0.4)
        strand = curve(rng, (x0, y0), chest.hila[side], 0.4)[:24]
        found.solid = found.solid + chest.plane.lines(strand, 0.05 * steps(strand), 0.15)
    if rng.random() < 0.5:  # cavity: a wall around air
        _, x0, y0 = _place(rng, chest, 0.12, 0.35)
        hole = rng.uniform(0.8, 1.8) - distance(chest.plane.x - x0, chest.plane.y - y0)
        found.solid = found.solid + 1.6 * edge(0.25 - np.abs(hole), 0.4)
        found.filled = found.filled * (1 - 0.7 * edge(hole, 0.4))


def _interstitial(rng: np.random.Generator, chest: Chest, found: Findings) -> None:
    """A net of thickened septa, and haze around the hila."""
    plane = chest.plane
    net = np.abs(plane.texture(rng, 56)) + np.abs(plane.texture(rng, 90))
    haze = sum(np.exp(-((plane.x - x0) ** 2 + (plane.y - y0) ** 2) / 40) for x0, y0 in chest.hila)
    spread = np.clip(0.7 + 0.6 * plane.texture(rng, 5), 0, 1.4)
    found.fill(rng.uniform(0.12, 0.35) * spread * np.clip(0.3 * net + 0.8 * haze, 0, 1.4))


def _effusion(rng: np.random.Generator, chest: Chest, found: Findings) -> None:
    """Fluid that rises towards the side; lung ends at its surface."""
    p, y = chest.p, chest.plane.y
    for side in (0, 1) if rng.random() < 0.35 else (int(rng.integers(2)),):
        level = p.dome[side] + rng.uniform(-5.5, 1.5)
        surface = level - rng.uniform(1.2, 3) * np.exp((chest.q - p.half_width[side]) / 2.5)
        above = np.where(chest.left == bool(side), surface - y, np.float32(50))
        # Who lies has no level, but a veil.
        found.fill(0.97 * edge(-above, 3.0 if p.ap else 1.2))
        found.lung = np.minimum(found.lung, above)


def _place(rng: np.random.Generator, chest: Chest, top: float, bottom: float) -> tuple[int, float, float]:
    """A side, x and y in its lung; top and bottom are shares of the lung's height."""
    p, side = chest.p, int(rng.integers(2))
    y = p.apex[side] + rng.uniform(top, bottom) * (p.dome[side] - p.apex[side])
    q = rng.uniform(0.4, 0.88) * (p.half_width[side] - 1.6 * max(0.0, 1 - (y - p.apex[side]) / 6))
    return side, q if side else -q, y


def _cloud(rng: np.random.Generator, plane: Plane, x0: float, y0: float, radius: float) -> Field:
    """A cloudy opacity, 0 … 1."""
    density = 0.85 + 0.5 * plane.texture(rng, 14) + 0.4 * plane.texture(rng, 32)
    wide, high = rng.uniform(0.8, 1.2, 2).tolist()
    away = distance((plane.x - x0) / (wide * radius), (plane.y - y0) / (high * radius))
    cloud: Field = np.exp(-np.square(np.minimum(away, 6))) * np.clip(density, 0, 1.3)
    return cloud
