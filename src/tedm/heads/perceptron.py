"""The perceptron on every pixel of resized features: first layer at native resolution, gradient by hand."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tedm.heads.resize import Mode, Resize
from tedm.seeds import generator

EPS, MOMENTUM = 1e-5, 0.1  # of BatchNorm, torch's defaults
BAND_BYTES = 2**20  # of a band's first activations: the size of a processor's second cache
Part = tuple[int, str]  # timestep slot, layer


@dataclass(frozen=True)
class Chunk:
    """Images that go through the network at once.

    Attributes:
        parts: native features of each part of the input, (b, C, h, w), in any floating type.
        labels: class of each pixel, 0 … K, (b, P); all pixels in reading order, or those of `pixels`.
        pixels: positions in the flattened image that are seen, (b, P) int64; None: all.
    """

    parts: Mapping[Part, Tensor]
    labels: Tensor
    pixels: Tensor | None = None


class Band(NamedTuple):
    """Some rows of the image, and the few rows of each resized part that they are made of.

    Attributes:
        rows: from the parts' rows, one part below the other, to the band's, (height, Σ source rows).
        sources: for each resized part its rows that are read, and their place in `rows`.
    """

    rows: Tensor
    sources: dict[Part, tuple[slice, slice]]


class Pass(NamedTuple):
    """What one training pass gives: the mean loss and its gradient, in the order of parameters()."""

    loss: Tensor
    gradients: list[Tensor]


class Perceptron(nn.Module):
    """in → hidden → ReLU → BatchNorm → … → out on every pixel (Rosnati et al. 2023, 2.2 and their code).

    The same numbers as a network of 1×1 convolutions on the resized, concatenated features, but the first
    layer runs at native resolution and its outputs are resized: the map is linear, so the two commute.
    BatchNorm's statistics are over all pixels of all chunks of a batch, as if it were one tensor.

    Args:
        shapes: (C, h, w) of each part of the input, in the order of concatenation.
        size: (H, W) of the images.
        hidden: widths of the hidden layers.
        outputs: 1 (binary) or K + 1 (softmax over background and K classes).
        mode: of resizing.
    """

    def __init__(
        self,
        shapes: Mapping[Part, tuple[int, int, int]],
        size: tuple[int, int],
        hidden: Sequence[int],
        outputs: int,
        mode: Mode,
    ) -> None:
        super().__init__()
        self.shapes, self.size, self.mode = dict(shapes), size, mode
        self._resizes: dict[Any, Resize] = {}
        self._made_bands: dict[Any, list[Band]] = {}
        widths = [sum(shape[0] for shape in shapes.values()), *hidden, outputs]
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList([torch.zeros(outer, inner) for inner, outer in pairs])
        self.biases = nn.ParameterList([torch.zeros(outer) for _, outer in pairs])
        self.gains = nn.ParameterList([torch.ones(width) for width in hidden])
        self.shifts = nn.ParameterList([torch.zeros(width) for width in hidden])
        for i, width in enumerate(hidden):
            self.register_buffer(f"mean{i}", torch.zeros(width))
            self.register_buffer(f"variance{i}", torch.ones(width))

    def draw(self, *names: str | int) -> "Perceptron":
        """Initial weights as torch draws them for a convolution, uniform within ±1/√inputs, by name."""
        with torch.no_grad():
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                bound = weight.shape[1] ** -0.5
                rng = generator(*names, "weights", i)
                weight.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(weight.shape))))
                bias.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(bias.shape))))
        return self

    # ── prediction ──

    def forward(self, chunk: Chunk) -> Tensor:
        """Logits (b, outputs, P) with the running statistics of BatchNorm."""
        images = len(chunk.labels)
        x = self.first(chunk).relu_()
        for i, (weight, bias) in enumerate(self._deeper()):
            mean, variance = self._running(i)
            scaled, offset = _folded(weight, bias, self.gains[i], self.shifts[i], mean, variance)
            x = torch.baddbmm(offset.view(1, -1, 1), scaled.expand(len(x), -1, -1), x)
            if i < len(self.gains) - 1:
                x = x.relu_()
        return cast(Tensor, x.unflatten(0, (-1, images)).permute(1, 2, 0, 3).flatten(2))

    def mean_loss(self, chunk: Chunk) -> Tensor:
        """Cross entropy of the prediction, mean over the chunk's pixels."""
        return _loss(self(chunk), chunk.labels)[0] / chunk.labels.numel()

    # ── training ──

    def loss(self, chunks: Sequence[Chunk], memory: int) -> Tensor:
        """Mean cross entropy of a batch, with gradient; moves the running statistics.

        Args:
            chunks: of the batch, all with equally many pixels per image.
            memory: bytes for the first layer's activations; where they are larger they are computed anew
                for each pass over the batch. No effect on the numbers.
        """
        run: Any = _WithGradient.apply  # untyped in torch
        return cast(Tensor, run(lambda: self.training_pass(chunks, memory), *self.parameters()))

    @torch.no_grad()
    def training_pass(self, chunks: Sequence[Chunk], memory: int) -> Pass:
        """Loss and gradient of a batch, one pass over its chunks per layer and direction.

        BatchNorm is affine once its statistics are known, so it is folded into the next layer; and the sums
        over pixels that its gradient needs follow from the next layer's weight gradient. So a chunk is
        worked on while it is in the processor's cache, and only activations after ReLU are kept.
        """
        depth, count = len(self.gains), sum(chunk.labels.numel() for chunk in chunks)
        inputs = _Activations(self, chunks, memory)
        layers: list[Any] = [inputs]  # activations after ReLU, before BatchNorm, per chunk
        statistics = [_moments(inputs)]
        for i, (weight, bias) in enumerate(self._deeper()):
            scaled, offset = _folded(weight, bias, self.gains[i], self.shifts[i], *statistics[i])
            outputs = []
            for a in layers[i]:
                x = torch.baddbmm(offset.view(1, -1, 1), scaled.expand(len(a), -1, -1), a)
                outputs.append(x.relu_() if i < depth - 1 else x)
            layers.append(outputs)
            if i < depth - 1:
                statistics.append(_moments(outputs))

        total = torch.zeros((), dtype=torch.float64, device=self.weights[0].device)
        for j, chunk in enumerate(chunks):
            loss, layers[-1][j] = _loss(layers[-1][j], self._banded(chunk))
            total += loss
            layers[-1][j] /= count
        gradients: dict[str, Tensor] = {}
        for i in reversed(range(depth)):
            back = self._backward(i, layers[i], layers.pop(), statistics[i], count, gradients)
            if i > 0:
                for j, d in enumerate(back):
                    layers[i][j] = d
        self._first_gradient(chunks, back, gradients)
        for i, (mean, variance) in enumerate(statistics):
            running_mean, running_variance = self._running(i)
            running_mean.lerp_(mean.to(running_mean.dtype), MOMENTUM)
            running_variance.lerp_(
                (variance * (count / max(count - 1, 1))).to(running_mean.dtype), MOMENTUM
            )
        return Pass(
            (total / count).to(self.weights[0].dtype),
            [gradients[name].to(p.dtype) for name, p in self.named_parameters()],
        )

    def _backward(
        self,
        i: int,
        activations: Any,
        outer: Sequence[Tensor],
        statistics: tuple[Tensor, Tensor],
        count: int,
        gradients: dict[str, Tensor],
    ) -> Iterator[Tensor]:
        """From the gradient of the linear layer after hidden layer i to that of the one before it.

        With a the activations, x̂ = (a - mean)/σ and y = γ x̂ + β, the layer after is W y + b. Let d be the
        gradient of its output. Σ d aᵀ and Σ d give every sum that BatchNorm's gradient needs; what is left,
        da = γ/σ (Wᵀ d - Σ dy/n - x̂ Σ dy x̂/n), is affine in d and a.
        """
        weight, gain, shift = (p.detach() for p in (self.weights[i + 1], self.gains[i], self.shifts[i]))
        mean, variance = statistics
        inverse = (variance + EPS).rsqrt()
        products = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
        sums = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        for a, d in zip(activations, outer, strict=True):
            products += (d @ a.mT).sum(0)
            sums += d.sum((0, 2))
        normalised = (products - sums.unsqueeze(1) * mean) * inverse  # Σ d x̂ᵀ
        d_shift = sums @ weight.double()
        d_gain = (weight * normalised).sum(0)
        gradients[f"weights.{i + 1}"] = normalised * gain + sums.unsqueeze(1) * shift
        gradients[f"biases.{i + 1}"] = sums
        gradients[f"gains.{i}"], gradients[f"shifts.{i}"] = d_gain, d_shift
        slope = -gain * inverse**2 * d_gain / count
        constant = -gain * inverse * d_shift / count - slope * mean
        slope, constant = (v.to(weight.dtype).view(1, -1, 1) for v in (slope, constant))
        back = ((gain * inverse).unsqueeze(1) * weight.T).to(weight.dtype)
        return (
            _relu_gradient(constant, slope, a, back, d) for a, d in zip(activations, outer, strict=True)
        )

    # ── the first layer ──

    def first(self, chunk: Chunk) -> Tensor:
        """Weighted sums of all channels plus bias, resized or at single pixels.

        Returns:
            (bands · b, hidden, P / bands), a band's images beside each other; single pixels are one band.
        """
        weight, bias = self.weights[0].detach(), self.biases[0].detach().view(1, -1, 1)
        images = len(chunk.labels)
        if chunk.pixels is not None:
            return torch.baddbmm(bias, weight.expand(images, -1, -1), self._gathered(chunk))
        bands = self._bands()
        narrow: dict[Part, Tensor] = {}
        for part, w in self._columns(weight):
            resize = self._resize(part)
            if not resize.identity:
                z = chunk.parts[part].to(weight.dtype)
                native = w @ z.flatten(2)
                if not narrow:  # before resizing, where there is least to add to: its rows sum to 1
                    native += bias
                narrow[part] = native.unflatten(2, z.shape[2:]) @ resize.columns.mT
        height, width = self.size[0] // len(bands), self.size[1]
        total: Tensor = weight.new_empty(len(bands), images * len(weight), height, width)
        if narrow:  # the rows of all parts in one product, which also adds them up
            for band, out in zip(bands, total, strict=True):
                seen = torch.cat([narrow[part][:, :, rows] for part, (rows, _) in band.sources.items()], 2)
                torch.bmm(band.rows.expand(len(out), -1, -1), seen.flatten(0, 1), out=out)
        else:
            total.unflatten(1, (images, -1)).copy_(bias.unsqueeze(-1))
        total = total.view(len(bands) * images, len(weight), height * width)
        for part, w in self._columns(weight):
            if self._resize(part).identity:
                z = self._in_bands(chunk.parts[part].to(weight.dtype).flatten(2))
                total.baddbmm_(w.expand(len(total), -1, -1), z)
        return total

    def _first_gradient(
        self, chunks: Sequence[Chunk], gradients: Iterator[Tensor], out: dict[str, Tensor]
    ) -> None:
        weight = self.weights[0].detach()
        d_weight = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
        d_bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        columns = list(self._columns(d_weight))
        for chunk, d in zip(chunks, gradients, strict=True):
            d_bias += d.sum((0, 2))
            if chunk.pixels is not None:
                d_weight += (d @ self._gathered(chunk).mT).sum(0)
                continue
            narrow = self._narrowed(d, len(chunk.labels))
            for part, target in columns:
                z = chunk.parts[part].to(weight.dtype).flatten(2)
                if part in narrow:
                    native = narrow[part] @ self._resize(part).columns
                    target += (native.flatten(2) @ z.mT).sum(0)
                else:
                    target += (d @ self._in_bands(z).mT).sum(0)
        out["weights.0"], out["biases.0"] = d_weight, d_bias

    def _narrowed(self, d: Tensor, images: int) -> dict[Part, Tensor]:
        """The adjoint of resizing rows: (b, hidden, h, W) for each resized part."""
        bands = self._bands()
        narrow = {
            part: d.new_zeros(images, d.shape[1], self.shapes[part][1], self.size[1])
            for part in bands[0].sources
        }
        for band, outer in zip(bands, d.unflatten(0, (len(bands), images)), strict=True):
            if band.sources:
                image = outer.reshape(images * d.shape[1], -1, self.size[1])
                seen = torch.bmm(band.rows.mT.expand(len(image), -1, -1), image).unflatten(0, (images, -1))
                for part, (rows, place) in band.sources.items():
                    narrow[part][:, :, rows] += seen[:, :, place]
        return narrow

    def _in_bands(self, x: Tensor) -> Tensor:
        """(b, …, P) as (bands · b, …, P / bands)."""
        return cast(Tensor, x.unflatten(-1, (len(self._bands()), -1)).movedim(-2, 0).flatten(0, 1))

    def _banded(self, chunk: Chunk) -> Tensor:
        """The labels of what `first` gives."""
        return chunk.labels if chunk.pixels is not None else self._in_bands(chunk.labels)

    def _gathered(self, chunk: Chunk) -> Tensor:
        """Input at single pixels, (b, channels, P)."""
        assert chunk.pixels is not None
        dtype = self.weights[0].dtype
        return torch.stack(
            [
                torch.cat(
                    [
                        self._resize(part).gather(chunk.parts[part][i].to(dtype), pixels)
                        for part in self.shapes
                    ]
                )
                for i, pixels in enumerate(chunk.pixels)
            ]
        )

    def _columns(self, weight: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """The columns of the first weight that belong to each part."""
        yield from zip(self.shapes, weight.split([s[0] for s in self.shapes.values()], 1), strict=True)

    def _resize(self, part: Part) -> Resize:
        weight = self.weights[0]
        key = (self.shapes[part][1:], weight.dtype, weight.device)
        if key not in self._resizes:
            self._resizes[key] = Resize(key[0], self.size, self.mode, weight.dtype, weight.device)
        return self._resizes[key]

    def _bands(self) -> list[Band]:
        """The image in bands of rows.

        A product with a whole matrix of rows is nearly all zeros; a band needs the rows around it only.
        """
        weight = self.weights[0]
        key = (weight.dtype, weight.device)
        if key not in self._made_bands:
            per_row = len(weight) * self.size[1] * weight.element_size()
            largest = max(1, BAND_BYTES // per_row)
            height = max(h for h in range(1, self.size[0] + 1) if self.size[0] % h == 0 and h <= largest)
            self._made_bands[key] = [self._band(top, height) for top in range(0, self.size[0], height)]
        return self._made_bands[key]

    def _band(self, top: int, height: int) -> Band:
        matrices, sources, end = [], {}, 0
        for part in self.shapes:
            resize = self._resize(part)
            if not resize.identity:
                rows = resize.rows[top : top + height]
                read = rows.any(0).nonzero().flatten()
                first, last = int(read[0]), int(read[-1]) + 1
                sources[part] = slice(first, last), slice(end, end + last - first)
                matrices.append(rows[:, first:last])
                end += last - first
        empty = self.weights[0].detach().new_zeros(height, 0)
        return Band(torch.cat(matrices, 1) if matrices else empty, sources)

    def _deeper(self) -> Iterator[tuple[Tensor, Tensor]]:
        for weight, bias in list(zip(self.weights, self.biases, strict=True))[1:]:
            yield weight.detach(), bias.detach()

    def _running(self, i: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"mean{i}"), self.get_buffer(f"variance{i}")


class _Activations:
    """The first layer's activations of each chunk, kept, or computed whenever they are asked for."""

    def __init__(self, network: Perceptron, chunks: Sequence[Chunk], memory: int) -> None:
        self.network, self.chunks = network, chunks
        weight = network.weights[0]
        needed = sum(chunk.labels.numel() for chunk in chunks) * len(weight) * weight.element_size()
        self.kept: list[Tensor] | None = None
        if needed <= memory:
            self.kept = [network.first(chunk).relu_() for chunk in chunks]

    def __iter__(self) -> Iterator[Tensor]:
        if self.kept is not None:
            return iter(self.kept)
        return (self.network.first(chunk).relu_() for chunk in self.chunks)


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient was computed along with it."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Pass], *_parameters: Tensor) -> Tensor:
        loss, ctx.gradients = run()
        return loss

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(outer * gradient for gradient in ctx.gradients))


def _moments(activations: Any) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over pixels of all chunks, float64, merged as Chan et al. (1979) do."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())  # which become one value per channel
    for a in activations:
        size = a.shape[0] * a.shape[2]
        about = a.mean((0, 2))  # a tenth of the time of torch.var_mean, and as exact
        # Over one dimension: over two, torch adds up one after the other and loses a digit.
        spread = torch.linalg.vector_norm(a - about.view(1, -1, 1), dim=2).double().square().sum(0)
        delta = about.double() - mean
        squares = squares + spread + delta**2 * (count * size / (count + size))
        mean = mean + delta * (size / (count + size))
        count += size
    return mean, squares / count


def _folded(
    weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """BatchNorm and the linear layer after it as one linear layer."""
    scale = gain.detach().double() * (variance.double() + EPS).rsqrt()
    offset = bias.double() + weight.double() @ (shift.detach().double() - mean.double() * scale)
    return (weight.double() * scale).to(weight.dtype), offset.to(weight.dtype)


def _relu_gradient(constant: Tensor, slope: Tensor, a: Tensor, back: Tensor, d: Tensor) -> Tensor:
    """(constant + slope a + back d) where a > 0, else 0."""
    out = torch.mul(a, slope).add_(constant).baddbmm_(back.expand(len(a), -1, -1), d)
    torch.ops.aten.threshold_backward.grad_input(out, a, 0.0, grad_input=out)
    return out


def _loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross entropy over pixels, float64, and its gradient (which takes the logits' place)."""
    if logits.shape[1] == 1:
        u, y = logits[:, 0], labels.to(logits.dtype)
        total = (nn.functional.softplus(u) - u * y).sum(dtype=torch.float64)
        return total, u.sigmoid().sub_(y).unsqueeze(1)
    index = labels.long().unsqueeze(1)
    log_p = logits.log_softmax(1)
    total = -log_p.gather(1, index).sum(dtype=torch.float64)
    return total, log_p.exp_().scatter_add_(1, index, -torch.ones_like(log_p[:, :1]))
