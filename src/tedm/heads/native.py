"""Native features of the images that a head learns from: in memory where they fit, else read ahead."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tedm.heads.base import FeatureSource, blocks
from tedm.heads.perceptron import Part

Native = dict[Part, Tensor]


class ImageFeatures:
    """Native features of some images at all timesteps, batch by batch.

    Args:
        features: where they are read.
        rows: the images, of `features`.
        timesteps: those that are read; slot s is the s-th of them.
        layers: that are read.
        device: where they end up.
        memory: bytes; images that need no more are kept, others are read ahead by one batch.

    Attributes:
        bytes: kept in memory.
    """

    def __init__(
        self,
        features: FeatureSource,
        rows: Sequence[int],
        timesteps: Sequence[int],
        layers: Sequence[str],
        device: str,
        memory: int,
    ) -> None:
        self.features, self.rows, self.timesteps, self.layers = features, list(rows), timesteps, layers
        self.device, self.bytes = device, 0
        self.kept: Native | None = None
        self.ahead: tuple[list[int], Future[Native]] | None = None
        self.reader = ThreadPoolExecutor(1)
        if not rows:
            return
        first = features.read(self.rows[:1], timesteps[0], layers)
        needed = sum(a.nbytes for a in first.values()) * len(timesteps) * len(rows)
        if needed <= memory:
            self.kept = self._load()
            self.bytes = needed

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, images: list[int], then: list[int] | None = None) -> Native:
        """Features (b, C, h, w) by timestep slot and layer; `then` will be asked for next."""
        if self.kept is not None:
            return {part: z[images] for part, z in self.kept.items()}
        if self.ahead is not None and self.ahead[0] == images:
            native = self.ahead[1].result()
        else:
            native = self._read(images)
        self.ahead = (then, self.reader.submit(self._read, then)) if then is not None else None
        return {part: z.to(self.device) for part, z in native.items()}

    def _read(self, images: list[int]) -> Native:
        return {
            (slot, layer): torch.from_numpy(np.ascontiguousarray(a))
            for slot, timestep in enumerate(self.timesteps)
            for layer, a in self.features.read(
                [self.rows[i] for i in images], timestep, self.layers
            ).items()
        }

    def _load(self) -> Native:
        kept: Native = {}
        for slot, timestep in enumerate(self.timesteps):
            start = 0
            for rows, block in blocks(self.features, self.rows, timestep, self.layers):
                for layer, a in block.items():
                    z = torch.from_numpy(np.ascontiguousarray(a))
                    if (slot, layer) not in kept:
                        kept[slot, layer] = torch.empty(
                            len(self), *z.shape[1:], dtype=z.dtype, device=self.device
                        )
                    kept[slot, layer][start : start + len(rows)] = z
                start += len(rows)
        return kept
