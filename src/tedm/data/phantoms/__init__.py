"""Synthetic chest radiographs with lung masks, drawn from a small model of anatomy and X-ray physics.

A patient is a few dozen lengths in cm; what the beam crosses is a sum of thicknesses (soft tissue, lung,
bone, metal) times attenuation; scatter, noise, the film curve and the collimator make it a radiograph.
Everything is a function of continuous coordinates, so a patient is the same at every size. The masks follow
the rule of JSRT (van Ginneken et al. 2006): both lungs, without heart, mediastinum and what the diaphragm
hides; diseased lung is lung, pleural fluid is not.
"""

import numpy as np
from numpy.typing import NDArray

from tedm.data.phantoms.beam import attenuate
from tedm.data.phantoms.chest import Chest
from tedm.data.phantoms.film import burn_in, detect, develop
from tedm.data.phantoms.filters import block_means
from tedm.data.phantoms.findings import draw_findings
from tedm.data.phantoms.patient import draw_patient
from tedm.data.phantoms.plane import draw_plane
from tedm.data.phantoms.sites import SITES, Site
from tedm.errors import TedmError
from tedm.seeds import generator

__all__ = ["SITES", "Site", "draw"]


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

    # Two drawn pixels a side for each of the image, and never a coarser drawing than 128 × 128, so that
    # thin things survive in small images; edges are soft, so large images need only their own pixels.
    factor = max(2 if size < 512 else 1, -(-128 // size))
    patient = draw_patient(stream("patient"), look)
    plane = draw_plane(stream("pose"), look, patient, size * factor)
    chest = Chest(plane, patient)
    findings = draw_findings(stream("findings"), look, chest)
    thickness = attenuate(stream("texture"), chest, findings)
    exposure = detect(stream("detector"), look, chest, thickness)
    grey = burn_in(stream("marks"), look, plane, develop(stream("film"), look, chest, exposure))
    image = np.rint(255 * np.clip(block_means(grey, factor), 0, 1)).astype(np.uint8)
    coverage = np.clip(findings.lung / plane.pixel + 0.5, 0, 1)
    return image, (block_means(coverage, factor) >= 0.5).astype(np.uint8)
