"""MLP heads: LEDM (all timesteps concatenated) and TEDM (one network shared by the timesteps)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tedm.config import MLPSettings, OptimizerConfig
from tedm.heads.base import FeatureSource, Head, checked, kept_arrays, labels_of, save_arrays
from tedm.heads.native import ImageFeatures, Native
from tedm.heads.perceptron import Chunk, Perceptron
from tedm.progress import say
from tedm.seeds import generator
from tedm.training import train

# Of a chunk: the processor's cache holds them; a GPU needs much to be busy.
ACTIVATION_BYTES_AT_ONCE = {"cpu": 8 * 2**20, "cuda": 2**30}
SHARE_FOR_ACTIVATIONS = 0.5  # of a head's memory


class MLPHead(Head):
    """Perceptrons on every pixel (Baranchuk et al. 2022; Rosnati et al. 2023, 2.2).

    `combine: concat` feeds all timesteps at once, as LEDM does. `combine: share` applies one network to
    each timestep, as TEDM does: it is trained with the mean cross entropy over timesteps (eq. 8) and votes
    with the mean of its probabilities (eq. 9). As in the authors' code, a batch's timesteps are stacked
    along it, so that BatchNorm's statistics are over images, timesteps and pixels together.

    With several members, networks that differ in initial weights and in the order of the images, the
    probability is the share of members that vote for the class, as in the majority vote of Baranchuk et al.
    (2022): more than half of them make a pixel foreground, and a tie goes to the background. For `share`
    they vote at each timestep.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        timesteps: Sequence[int],
        layers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, timesteps, layers, seed)
        self.options = checked(MLPSettings, settings)
        self.networks: list[Perceptron] = []

    @property
    def voting(self) -> bool:
        """Whether each timestep predicts by itself."""
        return self.options.combine == "share"

    def learn(
        self,
        features: FeatureSource,
        masks: np.ndarray,
        rows: Sequence[int],
        val_rows: Sequence[int],
        val_masks: np.ndarray,
        workdir: Path,
    ) -> None:
        """Train the members one after the other; each goes on from its last state after a kill."""
        budget = int(self.memory * (1 - SHARE_FOR_ACTIVATIONS))
        training = ImageFeatures(features, rows, self.timesteps, self.layers, self.device, budget)
        validation = ImageFeatures(
            features, val_rows, self.timesteps, self.layers, self.device, budget - training.bytes
        )
        labels = torch.from_numpy(labels_of(masks)).to(self.device).flatten(1)
        val_labels = (
            torch.from_numpy(labels_of(val_masks)).to(self.device).flatten(1) if val_rows else labels[:0]
        )
        self.networks = [
            self._member(m, training, labels, validation, val_labels, workdir)
            for m in range(self.options.members)
        ]

    def _member(
        self,
        member: int,
        training: "ImageFeatures",
        labels: Tensor,
        validation: "ImageFeatures",
        val_labels: Tensor,
        workdir: Path,
    ) -> Perceptron:
        network, options = self._network().draw(self.seed, "mlp", member), self.options
        finished = workdir / f"member{member}.safetensors"
        kept = kept_arrays(finished, self.digest)
        if kept is not None:
            network.load_state_dict({k: torch.from_numpy(a) for k, a in kept.items()})
            return network
        settings = OptimizerConfig(
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            validate_every=options.validate_every,
            save_every=options.validate_every,
        )
        order = _Order(len(training), options.batch_size, (self.seed, "mlp", member))
        activations = int(self.memory * SHARE_FOR_ACTIVATIONS)

        def loss(step: int, micro: int) -> Tensor:
            images = order.batch(step)
            native = training.read(images, then=order.batch(step + 1))
            chunks = list(
                self._training_chunks(native, labels[images], (self.seed, "mlp", member, step, micro))
            )
            return network.loss(chunks, activations)

        def validate() -> float:
            total = 0.0
            for start in range(0, len(validation), options.batch_size):
                images = list(range(start, min(start + options.batch_size, len(validation))))
                native = validation.read(images)
                for chunk in self._chunks(native, val_labels[images]):
                    total += float(network.mean_loss(chunk)) * len(chunk.labels)
            return total / (len(validation) * (len(self.timesteps) if self.voting else 1))

        log = train(
            network,
            loss,
            settings,
            workdir / f"member{member}",
            f"{self.label}, {len(training)} images"
            + (f", member {member + 1} of {options.members}" if options.members > 1 else ""),
            identity=[self.digest, member],
            validate=validate if len(validation) else None,
            patience=options.patience,
            log=workdir / f"member{member}.csv",
        )
        if log.best_step is not None:
            steps = f"{self.label}: kept step {log.best_step} of {log.steps}"
            say(f"{steps}, validation loss {log.best_validation:.4g}")
        arrays = {k: v.cpu().numpy() for k, v in network.state_dict().items()}
        save_arrays(finished, arrays, {"digest": self.digest})
        return network

    def predict_steps(self, features: FeatureSource, rows: Sequence[int]) -> np.ndarray:
        """See Head."""
        self.check_readable(features)
        steps = len(self.timesteps) if self.voting else 1
        out = np.zeros((steps, len(rows), self.class_count, *self.image_size), np.float32)
        images = ImageFeatures(features, rows, self.timesteps, self.layers, self.device, 0)
        for start in range(len(rows)):
            native = images.read([start], then=[start + 1] if start + 1 < len(rows) else None)
            for s, chunk in enumerate(self._chunks(native, torch.zeros(1, 0))):
                p = self._vote(chunk)
                out[s, start] = p[0].unflatten(1, self.image_size).cpu().numpy()
        return out

    @torch.no_grad()
    def _vote(self, chunk: Chunk) -> Tensor:
        """Probabilities of the classes, (b, K, P): of the only member, or the share of votes."""
        votes = []
        for network in self.networks:
            u = network(chunk)
            p = u.sigmoid() if self.class_count == 1 else u.softmax(1)
            if len(self.networks) > 1:
                p = (p > 0.5).to(p.dtype) if self.class_count == 1 else _one_hot(p)
            votes.append(p if self.class_count == 1 else p[:, 1:])
        return torch.stack(votes).mean(0)

    def state(self) -> dict[str, np.ndarray]:
        """See Head."""
        return {
            f"member{m}/{name}": tensor.detach().cpu().numpy()
            for m, network in enumerate(self.networks)
            for name, tensor in network.state_dict().items()
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See Head."""
        self.networks = []
        for m in range(self.options.members):
            network, prefix = self._network(), f"member{m}/"
            network.load_state_dict(
                {
                    k.removeprefix(prefix): torch.from_numpy(a)
                    for k, a in state.items()
                    if k.startswith(prefix)
                }
            )
            self.networks.append(network)

    def _network(self) -> Perceptron:
        slots = range(1 if self.voting else len(self.timesteps))
        shapes = {(slot, layer): self.layer_shapes[layer] for slot in slots for layer in self.layers}
        outputs = 1 if self.class_count == 1 else self.class_count + 1
        return Perceptron(shapes, self.image_size, self.options.hidden, outputs, self.options.resize).to(
            self.device
        )

    def _training_chunks(
        self, native: Native, labels: Tensor, names: tuple[str | int, ...]
    ) -> Iterator[Chunk]:
        """Chunks of a batch, with the pixels that this step looks at."""
        pixels, total = self.options.pixels, labels.shape[1]
        for i, chunk in enumerate(self._chunks(native, labels)):
            if pixels is None or pixels >= total:
                yield chunk
                continue
            rng = generator(*names, "pixels", i)
            drawn = np.stack([rng.choice(total, pixels, replace=False) for _ in chunk.labels])
            chosen = torch.from_numpy(drawn).to(labels.device)
            yield Chunk(chunk.parts, chunk.labels.gather(1, chosen), chosen)

    def _chunks(self, native: Native, labels: Tensor) -> Iterator[Chunk]:
        """Deal a batch out in pieces; a network that is shared gets each timestep by itself."""
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        per_image = 4 * self.options.hidden[0] * self.image_size[0] * self.image_size[1]
        # With sampled pixels the pieces must not depend on the machine, because each draws its own.
        at_once = max(1, ACTIVATION_BYTES_AT_ONCE[kind] // per_image) if self.options.pixels is None else 1
        for slot in range(len(self.timesteps)) if self.voting else (None,):
            for start in range(0, len(labels), at_once):
                images = slice(start, start + at_once)
                parts = {
                    (0 if self.voting else part[0], part[1]): z[images]
                    for part, z in native.items()
                    if slot is None or part[0] == slot
                }
                yield Chunk(parts, labels[images])


class _Order:
    """Which images a step sees: every epoch all of them once, in an order of its own.

    Batches end with the epoch, as a data loader's do. Those of tedm.training.Epochs go on into the next:
    with few images they would hold the same one twice, at the price of another and with the same features.
    """

    def __init__(self, count: int, batch_size: int, names: tuple[str | int, ...]) -> None:
        self.count, self.batch_size, self.names = count, min(batch_size, count), names
        self.per_epoch = -(-count // self.batch_size)

    def batch(self, step: int) -> list[int]:
        """Positions of the images of one step; the last batch of an epoch may be smaller."""
        epoch, place = divmod(step, self.per_epoch)
        order: list[int] = generator(*self.names, "order", epoch).permutation(self.count).tolist()
        return order[place * self.batch_size : (place + 1) * self.batch_size]


def _one_hot(p: Tensor) -> Tensor:
    """1 for the most probable class, the first of equals, else 0; (b, K + 1, P)."""
    return torch.zeros_like(p).scatter_(1, p.argmax(1, keepdim=True), 1.0)
