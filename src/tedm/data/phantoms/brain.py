"""Synthetic brain volumes: a T1 image with subcortical structures, or four modalities with a tumour.

A head is a set of ellipsoids in mm around the anterior commissure, each moved, turned and scaled a little
from patient to patient; tissues have one grey each, blurred by the voxel, with a slow bias field and noise.
The shapes are round numbers close to an adult's, no atlas.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tedm.seeds import generator

Grid = NDArray[np.float64]

BRAIN = ((0.0, -18.0, 10.0), (67.0, 84.0, 60.0))  # centre and radii, mm
# Structure: centre and radii on the right side, mm; its grey in a T1 image. Earlier ones lie on top.
PAIRED = {
    "accumbens": ((9.0, 12.0, -7.0), (5.0, 6.0, 5.0), 570),
    "amygdala": ((23.0, -4.0, -18.0), (8.0, 8.0, 7.0), 545),
    "hippocampus": ((27.0, -22.0, -13.0), (7.0, 17.0, 7.0), 560),
    "pallidum": ((19.0, -4.0, 0.0), (5.0, 9.0, 6.0), 740),
    "caudate": ((13.0, 12.0, 10.0), (6.0, 15.0, 9.0), 590),
    "putamen": ((27.0, 3.0, 1.0), (7.0, 15.0, 10.0), 615),
    "thalamus": ((12.0, -18.0, 8.0), (9.0, 13.0, 9.0), 680),
}
STEM = ((0.0, -28.0, -32.0), (12.0, 12.0, 21.0), 765)
VENTRICLES = ((6.0, -8.0, 18.0), (5.0, 26.0, 8.0))
# Greys of cerebrospinal fluid, cortex, white matter and oedema, tumour rim and necrosis, by modality.
MODALITIES = {
    "flair": (100, 420, 340, 780, 620, 300),
    "t1": (180, 520, 760, 560, 540, 330),
    "t1ce": (180, 530, 780, 570, 1150, 320),
    "t2": (950, 520, 380, 820, 640, 880),
}


@dataclass(frozen=True)
class Head:
    """One drawn head.

    Attributes:
        images: intensities by name (T1; or flair, t1, t1ce, t2), (X, Y, Z).
        labels: by structure's name, (X, Y, Z), which exclude each other.
        brain: where the brain is, (X, Y, Z).
        affine: from voxels to mm, (4, 4).
    """

    images: dict[str, Grid]
    labels: dict[str, NDArray[np.bool_]]
    brain: NDArray[np.bool_]
    affine: NDArray[np.float64]


def draw_structures(index: int, seed: int, voxel_mm: float) -> Head:
    """Draw a T1 volume with the 15 structures that FIRST segments."""
    patient, axes, affine = _place(index, seed, voxel_mm, (189.0, 233.0, 197.0))
    where, image, brain = _tissues(patient, axes, (200, 540, 800))
    labels: dict[str, NDArray[np.bool_]] = {}
    taken = np.zeros(brain.shape, bool)
    for name, side, (centre, radii, grey) in _structures():
        inside = _ellipsoid(where, np.array(centre) * [side, 1, 1], radii, patient, 0.06) < 1
        inside &= brain & ~taken
        labels[name], taken = inside, taken | inside
        image[inside] = grey * patient.uniform(0.97, 1.03)
    skull = _ellipsoid(where, np.array(BRAIN[0]), np.array(BRAIN[1]) + 12, patient, 0.0)
    scalp = (skull < 1) & (skull > 0.9) & ~brain
    image[scalp] = 950
    return Head({"T1": _recorded(image, patient, 18.0)}, labels, brain, affine)


def draw_tumour(index: int, seed: int, voxel_mm: float) -> Head:
    """Draw four skull-stripped modalities with a tumour; one in five has no enhancing rim."""
    patient, axes, affine = _place(index, seed, voxel_mm, (240.0, 240.0, 155.0))
    where, _, brain = _tissues(patient, axes, (0, 0, 0))
    side = patient.choice([-1.0, 1.0])
    centre = np.array([side * patient.uniform(22, 40), patient.uniform(-55, 30), patient.uniform(5, 40)])
    radius = patient.uniform(11, 20)
    waves = ndimage.gaussian_filter(patient.standard_normal(brain.shape), 8 / voxel_mm)
    distance = _ellipsoid(where, centre, np.full(3, radius), patient, 0.15) ** 0.5
    distance = distance + 0.25 * waves / max(float(waves.std()), 1e-9)
    oedema = (distance < patient.uniform(1.5, 1.9)) & brain
    rim, core = (distance < 1) & brain, (distance < 0.65) & brain
    if patient.random() < 0.2:
        rim = core
    labels = {"oedema": oedema & ~rim, "enhancing tumour": rim & ~core, "necrotic core": core}
    images = {}
    for name, (fluid, cortex, white, wet, bright, dead) in MODALITIES.items():
        _, image, _ = _tissues(generator(seed, "brain", index, "patient"), axes, (fluid, cortex, white))
        for label, grey in (("oedema", wet), ("enhancing tumour", bright), ("necrotic core", dead)):
            image[labels[label]] = grey
        recorded = _recorded(image, generator(seed, "brain", index, name), 18.0)
        images[name] = np.where(brain, np.maximum(recorded, 1), 0)
    return Head(images, labels, brain, affine)


def _structures() -> list[tuple[str, int, tuple[tuple[float, ...], tuple[float, ...], int]]]:
    paired = [
        (f"{word} {name}", side, shape)
        for name, shape in PAIRED.items()
        for word, side in (("left", -1), ("right", 1))
    ]
    return [*paired, ("brain stem", 1, STEM)]


def _place(
    index: int, seed: int, voxel_mm: float, field_mm: tuple[float, float, float]
) -> tuple[np.random.Generator, list[Grid], NDArray[np.float64]]:
    """A patient's draws, the mm of the voxels along each axis, and the affine; x runs to the left."""
    shape = [round(side / voxel_mm) for side in field_mm]
    affine = np.diag([-voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = [(shape[0] - 1) / 2 * voxel_mm, -18 - (shape[1] - 1) / 2 * voxel_mm, 0]
    affine[2, 3] = 5 - (shape[2] - 1) / 2 * voxel_mm
    axes = [affine[a, a] * np.arange(shape[a]) + affine[a, 3] for a in range(3)]
    return generator(seed, "brain", index, "patient"), axes, affine


def _tissues(
    patient: np.random.Generator, axes: list[Grid], greys: tuple[float, float, float]
) -> tuple[Grid, Grid, NDArray[np.bool_]]:
    """Where each voxel is in the patient's own mm, (3, X, Y, Z); an image of the tissues; the brain."""
    fluid, cortex, white = greys
    mm = np.stack(np.meshgrid(*axes, indexing="ij"))
    turn = _rotation(patient.normal(0, 0.05, 3))
    scale, shift = patient.normal(1, 0.03, 3), patient.normal(0, 2, 3)
    where = np.tensordot(turn / scale[:, None], mm - shift.reshape(3, 1, 1, 1), axes=1)
    distance = sum(((where[a] - BRAIN[0][a]) / BRAIN[1][a]) ** 2 for a in range(3))
    folds = 0.05 * np.sin(where[0] / 4) * np.sin(where[1] / 5 + 1) * np.sin(where[2] / 4 + 2)
    brain = distance < 1
    image = np.zeros(brain.shape)
    image[brain] = cortex
    image[brain & (distance < 0.72 + 2 * folds)] = white
    for side in (-1, 1):
        centre = np.array(VENTRICLES[0]) * [side, 1, 1]
        image[_ellipsoid(where, centre, VENTRICLES[1], patient, 0.1) < 1] = fluid
    return where, image, brain


def _ellipsoid(
    where: Grid, centre: NDArray[np.float64], radii: object, patient: np.random.Generator, spread: float
) -> Grid:
    """Squared distance from the centre in radii: below 1 is inside."""
    radii = np.asarray(radii, np.float64) * patient.normal(1, spread, 3)
    centre = centre + patient.normal(0, 10 * spread, 3)
    offset = (where - centre.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)
    return np.asarray((offset**2).sum(axis=0))


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turned = step @ turned
    return turned


def _recorded(image: Grid, patient: np.random.Generator, noise: float) -> Grid:
    """What a scanner makes of it: blur, a slow bias field, and the noise of a magnitude image."""
    field = ndimage.gaussian_filter(patient.standard_normal(image.shape), [n / 4 for n in image.shape])
    blurred = ndimage.gaussian_filter(image, 0.5) * (
        1 + 0.08 * field / max(float(np.abs(field).max()), 1e-9)
    )
    real, imaginary = patient.normal(0, noise, (2, *image.shape))
    return np.asarray(np.hypot(blurred + real, imaginary))
