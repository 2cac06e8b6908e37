"""An image as it is shown: not larger than a screen, whatever its own size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tedm import evaluation
from tedm.models import Model, Segmentation
from tedm.models.folder import Preprocessing
from tedm.models.images import Picture, restored

LONGEST = 512  # pixels
Float = NDArray[np.float32]


@dataclass(frozen=True)
class View(Picture):
    """An image that is segmented as it is, and whose maps come back at the size at which they are shown.

    Thirty models make thirty maps of each kind: at the size of a radiograph they would be gigabytes.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is shown."""
        height, width = self.pixels.shape[1:]
        scale = min(1.0, LONGEST / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def back(self, maps: Float, like: Preprocessing) -> Float:
        """Bring a map (1, K, size, size) to the size at which it is shown, (K, h, w)."""
        return restored(maps[0], self.shape, like.fit)

    def image(self) -> Image.Image:
        """What is shown."""
        height, width = self.shape
        shown = Image.fromarray(self.shown())
        return (
            shown if shown.size == (width, height) else shown.resize((width, height), Image.Resampling.BOX)
        )


def view(picture: Picture) -> View:
    """The view of an image."""
    return View(picture.name, picture.pixels, picture.spacing_mm, picture.windowed)


def own_size(picture: Picture, model: Model, found: Segmentation) -> NDArray[np.uint8]:
    """Mask of each class at the image's own size, 0 or 1, (K, H, W): what `Model.segment` makes of it."""
    assert found.steps is not None
    mean: Any = np.asarray(found.steps.mean(axis=0, dtype=np.float64), np.float32)
    shape = (int(picture.pixels.shape[1]), int(picture.pixels.shape[2]))
    return np.asarray(evaluation.segment(restored(mean, shape, model.preprocessing.fit)[None])[0])
