"""Training of a denoising diffusion model on the unlabelled images of a prepared set."""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tedm import checkpoint, files, seeds
from tedm.config import DDPMConfig
from tedm.data.prepared import PreparedSet
from tedm.diffusion import objective, sample
from tedm.diffusion.images import TrainingImages
from tedm.diffusion.schedule import Schedule
from tedm.errors import TedmError
from tedm.progress import say
from tedm.training import Epochs, build, check_batches, processes, torch_generator, train
from tedm.unet import UNet

INPUT_RANGE = (-1.0, 1.0)  # of the images in training [authors' code]
REAL_ALONE = 16  # images in samples.png where none is drawn


def train_backbone(
    data: Path,
    settings: DDPMConfig,
    seed: int,
    out: Path,
    name: str | None = None,
    *,
    device: torch.device | str = "cpu",
) -> None:
    """Train a backbone, or go on where a killed training stopped.

    It learns the images of the split `unlabelled`, or of `train` where nothing is unlabelled, less a
    share that is kept for the validation loss. `out` gets model.safetensors, config.json, losses.csv,
    samples.png (left: real images, right: drawn ones), state/ and at last digest.json.

    Args:
        data: prepared set.
        settings: of network, diffusion and optimizer.
        seed: of initial weights, validation images, batches, timesteps, noise and samples.
        out: directory of the backbone.
        name: of the backbone, for people; absent: the directory's.
        device: that trains.

    Raises:
        TedmError: too few images, an image size that the levels don't divide, a loss that isn't finite.
    """
    label = f"backbone {name or out.name}"
    first = processes()[0] == 0  # of the processes of torch.distributed, which share one directory
    lock = files.only_one(out / checkpoint.WEIGHTS, f"the {label}") if first else nullcontext()
    with PreparedSet(data) as images, lock:
        _Training(images, settings, seed, out, label, torch.device(device)).run()


