"""Baselines that learn from labelled images: the UNet without timestep, pretrained or not."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tedm import checkpoint, files, pretrained
from tedm.augmentation import draw
from tedm.config import AugmentationConfig, SupervisedConfig
from tedm.data.prepared import PreparedSet
from tedm.errors import DivergedError, TedmError
from tedm.progress import say
from tedm.seeds import generator
from tedm.training import Epochs, TrainingLog, build, check_batches, train, write_log
from tedm.unet import UNet

INPUT_RANGE = (0.0, 1.0)  # the authors' baseline sees the images as they are
IMAGES_AT_ONCE = 16  # in prediction and validation


@dataclass(frozen=True)
class Baseline:
    """A trained baseline, ready to predict."""

    network: UNet
    image_shape: tuple[int, int, int]  # C, H, W
    digest: str


def fit(
    data: Path,
    n: int,
    seed: int,
    settings: SupervisedConfig,
    out: Path,
    *,
    pretrained: Path | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Train on the first n images of the split `train`; keep the weights with the lowest loss on `val`.

    Every one of `settings.learning_rates` is tried from the same start with the same batches; the rate and
    the step with the lowest validation loss are kept. One class: binary cross-entropy. Several, which
    exclude each other: cross-entropy over them and the background. Without images in `val` the last weights
    are kept. `out` gets model.safetensors, config.json (its training.tried says what each rate reached),
    losses.csv (of the rate that was kept) and at last digest.json; state/ is there while it trains.

    Args:
        data: prepared set with masks.
        n: training images.
        seed: of initial weights, batches and augmentation.
        settings: of network and optimizer.
        out: directory of the baseline.
        pretrained: directory of a contrastive pretraining to start from; absent: random weights.
        device: that trains.

    Raises:
        TedmError: fewer than n labelled images, no masks, an image size that the levels don't divide,
            several learning rates without images in `val`, a pretraining of another shape, a loss that is
            not finite.
    """
    device = torch.device(device)
    label = f"{'fine-tuned' if pretrained else 'supervised'} baseline, n={n}"
    with files.only_one(out / checkpoint.WEIGHTS, label):
        (out / checkpoint.DIGEST).unlink(missing_ok=True)
        with PreparedSet(data) as prepared:
            _check(prepared, settings)
            run = _Run(prepared, n, seed, settings, out, label, pretrained, device)
        run.choose()
        shutil.rmtree(out / "state", ignore_errors=True)


