"""The frame of a training on unlabelled images: it is alone, resumed, validated, described and written."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from tedm import checkpoint, files
from tedm.config import DDPMConfig, DiffusionConfig, GlobalCLConfig, LocalCLConfig
from tedm.data.prepared import PreparedSet
from tedm.distributed import processes
from tedm.progress import say
from tedm.training import Epochs, train
from tedm.unet import UNet
from tedm.unlabelled import TrainingImages, split_rows

S = TypeVar("S", bound=DDPMConfig | GlobalCLConfig | LocalCLConfig)


@contextmanager
def opened(data: Path, out: Path, label: str) -> Iterator[PreparedSet]:
    """Open a prepared set, while no other training writes the same directory.

    Args:
        data: prepared set.
        out: directory that the training writes.
        label: of the training, for whoever waits.
    """
    rank, world = processes()
    # Several processes share one directory and one lock, and none of them waits for long.
    patience = -1.0 if world == 1 else 0.0
    lock = nullcontext() if rank else files.only_one(out / checkpoint.WEIGHTS, f"the {label}", patience)
    with PreparedSet(data) as images, lock:
        yield images


class UnlabelledTraining(ABC, Generic[S]):
    """A network in the making.

    Args:
        data: images, the set is open.
        settings: of network and optimizer.
        seed: of whatever is drawn.
        out: directory to write.
        label: of the training, for people.
        device: that trains; of this process, where several train together.
        names: of the order of the images, besides the seed.

    Raises:
        TedmError: too few images.
    """

    input_range: ClassVar[tuple[float, float]]  # of the images that the network gets

    def __init__(
        self,
        data: PreparedSet,
        settings: S,
        seed: int,
        out: Path,
        label: str,
        device: torch.device,
        *names: str,
    ) -> None:
        self.data, self.settings, self.seed, self.out, self.device = data, settings, seed, out, device
        self.label, self.optimizer = label, settings.training
        rows, validation_rows = split_rows(data, settings.validation, settings.validation_max, seed)
        self.images = TrainingImages(data, rows, device)
        self.validation = TrainingImages(data, validation_rows, device)
        self.epochs = Epochs(len(self.images), self.optimizer.batch_size, seed, *names)

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """All that learns."""

    @property
    @abstractmethod
    def unet(self) -> UNet:
        """What of it is written."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a saved state must agree with to go on from it, besides seed and data."""

    @property
    def diffusion(self) -> DiffusionConfig | None:
        """Chain of timesteps, where there is one."""
        return None

    @property
    def description(self) -> dict[str, Any]:
        """What config.json says of this training besides its optimizer and its course."""
        return {}

    @abstractmethod
    def loss(self, step: int, micro: int) -> Tensor:
        """Loss of one micro-batch, as `training.train` asks for it."""

    @abstractmethod
    def validation_loss(self) -> float:
        """Loss on the validation images, always drawn alike; the same in all processes."""

    def look(self, step: int) -> None:
        """Called after each step."""

    def finish(self) -> None:
        """Called after the last step, before the network is written."""

    def part(self, micro: int) -> slice:
        """Images of a micro-batch within its batch."""
        size, parts = self.optimizer.batch_size, self.optimizer.accumulate
        return slice(micro * size // parts, (micro + 1) * size // parts)

    def prefetch(self, step: int, micro: int) -> None:
        """Start to read what a step's micro-batch will need, if there is such a step."""
        if step < self.optimizer.steps:
            self.images.prefetch(self.epochs.batch(step)[self.part(micro)])

    def run(self) -> None:
        """Train, or go on where a killed training stopped, and write what was learnt."""
        if processes()[0] == 0:
            (self.out / checkpoint.DIGEST).unlink(missing_ok=True)
        record = train(
            self.module,
            self.loss,
            self.optimizer,
            self.out / "state",
            self.label,
            identity={"seed": self.seed, "data": self.data.digest, **self.identity},
            validate=self.validation_loss,
            log=self.out / "losses.csv",
            tensorboard=self.out / "tensorboard",
            on_step=self.look,
        )
        if processes()[0] != 0:
            return
        self.finish()
        description = checkpoint.describe(
            self.unet,
            self.data.image_shape,
            self.input_range,
            self.diffusion,
            data={
                "label": self.data.label,
                "digest": self.data.digest,
                "synthetic": self.data.synthetic,
                "images": len(self.images),
                "validation_images": len(self.validation),
            },
            training={
                **self.optimizer.model_dump(mode="json"),
                **self.description,
                "seed": self.seed,
                "best_step": record.best_step,
                "validation_loss": record.best_validation,
                "seconds": round(record.seconds, 1),
                "device": self.device.type,
                "processes": processes()[1],
            },
        )
        digest = checkpoint.write(self.out, self.unet, description)
        say(
            f"{self.label}: validation loss {record.best_validation:.4g} at step"
            f" {record.best_step}, digest {digest[:12]}"
        )
