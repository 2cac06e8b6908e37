"""Segmentations as files: PNG, NIfTI, DICOM SEG, overlays."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

import tedm
from tedm.errors import TedmError
from tedm.files import whole
from tedm.models.images import Picture, Scan

# Told apart by people who do not tell red from green (Okabe and Ito 2008); repeated beyond eight.
COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167), (255, 255, 255)),
)
PIXELS_PER_LINE = 250  # a contour is as many times thinner than the image


def mask_image(mask: NDArray[np.uint8], classes: Sequence[str]) -> Image.Image:
    """A mask (H, W) as an image: 0 and 255 for one class; for several their indices, with a palette.

    `tedm prepare` reads both back as masks.
    """
    if len(classes) == 1:
        return Image.fromarray(np.asarray(mask > 0, np.uint8) * np.uint8(255))
    image = Image.fromarray(mask).convert("P")  # greys become indices of the same value
    image.putpalette([0, 0, 0, *(v for k in range(len(classes)) for v in COLOURS[k % len(COLOURS)])])
    return image


def overlay(picture: Picture | Scan, mask: NDArray[np.uint8]) -> Image.Image:
    """The contours of a mask on its image; of a volume on the axial slice that shows most.

    Args:
        picture: that was segmented.
        mask: of its `Segmentation`.
    """
    if isinstance(picture, Scan):
        grey, mask = _slice_shown(picture, mask)
    else:
        grey = picture.shown()
    canvas = np.stack([grey] * 3, -1) if grey.ndim == 2 else grey.copy()
    width = max(1, round(max(mask.shape) / PIXELS_PER_LINE))
    for k in range(int(mask.max())):
        part = mask == k + 1
        # Neighbours of an edge, and the image's border, make the line lie inside the object.
        line = part & ~ndimage.binary_erosion(part, iterations=width)
        canvas[line] = COLOURS[k % len(COLOURS)]
    return Image.fromarray(canvas)


def _slice_shown(scan: Scan, mask: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    turned = nib.orientations.apply_orientation(mask, scan.orientation)
    index = int((turned > 0).sum(axis=(0, 1)).argmax()) if turned.any() else turned.shape[2] // 2
    plane = np.ascontiguousarray(scan.channels[0].values[:, :, index].T[::-1, ::-1])
    return Picture(scan.name, plane[None]).shown(), turned[:, :, index].T[::-1, ::-1]


def write_image(path: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all."""
    with whole(path) as partial:
        image.save(partial, format="PNG")


def write_nifti(path: Path, mask: NDArray[np.uint8], like: Path) -> None:
    """Write a mask (X, Y, Z) as label volume with the affine of another volume (.nii.gz).

    Args:
        path: to write.
        mask: 0 background, k + 1 class k.
        like: the volume that was segmented; where it lies in space is taken over.
    """
    image = cast(Any, nib.load(like))
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    header["descrip"] = f"tedm {tedm.__version__}".encode()
    labels = type(image)(mask, image.affine, header)
    with whole(path) as partial:
        partial.write_bytes(gzip.compress(labels.to_bytes(), 6, mtime=0))


def write_dicom_seg(
    path: Path, mask: NDArray[np.uint8], classes: Sequence[str], like: Path, model: str
) -> None:
    """Write a mask as DICOM Segmentation object that refers to the image (PS3.3 A.51).

    Classes have codes of their own (scheme 99TEDM) apart from lungs, which are SNOMED CT's.

    Args:
        path: to write.
        mask: (H, W), 0 background, k + 1 class k.
        classes: names.
        like: the DICOM file that was segmented; patient and study are taken over.
        model: name of the model, for the description of the series.

    Raises:
        TedmError: highdicom is not installed, or the file lacks what such an object needs.
    """
    try:
        import highdicom as hd
    except ImportError:
        raise TedmError("DICOM SEG needs highdicom: pip install 'tedm[dicomseg]'") from None
    from pydicom.sr.codedict import codes

    source = pydicom.dcmread(like)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=model, version=tedm.__version__, family=codes.cid7162.ArtificialIntelligence
    )
    described = [
        hd.seg.SegmentDescription(
            segment_number=k + 1,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=(
                codes.SCT.Lung
                if name.lower() in ("lung", "lungs")
                else hd.sr.CodedConcept(name[:16], "99TEDM", name)
            ),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for k, name in enumerate(classes)
    ]
    # The same image and model: the same object.
    uids = [
        pydicom.uid.generate_uid(entropy_srcs=[str(source.SOPInstanceUID), model, what])
        for what in ("series", "instance")
    ]
    try:
        made = hd.seg.Segmentation(
            source_images=[source],
            pixel_array=mask[None],
            segmentation_type="BINARY",
            segment_descriptions=described,
            series_instance_uid=uids[0],
            series_number=900,
            sop_instance_uid=uids[1],
            instance_number=1,
            manufacturer="tedm",
            manufacturer_model_name=model[:64],
            software_versions=tedm.__version__,
            device_serial_number="0",
            series_description="tedm: for research only",
            omit_empty_frames=False,
        )
        with whole(path) as partial:
            made.save_as(partial)
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise TedmError(f"{like}: no DICOM SEG can refer to it ({error}); leave --dicom-seg out") from None