class _Run:
    """One baseline in the making; arguments as in `fit`."""

    def __init__(
        self,
        prepared: PreparedSet,
        n: int,
        seed: int,
        settings: SupervisedConfig,
        out: Path,
        label: str,
        start: Path | None,
        device: torch.device,
    ) -> None:
        self.n, self.seed, self.settings, self.out, self.label = n, seed, settings, out, label
        self.device = device
        self.images, self.labels = _read(prepared, prepared.training_rows(n), device)
        self.val_images, self.val_labels = _read(prepared, prepared.rows("val"), device)
        self.shape, self.digest = prepared.image_shape, prepared.digest
        self.outputs = 1 if len(prepared.classes) == 1 else len(prepared.classes) + 1
        # Where no experiment stands behind it, true is our own ranges.
        ranges = AugmentationConfig() if settings.augment is True else settings.augment or None
        self.ranges = ranges
        self.augment = ranges.model_dump() if isinstance(ranges, AugmentationConfig) else ranges or False
        self.rates = settings.learning_rates or [settings.training.learning_rate]
        if len(self.rates) > 1 and not len(self.val_images):
            raise TedmError(
                f"{prepared.label}: no image in its split val, on which one of {len(self.rates)} learning"
                " rates is chosen; add some, or give one rate alone"
            )
        self.about = {
            "label": prepared.label,
            "digest": prepared.digest,
            "synthetic": prepared.synthetic,
            "images": n,
        }
        self.start = None if start is None else pretrained.read(start)
        if self.start is not None and self.start.image_shape != self.shape:
            raise TedmError(
                f"{start}: learnt images of shape {self.start.image_shape}, but {prepared.label} has"
                f" {self.shape}; prepare both at one size"
            )

    def choose(self) -> None:
        """Train with every learning rate and write the best network."""
        tried: list[dict[str, float | int | None]] = []
        best: tuple[UNet, float, TrainingLog] | None = None
        seconds = 0.0
        for rate in self.rates:
            tried.append({"learning_rate": rate, "best_step": None, "validation_loss": None})
            try:
                network, record = self.train_at(rate)
            except DivergedError as error:
                if len(self.rates) == 1:
                    raise
                say(f"{error} The other learning rates go on.")
                continue
            tried[-1] |= {"best_step": record.best_step, "validation_loss": record.best_validation}
            seconds += record.seconds
            if best is None or _reached(record) < _reached(best[2]):
                best = network, rate, record
        if best is None:
            raise TedmError(
                f"{self.label}: the loss did not stay finite with any of learning_rates"
                f" {', '.join(f'{rate:g}' for rate in self.rates)}; add a lower one"
            )
        network, rate, record = best
        write_log(self.out / "losses.csv", record.rows)
        training = {
            **self.settings.training.model_dump(mode="json"),
            "learning_rate": rate,
            "augment": self.augment,
            "seed": self.seed,
            "n": self.n,
            "best_step": record.best_step,
            "validation_loss": record.best_validation,
            "seconds": round(seconds, 1),
            "pretrained": None if self.start is None else self.start.digest,
            "freeze_until": self.settings.freeze_until,
            "tried": tried,
        }
        description = checkpoint.describe(network, self.shape, INPUT_RANGE, None, self.about, training)
        checkpoint.write(self.out, network, description)
        of_many = f" of learning rate {rate:g}, out of {len(self.rates)}" if len(self.rates) > 1 else ""
        say(f"{self.label}: kept step {record.best_step or record.steps}{of_many}")

    def train_at(self, rate: float) -> tuple[UNet, TrainingLog]:
        """Train one network from the start."""
        settings, optimizer = self.settings, self.settings.training
        network = build(
            lambda: UNet(
                settings.width, settings.multipliers, self.shape[0], self.outputs, time_conditioned=False
            ),
            self.seed,
            "supervised",
        )
        learnt: list[str] = []
        if self.start is not None:
            learnt = pretrained.start_from(network, self.start, self.label)
        network = checkpoint.channels_last(network).to(self.device)
        freezable = [p for name, p in network.named_parameters() if name in set(learnt)]
        epochs = Epochs(len(self.images), optimizer.batch_size, self.seed, "supervised")

        def loss(step: int, micro: int) -> Tensor:
            for parameter in freezable:
                parameter.requires_grad_(step >= settings.freeze_until)
            size, parts = optimizer.batch_size, optimizer.accumulate
            places = torch.from_numpy(epochs.batch(step)).to(self.device)
            x, y = self.images[places], self.labels[places]
            if self.ranges is not None:
                random = generator(self.seed, "augment", step)
                view = draw(random, len(x), self.shape[1:], self.ranges, self.device)
                x, y = view.images(x), view.masks(y)
            mine = slice(micro * size // parts, (micro + 1) * size // parts)
            return _losses(network, x[mine], y[mine]).mean()

        several = len(self.rates) > 1
        record = train(
            network,
            loss,
            optimizer.model_copy(update={"learning_rate": rate}),
            self.out / "state" / f"{rate:g}",
            f"{self.label}, learning rate {rate:g}" if several else self.label,
            identity={
                "seed": self.seed,
                "data": self.digest,
                "n": self.n,
                "augment": self.augment,
                "start": None if self.start is None else [self.start.digest, settings.freeze_until],
            },
            validate=(lambda: self.validation_loss(network)) if len(self.val_images) else None,
            log=self.out / "losses.csv",
        )
        return network, record

    def validation_loss(self, network: UNet) -> float:
        """Mean cross-entropy on the validation images."""
        total = 0.0
        for first in range(0, len(self.val_images), IMAGES_AT_ONCE):
            some = slice(first, first + IMAGES_AT_ONCE)
            total += float(_losses(network, self.val_images[some], self.val_labels[some]).sum())
        return total / len(self.val_images)


def _reached(record: TrainingLog) -> float:
    return math.inf if record.best_validation is None else record.best_validation


def load(directory: Path, device: torch.device | str = "cpu") -> Baseline:
    """Load a baseline from its directory.

    Raises:
        TedmError: files that are missing, broken, changed, or of a diffusion model.
    """
    network, description, digest = checkpoint.read(directory)
    if description.diffusion is not None:
        raise TedmError(f"{directory}: a diffusion backbone, not a supervised baseline")
    if "learnt" in description.training:
        raise TedmError(
            f"{directory}: a contrastive pretraining, whose output was never trained; fine-tune it with"
            " `tedm supervise --pretrained`"
        )
    return Baseline(network.to(device), description.image_shape, digest)


def predict_proba(baseline: Baseline, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probability of each class at each pixel.

    Args:
        baseline: see `load`.
        images: (N, C, H, W) in [0, 1].

    Returns:
        (N, K, H, W); several classes and the background (1 - sum) exclude each other.

    Raises:
        TedmError: images of another shape than the baseline was trained on.
    """
    if tuple(images.shape[1:]) != baseline.image_shape:
        raise TedmError(
            f"images of shape {images.shape}: the baseline was trained on (N,"
            f" {', '.join(map(str, baseline.image_shape))}); prepare them at that size"
        )
    device = baseline.network.head.weight.device
    parts = []
    with torch.no_grad():
        for first in range(0, len(images), IMAGES_AT_ONCE):
            x = torch.from_numpy(images[first : first + IMAGES_AT_ONCE]).to(device)
            logits = baseline.network(x.contiguous(memory_format=torch.channels_last))
            p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]
            parts.append(p.contiguous().cpu().numpy())
    return np.concatenate(parts)


def _losses(network: UNet, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels of each image, (N,)."""
    logits = network(images.contiguous(memory_format=torch.channels_last)).float()
    if logits.shape[1] == 1:
        pixels = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    else:
        # Class 0 is the background: no mask is set there.
        classes = labels.argmax(1) + 1
        pixels = F.cross_entropy(logits, classes * labels.any(1), reduction="none")
    return pixels.flatten(1).mean(1)


def _read(data: PreparedSet, rows: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.images(rows)).to(device), torch.from_numpy(data.masks(rows)).to(device)


def _check(data: PreparedSet, settings: SupervisedConfig) -> None:
    checkpoint.check_size(data.label, data.image_shape, settings.multipliers)
    check_batches(settings.training)
