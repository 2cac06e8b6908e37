"""The source `brain`: synthetic volumes, written as UK Biobank or BraTS publish theirs, and read back."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from tedm.config import BrainSource, BraTSSource, ImageConfig, UKBBSource
from tedm.data.phantoms import brain
from tedm.data.sources import brats, ukbb
from tedm.data.sources.volumes import Volumes
from tedm.digests import canonical_json
from tedm.files import whole
from tedm.progress import stage

TUMOUR = {"necrotic core": 1, "oedema": 2, "enhancing tumour": 4}


def open_brains(source: BrainSource, image: ImageConfig, seed: int, where: str, drawings: Path) -> Volumes:
    """Draw the volumes that are not there yet, and open them with the source whose layout they have.

    Args:
        source: layout, number and voxel size.
        image: channels and classes.
        seed: of the volumes.
        where: the data set's path in the configuration, for messages.
        drawings: folder to write below, one folder for each seed and voxel size.
    """
    key = hashlib.sha256(canonical_json([seed, source.layout, source.voxel_mm]).encode()).hexdigest()
    folder = drawings / key[:12]
    opened: Volumes
    write = write_ukbb if source.layout == "ukbb" else write_brats
    with stage(f"draw {where.split('.')[1]}", source.count, "volumes") as progress:
        for index in range(source.count):
            write(folder, index, seed, source.voxel_mm)
            progress.advance()
    if source.layout == "ukbb":
        as_measured = UKBBSource(type="ukbb", folder=".", fit=source.fit, limit=source.count)
        opened = ukbb.UKBiobank(as_measured, image, folder, where)
    else:
        of_tumours = BraTSSource(type="brats", folder=".", fit=source.fit, limit=source.count)
        opened = brats.BraTS(of_tumours, image, folder, where)
    opened.synthetic = True
    opened.licence, opened.cite, opened.population = "MIT, as tedm", "", ""
    opened.description = f"synthetic: brain volumes drawn by tedm, in the layout of {source.layout}"
    return opened


def write_ukbb(folder: Path, index: int, seed: int, voxel_mm: float) -> None:
    """Write one volume as UK Biobank would, unless it is there."""
    home = folder / f"{1000000 + index}_20252_2_0"
    if (home / ukbb.FIRST).exists():
        return
    head = brain.draw_structures(index, seed, voxel_mm)
    labels = np.zeros(head.brain.shape, np.int16)
    for name, inside in head.labels.items():
        labels[inside] = ukbb.STRUCTURES[name]
    _write(home / ukbb.IMAGE, head.images["T1"].astype(np.int16), head.affine)
    _write(home / ukbb.BRAIN, head.brain.astype(np.int16), head.affine)
    _write(home / ukbb.FIRST, labels, head.affine)


def write_brats(folder: Path, index: int, seed: int, voxel_mm: float) -> None:
    """Write one patient as BraTS would, unless it is there."""
    name = f"BraTS_phantom_{index:03d}"
    last = folder / name / f"{name}_seg.nii.gz"
    if last.exists():
        return
    head = brain.draw_tumour(index, seed, voxel_mm)
    labels = np.zeros(head.brain.shape, np.int16)
    for label, inside in head.labels.items():
        labels[inside] = TUMOUR[label]
    for modality, values in head.images.items():
        _write(folder / name / f"{name}_{modality}.nii.gz", values.astype(np.int16), head.affine)
    _write(last, labels, head.affine)


def _write(path: Path, values: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    content = nib.Nifti1Image(values, affine).to_bytes()
    with whole(path) as partial:
        partial.write_bytes(gzip.compress(content, compresslevel=4, mtime=0))
