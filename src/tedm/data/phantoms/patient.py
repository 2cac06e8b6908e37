"""The lengths that make one patient's chest."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tedm.data.phantoms.sites import Site

Pair = tuple[float, float]  # of the patient's right and left side, or x and y of a point


@dataclass(frozen=True)
class Patient:
    """A chest in cm. x grows to the image's right, the patient's left; y down; origin between the hila."""

    ap: bool  # bedside view
    scale: float  # of the whole body, 1: average man
    apex: Pair  # y of the lungs' tops
    apex_x: Pair  # their distance from the midline
    half_width: Pair  # of the rib cage's inside
    widest: float  # y where it is reached
    roundness: float  # exponent of the cage's outline; 2: ellipse
    flare: Pair  # how much the cage widens below that, cm per cm
    medial: Pair  # distance of the upper mediastinum's border from the midline
    dome: Pair  # y of the diaphragm's tops
    dome_x: float  # their distance from the midline, as share of the half width
    recess: Pair  # depth of the costophrenic angle below the dome
    cardiophrenic: Pair  # depth of the medial angle below the dome
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
    ribs: NDArray[np.floating[Any]]  # y of the ribs 1 … 12 where they pass the side
    rib_tilt: tuple[float, float]  # rise of the ribs from the side to the back and fall to the front
    rib_half: float  # half the height of a rib
    rib_bone: float  # bone that the beam crosses in it
    clavicle: tuple[float, float, float]  # y of the inner ends, rise of the outer ends, curvature
    scapula: float  # how far the scapulae lie over the lungs, 0 … 1
    scoliosis: float  # amplitude of the spine's curve
    gas: tuple[float, float, float, float]  # of the stomach: x, depth, half width (0: none), half height
    warp: NDArray[np.floating[Any]]  # (4, 3): amplitude, wave number, phase of gentle deformations


def draw_patient(rng: np.random.Generator, look: Site) -> Patient:
    """Draw a patient whom this site may see: mean adult sizes, with the spread of a clinic."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def about(mean: float, sd: float) -> float:
        return mean + sd * float(np.clip(rng.standard_normal(), -2.2, 2.2))

    def pair(mean: float, sd: float, apart: float, shift: float = 0.0) -> Pair:
        """The same for both sides, but for `apart`; a positive shift moves right to left."""
        both = about(mean, sd)
        return about(both, apart) - shift, about(both, apart) + shift

    ap = between(0, 1) < look.ap
    female = between(0, 1) < 0.45
    breath = between(*look.breath) * (0.67 if ap else 1)
    stout = float(np.clip(about(0.4, 0.3), 0, 1.2))
    turn = about(0, 0.9 if ap else 0.4)
    half_width = pair(13.2, 0.7, 0.3, 0.4 * turn)
    apex = pair(-11.9, 0.8, 0.25)
    top = about(8.0, 0.7) + 3.9 * breath - 0.8 * stout
    dome = top, top + float(np.clip(about(1.1, 0.7), -0.5, 2.8))
    ratio = about(0.45, 0.04) + (0.07 if ap else 0) + 0.05 * (0.7 - breath) + 0.02 * stout  # cardiothoracic
    across = float(np.clip(ratio, 0.36, 0.66)) * sum(half_width)
    right = across * between(0.27, 0.35)
    first = middle_of(apex) + between(2.6, 3.4)
    spacing = between(2.25, 2.6) * (0.85 + 0.25 * breath) * rng.uniform(0.92, 1.08, 11)
    spacing *= np.linspace(0.9, 1.08, 11)
    thick = between(1.5, 4.5) * (0.6 + 0.5 * stout) if female else 0.0
    return Patient(
        ap=ap,
        scale=about(0.95 if female else 1.01, 0.05),
        apex=apex,
        apex_x=pair(4.8, 0.5, 0.3),
        half_width=half_width,
        widest=about(5.0, 1.2),
        roundness=between(2.0, 2.6),
        flare=pair(0.0, 0.05, 0.02),
        medial=pair(2.4 if ap else 2.0, 0.25, 0.15, 0.3 * turn),
        dome=dome,
        dome_x=between(0.36, 0.5),
        recess=pair(4.6, 0.9, 0.3),
        cardiophrenic=pair(1.0, 0.3, 0.15),
        turn=turn,
        heart=(right, across - right, middle_of(dome) - between(4.2, 5.4)),
        heart_angle=float(np.deg2rad(between(30, 52) * (0.7 + 0.3 * breath))),
        knob=(between(1.4, 2.3), between(-5.4, -3.8), between(1.5, 2.2)),
        trunk=between(1.6, 2.4),
        depth=between(18, 22) + 4 * stout,
        wall=between(1.6, 2.6) + 2.4 * stout,
        breast=(
            thick,
            between(6.6, 8.4),
            between(5.5, 8.5) + 0.4 * thick,
            between(4.8, 6.4) + 0.25 * thick,
        ),
        shoulder=about(-9.3, 0.9) - (0.7 if ap else 0),
        arm=float(np.deg2rad(between(4, 30) if ap else between(12, 48))),
        ribs=first + np.concatenate([[0.0], np.cumsum(spacing)]),
        rib_tilt=(between(3.6, 5.6), between(5.5, 8.0)),
        rib_half=between(0.52, 0.68),
        rib_bone=between(0.45, 0.85),
        clavicle=(
            middle_of(apex) + about(3.6, 0.7) - (1.2 if ap else 0),
            about(2.0, 1.0) - (0.6 if ap else 0),
            between(0.3, 1.1),
        ),
        scapula=between(0.35, 1.0) if ap else between(0.0, 0.25),
        scoliosis=about(0, 0.35),
        gas=(
            between(4.5, 7.5),
            between(0.9, 2.2),
            between(1.2, 3.2) if between(0, 1) < 0.75 else 0.0,
            between(0.6, 1.8),
        ),
        warp=np.stack(
            [rng.normal(0, 0.2, 4), rng.uniform(0.12, 0.35, 4), rng.uniform(0, 2 * np.pi, 4)], axis=1
        ),
    )


def middle_of(pair: Pair) -> float:
    """Mean of the two sides."""
    return (pair[0] + pair[1]) / 2
