"""The supervised baseline: the same UNet without timestep, trained on the labelled images alone."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tedm import checkpoint, files
from tedm.augmentation import augment
from tedm.config import SupervisedConfig
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.progress import say
from tedm.seeds import generator
from tedm.training import Epochs, build, check_batches, train
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
    device: torch.device | str = "cpu",
) -> None:
    """Train on the first n images of the split `train`; keep the weights with the lowest loss on `val`.

    One class: binary cross-entropy. Several, which exclude each other: cross-entropy over them and the
    background. Without images in `val` the last weights are kept. `out` gets model.safetensors,
    config.json, losses.csv and at last digest.json; state/ is there while it trains.

    Args:
        data: prepared set with masks.
        n: training images.
        seed: of initial weights, batches and augmentation.
        settings: of network and optimizer.
        out: directory of the baseline.
        device: that trains.

    Raises:
        TedmError: fewer than n labelled images, no masks, an image size that the levels don't divide, a
            loss that is not finite.
    """
    device = torch.device(device)
    label = f"supervised baseline, n={n}"
    with files.only_one(out / checkpoint.WEIGHTS, label):
        (out / checkpoint.DIGEST).unlink(missing_ok=True)
        with PreparedSet(data) as prepared:
            _check(prepared, settings)
            images, labels = _read(prepared, prepared.training_rows(n), device)
            val_images, val_labels = _read(prepared, prepared.rows("val"), device)
            digest, shape, classes = prepared.digest, prepared.image_shape, len(prepared.classes)
            about = {
                "label": prepared.label,
                "digest": digest,
                "synthetic": prepared.synthetic,
                "images": n,
            }
        outputs = 1 if classes == 1 else classes + 1
        network = build(
            lambda: UNet(settings.width, settings.multipliers, shape[0], outputs, time_conditioned=False),
            seed,
            "supervised",
        )
        network = checkpoint.channels_last(network).to(device)
        optimizer = settings.training
        epochs = Epochs(len(images), optimizer.batch_size, seed, "supervised")

        def loss(step: int, micro: int) -> Tensor:
            size, parts = optimizer.batch_size, optimizer.accumulate
            places = torch.from_numpy(epochs.batch(step)).to(device)
            x, y = images[places], labels[places]
            if settings.augment:
                x, y = augment(x, y, generator(seed, "augment", step))
            mine = slice(micro * size // parts, (micro + 1) * size // parts)
            return _losses(network, x[mine], y[mine]).mean()

        def validation_loss() -> float:
            total = 0.0
            for first in range(0, len(val_images), IMAGES_AT_ONCE):
                some = slice(first, first + IMAGES_AT_ONCE)
                total += float(_losses(network, val_images[some], val_labels[some]).sum())
            return total / len(val_images)

        record = train(
            network,
            loss,
            optimizer,
            out / "state",
            label,
            identity={"seed": seed, "data": digest, "n": n, "augment": settings.augment},
            validate=validation_loss if len(val_images) else None,
            log=out / "losses.csv",
        )
        training = {
            **optimizer.model_dump(mode="json"),
            "augment": settings.augment,
            "seed": seed,
            "n": n,
            "best_step": record.best_step,
            "validation_loss": record.best_validation,
            "seconds": round(record.seconds, 1),
        }
        checkpoint.write(
            out, network, checkpoint.describe(network, shape, INPUT_RANGE, None, about, training)
        )
        shutil.rmtree(out / "state", ignore_errors=True)
    say(f"{label}: kept step {record.best_step or record.steps}")


def load(directory: Path, device: torch.device | str = "cpu") -> Baseline:
    """Load a baseline from its directory.

    Raises:
        TedmError: files that are missing, broken, changed, or of a diffusion model.
    """
    network, description, digest = checkpoint.read(directory)
    if description.diffusion is not None:
        raise TedmError(f"{directory}: a diffusion backbone, not a supervised baseline")
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
