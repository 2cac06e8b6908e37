"""The pixels × channels matrix of a linear model on resized features, as an operator."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tedm.heads.base import FeatureSource
from tedm.heads.resize import Mode, Resize

Standardise = Literal["channel", "pixel"]
BYTES_AT_ONCE = 8 * 2**20  # float32 features of a block: small enough for the processor's cache
EPS = float(np.finfo(np.float64).eps)


class Design:
    """X: one row per pixel of the images, one column per channel of all layers, resized and standardised.

    X = [R₁ Z₁ | R₂ Z₂ | …], where Z holds a layer at native resolution and R resizes it. It is never built:
    X w = Σ R (Z w) and Xᵀ r = [Zᵀ (Rᵀ r)] need native features only, an eighth of the values at the
    paper's sizes.

    Standardisation is per channel, over all pixels of all images. Rows of R sum to 1, so it may be done
    before resizing; the statistics are those after it.

    Args:
        features: where Z is read.
        rows: images.
        timestep: of the features.
        layers: in the order of the columns.
        mode: of resizing.
        memory: bytes for keeping Z: standardised if that fits, else as stored if that fits, else Z is read
            again in every sweep. No effect on the numbers.
        statistics: mean and scale of another Design, for prediction; None: of these images.
        dtype: of the arithmetic; sums over images are float64.
        device: where torch computes.
    """

    def __init__(
        self,
        features: FeatureSource,
        rows: Sequence[int],
        timestep: int,
        layers: Sequence[str],
        mode: Mode,
        memory: int,
        statistics: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.features, self.rows, self.timestep, self.layers = features, list(rows), timestep, tuple(layers)
        self.mode, self.dtype, self.device = mode, dtype, device
        self.shapes = {layer: features.layer_shapes[layer] for layer in layers}
        self.size = features.image_size
        self.channels = sum(shape[0] for shape in self.shapes.values())
        self.columns = dict(zip(layers, _slices([s[0] for s in self.shapes.values()]), strict=True))
        self.resizes = {
            layer: Resize(shape[1:], self.size, mode, dtype, device) for layer, shape in self.shapes.items()
        }
        values = sum(int(np.prod(shape)) for shape in self.shapes.values())
        at_once = max(1, BYTES_AT_ONCE // (4 * values))
        self.blocks = [slice(i, min(i + at_once, len(self))) for i in range(0, len(self), at_once)]
        self._stored_blocks: dict[int, dict[str, Tensor]] = {}
        self._ready_blocks: dict[int, dict[str, Tensor]] = {}
        self._keep_stored = values * len(self) * self._bytes_per_value() <= memory
        self.mean, self.scale = statistics or self._statistics()
        self._keep_ready = values * len(self) * dtype.itemsize <= memory
        self._keep_stored &= not self._keep_ready

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def pixels(self) -> int:
        """Number of rows of X."""
        return len(self) * self.size[0] * self.size[1]

    def sweep(
        self,
        weights: Tensor | None,
        function: Callable[[slice, Tensor | None], Tensor | None],
    ) -> Tensor | None:
        """One pass over the images: r = function(X w), then Xᵀ r.

        Args:
            weights: w, (channels, K), or None if the function needs no product.
            function: called for each block of images with their slice and X w, (b, K, H, W); returns r like
                it, or None.

        Returns:
            Xᵀ r, float64 (channels, K); None if the function returned None.
        """
        total: Tensor | None = None
        for images in self.blocks:
            block = self._block(images)
            product = None if weights is None else self.times(block, weights.to(self.device, self.dtype))
            r = function(images, product)
            if r is not None:
                part = self._transposed_times(block, r)
                total = part if total is None else total + part
        return total

    def sample(self, pixels: Tensor) -> Tensor:
        """Rows of X: (P, channels) for sorted positions `pixels` in (image, H, W)."""
        per_image = self.size[0] * self.size[1]
        parts = []
        for images in self.blocks:
            first, last = torch.searchsorted(
                pixels, torch.tensor([images.start, images.stop], device=pixels.device) * per_image
            ).tolist()
            if first == last:
                continue
            block = self._block(images)
            chosen = pixels[first:last]
            image = chosen // per_image - images.start
            for i in range(images.stop - images.start):
                inside = chosen[image == i] % per_image
                if len(inside):
                    parts.append(self._gather({k: z[i] for k, z in block.items()}, inside).T)
        return torch.cat(parts)

    def times(self, block: dict[str, Tensor], weights: Tensor) -> Tensor:
        """X w of a block of images, (b, K, H, W)."""
        total: Tensor | None = None
        for layer, z in block.items():
            native = weights[self.columns[layer]].T @ z.flatten(2)
            resized = self.resizes[layer].forward(native.unflatten(2, z.shape[2:]))
            total = resized if total is None else total.add_(resized)
        assert total is not None
        return total

    def _transposed_times(self, block: dict[str, Tensor], r: Tensor) -> Tensor:
        parts = []
        for layer, z in block.items():
            native = self.resizes[layer].adjoint(r).flatten(2)
            parts.append((z.flatten(2) @ native.mT).double().sum(0))
        return torch.cat(parts)

    def _gather(self, image: dict[str, Tensor], pixels: Tensor) -> Tensor:
        return torch.cat([self.resizes[layer].gather(z, pixels) for layer, z in image.items()])

    def _standardised(self, layer: str, z: Tensor) -> Tensor:
        c = self.columns[layer]
        mean, scale = (s[c].to(self.dtype).view(-1, 1, 1) for s in (self.mean, self.scale))
        return z.to(self.dtype).sub_(mean).div_(scale) if z.dtype != self.dtype else (z - mean).div_(scale)

    def _block(self, images: slice) -> dict[str, Tensor]:
        """Standardised features of some images at native resolution."""
        if images.start in self._ready_blocks:
            return self._ready_blocks[images.start]
        block = {layer: self._standardised(layer, z) for layer, z in self._stored(images).items()}
        if self._keep_ready:
            self._ready_blocks[images.start] = block
            self._stored_blocks.pop(images.start, None)
        return block

    def _stored(self, images: slice) -> dict[str, Tensor]:
        """Features of some images as they are stored."""
        if images.start in self._stored_blocks:
            return self._stored_blocks[images.start]
        arrays = self.features.read(self.rows[images], self.timestep, self.layers)
        block = {k: torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for k, a in arrays.items()}
        if self._keep_stored:
            self._stored_blocks[images.start] = block
        return block

    def _bytes_per_value(self) -> int:
        first = self.features.read(self.rows[:1], self.timestep, self.layers[:1])
        return next(iter(first.values())).dtype.itemsize

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every column of X, float64 (channels,).

        Sums over resized pixels are sums over native ones: Σ R z = (Rᵀ1)ᵀ z and Σ (R z)² = zᵀ RᵀR z, which
        with R z = A z Bᵀ is Σ (AᵀA z) ⊙ (z BᵀB).
        """
        moments = {layer: _Moments(self.resizes[layer]) for layer in self.layers}
        sums = {layer: torch.zeros(2, self.shapes[layer][0], dtype=torch.float64) for layer in self.layers}
        shifts: dict[str, Tensor] = {}  # near the mean, so that the difference below loses no digits
        for images in self.blocks:
            for layer, stored in self._stored(images).items():
                z = stored.double()
                if layer not in shifts:
                    shifts[layer] = z.mean((0, 2, 3), keepdim=True)
                sums[layer] += moments[layer](z - shifts[layer]).cpu()
        first, second = torch.cat([sums[layer] for layer in self.layers], 1) / self.pixels
        mean = first + torch.cat([shifts[layer].flatten().cpu() for layer in self.layers])
        return mean.to(self.device), _scale(mean, second - first**2, self.pixels).to(self.device)


