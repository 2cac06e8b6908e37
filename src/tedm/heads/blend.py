"""The blend head: one perceptron on features averaged over timesteps, with weights that are learned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tedm.config import BlendSettings, OptimizerConfig
from tedm.heads.base import FeatureSource, Head, blocks, checked, labels_of
from tedm.heads.native import ImageFeatures
from tedm.heads.resize import Mode, Resize
from tedm.progress import say
from tedm.training import Epochs, build, torch_generator, train

# Adam moves a parameter by about its rate per step; the weights have to go further in as many steps.
RATE_OF_WEIGHTS = 10.0
SHARE_FOR_FEATURES = 0.5  # of a head's memory
IMAGES_AT_ONCE = 8  # in validation and prediction

Native = dict[str, Tensor]  # layer → (n, S, C, h, w)


class BlendHead(Head):
    """A perceptron on every pixel of features that are blended over timesteps; this project's own.

    LEDM concatenates the timesteps, and learns from as many inputs; TEDM lets each of them vote, the noisy
    ones too. Here each layer's features, standardised per timestep and channel, are averaged over the S
    timesteps with weights softmax(a), where a is learned for each layer: a layer may lean on the steps
    that serve it, and an average has less of the forward process's noise than any one step. In training
    each image is seen with weights softmax(a + ε), where ε is normal with standard deviation `jitter`, and
    without a share `dropout` of its channels (Srivastava et al. 2014; Tompson et al. 2015, 4): so many
    versions of a few images, without running the backbone again.

    The blend is native; the first layer runs there, too, and its outputs are resized, as elsewhere.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        timesteps: Sequence[int],
        layers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, timesteps, layers, seed)
        self.options = checked(BlendSettings, settings)
        self.network: Blend | None = None

    @property
    def voting(self) -> bool:
        """No: the timesteps become one prediction."""
        return False

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """What each layer's features are averaged with, (S,), in the order of `timesteps`; sums to 1."""
        assert self.network is not None
        shares = self.network.log_weights().detach().softmax(1).cpu().numpy()
        return dict(zip(self.layers, shares, strict=True))

    def learn(
        self,
        features: FeatureSource,
        masks: np.ndarray,
        rows: Sequence[int],
        val_rows: Sequence[int],
        val_masks: np.ndarray,
        workdir: Path,
    ) -> None:
        """Train, or go on from the last state after a kill."""
        options = self.options
        network = build(self._network, self.seed, "blend").to(self.device)
        budget = int(self.memory * SHARE_FOR_FEATURES)
        training = ImageFeatures(features, rows, self.timesteps, self.layers, self.device, budget)
        validation = ImageFeatures(
            features, val_rows, self.timesteps, self.layers, self.device, budget - training.bytes
        )
        network.standardise(*_statistics(features, rows, self.timesteps, self.layers))
        labels = torch.from_numpy(labels_of(masks)).to(self.device)
        val_labels = torch.from_numpy(labels_of(val_masks)).to(self.device) if val_rows else labels[:0]
        order = Epochs(len(rows), min(options.batch_size, len(rows)), self.seed, "blend")

        def loss(step: int, micro: int) -> Tensor:
            images = order.batch(step).repeat(options.blends)
            draws = torch_generator(self.seed, "blend", "jitter", step, micro)
            jitter = options.jitter * torch.randn((len(images), *network.tilt.shape), generator=draws)
            kept = torch.rand((len(images), network.channels), generator=draws) >= options.dropout
            noise = jitter.to(self.device), kept.to(self.device) / (1 - options.dropout)
            return _loss(network(_at_all_timesteps(training, images), *noise), labels[images]).mean()

        def validate() -> float:
            total = 0.0
            for images in _cuts(len(validation)):
                total += float(
                    _loss(network(_at_all_timesteps(validation, images)), val_labels[images]).sum()
                )
            return total / val_labels.numel()

        log = train(
            network,
            loss,
            OptimizerConfig(
                steps=options.steps,
                batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                validate_every=options.validate_every,
                save_every=options.validate_every,
            ),
            workdir / "blend",
            f"{self.label}, {len(rows)} images",
            identity=self.digest,
            validate=validate if val_rows else None,
            patience=options.patience,
            log=workdir / "blend.csv",
        )
        if log.best_step is not None:
            steps = f"{self.label}: kept step {log.best_step} of {log.steps}"
            say(f"{steps}, validation loss {log.best_validation:.4g}")
        self.network = network.eval()

    def predict_steps(self, features: FeatureSource, rows: Sequence[int]) -> np.ndarray:
        """See Head."""
        assert self.network is not None
        self.check_readable(features)
        images = ImageFeatures(features, rows, self.timesteps, self.layers, self.device, 0)
        out = np.zeros((1, len(rows), self.class_count, *self.image_size), np.float32)
        with torch.no_grad():
            for part in _cuts(len(rows)):
                u = self.network(_at_all_timesteps(images, part))
                p = u.sigmoid() if self.class_count == 1 else u.softmax(1)[:, 1:]
                out[0, part] = p.cpu().numpy()
        return out

    def state(self) -> dict[str, np.ndarray]:
        """See Head."""
        assert self.network is not None
        return {name: tensor.cpu().numpy() for name, tensor in self.network.state_dict().items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See Head."""
        self.network = self._network()
        self.network.load_state_dict({k: torch.from_numpy(a) for k, a in state.items()})
        self.network.eval()

    def _network(self) -> "Blend":
        outputs = 1 if self.class_count == 1 else self.class_count + 1
        shapes = {layer: self.layer_shapes[layer] for layer in self.layers}
        return Blend(
            len(self.timesteps), shapes, self.image_size, self.options.hidden, outputs, self.options.resize
        )


class Blend(nn.Module):
    """The network of the blend head.

    Args:
        steps: S, timesteps.
        shapes: (C, h, w) of each layer.
        size: (H, W) of the output.
        hidden: channels after each hidden layer.
        outputs: channels of the output.
        mode: of resizing.
    """

    def __init__(
        self,
        steps: int,
        shapes: Mapping[str, tuple[int, int, int]],
        size: tuple[int, int],
        hidden: Sequence[int],
        outputs: int,
        mode: Mode,
    ) -> None:
        super().__init__()
        self.shapes, self.size, self.mode = dict(shapes), size, mode
        self.tilt = nn.Parameter(torch.zeros(len(shapes), steps))
        self.channels = sum(shape[0] for shape in shapes.values())
        self.register_buffer("mean", torch.zeros(steps, self.channels))
        self.register_buffer("scale", torch.ones(steps, self.channels))
        self.first = nn.Conv2d(self.channels, hidden[0], 1)
        deeper: list[nn.Module] = []
        for i, o in zip(hidden, [*hidden[1:], outputs], strict=True):
            deeper += [nn.ReLU(), nn.BatchNorm2d(i), nn.Conv2d(i, o, 1)]
        self.deeper = nn.Sequential(*deeper)

    def standardise(self, mean: Tensor, scale: Tensor) -> None:
        """Take up the mean and standard deviation of each timestep and channel, (S, channels)."""
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("scale").copy_(scale)

    def log_weights(self) -> Tensor:
        """Logarithms of the weights, up to a constant for each layer, (layers, S)."""
        return RATE_OF_WEIGHTS * self.tilt

    def forward(
        self, native: Native, jitter: Tensor | None = None, factors: Tensor | None = None
    ) -> Tensor:
        """Logits of the outputs, (n, outputs, H, W).

        Args:
            native: features of each layer, (n, S, C, h, w).
            jitter: added to the logarithms of the weights, (n, layers, S).
            factors: of the blended channels, (n, channels).
        """
        logs = self.log_weights() if jitter is None else self.log_weights() + jitter
        weights = logs.softmax(-1).expand(len(next(iter(native.values()))), -1, -1)
        total: Tensor | None = None
        start = 0
        for i, (layer, (count, *small)) in enumerate(self.shapes.items()):
            columns = slice(start, start + count)
            start += count
            mean, scale = self.get_buffer("mean")[:, columns], self.get_buffer("scale")[:, columns]
            z = (native[layer].to(mean.dtype) - mean[:, :, None, None]) / scale[:, :, None, None]
            blended = torch.einsum("ns,nschw->nchw", weights[:, i], z)
            if factors is not None:
                blended = blended * factors[:, columns, None, None]
            mixed = nn.functional.conv2d(blended, self.first.weight[:, columns])
            resize = Resize((small[0], small[1]), self.size, self.mode, mixed.dtype, mixed.device)
            resized = resize.forward(mixed)
            total = resized if total is None else total + resized
        assert total is not None
        assert self.first.bias is not None
        out: Tensor = self.deeper(total + self.first.bias[:, None, None])
        return out


def _at_all_timesteps(images: ImageFeatures, wanted: np.ndarray) -> Native:
    """Features (n, S, C, h, w) of images by their position; one may be asked for several times."""
    once, places = np.unique(wanted, return_inverse=True)
    native = images.read(once.tolist())
    return {
        layer: torch.stack([native[slot, layer] for slot in range(len(images.timesteps))], 1)[places]
        for layer in images.layers
    }


def _statistics(
    features: FeatureSource, rows: Sequence[int], timesteps: Sequence[int], layers: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each timestep and channel over native pixels, (S, channels).

    The deviation is 1 where a channel does not vary.
    """
    means, scales = [], []
    for timestep in timesteps:
        sums = {layer: np.zeros((2, features.layer_shapes[layer][0])) for layer in layers}
        shift: dict[str, np.ndarray] = {}  # near the mean, so that the difference below loses no digits
        for _, block in blocks(features, rows, timestep, layers):
            for layer, values in block.items():
                z = values.astype(np.float64)
                shift.setdefault(layer, z.mean((0, 2, 3)))
                z -= shift[layer][:, None, None]
                sums[layer] += np.stack((z.sum((0, 2, 3)), np.square(z).sum((0, 2, 3))))
        for layer in layers:
            _, height, width = features.layer_shapes[layer]
            first, second = sums[layer] / (len(rows) * height * width)
            deviation = np.sqrt(np.maximum(second - first**2, 0))
            means.append(first + shift[layer])
            scales.append(np.where(deviation > 1e-6 * (1 + np.abs(means[-1])), deviation, 1.0))
    shape = (len(timesteps), -1)
    return tuple(  # type: ignore[return-value]
        torch.from_numpy(np.concatenate(parts).reshape(shape).astype(np.float32))
        for parts in (means, scales)
    )


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each pixel, (n, H, W)."""
    if logits.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], labels.to(logits.dtype), reduction="none"
        )
    return nn.functional.cross_entropy(logits, labels.long(), reduction="none")


def _cuts(count: int) -> list[np.ndarray]:
    return [np.arange(i, min(i + IMAGES_AT_ONCE, count)) for i in range(0, count, IMAGES_AT_ONCE)]
