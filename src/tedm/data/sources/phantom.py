"""The source `phantom`: synthetic chest radiographs."""

import numpy as np

from tedm.config import ImageConfig, PhantomSource
from tedm.data.phantoms import draw
from tedm.data.sources.base import Found, Picture, Source
from tedm.errors import TedmError


class Phantoms(Source):
    """Radiographs that are drawn when they are read."""

    synthetic = True
    licence = "MIT, as tedm"

    def __init__(self, source: PhantomSource, image: ImageConfig, seed: int, where: str) -> None:
        super().__init__()
        if image.channels != 1 or len(image.classes) != 1:
            raise TedmError(
                f"{where}.source: phantoms have 1 channel and 1 class, but image.channels is"
                f" {image.channels} and image.classes are {', '.join(image.classes)}"
            )
        self.site, self.size, self.seed = source.site, image.size, seed
        self.ids = [f"{source.site}-{index:06d}" for index in range(source.count)]
        self.subjects = self.ids
        self.description = f"synthetic: drawn by tedm in the style of {source.site}"

    def examine(self, name: str, split: str) -> Found:  # noqa: ARG002 (the base class's)
        return Found(np.dtype(np.uint8), "")

    def read(self, name: str, split: str) -> list[Picture]:  # noqa: ARG002
        pixels, mask = draw(self.site, int(name.rsplit("-", 1)[1]), self.size, self.seed)
        return [Picture(name, pixels[None], mask[None])]