class _Training:
    """One backbone in the making."""

    def __init__(
        self,
        data: PreparedSet,
        settings: DDPMConfig,
        seed: int,
        out: Path,
        label: str,
        device: torch.device,
    ) -> None:
        self.data, self.settings, self.seed, self.out, self.device = data, settings, seed, out, device
        self.label = label
        self.optimizer = settings.training
        checkpoint.check_size(data.label, data.image_shape, settings.multipliers)
        check_batches(settings.training)
        train_rows, validation_rows = split_rows(data, settings, seed)
        self.images = TrainingImages(data, train_rows, device)
        self.validation = TrainingImages(data, validation_rows, device)
        self.schedule = Schedule(settings.diffusion.timesteps, settings.diffusion.schedule, device)
        p2 = settings.diffusion
        self.weights = None
        if p2.p2_gamma > 0:
            self.weights = objective.p2_weights(self.schedule, p2.p2_gamma, p2.p2_k).to(device)
        network = build(
            lambda: UNet(settings.width, settings.multipliers, data.image_shape[0]), seed, "backbone"
        )
        self.network = checkpoint.channels_last(network).to(device)
        self.epochs = Epochs(len(self.images), self.optimizer.batch_size, seed)

    def run(self) -> None:
        if processes()[0] == 0:
            (self.out / checkpoint.DIGEST).unlink(missing_ok=True)
        state = self.out / "state"
        record = train(
            self.network,
            self.loss,
            self.optimizer,
            state,
            self.label,
            identity={
                "seed": self.seed,
                "data": self.data.digest,
                "settings": self.settings.model_dump(
                    mode="json", exclude={"data", "training", "samples", "samples_every", "sampling_steps"}
                ),
            },
            validate=self.validation_loss,
            log=self.out / "losses.csv",
            tensorboard=self.out / "tensorboard",
            on_step=self.look,
        )
        if processes()[0] != 0:
            return
        self.draw_samples()
        description = checkpoint.describe(
            self.network,
            self.data.image_shape,
            INPUT_RANGE,
            self.settings.diffusion,
            data={
                "label": self.data.label,
                "digest": self.data.digest,
                "synthetic": self.data.synthetic,
                "images": len(self.images),
                "validation_images": len(self.validation),
            },
            training={
                **self.optimizer.model_dump(mode="json"),
                "seed": self.seed,
                "best_step": record.best_step,
                "validation_loss": record.best_validation,
                "seconds": round(record.seconds, 1),
                "device": str(self.device),
            },
        )
        digest = checkpoint.write(self.out, self.network, description)
        if self.optimizer.steps == 0:
            shutil.rmtree(state, ignore_errors=True)
        say(
            f"{self.label}: validation loss {record.best_validation:.4g} at step"
            f" {record.best_step}, digest {digest[:12]}"
        )

    # ── batches ──

    def loss(self, step: int, micro: int) -> Tensor:
        """Loss of one micro-batch.

        The step's whole batch is drawn and a part of it used, so that its images, timesteps and noise
        do not depend on the number of micro-batches.
        """
        size, parts = self.optimizer.batch_size, self.optimizer.accumulate
        mine = slice(micro * size // parts, (micro + 1) * size // parts)
        generator = torch_generator(self.seed, "diffusion", step, device=self.device)
        t = torch.randint(self.schedule.timesteps, (size,), generator=generator, device=self.device)[mine]
        noise = torch.randn(size, *self.data.image_shape, generator=generator, device=self.device)[mine]
        x0 = to_input_range(self.images.batch(self.epochs.batch(step)[mine]))
        return self._losses(x0, t, noise).mean()

    def _losses(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        kind = self.settings.diffusion.objective
        x_t = self.schedule.diffuse(x0, t, noise).contiguous(memory_format=torch.channels_last)
        wanted = objective.target(kind, self.schedule, x0, t, noise)
        prediction = self.network(x_t, t)
        return objective.per_image_loss(prediction, wanted, t, self.settings.diffusion, self.weights)

    def validation_loss(self) -> float:
        """Loss on the validation images, at timesteps spread over the chain, with always the same noise."""
        total = 0.0
        for x0, t, noise in self._validation_batches():
            total += float(self._losses(x0, t, noise).sum())
        return total / len(self.validation)

    def _validation_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        count, size = len(self.validation), max(1, self.optimizer.batch_size // self.optimizer.accumulate)
        # Evenly spread timesteps make the loss of few images less a matter of luck than random ones.
        spread = (np.arange(count) + 0.5) / count * self.schedule.timesteps
        timesteps = torch.from_numpy(
            seeds.generator(self.seed, "validation timesteps").permutation(spread.astype(np.int64))
        ).to(self.device)
        for first in range(0, count, size):
            places = np.arange(first, min(count, first + size))
            noise = torch.stack([self._validation_noise(int(i)) for i in places])
            x0 = to_input_range(self.validation.batch(places))
            yield x0, timesteps[first : first + len(places)], noise

    def _validation_noise(self, index: int) -> Tensor:
        generator = torch_generator(self.seed, "validation noise", index, device=self.device)
        return torch.randn(*self.data.image_shape, generator=generator, device=self.device)

    # ── samples ──

    def look(self, step: int) -> None:
        """Draw samples from the current weights where the schedule says so."""
        every = self.settings.samples_every
        if every and step % every == 0 and step < self.optimizer.steps and processes()[0] == 0:
            self.network.eval()
            self.draw_samples()
            self.network.train()

    def draw_samples(self) -> None:
        """Write samples.png: real images left, drawn ones right."""
        count = self.settings.samples
        drawn = torch.empty(0, *self.data.image_shape)
        if count:
            start = sample.start(count, self.data.image_shape, self.seed, self.device)
            steps = min(self.settings.sampling_steps, self.schedule.timesteps)
            kind = self.settings.diffusion.objective
            drawn = sample.draw(self.network, self.schedule, kind, start, steps, INPUT_RANGE)
        real = self.images.batch(np.arange(min(count or REAL_ALONE, len(self.images))))
        sample.write_samples(self.out / "samples.png", real.cpu().numpy(), drawn.cpu().numpy())


def to_input_range(images: Tensor) -> Tensor:
    """Map [0, 1] to the range that the network is trained on."""
    low, high = INPUT_RANGE
    return low + (high - low) * images


def split_rows(data: PreparedSet, settings: DDPMConfig, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on, and rows kept for the validation loss; slices of a subject stay together.

    Returns:
        Both in stored order.
    """
    rows = data.rows("unlabelled") or data.rows("train")
    by_subject: dict[str, list[int]] = {}
    for row in rows:
        by_subject.setdefault(data.subjects[row], []).append(row)
    if len(by_subject) < 2:
        raise TedmError(
            f"{data.label}: {len(rows)} images of {len(by_subject)} subjects in its split unlabelled (or"
            " train); a backbone needs at least 2 subjects, one of them to validate"
        )
    wanted = min(max(1, round(settings.validation * len(rows))), settings.validation_max)
    names = list(by_subject)
    kept: list[int] = []
    for i in seeds.generator(seed, "validation images").permutation(len(names))[:-1]:
        if kept and len(kept) + len(by_subject[names[i]]) > wanted:
            break
        kept += by_subject[names[i]]
    validation = set(kept)
    return [row for row in rows if row not in validation], sorted(validation)
