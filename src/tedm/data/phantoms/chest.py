"""Where a patient's organs project to."""

import numpy as np

from tedm.data.phantoms.patient import Pair, Patient
from tedm.data.phantoms.plane import Plane
from tedm.data.phantoms.shapes import Field, distance, ellipse, smooth_max, smooth_min, superellipse


class Chest:
    """Where the organs of a patient project to: fields of signed distance in cm, positive inside."""

    def __init__(self, plane: Plane, p: Patient) -> None:
        self.plane, self.p = plane, p
        x, y = plane.x, plane.y
        self.left = left = x > 0
        self.q = q = np.abs(x)  # distance from the midline

        def side(values: Pair) -> Field:
            return np.where(left, np.float32(values[1]), np.float32(values[0]))

        # Rib cage: quarters of superellipses, from the apex to the side and from the apex to the middle.
        apex, apex_x = side(p.apex), side(p.apex_x)
        self.width = side(p.half_width) + side(p.flare) * np.maximum(y - p.widest, 0)
        outer = q > apex_x
        reach = np.where(outer, self.width - apex_x, apex_x - side(p.medial))
        height = np.where(outer, p.widest - apex, 4.5)
        rise = np.maximum(apex + height - y, 0)
        self.cage = superellipse(np.abs(q - apex_x), rise, reach, height, p.roundness)
        # The side's distance from the midline at each level, where the ribs turn from back to front.
        above = np.clip((p.widest - y) / (p.widest - apex), 0, 1)
        self.flank = apex_x + (self.width - apex_x) * (1 - above**p.roundness) ** (1 / p.roundness)

        # Diaphragm: a dome that falls steeply to the side and gently to the middle.
        dome_x = p.dome_x * self.width
        t = (q - dome_x) / (self.width - dome_x)
        s = (dome_x - q) / dome_x
        fall = np.where(t > 0, side(p.recess), side(p.cardiophrenic))
        along = np.clip(np.where(t > 0, t, s), 0, 1.15)
        slope = 2 * fall * along / np.where(t > 0, self.width - dome_x, dome_x)
        self.diaphragm = (side(p.dome) + fall * along**2 - y) / np.sqrt(1 + slope**2)

        # Heart and great vessels, in front of the spine, so they follow the patient's turn.
        front = x - np.float32(0.9 * p.turn)
        right, leftward, level = p.heart
        across = right + leftward
        a, b = 0.62 * across, 0.41 * across
        cos, sin = float(np.cos(p.heart_angle)), float(np.sin(p.heart_angle))
        dx, dy = front - (leftward - float(np.hypot(a * cos, b * sin))), y - level
        ventricles = ellipse(cos * dx + sin * dy, cos * dy - sin * dx, a, b)
        atrium = ellipse(front + right - 0.3 * across, y - level + 0.8, 0.3 * across, 0.54 * across)
        knob = p.knob[2] - distance(front - p.knob[0], y - p.knob[1])
        trunk = p.trunk - distance(front - 2.0, y - 0.35 * p.knob[1] - 0.1 * level)
        self.heart = smooth_max(ventricles, atrium, 1.5)
        self.aorta = smooth_max(knob, 1.3 - np.abs(front - 1.5) - 0.3 * np.maximum(p.knob[1] - y, 0), 0.6)
        # What little lung shows between heart and diaphragm is not segmented.
        below = np.minimum(y - level, np.minimum(0.7 * leftward - front, front + 0.75 * right))
        self.mediastinum = smooth_max(smooth_max(smooth_max(self.heart, trunk, 2.5), knob, 1.2), below, 0.8)

        self.lung = smooth_min(np.minimum(self.cage, self.diaphragm), -self.mediastinum, 0.4)
        self.hila = (-3.7 + 0.5 * p.turn, 0.4), (4.0 + 0.5 * p.turn, -0.6)
