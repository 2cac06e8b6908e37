"""From the radiation behind the patient to the grey of a film."""

import numpy as np

from tedm.data.phantoms.chest import Chest
from tedm.data.phantoms.filters import blur
from tedm.data.phantoms.plane import Plane
from tedm.data.phantoms.shapes import Field
from tedm.data.phantoms.sites import Site


def detect(rng: np.random.Generator, look: Site, chest: Chest, attenuation: Field) -> Field:
    """Minus the log of the exposure: primary and scattered radiation, the detector's blur and noise."""
    plane = chest.plane
    primary = np.exp(-attenuation)
    # Scatter comes from the body and spreads over a hand's breadth.
    spread = blur(primary * (attenuation > 0.3), 4.0 / plane.pixel)
    scatter = rng.uniform(*look.scatter) * (1.2 if chest.p.ap else 1) * spread
    exposure = blur(primary + scatter, rng.uniform(*look.blur) / plane.pixel)
    level = -np.log(exposure)
    # Quantum noise: relative, and the stronger the fewer photons arrive; averaged over a pixel's area.
    sd = rng.uniform(*look.noise) * min(0.3 / plane.pixel, 4.0)
    grain = np.minimum(np.exp(0.5 * (level - np.median(level))), 2.0)
    noise = rng.standard_normal(level.shape, dtype=np.float32)
    noisy: Field = level + np.float32(sd) * grain * noise
    return noisy


def develop(rng: np.random.Generator, look: Site, chest: Chest, level: Field) -> Field:
    """Grey of the film: logistic in log exposure, placed by the greys that lung and heart shall have."""
    lung, heart = rng.uniform(*look.lung_grey), rng.uniform(*look.heart_grey)
    black = rng.uniform(*look.black)
    at_lung = float(np.median(level[chest.lung > 0.8]))
    at_heart = float(np.median(level[(chest.heart > 1.0) & (chest.diaphragm > 0)]))
    low, high = (float(np.log(g / (1 - g))) for g in (lung, heart))
    slope = (high - low) / max(at_heart - at_lung, 0.2)
    grey: Field = 1 / (1 + np.exp(-(low + slope * (level - at_lung))))
    strength = rng.uniform(*look.sharpen)
    if strength > 0:
        grey = grey + np.float32(strength) * (grey - blur(grey, 1.5 / chest.plane.pixel))
    return black + (1 - black) * grey


GLYPHS = {"L": "100 100 100 100 111", "R": "110 101 110 101 101"}  # rows of pixels


def burn_in(rng: np.random.Generator, look: Site, plane: Plane, grey: Field) -> Field:
    """Collimator, name plates, side letter and text."""
    n = grey.shape[0]
    side = 2 * float(plane.u[0, -1]) * n / (n - 1)
    half, pixel = side / 2, side / n
    if rng.random() < look.collimated:
        angle = float(np.deg2rad(rng.normal(0, 1.2)))
        u, v = plane.u + angle * plane.v, plane.v - angle * plane.u
        edges = half - rng.uniform(*look.border, 4)
        open_ = np.minimum(np.minimum(edges[0] - u, edges[1] + u), np.minimum(edges[2] - v, edges[3] + v))
        shown = np.clip(open_.astype(np.float32) / max(0.15, pixel) + 0.5, 0, 1)
        grey = shown * grey + (1 - shown) * np.float32(rng.uniform(*look.border_grey))

    def box(left: float, top: float, width: float, height: float) -> tuple[Field, Field]:
        """Coverage of columns and rows by a rectangle in cm from the upper left corner."""
        columns = np.clip((width / 2 - np.abs(plane.u + half - left - width / 2)) / pixel + 0.5, 0, 1)
        rows = np.clip((height / 2 - np.abs(plane.v + half - top - height / 2)) / pixel + 0.5, 0, 1)
        return columns, rows

    if rng.random() < look.blocks:
        height = rng.uniform(1.2, 3.2)
        for left in (rng.uniform(0, 4), side - rng.uniform(4, 9)):
            columns, rows = box(left, 0, rng.uniform(3.5, 6), height * rng.uniform(0.7, 1))
            grey = grey * (1 - columns * rows)
        columns, rows = box(0, side - rng.uniform(0.2, 0.6), side, 1)  # the film's lower edge
        grey = np.maximum(grey, columns * rows)
    if rng.random() < look.marker:
        letter = "LR"[int(rng.integers(2))]
        left = side - rng.uniform(2, 5) if letter == "L" else rng.uniform(1, 4)
        top, dot = rng.uniform(1, 5), rng.uniform(0.22, 0.4)
        ink = rng.uniform(0.75, 1.0)
        for k, bit in enumerate(GLYPHS[letter].replace(" ", "")):
            if bit == "1":
                columns, rows = box(left + k % 3 * dot, top + k // 3 * dot, dot, dot)
                grey = np.maximum(grey, ink * columns * rows)
        if rng.random() < 0.4:  # a line of small text
            left, top = rng.choice([0.8, side - 5]), rng.choice([0.6, side - 1.2])
            for k in range(int(rng.integers(4, 9))):
                columns, rows = box(left + 0.5 * k, top, 0.32, rng.uniform(0.35, 0.55))
                grey = np.maximum(grey, 0.8 * ink * columns * rows)
    return grey
