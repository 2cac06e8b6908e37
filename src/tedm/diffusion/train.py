"""Training of a denoising diffusion model on the unlabelled images of a prepared set."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tedm import checkpoint, distributed, seeds
from tedm.config import DDPMConfig, DiffusionConfig
from tedm.data.prepared import PreparedSet
from tedm.diffusion import objective, sample
from tedm.diffusion.schedule import Schedule
from tedm.distributed import processes
from tedm.training import build, check_batches, torch_generator
from tedm.unet import UNet
from tedm.unlabelled_training import UnlabelledTraining, opened

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
    samples.png (left: real images, right: drawn ones), state/ (the best and the last weights, from which
    training goes on), samples/ and tensorboard/ where asked for, and at last digest.json.

    Args:
        data: prepared set.
        settings: of network, diffusion and optimizer.
        seed: of initial weights, validation images, batches, timesteps, noise and samples.
        out: directory of the backbone.
        name: of the backbone, for people; absent: the directory's.
        device: that trains; of this process, where several train together.

    Raises:
        TedmError: too few images, an image size that the levels don't divide, micro-batches that the
            processes can't share, a loss that isn't finite.
    """
    label = f"backbone {name or out.name}"
    check_batches(settings.training, f"backbones.{name or out.name}.training")
    with opened(data, out, label) as images:
        Training(images, settings, seed, out, label, torch.device(device)).run()


class Training(UnlabelledTraining[DDPMConfig]):
    """One backbone in the making; arguments as in `train_backbone`."""

    input_range = INPUT_RANGE

    def __init__(
        self,
        data: PreparedSet,
        settings: DDPMConfig,
        seed: int,
        out: Path,
        label: str,
        device: torch.device,
    ) -> None:
        checkpoint.check_size(data.label, data.image_shape, settings.multipliers)
        super().__init__(data, settings, seed, out, label, device)
        self.schedule = Schedule(settings.diffusion.timesteps, settings.diffusion.schedule, device)
        p2 = settings.diffusion
        self.weights = None
        if p2.p2_gamma > 0:
            self.weights = objective.p2_weights(self.schedule, p2.p2_gamma, p2.p2_k).to(device)
        network = build(
            lambda: UNet(settings.width, settings.multipliers, data.image_shape[0]), seed, "backbone"
        )
        self.network = checkpoint.channels_last(network).to(device)

    @property
    def module(self) -> UNet:
        return self.network

    @property
    def unet(self) -> UNet:
        return self.network

    @property
    def identity(self) -> dict[str, Any]:
        not_of_it = {"data", "training", "samples", "samples_every", "sampling_steps"}
        return {"settings": self.settings.model_dump(mode="json", exclude=not_of_it)}

    @property
    def diffusion(self) -> DiffusionConfig:
        return self.settings.diffusion

    def run(self) -> None:
        super().run()
        if self.optimizer.steps == 0 and processes()[0] == 0:
            shutil.rmtree(self.out / "state", ignore_errors=True)

    # ── batches ──

    def loss(self, step: int, micro: int) -> Tensor:
        """Loss of one micro-batch.

        The step's whole batch is drawn and a part of it used, so that its images, timesteps and noise
        do not depend on the number of micro-batches.
        """
        size, mine = self.optimizer.batch_size, self.part(micro)
        self.prefetch(step + 1, micro)
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
        # At timesteps spread over the chain, always with the same noise. Processes share the batches.
        size = max(1, self.optimizer.batch_size // self.optimizer.accumulate)
        batches = -(-len(self.validation) // size)
        # Every sum is of one process and zero in the others, so adding them up rounds nothing.
        sums = torch.zeros(batches, dtype=torch.float64, device=self.device)
        rank, world = processes()
        for i in range(rank, batches, world):
            places = np.arange(i * size, min(len(self.validation), (i + 1) * size))
            sums[i] = self._losses(*self._validation_batch(places)).sum()
        return math.fsum(distributed.gathered(sums).sum(0).tolist()) / len(self.validation)

    def _validation_batch(self, places: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        count = len(self.validation)
        # Evenly spread timesteps make the loss of few images less a matter of luck than random ones.
        spread = (np.arange(count) + 0.5) / count * self.schedule.timesteps
        timesteps = torch.from_numpy(
            seeds.generator(self.seed, "validation timesteps").permutation(spread.astype(np.int64))
        )[places]
        noise = torch.stack([self._validation_noise(int(i)) for i in places])
        return to_input_range(self.validation.batch(places)), timesteps.to(self.device), noise

    def _validation_noise(self, index: int) -> Tensor:
        generator = torch_generator(self.seed, "validation noise", index, device=self.device)
        return torch.randn(*self.data.image_shape, generator=generator, device=self.device)

    # ── samples ──

    def look(self, step: int) -> None:
        """Draw samples from the current weights, samples/step….png, where the schedule says so."""
        every = self.settings.samples_every
        if every and step % every == 0 and step < self.optimizer.steps and processes()[0] == 0:
            self.network.eval()
            self.draw_samples(self.out / "samples" / f"step{step:07d}.png")
            self.network.train()

    def finish(self) -> None:
        self.draw_samples(self.out / "samples.png")

    def draw_samples(self, path: Path) -> None:
        """Write a PNG: real images left, drawn ones right."""
        count = self.settings.samples
        drawn = torch.empty(0, *self.data.image_shape)
        if count:
            start = sample.start(count, self.data.image_shape, self.seed, self.device)
            steps = min(self.settings.sampling_steps, self.schedule.timesteps)
            kind = self.settings.diffusion.objective
            drawn = sample.draw(self.network, self.schedule, kind, start, steps, INPUT_RANGE)
        real = self.images.batch(np.arange(min(count or REAL_ALONE, len(self.images))))
        sample.write_samples(path, real.cpu().numpy(), drawn.cpu().numpy())


def to_input_range(images: Tensor) -> Tensor:
    """Map [0, 1] to the range that the network is trained on."""
    low, high = INPUT_RANGE
    return low + (high - low) * images
