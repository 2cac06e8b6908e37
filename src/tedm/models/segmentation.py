"""What a model says of one image: mask, probabilities, and how much its timesteps disagree."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tedm.errors import TedmError


@dataclass(frozen=True)
class Segmentation:
    """One image's segmentation, at the image's own size and orientation.

    Attributes:
        classes: names of the K classes.
        mask: uint8 (H, W), or (X, Y, Z) of a volume: 0 background, k + 1 where it is classes[k].
        probability: of each class, float32 (K, H, W) or (K, X, Y, Z), in [0, 1].
        uncertainty: mutual information between label and timestep, in bits, like `probability`
            (`tedm.disagreement.information`); None where the model does not vote.
        steps: probability that each timestep gives by itself, at the network's size, float32 (S, K, h, w);
            S = 1 where the model does not vote; None for volumes.
        timesteps: of `steps`; () where the model does not vote.
        disagreement: of each class 1 - mean Dice between timesteps (`tedm.disagreement.scores`), in [0, 1],
            at the network's size; {} where the model does not vote.
        spacing_mm: height and width of a pixel, or of a voxel along each axis; None where nobody knows.
        seconds: of this image: reading, networks and head. A batch's time is shared out evenly.
    """

    classes: tuple[str, ...]
    mask: NDArray[np.uint8]
    probability: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None
    steps: NDArray[np.float32] | None
    timesteps: tuple[int, ...]
    disagreement: dict[str, float]
    spacing_mm: tuple[float, ...] | None
    seconds: float
    back: Callable[[NDArray[np.float32]], NDArray[np.float32]] = field(repr=False, compare=False)

    def step(self, timestep: int) -> NDArray[np.float32]:
        """Probability that one timestep gives by itself, (K, H, W), at the image's size.

        Raises:
            TedmError: the model does not vote, has no such timestep, or the image is a volume.
        """
        if self.steps is None or timestep not in self.timesteps:
            known = ", ".join(map(str, self.timesteps)) if self.steps is not None else ""
            raise TedmError(f"timestep {timestep}: no map of it is kept (kept: {known or 'none'})")
        return self.back(self.steps[self.timesteps.index(timestep)])

    def masks(self) -> NDArray[np.uint8]:
        """The mask of each class, 0 or 1, (K, H, W)."""
        return np.stack([self.mask == k + 1 for k in range(len(self.classes))]).astype(np.uint8)

    def areas(self) -> dict[str, float]:
        """Size of each class, in `area_unit`."""
        sizes = np.bincount(self.mask.ravel(), minlength=len(self.classes) + 1)[1:]
        scale = 1.0
        if self.spacing_mm is not None:
            scale = float(np.prod(self.spacing_mm)) / (1000 if self.mask.ndim == 3 else 1)
        return {name: float(size * scale) for name, size in zip(self.classes, sizes, strict=True)}

    @property
    def area_unit(self) -> str:
        """mm2, or px where the spacing is unknown; of volumes ml, or voxels."""
        if self.mask.ndim == 3:
            return "voxels" if self.spacing_mm is None else "ml"
        return "px" if self.spacing_mm is None else "mm2"

    def cleaned(self, keep_largest: int | None, fill_holes: bool) -> "Segmentation":
        """The same with a tidier mask; probabilities stay.

        Args:
            keep_largest: connected parts of each class that stay (neighbours share an edge, or a face);
                None: all. Two of one size: the one that comes first stays.
            fill_holes: fill background that a class encloses.
        """
        if keep_largest is None and not fill_holes:
            return self
        mask = np.zeros_like(self.mask)
        for k in range(len(self.classes)):
            part = self.mask == k + 1
            if keep_largest is not None:
                parts, count = ndimage.label(part)
                if count > keep_largest:
                    sizes = np.bincount(parts.ravel())[1:]
                    largest = np.argsort(-sizes, kind="stable")[:keep_largest] + 1
                    part = np.isin(parts, largest)
            mask[part] = k + 1
        if fill_holes:
            for k in range(len(self.classes)):
                filled = ndimage.binary_fill_holes(mask == k + 1)
                mask[filled & (mask == 0)] = k + 1
        return replace(self, mask=mask)