class PixelDesign(Design):
    """The same with standardisation per channel and pixel, over images, as in the authors' code.

    A scale that varies from pixel to pixel does not commute with resizing: channels are resized and
    standardised, a few at a time.
    """

    def times(self, block: dict[str, Tensor], weights: Tensor) -> Tensor:
        total: Tensor | None = None
        for columns, resized in self._chunks(block):
            product = weights[columns].T @ resized.flatten(2)
            total = product if total is None else total.add_(product)
        assert total is not None
        return total.view(*total.shape[:2], *self.size)

    def _transposed_times(self, block: dict[str, Tensor], r: Tensor) -> Tensor:
        return torch.cat(
            [(resized.flatten(2) @ r.flatten(2).mT).double().sum(0) for _, resized in self._chunks(block)]
        )

    def _gather(self, image: dict[str, Tensor], pixels: Tensor) -> Tensor:
        mean, scale = (s.flatten(1).index_select(1, pixels) for s in (self.mean, self.scale))
        return (super()._gather(image, pixels) - mean) / scale

    def _standardised(self, layer: str, z: Tensor) -> Tensor:  # noqa: ARG002 (happens after resizing here)
        return z.to(self.dtype)

    def _chunks(self, block: dict[str, Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Some columns at a time: (b, c, H, W), standardised."""
        for layer, z in block.items():
            per_channel = len(z) * self.size[0] * self.size[1] * 4
            for c in _slices_of(z.shape[1], max(1, BYTES_AT_ONCE // per_channel)):
                start = self.columns[layer].start
                columns = slice(start + c.start, start + c.stop)
                resized = self.resizes[layer].forward(z[:, c])
                yield columns, (resized - self.mean[columns]).div_(self.scale[columns])

    def _statistics(self) -> tuple[Tensor, Tensor]:
        means, scales = [], []
        for layer in self.layers:  # one at a time: the sums are as large as the image
            resize = self.resizes[layer]
            shift: Tensor | None = None
            first = torch.zeros(self.shapes[layer][0], *self.size, dtype=torch.float64, device=self.device)
            second = torch.zeros_like(first)
            for image in range(len(self)):
                z = self.features.read(self.rows[image : image + 1], self.timestep, [layer])[layer][0]
                resized = resize.forward(torch.from_numpy(z).to(self.device, self.dtype)).double()
                shift = resized if shift is None else shift
                difference = resized - shift
                first += difference
                second += difference.square_()
            assert shift is not None
            first /= len(self)
            mean = first + shift
            scales.append(_scale(mean, second / len(self) - first**2, len(self)).to(self.dtype))
            means.append(mean.to(self.dtype))
        return torch.cat(means), torch.cat(scales)


class _Moments:
    """Sums over the pixels of resized channels of their values and of their squares."""

    def __init__(self, resize: Resize) -> None:
        self.identity = resize.identity
        if not self.identity:
            exact = Resize(resize.source, resize.target, resize.mode, torch.float64, resize.device)
            self.row_sums, self.column_sums = exact.rows.sum(0), exact.columns.sum(0)
            self.row_gram, self.column_gram = exact.rows.T @ exact.rows, exact.columns.T @ exact.columns

    def __call__(self, z: Tensor) -> Tensor:
        """Of (b, C, h, w): (2, C)."""
        if self.identity:
            return torch.stack((z.sum((0, 2, 3)), z.square().sum((0, 2, 3))))
        first = ((self.row_sums @ z) @ self.column_sums).sum(0)
        second = ((self.row_gram @ z) * (z @ self.column_gram)).sum((0, 2, 3))
        return torch.stack((first, second))


def _scale(mean: Tensor, variance: Tensor, count: int) -> Tensor:
    """Standard deviation, but 1 where nothing varies beyond rounding, by scikit-learn's rule."""
    constant = variance <= count * EPS * variance + (count * mean * EPS) ** 2
    return torch.where(constant, torch.ones_like(variance), variance.clamp(min=0).sqrt())


def _slices(lengths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _slices_of(length: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]
