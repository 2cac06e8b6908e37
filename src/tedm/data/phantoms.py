"""Synthetic chest radiographs with lung masks, drawn from a small model of anatomy and X-ray physics.

A patient is a few dozen lengths in cm; what the beam crosses is a sum of thicknesses (soft tissue, lung, bone,
metal) times attenuation; scatter, noise, the film curve and the collimator make it a radiograph. Everything is a
function of continuous coordinates, so an image is the same at every size. The masks follow the rule of JSRT
(van Ginneken et al. 2006): both lungs, without heart, mediastinum and what the diaphragm hides; diseased lung is
lung, pleural fluid is not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tedm.errors import TedmError
from tedm.seeds import generator

Field = NDArray[np.float32]  # a value per pixel of the drawing plane
Points = NDArray[np.float64]  # (n, 2): x, y in cm
Range = tuple[float, float]  # drawn uniformly in between, once per image

# Linear attenuation in 1/cm near 70 keV, the effective energy of a chest radiograph (NIST XCOM, rounded).
SOFT, LUNG, BONE, METAL = 0.19, 0.05, 0.45, 8.0


# ── sites ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Site:
    """How the radiographs of a site look. Shares are probabilities per image, ranges are uniform."""

    # the patient before the detector
    field: Range  # side of the image, cm
    ap: float  # share of bedside (AP) views: wide heart, shallow breath, scapulae over the lungs
    tilt: float  # standard deviation of the rotation in the image plane, degrees
    off_centre: float  # standard deviation of the patient's position, cm
    stretch: Range  # width over height of a pixel; other than 1 where films were made square
    breath: Range  # inspiration, 0 (diaphragm high) … 1 (low); AP views lose a third of it
    # from exposure to grey
    scatter: Range  # scattered over primary radiation: washes out what lies behind the heart
    noise: Range  # standard deviation of log exposure behind the lungs, on pixels of 3 mm
    blur: Range  # standard deviation of the detector's point spread, cm
    lung_grey: Range  # 0 … 1, where the film curve puts the lungs …
    heart_grey: Range  # … and where the heart
    black: Range  # grey of unattenuated beam
    sharpen: Range  # strength of unsharp masking over 1.5 cm, as digital systems do it
    # borders and burnt-in marks
    collimated: float  # share with a collimator edge in view
    border: Range  # its distance from the image's edge, cm, drawn for each edge
    border_grey: Range
    blocks: float  # share with blackened name plates in the upper corners
    marker: float  # share with a side letter and lines of text
    # disease and devices
    nodule: float
    nodule_radius: Range  # cm
    consolidation: float
    effusion: float
    upper_lobe: float  # patches, streaks and cavities of tuberculosis
    interstitial: float  # coarse reticular texture, with haze around the hila
    devices: float  # share of PA views with any of leads, tubes, catheters, pacemaker; AP views: thrice


SITES = {
    # The broad mixture that the diffusion model learns: clinic and bedside, four decades of machines.
    "chestxray8": Site(
        field=(34, 43), ap=0.35, tilt=2.0, off_centre=1.0, stretch=(0.93, 1.07), breath=(0.1, 1.0),
        scatter=(0.4, 1.8), noise=(0.004, 0.025), blur=(0.03, 0.16), lung_grey=(0.15, 0.58),
        heart_grey=(0.66, 0.93), black=(0.0, 0.12), sharpen=(0.0, 0.6),
        collimated=0.3, border=(-3.0, 2.0), border_grey=(0.0, 0.06), blocks=0.0, marker=0.7,
        nodule=0.15, nodule_radius=(0.5, 1.8), consolidation=0.2, effusion=0.12, upper_lobe=0.06,
        interstitial=0.15, devices=0.2,
    ),
    # Erect PA films of cooperative patients, digitised: soft and bright, one small nodule in most.
    "jsrt": Site(
        field=(34.5, 37), ap=0.0, tilt=0.8, off_centre=0.6, stretch=(0.99, 1.01), breath=(0.55, 1.0),
        scatter=(0.6, 1.1), noise=(0.004, 0.01), blur=(0.03, 0.07), lung_grey=(0.42, 0.62),
        heart_grey=(0.86, 0.94), black=(0.1, 0.3), sharpen=(0.0, 0.0),
        collimated=0.0, border=(0.0, 0.0), border_grey=(0.0, 0.0), blocks=0.75, marker=0.1,
        nodule=0.6, nodule_radius=(0.4, 1.2), consolidation=0.0, effusion=0.0, upper_lobe=0.0,
        interstitial=0.0, devices=0.0,
    ),
    # Patients of a referral hospital: many at the bedside, many ill, flat and grainy images.
    "nih": Site(
        field=(34, 43), ap=0.5, tilt=2.5, off_centre=1.2, stretch=(0.92, 1.08), breath=(0.0, 0.9),
        scatter=(0.9, 2.4), noise=(0.012, 0.035), blur=(0.06, 0.18), lung_grey=(0.18, 0.48),
        heart_grey=(0.58, 0.8), black=(0.0, 0.08), sharpen=(0.0, 0.5),
        collimated=0.35, border=(-2.5, 2.0), border_grey=(0.0, 0.05), blocks=0.0, marker=0.85,
        nodule=0.2, nodule_radius=(0.6, 2.0), consolidation=0.45, effusion=0.3, upper_lobe=0.05,
        interstitial=0.3, devices=0.35,
    ),
    # Tuberculosis screening on a hard, edge-enhanced digital system with the shutter in view.
    "montgomery": Site(
        field=(36, 43), ap=0.0, tilt=1.5, off_centre=0.9, stretch=(0.92, 1.02), breath=(0.4, 1.0),
        scatter=(0.35, 0.7), noise=(0.008, 0.02), blur=(0.02, 0.06), lung_grey=(0.08, 0.26),
        heart_grey=(0.55, 0.74), black=(0.0, 0.04), sharpen=(0.3, 0.8),
        collimated=0.95, border=(0.3, 3.5), border_grey=(0.0, 0.04), blocks=0.0, marker=0.5,
        nodule=0.05, nodule_radius=(0.5, 1.5), consolidation=0.05, effusion=0.1, upper_lobe=0.45,
        interstitial=0.05, devices=0.0,
    ),
}  # fmt: skip


def draw(site: str, index: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one radiograph and its lung mask.

    Args:
        site: whose looks it has, one of `SITES`.
        index: number of the image within the site.
        size: pixels along each side; the same patient and exposure are drawn at any size.
        seed: of the experiment.

    Returns:
        Image of greys 0 … 255 and mask of 0 (outside) and 1 (lung), both uint8 (size, size).

    Raises:
        TedmError: the site is unknown.
    """
    if site not in SITES:
        raise TedmError(f"site {site!r}: no such phantom site; choose one of {', '.join(SITES)}")
    look = SITES[site]

    def stream(part: str) -> np.random.Generator:
        return generator(seed, "phantom", site, index, part)

    # Two drawn pixels a side for each of the image, and never a coarser drawing than 128 × 128, so that thin
    # things survive in small images; edges are soft, so large images need no more than their own pixels.
    factor = max(2 if size < 512 else 1, -(-128 // size))
    patient = _patient(stream("patient"), look)
    plane = _plane(stream("pose"), look, patient, size * factor)
    chest = _Chest(plane, patient)
    findings = _findings(stream("findings"), look, chest)
    thickness = _attenuation(stream("texture"), chest, findings)
    exposure = _detect(stream("detector"), look, chest, thickness)
    grey = _burn_in(stream("marks"), look, plane, _develop(stream("film"), look, chest, exposure))
    image = np.rint(255 * np.clip(_average(grey, factor), 0, 1)).astype(np.uint8)
    coverage = np.clip(findings.lung / plane.pixel + 0.5, 0, 1)
    return image, (_average(coverage, factor) >= 0.5).astype(np.uint8)


def _average(field: Field, factor: int) -> Field:
    n = field.shape[0] // factor
    return field.reshape(n, factor, n, factor).mean(axis=(1, 3))


# ── anatomy ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Patient:
    """A chest in cm. x grows to the image's right, the patient's left; y down; origin between the hila.

    Pairs are (right, left) of the patient, which is left and right in the image.
    """

    ap: bool  # bedside view
    scale: float  # of the whole body, 1: average man
    apex: Points  # y of the lungs' tops
    apex_x: Points  # their distance from the midline
    half_width: Points  # of the rib cage's inside
    widest: float  # y where it is reached
    roundness: float  # exponent of the cage's outline; 2: ellipse
    flare: Points  # how much the cage widens below that, cm per cm
    medial: Points  # distance of the upper mediastinum's border from the midline
    dome: Points  # y of the diaphragm's tops
    dome_x: float  # their distance from the midline, as share of the half width
    recess: Points  # depth of the costophrenic angle below the dome
    cardiophrenic: Points  # depth of the medial angle below the dome
    turn: float  # shift of the front against the back by rotation about the body's axis
    heart: tuple[float, float, float]  # its reach to the right and left of the midline, y of its centre
    heart_angle: float  # of its long axis below the horizontal, radians
    knob: tuple[float, float, float]  # aortic arch: x, y, radius
    trunk: float  # radius of the pulmonary trunk
    depth: float  # thickness of the trunk from front to back
    wall: float  # soft tissue between ribs and skin, at the side
    breast: tuple[float, float, float, float]  # thickness (0: none), x, y, radius
    shoulder: float  # y of the shoulder joint
    arm: float  # angle of the arms from the body, radians
    first_rib: float  # y of the first rib where it passes the side
    ribs: Points  # y of the ribs 1 … 12 where they pass the side
    rib_tilt: tuple[float, float]  # rise of the ribs from the side to the back and fall to the front
    rib_half: float  # half the height of a rib
    rib_bone: float  # bone that the beam crosses in it
    clavicle: tuple[float, float, float]  # y of the inner ends, rise of the outer ends, curvature
    scapula: float  # how far the scapulae lie over the lungs, 0 … 1
    scoliosis: float  # amplitude of the spine's curve
    gas: tuple[float, float, float, float]  # gastric bubble: x, depth below the dome, half width, half height
    warp: Points  # (4, 3): amplitude, wave number, phase of gentle deformations


def _patient(rng: np.random.Generator, look: Site) -> Patient:
    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def about(mean: float, sd: float) -> float:
        return mean + sd * float(np.clip(rng.standard_normal(), -2.2, 2.2))

    def pair(mean: float, sd: float, apart: float) -> Points:
        return about(mean, sd) + apart * np.clip(rng.standard_normal(2), -2, 2)

    ap = between(0, 1) < look.ap
    female = between(0, 1) < 0.45
    breath = between(*look.breath) * (0.67 if ap else 1)
    stout = float(np.clip(about(0.4, 0.3), 0, 1.2))
    turn = about(0, 0.9 if ap else 0.4)
    half_width = pair(13.2, 0.7, 0.3) + np.array([-0.4, 0.4]) * turn
    apex = pair(-11.9, 0.8, 0.25)
    dome = about(8.0, 0.7) + 3.9 * breath - 0.8 * stout + np.array([0.0, float(np.clip(about(1.1, 0.7), -0.5, 2.8))])
    ratio = about(0.45, 0.04) + (0.07 if ap else 0) + 0.05 * (0.7 - breath) + 0.02 * stout  # cardiothoracic
    across = float(np.clip(ratio, 0.36, 0.66)) * float(half_width.sum())
    right = across * between(0.27, 0.35)
    first = float(apex.mean()) + between(2.6, 3.4)
    spacing = between(2.25, 2.6) * (0.85 + 0.25 * breath) * rng.uniform(0.92, 1.08, 11)
    spacing *= np.linspace(0.9, 1.08, 11)
    thick = between(1.5, 4.5) * (0.6 + 0.5 * stout) if female else 0.0
    return Patient(
        ap=ap,
        scale=about(0.95 if female else 1.01, 0.05),
        apex=apex,
        apex_x=pair(5.0, 0.5, 0.25),
        half_width=half_width,
        widest=about(5.0, 1.2),
        roundness=between(2.0, 2.6),
        flare=pair(0.0, 0.05, 0.02),
        medial=pair(2.3, 0.3, 0.15) + (0.4 if ap else 0) + np.array([-0.3, 0.3]) * turn,
        dome=dome,
        dome_x=between(0.36, 0.5),
        recess=np.clip(pair(4.6, 1.0, 0.3), 1.8, None),
        cardiophrenic=np.clip(pair(0.8, 0.5, 0.3), 0.1, None),
        turn=turn,
        heart=(right, across - right, float(dome.mean()) - between(4.2, 5.4)),
        heart_angle=np.deg2rad(between(30, 52) * (0.7 + 0.3 * breath)),
        knob=(between(1.4, 2.3), between(-5.4, -3.8), between(1.5, 2.2)),
        trunk=between(1.6, 2.4),
        depth=between(18, 22) + 4 * stout,
        wall=between(1.6, 2.6) + 2.4 * stout,
        breast=(thick, between(6.6, 8.4), between(5.5, 8.5) + 0.4 * thick, between(4.8, 6.4) + 0.25 * thick),
        shoulder=about(-9.3, 0.9) - (0.7 if ap else 0),
        arm=np.deg2rad(between(4, 30) if ap else between(12, 48)),
        first_rib=first,
        ribs=first + np.concatenate([[0.0], np.cumsum(spacing)]),
        rib_tilt=(between(3.6, 5.6), between(5.5, 8.0)),
        rib_half=between(0.52, 0.68),
        rib_bone=between(0.45, 0.85),
        clavicle=(
            float(apex.mean()) + about(3.6, 0.7) - (1.2 if ap else 0),
            about(2.0, 1.0) - (0.6 if ap else 0),
            between(0.3, 1.1),
        ),
        scapula=between(0.35, 1.0) if ap else between(0.0, 0.25),
        scoliosis=about(0, 0.35),
        gas=(between(4.5, 7.5), between(0.9, 2.2), between(1.2, 3.2) * float(between(0, 1) < 0.75), between(0.6, 1.8)),
        warp=np.stack([rng.normal(0, 0.22, 4), rng.uniform(0.2, 0.5, 4), rng.uniform(0, 2 * np.pi, 4)], axis=1),
    )  # fmt: skip


# ── the drawing plane ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Plane:
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
        image = points @ self.to_image[:, :2].T + self.to_image[:, 2]
        return (image / field + 0.5) * n - 0.5

    def lines(self, points: Points, area: Points | float, radius: float) -> Field:
        """Thickness in cm of thin strands.

        The points sample the strands; `area` is cross section × length between points, cm³. Each point's volume goes
        to the four nearest pixels and is spread over `radius`, so that a strand weighs the same at any size.
        """
        n = self.x.shape[0]
        at = self.pixels(points)
        low = np.floor(at).astype(np.int64)
        share = at - low
        image = np.zeros(n * n)
        volume = np.broadcast_to(np.asarray(area, dtype=np.float64), at.shape[:1])
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            column, row = low[:, 0] + i, low[:, 1] + j
            weight = np.abs(1 - i - share[:, 0]) * np.abs(1 - j - share[:, 1]) * volume
            seen = (column >= 0) & (column < n) & (row >= 0) & (row < n)
            image += np.bincount((row * n + column)[seen], weight[seen], n * n)
        thickness = image.reshape(n, n).astype(np.float32) / self.pixel**2
        return _blur(thickness, 0.6 * radius / self.pixel)

    def texture(self, rng: np.random.Generator, cells: int) -> Field:
        """Smooth random field of zero mean and about unit variance with `cells` bumps along each side."""
        n = self.x.shape[0]
        values = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
        at = (np.arange(n) + 0.5) / n * cells
        basis = np.zeros((n, cells + 3), np.float32)
        for k in range(4):  # cubic B-spline
            t = at - np.floor(at)
            weight = (
                (1 - t) ** 3 / 6,
                (3 * t**3 - 6 * t**2 + 4) / 6,
                (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
                t**3 / 6,
            )[k]
            basis[np.arange(n), np.floor(at).astype(np.int64) + k] = weight
        field: Field = 2.1 * (basis @ values @ basis.T)  # 2.1: one over the spline's mean standard deviation
        return field


def _plane(rng: np.random.Generator, look: Site, p: Patient, n: int) -> _Plane:
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
    return _Plane(u, v, x, y, pixel, np.concatenate([matrix, -(matrix @ centre)[:, None]], axis=1))


class _Chest:
    """Where the organs of a patient project to: fields of signed distance in cm, positive inside."""

    def __init__(self, plane: _Plane, p: Patient) -> None:
        self.plane, self.p = plane, p
        x, y = plane.x, plane.y
        self.left = left = x > 0
        self.q = q = np.abs(x)  # distance from the midline

        def side(values: Points) -> Field:
            return np.where(left, np.float32(values[1]), np.float32(values[0]))

        # Rib cage: a quarter of a superellipse from the apex to the side and one from the apex to the midline.
        apex, apex_x = side(p.apex), side(p.apex_x)
        self.width = side(p.half_width) + side(p.flare) * np.maximum(y - p.widest, 0)
        outer = q > apex_x
        reach = np.where(outer, self.width - apex_x, apex_x - side(p.medial))
        height = np.where(outer, p.widest - apex, 4.5)
        rise = np.maximum(apex + height - y, 0)
        self.cage = _superellipse(np.abs(q - apex_x), rise, reach, height, p.roundness)
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
        a, b, c, s_ = 0.62 * across, 0.41 * across, float(np.cos(p.heart_angle)), float(np.sin(p.heart_angle))
        dx, dy = front - (leftward - float(np.hypot(a * c, b * s_))), y - level
        ventricles = _ellipse(c * dx + s_ * dy, c * dy - s_ * dx, a, b)
        atrium = _ellipse(front + right - 0.3 * across, y - level + 0.8, 0.3 * across, 0.54 * across)
        knob = p.knob[2] - np.hypot(front - p.knob[0], y - p.knob[1])
        trunk = p.trunk - np.hypot(front - 2.0, y - 0.35 * p.knob[1] - 0.1 * level)
        self.heart = _smooth_max(ventricles, atrium, 1.5)
        self.aorta = _smooth_max(knob, 1.3 - np.abs(front - 1.5) - 0.3 * np.maximum(p.knob[1] - y, 0), 0.6)
        self.mediastinum = _smooth_max(_smooth_max(self.heart, trunk, 2.5), knob, 1.2)

        self.lung = _smooth_min(np.minimum(self.cage, self.diaphragm), -self.mediastinum, 0.4)
        self.hila: Points = np.array([[-3.7 + 0.5 * p.turn, 0.4], [4.0 + 0.5 * p.turn, -0.6]])


def _superellipse(dx: Field, dy: Field, a: Field, b: Field, power: float) -> Field:
    """Distance to |dx/a|^p + |dy/b|^p = 1, to first order; dx, dy ≥ 0; positive inside."""
    gx, gy = (dx / a) ** (power - 1), (dy / b) ** (power - 1)
    norm = np.maximum(gx * dx / a + gy * dy / b, np.float32(1e-4)) ** np.float32(1 / power)
    gradient = np.hypot(gx / a, gy / b) / norm ** (power - 1)
    return (1 - norm) / np.maximum(gradient, np.float32(1e-3))


def _ellipse(dx: Field, dy: Field, a: float, b: float) -> Field:
    norm = np.hypot(dx / a, dy / b)
    return norm * (1 - norm) / (np.hypot(dx / a**2, dy / b**2) + np.float32(1e-4))


def _capsule(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float], radius: float) -> Field:
    """Distance to a line with round ends; positive inside."""
    (ax, ay), (bx, by) = start, end
    ux, uy = bx - ax, by - ay
    t = np.clip(((x - ax) * ux + (y - ay) * uy) / (ux**2 + uy**2), 0, 1)
    return radius - np.hypot(x - ax - t * ux, y - ay - t * uy)


def _smooth_min(a: Field, b: Field, reach: float) -> Field:
    """The smaller of two, with the corner rounded over `reach` (polynomial of Quilez)."""
    h = np.clip(0.5 + (b - a) / (2 * reach), 0, 1)
    return b + h * (a - b) - reach * h * (1 - h)


def _smooth_max(a: Field, b: Field, reach: float) -> Field:
    return -_smooth_min(-a, -b, reach)


def _edge(distance: Field, width: float) -> Field:
    """0 outside, 1 inside, rising smoothly over `width` around the border."""
    t = np.clip(distance / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _chord(depth: Field, radius: float) -> Field:
    """Share of a round body's thickness at a depth below its outline: 0 at the border, 1 from `radius` on."""
    t = 1 - np.clip(depth / radius, 0, 1)
    return np.sqrt(1 - t * t)


def _blur(field: Field, sigma: float) -> Field:
    blurred: Field = gaussian_filter(field, sigma, mode="nearest", truncate=3.0)
    return blurred


# ── disease and devices ─────────────────────────────────────────────────────────────────────────


@dataclass
class _Findings:
    """What a radiologist would report."""

    lung: Field  # distance to the border of what counts as lung, cm, positive inside
    filled: Field  # share of the lung's air that is replaced, 0 … 1
    solid: Field  # soft tissue added to the lung, cm
    metal: Field  # attenuation of devices


def _findings(rng: np.random.Generator, look: Site, chest: _Chest) -> _Findings:
    zero = np.zeros_like(chest.plane.x)
    found = _Findings(chest.lung, zero, zero.copy(), zero.copy())
    p, q, y, plane = chest.p, chest.q, chest.plane.y, chest.plane

    def happens(share: float) -> bool:
        return bool(rng.random() < share)

    def place(top: float, bottom: float) -> tuple[int, float, float]:
        """A side and a spot in its lung; top and bottom as shares of the lung's height."""
        side = int(rng.integers(2))
        level = p.apex[side] + rng.uniform(top, bottom) * (p.dome[side] - p.apex[side])
        q = rng.uniform(0.4, 0.88) * (p.half_width[side] - 1.6 * max(0.0, 1 - (level - p.apex[side]) / 6))
        return side, (1 if side else -1) * q, level

    if happens(look.nodule):
        for _ in range(int(rng.integers(1, 3))):
            _, x0, y0 = place(0.15, 0.9)
            radius = rng.uniform(*look.nodule_radius)
            found.solid += 2 * radius * rng.uniform(0.5, 1) * _chord(
                radius - np.hypot(plane.x - x0, (y - y0) * rng.uniform(0.85, 1.2)), radius
            )  # fmt: skip
    if happens(look.consolidation):
        for _ in range(int(rng.integers(1, 4))):
            side, x0, y0 = place(0.2, 1.0)
            patch = _patch(rng, plane, x0, y0, rng.uniform(2, 5.5))
            if happens(0.3):  # bounded by a fissure
                patch = patch * _edge((y - y0) * rng.choice([-1, 1]) + 1, 0.5)
            found.filled = np.maximum(found.filled, rng.uniform(0.4, 0.95) * patch * (chest.left == bool(side)))
    if happens(look.upper_lobe):
        for _ in range(int(rng.integers(3, 8))):
            side, x0, y0 = place(0.08, 0.4)
            patch = _patch(rng, plane, x0, y0, rng.uniform(0.8, 2.6))
            found.filled = np.maximum(found.filled, rng.uniform(0.35, 0.8) * patch * (chest.left == bool(side)))
        for _ in range(int(rng.integers(3, 9))):  # scars towards the hilum
            side, x0, y0 = place(0.05, 0.4)
            strand = _curve(rng, np.array([x0, y0]), chest.hila[side], 0.4)[:24]
            found.solid += plane.lines(strand, 0.05 * _step(strand), 0.15)
        if happens(0.5):  # cavity: a wall around air
            side, x0, y0 = place(0.12, 0.35)
            hole = rng.uniform(0.8, 1.8) - np.hypot(plane.x - x0, y - y0)
            found.solid += 1.6 * _edge(0.25 - np.abs(hole), 0.4)
            found.filled = found.filled * (1 - 0.7 * _edge(hole, 0.4))
    if happens(look.interstitial):
        coarse = np.abs(plane.texture(rng, 44)) + 0.7 * np.abs(plane.texture(rng, 70))
        haze = sum(np.exp(-((plane.x - hx) ** 2 + (y - hy) ** 2) / 40) for hx, hy in chest.hila.tolist())
        amount = rng.uniform(0.15, 0.4)
        found.filled = np.maximum(found.filled, amount * np.clip(0.3 * coarse + 0.8 * haze, 0, 1.4))
    if happens(look.effusion):
        for side in [0, 1] if happens(0.35) else [int(rng.integers(2))]:
            level = p.dome[side] + rng.uniform(-5.5, 1.5)
            surface = level - rng.uniform(1.2, 3) * np.exp((q - p.half_width[side]) / 2.5)
            above = np.where(chest.left == bool(side), surface - y, np.float32(50))
            found.filled = np.maximum(found.filled, 0.97 * _edge(-above, 3.0 if p.ap else 1.2))
            found.lung = np.minimum(found.lung, above)
    if happens(min(1.0, look.devices * (3 if p.ap else 1))):
        _devices(rng, chest, found)
    return found


def _patch(rng: np.random.Generator, plane: _Plane, x0: float, y0: float, radius: float) -> Field:
    """A cloudy opacity, 0 … 1."""
    cloud = plane.texture(rng, 14) + 0.8 * plane.texture(rng, 32)
    away = np.hypot((plane.x - x0) / rng.uniform(0.8, 1.2), (plane.y - y0) / rng.uniform(0.8, 1.2)) / radius
    return np.exp(-(away**2)) * np.clip(0.85 + 0.5 * cloud, 0, 1.3)


def _curve(rng: np.random.Generator, start: Points, end: Points, bend: float) -> Points:
    """48 points of a curve with two random bends, of `bend` times its length."""
    t = np.linspace(0, 1, 48)[:, None]
    length = float(np.hypot(*(end - start)))
    one, two = rng.normal(0, bend * length, (2, 2))
    a, b = start + (end - start) / 3 + one, start + (end - start) * 2 / 3 + two
    points: Points = (1 - t) ** 3 * start + 3 * t * (1 - t) ** 2 * a + 3 * t**2 * (1 - t) * b + t**3 * end
    return points


def _step(points: Points) -> Points:
    """Length that each point of a strand stands for, cm."""
    return np.hypot(*np.gradient(points, axis=0).T)


def _devices(rng: np.random.Generator, chest: _Chest, found: _Findings) -> None:
    p, plane = chest.p, chest.plane
    x, y = plane.x, plane.y

    def wire(points: Points, area: float, radius: float) -> None:
        fine = np.stack([np.interp(np.linspace(0, 1, 240), np.linspace(0, 1, len(points)), c) for c in points.T], 1)
        found.metal += METAL * plane.lines(fine, area * _step(fine), radius)

    carina = np.array([0.6 * p.turn, -3.2])
    chosen = rng.random(6) < [0.55 if p.ap else 0.25, 0.3 if p.ap else 0, 0.25 if p.ap else 0.05, 0.4, 0.2, 0.2]
    leads, airway, gastric, venous, pacemaker, wires = chosen.tolist()
    if leads:
        exit_at = np.array([rng.choice([-16.0, 16.0]), rng.uniform(8, 20)])
        for x0, y0 in ((-10, -7), (10, -7), (9.5, 10), (-9.5, 10))[: int(rng.integers(2, 5))]:
            spot = np.array([x0, y0]) + rng.normal(0, 1.3, 2)
            found.metal += 0.5 * _edge(rng.uniform(0.5, 0.8) - np.hypot(x - spot[0], y - spot[1]), 0.15)
            wire(_curve(rng, spot, exit_at + rng.normal(0, 2, 2), 0.14), 0.012, 0.12)
    if airway:
        tip = carina - np.array([0, rng.uniform(1.5, 4.5)])
        for offset in (-0.45, 0.45):
            wire(_curve(rng, np.array([carina[0], -22]) + [offset, 0], tip + [offset, 0], 0.0), 0.008, 0.12)
    if gastric:
        below = np.array([rng.uniform(3, 7), p.dome[1] + rng.uniform(1, 4)])
        upper = _curve(rng, np.array([0.3, -22]), np.array([0.5, p.dome[1] - 1]), 0.015)
        wire(np.concatenate([upper, _curve(rng, upper[-1], below, 0.1)[1:]]), 0.02, 0.2)
    if venous:
        side = rng.choice([-1, 1], p=[0.7, 0.3])
        start = np.array([side * rng.uniform(3, 12), p.apex.mean() + rng.uniform(-3, 1.5)])
        bend = np.array([-1.4 + 0.9 * p.turn, -5.5])
        end = np.array([-1.8 + 0.9 * p.turn, rng.uniform(-1, 4)])
        wire(np.concatenate([_curve(rng, start, bend, 0.08), _curve(rng, bend, end, 0.03)[1:]]), 0.012, 0.15)
        if rng.random() < 0.3:  # a port under the skin
            away = np.hypot(x - side * rng.uniform(7, 10), y - rng.uniform(-6, -3))
            found.metal += 0.8 * _edge(0.3 - np.abs(away - 1.0), 0.2)
    if pacemaker:
        side = rng.choice([1, -1], p=[0.8, 0.2])
        box = np.array([side * rng.uniform(8.5, 11), rng.uniform(-8, -4.5)])
        inside = 2.1 - ((np.abs(x - box[0])) ** 3 + np.abs((y - box[1]) * 1.15) ** 3) ** np.float32(1 / 3)
        found.metal += 1.8 * _edge(inside, 0.15)
        bend = np.array([-1.5 + 0.9 * p.turn, -5.0])
        tip = np.array([rng.uniform(1, 4), p.heart[2] + rng.uniform(1.5, 3.5)])
        wire(np.concatenate([_curve(rng, box, bend, 0.12), _curve(rng, bend, tip, 0.12)[1:]]), 0.02, 0.15)
    if wires:  # of a sternotomy
        turns = np.linspace(0, 2 * np.pi, 40)
        for level in np.linspace(-6, 6, 6) + rng.normal(0, 0.2, 6):
            ring = np.stack([0.7 * np.cos(turns) + 0.9 * p.turn, 0.35 * np.sin(turns) + level], axis=1)
            wire(ring, 0.015, 0.1)


# ── what the beam crosses ───────────────────────────────────────────────────────────────────────


def _attenuation(rng: np.random.Generator, chest: _Chest, found: _Findings) -> Field:
    """Attenuation summed along each ray, without unit."""
    p, plane, q = chest.p, chest.plane, chest.q
    x, y = plane.x, plane.y
    body = _body(chest)
    # Air: deep in the middle of a lung, none at its borders; lung also lies behind the heart, and in the recess
    # behind the diaphragm, where it is not segmented but shows.
    in_cage = _chord(chest.cage, 5.0)
    over = _edge(chest.diaphragm, 0.5) * (0.72 + 0.28 * _chord(chest.diaphragm, 4.5))
    behind = 0.16 * np.exp(np.minimum(chest.diaphragm, 0) / 2.2) * (chest.diaphragm < 0)
    hidden = 1 - 0.66 * _chord(chest.mediastinum, 2.6)
    filled = np.clip(found.filled, 0, 1)
    air = 0.66 * p.depth * in_cage * np.maximum(over, behind) * hidden
    air = np.minimum(air * (1 - 0.85 * filled), 0.9 * body)
    seen = _edge(chest.lung, 0.4)
    vessels = _vessels(rng, chest) * np.maximum(seen, 0.35 * _edge(chest.cage, 0.4))
    lung_texture = (plane.texture(rng, 60) + plane.texture(rng, 34)) * 0.012 * in_cage * over
    soft = body - air + vessels + found.solid * _edge(chest.cage, 0.3)
    soft = soft + 0.25 * plane.texture(rng, 8) + 0.12 * plane.texture(rng, 20)
    soft = np.maximum(soft - _airways(chest) - _stomach(rng, chest), 0) * (body > 0)
    bone = (_ribs(rng, chest) + _spine(chest) + _shoulder_girdle(chest)) * _edge(body - 1.0, 2.0)
    aorta = 1.2 * _chord(chest.aorta, 1.3) * _edge(p.dome[1] - y, 2.0)
    return SOFT * (soft + aorta) + LUNG * air + (BONE - 0.6 * SOFT) * bone + lung_texture + found.metal


def _body(chest: _Chest) -> Field:
    """Thickness of the body, as if it held no air."""
    p, q, y = chest.p, chest.q, chest.plane.y
    side = float(p.half_width.mean()) + p.wall
    trunk = side + 0.35 * np.cos(0.16 * (y - 4)) - q
    joint = (side + 2.2, p.shoulder)
    elbow = (joint[0] + 30 * float(np.sin(p.arm)), joint[1] + 30 * float(np.cos(p.arm)))
    top = float(p.apex.mean())
    below = p.depth * (1 + 0.12 * _edge(y - p.dome.mean(), 8.0)) * _edge(y - top + 1.2, 11.0)
    parts = (
        below * _chord(trunk, 0.6 * side),
        11.5 * _chord(_capsule(q, y, (1.5, top - 2.5), joint, 4.4), 4.4),
        11.0 * _chord(_capsule(q, y, joint, elbow, 4.3), 4.3),
        13.0 * _chord(_capsule(q, y, (0.0, top - 14), (0.0, top + 4), 5.8), 5.8),
    )
    body = sum(np.square(np.square(part)) for part in parts) ** np.float32(0.25)
    thick, bx, by, radius = p.breast
    if thick:
        # The upper border fades into the chest wall, the lower one is a fold.
        lobe = _ellipse(q - bx, y - by, radius, radius * 0.85)
        body = body + thick * _chord(lobe, radius * 0.8) * _edge(y - by + 0.55 * radius, 1.4 * radius) * (body > 0)
    return body


def _vessels(rng: np.random.Generator, chest: _Chest) -> Field:
    """Thickness of the pulmonary vessels: hila, and two trees that branch three times."""
    p, plane = chest.p, chest.plane
    stems = 9
    angles = np.tile(np.linspace(-1.35, 1.3, stems), 2) + rng.normal(0, 0.12, 2 * stems)  # from the outward direction
    outward = np.repeat([-1.0, 1.0], stems)
    start = np.repeat(chest.hila, stems, axis=0) + rng.normal(0, 0.4, (2 * stems, 2))
    radius = np.where(angles > 0.1, 0.46, 0.34) * rng.uniform(0.75, 1.2, 2 * stems)  # gravity fills the lower ones
    length = 3.6 * rng.uniform(0.75, 1.3, 2 * stems)
    t = np.linspace(0, 1, 14)[:, None, None]
    total: Field = np.zeros_like(plane.x)
    for _ in range(4):
        bend = angles + rng.normal(0, 0.25, len(angles))
        one = np.stack([outward * np.cos(angles), np.sin(angles)], axis=1) * length[:, None]
        two = np.stack([outward * np.cos(bend), np.sin(bend)], axis=1) * length[:, None]
        points = start + t * one * (1 - t / 2) + t * t / 2 * two
        volume = np.broadcast_to(np.pi * radius**2 * length / len(t), points.shape[:2])
        total += plane.lines(points.reshape(-1, 2), volume.reshape(-1), float(radius.mean()))
        start = np.repeat(points[-1], 2, axis=0)
        angles = np.repeat(bend, 2) + np.tile([-0.38, 0.38], len(bend)) + rng.normal(0, 0.15, 2 * len(bend))
        outward = np.repeat(outward, 2)
        radius = np.repeat(radius, 2) * rng.uniform(0.55, 0.8, 2 * len(bend))
        length = np.repeat(length, 2) * rng.uniform(0.6, 0.95, 2 * len(bend))
    for x0, y0 in chest.hila.tolist():
        away = np.hypot((plane.x - x0) / 1.3, (plane.y - y0 - 0.6) / 2.2)
        total += rng.uniform(1.5, 3.0) * np.exp(-(away**2))
    return total


def _ribs(rng: np.random.Generator, chest: _Chest) -> Field:
    """Bone of the ribs: rings around the cage, tilted so that the front lies lower than the back."""
    p, q, y = chest.p, chest.q, chest.plane.y
    around = np.minimum(q / (chest.flank + 0.5), 1)
    facing = np.sqrt(1 - around**2)  # 1 in the midline, 0 at the side
    outline = _edge(chest.flank + 0.5 - q, 0.3) * (y > p.apex.mean() - 0.8)
    # A ray along a rib's side crosses more of it.
    path = 1 / np.sqrt(facing**2 + 0.12)
    strength = rng.uniform(0.85, 1.15, 14).astype(np.float32)
    bone: Field = np.zeros_like(y)
    for back, fall in ((True, p.rib_tilt[0]), (False, p.rib_tilt[1])):
        fall_here = fall * (1 + 0.02 * (y - 2))
        level = y + fall_here * facing if back else y - fall_here * facing
        number = np.interp(level, p.ribs, np.arange(12.0), left=-1, right=13).astype(np.float32)
        nearest = np.rint(number)
        spacing = np.float32((p.ribs[-1] - p.ribs[0]) / 11)
        slope = fall_here * around / (np.maximum(facing, 0.15) * (chest.flank + 0.5))
        away = np.abs(number - nearest) * spacing / np.sqrt(1 + slope**2)
        half = p.rib_half * (1.0 if back else 1.2)
        t = away / half
        # A tube: its cortex shows as brighter borders.
        tube = (0.6 + 0.4 * np.minimum(t, 1) ** 4) * _edge(half - away, max(0.3, chest.plane.pixel))
        here = (nearest >= 0) & (nearest <= 11)
        # Towards the breast bone ribs are cartilage.
        seen = _edge(q - 1.6, 1.0) if back else 0.75 * _edge(q - 0.45 * chest.width, 5.0)
        bone += strength[np.clip(nearest, 0, 11).astype(np.int64)] * tube * here * seen
    return p.rib_bone * bone * np.minimum(path, 1.6) * outline


def _spine(chest: _Chest) -> Field:
    p, y = chest.p, chest.plane.y
    from_axis = np.abs(chest.plane.x + 0.4 * p.turn - p.scoliosis * np.sin(0.22 * y))
    half = 1.75 + 0.025 * y
    disc = 0.5 + 0.5 * np.cos((2 * np.pi / 2.35) * (y - p.first_rib))
    body = _edge(half - from_axis + 0.15 * disc, 0.5) * (0.8 + 0.3 * disc)
    process = _edge(0.35 - from_axis, 0.4) * _edge(disc - 0.6, 0.6)
    pedicle = _edge(0.4 - np.hypot(from_axis - 0.65 * half, 1.1 * (1 - disc)), 0.4)
    return 1.1 * body + 0.45 * process + 0.4 * pedicle


def _shoulder_girdle(chest: _Chest) -> Field:
    """Bone of clavicles, scapulae and humeri."""
    p, y = chest.p, chest.plane.y
    x = chest.plane.x
    joint_x = float(p.half_width.mean()) + p.wall + 1.8
    # The inner ends lie in front, so they follow the patient's turn.
    q = np.abs(x - 0.9 * p.turn * np.exp(-chest.q / 6))
    inner, rise, bow = p.clavicle
    t = np.clip((q - 1.4) / (joint_x - 2.5), 0, 1)
    axis = inner - rise * t - bow * np.sin(2 * np.pi * t)
    slope = (rise + 2 * np.pi * bow * np.cos(2 * np.pi * t)) / (joint_x - 2.5)
    away = np.abs(y - axis) / np.sqrt(1 + slope**2)
    half = 0.55 + 0.35 * np.exp(-((q - 1.4) / 1.6) ** 2)
    tube = (0.55 + 0.45 * np.minimum(away / half, 1) ** 3) * _edge(half - away, 0.3)
    clavicle = tube * _edge(q - 1.3, 0.5) * _edge(joint_x - 1 - q, 0.8)
    # Scapula: a thin triangle with strong borders.
    inwards = 4.2 * p.scapula
    corners = (
        (joint_x - 1.6, p.shoulder + 0.3),
        (joint_x - 7.0 - inwards, p.shoulder + 0.6),
        (joint_x - 2.6 - 1.1 * inwards, p.shoulder + 13.5),
    )
    sheet: Field | None = None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ux, uy = bx - ax, by - ay
        plane = ((q - ax) * -uy + (y - ay) * ux) / -float(np.hypot(ux, uy))
        sheet = plane if sheet is None else _smooth_min(sheet, plane, 1.5)
    assert sheet is not None
    scapula = 0.22 * _edge(sheet, 0.4) + 0.5 * _edge(0.35 - np.abs(sheet - 0.2), 0.5)
    ridge = _capsule(q, y, corners[0], (corners[1][0], corners[1][1] + 2.5), 0.5)
    reach = float(np.sin(p.arm)), float(np.cos(p.arm))
    joint = (joint_x + 0.6, p.shoulder + 1.0)
    shaft = _capsule(q, y, joint, (joint[0] + 30 * reach[0], joint[1] + 30 * reach[1]), 1.2)
    head = 2.3 - np.hypot(q - joint[0], y - joint[1])
    humerus = 1.4 * _chord(np.maximum(head, 0), 2.3) + 1.1 * _edge(shaft, 0.3) * (0.6 + 0.4 * _edge(0.5 - shaft, 0.4))
    return 1.2 * clavicle + scapula + 0.4 * _edge(ridge, 0.5) + humerus


def _airways(chest: _Chest) -> Field:
    """Air in trachea and main bronchi."""
    p, x, y = chest.p, chest.plane.x, chest.plane.y
    x0, carina = 0.6 * p.turn - 0.1, -3.2
    trachea = _capsule(x, y, (x0, -30.0), (x0, carina), 0.85)
    bronchi = np.maximum(
        _capsule(x, y, (x0, carina), (-3.0, carina + 3.2), 0.6), _capsule(x, y, (x0, carina), (3.6, carina + 2.6), 0.5)
    )
    return 2.2 * _chord(trachea, 0.85) + 1.4 * _chord(bronchi, 0.6)


def _stomach(rng: np.random.Generator, chest: _Chest) -> Field:
    """Air in the stomach, with a level in who stands, and in the bowel."""
    p, x, y = chest.p, chest.plane.x, chest.plane.y
    gas: Field = np.zeros_like(x)
    gx, below, a, b = p.gas
    if a:
        y0 = float(p.dome[1]) + below + b
        bubble = _ellipse(x - gx, y - y0, a, b)
        if not p.ap:
            bubble = np.minimum(bubble, y0 + 0.3 * b - y)
        gas = gas + 3.5 * _chord(bubble, min(a, b))
    for _ in range(int(rng.integers(0, 4))):
        x0, y0, r = rng.uniform(2, 11), float(p.dome[1]) + rng.uniform(3.5, 8), rng.uniform(0.6, 1.6)
        gas = gas + 2.0 * _chord(_ellipse(x - x0, y - y0, r * 1.3, r), r)
    return gas * _edge(-chest.diaphragm - 0.3, 0.4)


# ── from the beam to the film ───────────────────────────────────────────────────────────────────


def _detect(rng: np.random.Generator, look: Site, chest: _Chest, attenuation: Field) -> Field:
    """Minus the logarithm of the exposure behind the patient: primary and scattered radiation, blur, noise."""
    plane = chest.plane
    primary = np.exp(-attenuation)
    # Scatter comes from the body and spreads over a hand's breadth: a coarse grid will do.
    coarse = max(1, plane.x.shape[0] // 32)
    inside = primary * (attenuation > 0.3)
    n = plane.x.shape[0] // coarse
    small = inside[: n * coarse, : n * coarse].reshape(n, coarse, n, coarse).mean(axis=(1, 3))
    spread = _blur(small, 4.0 / (plane.pixel * coarse))
    scatter = rng.uniform(*look.scatter) * (1.2 if chest.p.ap else 1) * _enlarge(spread, plane.x.shape[0], coarse)
    exposure = _blur(primary + scatter, rng.uniform(*look.blur) / plane.pixel)
    level = -np.log(exposure)
    # Quantum noise: relative, and the stronger the fewer photons arrive; averaged over a pixel's area.
    sd = rng.uniform(*look.noise) * min(0.3 / plane.pixel, 4.0)
    grain = np.minimum(np.exp(0.5 * (level - np.median(level))), 2.0)
    noise = rng.standard_normal(level.shape, dtype=np.float32)
    return level + np.float32(sd) * grain * noise


def _enlarge(small: Field, n: int, factor: int) -> Field:
    at = np.clip((np.arange(n) + 0.5) / factor - 0.5, 0, small.shape[0] - 1)
    low = np.minimum(np.floor(at).astype(np.int64), small.shape[0] - 2)
    share = (at - low).astype(np.float32)
    rows = small[low] * (1 - share)[:, None] + small[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _develop(rng: np.random.Generator, look: Site, chest: _Chest, level: Field) -> Field:
    """Grey of the film: logistic in log exposure, placed by the greys that lung and heart shall have."""
    lung, heart = rng.uniform(*look.lung_grey), rng.uniform(*look.heart_grey)
    black = rng.uniform(*look.black)
    at_lung = float(np.median(level[chest.lung > 0.8]))
    at_heart = float(np.median(level[(chest.heart > 1.0) & (chest.diaphragm > 0)]))
    low, high = (np.log(g / (1 - g)) for g in (lung, heart))
    slope = (high - low) / max(at_heart - at_lung, 0.2)
    grey = 1 / (1 + np.exp(-(low + slope * (level - at_lung))))
    strength = rng.uniform(*look.sharpen)
    if strength > 0:
        grey = grey + np.float32(strength) * (grey - _blur(grey, 1.5 / chest.plane.pixel))
    return black * (1 - grey) + grey if black > 0 else grey


GLYPHS = {"L": "100100100100111", "R": "110101110101101"}  # 3 × 5


def _burn_in(rng: np.random.Generator, look: Site, plane: _Plane, grey: Field) -> Field:
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
        for k, bit in enumerate(GLYPHS[letter]):
            if bit == "1":
                columns, rows = box(left + k % 3 * dot, top + k // 3 * dot, dot, dot)
                grey = np.maximum(grey, ink * columns * rows)
        if rng.random() < 0.4:  # a line of small text
            left, top = rng.choice([0.8, side - 5]), rng.choice([0.6, side - 1.2])
            for k in range(int(rng.integers(4, 9))):
                columns, rows = box(left + 0.5 * k, top, 0.32, rng.uniform(0.35, 0.55))
                grey = np.maximum(grey, 0.8 * ink * columns * rows)
    return grey
