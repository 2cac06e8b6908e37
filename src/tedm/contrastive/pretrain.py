"""The two stages of contrastive pretraining on the unlabelled images of a prepared set."""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tedm import checkpoint, distributed, pretrained, seeds
from tedm.augmentation import View, draw
from tedm.config import AugmentationConfig, Augmenting, GlobalCLConfig, LocalCLConfig
from tedm.contrastive import regions
from tedm.contrastive.heads import GlobalNetwork, LocalNetwork
from tedm.contrastive.losses import nt_xent
from tedm.data.prepared import PreparedSet
from tedm.distributed import processes
from tedm.errors import TedmError
from tedm.progress import say
from tedm.training import build, check_batches
from tedm.unet import UNet
from tedm.unlabelled_training import UnlabelledTraining, opened

INPUT_RANGE = (0.0, 1.0)  # as the networks that are fine-tuned see images

S = TypeVar("S", bound=GlobalCLConfig | LocalCLConfig)


def pretrain(
    data: Path,
    settings: GlobalCLConfig | LocalCLConfig,
    seed: int,
    out: Path,
    name: str | None = None,
    *,
    encoder: Path | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Pretrain the study's UNet, or go on where a killed pretraining stopped.

    It learns the images that a diffusion model would learn: those of the split `unlabelled`, or of `train`
    where nothing is unlabelled, less a share that is kept for the validation loss. `out` gets
    model.safetensors, config.json (its training.learnt names the parts that have learnt; the others are
    random), losses.csv, state/ and at last digest.json. The projection is left out: nobody reads it later.

    Args:
        data: prepared set.
        settings: of the stage.
        seed: of initial weights, validation images, batches, views and regions.
        out: directory to write.
        name: of the pretraining, for people; absent: the directory's.
        encoder: directory of the global stage, which a local stage starts from.
        device: that trains; of this process, where several train together.

    Raises:
        TedmError: too few or too small images, an encoder of another shape, micro-batches that the
            processes can't share, a loss that isn't finite.
    """
    label = f"pretraining {name or out.name}"
    check_batches(settings.training, f"pretraining.{name or out.name}.training")
    with opened(data, out, label) as images:
        stage: GlobalPretraining | LocalPretraining
        if isinstance(settings, GlobalCLConfig):
            stage = GlobalPretraining(images, settings, seed, out, label, torch.device(device))
        else:
            if encoder is None:
                raise TedmError(f"{label}: --encoder: missing; a local stage starts from a global one")
            stage = LocalPretraining(images, settings, seed, out, label, torch.device(device), encoder)
        stage.run()


class Pretraining(UnlabelledTraining[S]):
    """One stage in the making; arguments as in `pretrain`."""

    input_range = INPUT_RANGE
    learner: GlobalNetwork | LocalNetwork
    start: str | None = None  # digest of what it starts from

    @property
    def ranges(self) -> Augmenting:
        """How the two views of an image may differ."""
        augment = self.settings.augment
        return AugmentationConfig() if isinstance(augment, bool) else augment

    @abstractmethod
    def batch_loss(self, images: Tensor, pair: tuple[View, View], places: npt.NDArray[np.int64]) -> Tensor:
        """Loss of a whole batch, with images that are told apart by their places."""

    @property
    def module(self) -> GlobalNetwork | LocalNetwork:
        return self.learner

    @property
    def unet(self) -> UNet:
        return self.learner.network

    @property
    def identity(self) -> dict[str, Any]:
        settings = self.settings.model_dump(mode="json", exclude={"data", "training", "encoder"})
        return {"start": self.start, "settings": settings}

    @property
    def description(self) -> dict[str, Any]:
        settings = self.settings.model_dump(mode="json", exclude={"data", "training"})
        return {**settings, "learnt": self.learnt()}

    def learnt(self) -> list[str]:
        """Parts of the network that another one may start from."""
        return list(self.learner.learnt)

    def draw_pair(self, count: int, *names: str | int) -> tuple[View, View]:
        """Two views of so many images, always the same under the same names."""
        random = seeds.generator(self.seed, self.settings.type, "views", *names)
        _, height, width = self.data.image_shape
        first, second = (draw(random, count, (height, width), self.ranges, self.device) for _ in range(2))
        return first, second

    def embed(self, images: Tensor, pair: tuple[View, View]) -> tuple[Tensor, Tensor]:
        """What the network makes of both views, (N, …) each."""
        seen = torch.cat([view.images(images) for view in pair])
        first, second = self.learner(seen.contiguous(memory_format=torch.channels_last)).chunk(2)
        return first, second

    def validation_loss(self) -> float:
        # In batches as in training, always in the same views. Several processes share the batches.
        size = min(self.optimizer.batch_size, len(self.validation))
        batches = len(self.validation) // size  # the rest would be contrasted with fewer images
        losses = torch.zeros(batches, dtype=torch.float64, device=self.device)
        rank, world = processes()
        for i in range(rank, batches, world):
            places = np.arange(i * size, (i + 1) * size)
            pair = self.draw_pair(size, "validation", i)
            losses[i] = self.batch_loss(self.validation.batch(places), pair, places)
        return math.fsum(distributed.gathered(losses).sum(0).tolist()) / batches


class GlobalPretraining(Pretraining[GlobalCLConfig]):
    """Encoder and middle learn to tell images apart (Chen et al. 2020)."""

    def __init__(
        self,
        data: PreparedSet,
        settings: GlobalCLConfig,
        seed: int,
        out: Path,
        label: str,
        device: torch.device,
    ) -> None:
        super().__init__(data, settings, seed, out, label, device, settings.type)
        checkpoint.check_size(data.label, data.image_shape, settings.multipliers)
        if len(self.validation) < 2:
            raise TedmError(
                f"{data.label}: one image is kept for the validation loss, but images are contrasted with"
                f" each other; raise {label.replace(' ', '.')}.validation"
            )
        if len(self.validation) < self.optimizer.batch_size:
            say(
                f"{label}: the validation loss tells {len(self.validation)} images apart, fewer than those"
                f" of a batch ({self.optimizer.batch_size}), which is easier;"
                f" {label.replace(' ', '.')}.validation is their share"
            )
        channels, height, width = data.image_shape
        self.learner = _on(
            device,
            build(
                lambda: GlobalNetwork(
                    UNet(settings.width, settings.multipliers, channels, time_conditioned=False),
                    height,
                    width,
                    settings.hidden,
                    settings.features,
                ),
                seed,
                "global contrastive",
            ),
        )
        self.everyone: tuple[int, Tensor] | None = None  # a step, and all embeddings of its batch

    def loss(self, step: int, micro: int) -> Tensor:
        """Loss of the whole batch, whose gradient flows through one micro-batch only.

        An image is contrasted with the whole batch, however that is shared: so the gradients of the
        micro-batches add up to that of the batch. Where there are several, it takes a second forward pass.
        """
        places = self.epochs.batch(step)
        pair = self.draw_pair(len(places), step)
        parts, mine = self.optimizer.accumulate, self.part(micro)
        self.prefetch(step + 1, micro)
        if parts == 1:
            return self.batch_loss(self.images.batch(places), pair, places)
        everyone = self._embeddings(step, places, pair)
        own = torch.stack(self._embed_part(places, pair, mine), 1)
        both = torch.cat((everyone[: mine.start], own.float(), everyone[mine.stop :]))
        value = self._contrast(both[:, 0], both[:, 1], places)
        return value * parts - value.detach() * (parts - 1)  # `train` takes the mean over micro-batches

    def batch_loss(self, images: Tensor, pair: tuple[View, View], places: npt.NDArray[np.int64]) -> Tensor:
        return self._contrast(*self.embed(images, pair), places)

    def _contrast(self, first: Tensor, second: Tensor, places: npt.NDArray[np.int64]) -> Tensor:
        # Where an epoch ends within a batch, the batch may hold an image twice.
        different = torch.from_numpy(places[:, None] != places).to(self.device)
        return nt_xent(first, second, self.settings.temperature, different)

    def _embed_part(
        self, places: npt.NDArray[np.int64], pair: tuple[View, View], mine: slice
    ) -> tuple[Tensor, Tensor]:
        return self.embed(self.images.batch(places[mine]), (pair[0][mine], pair[1][mine]))

    def _embeddings(self, step: int, places: npt.NDArray[np.int64], pair: tuple[View, View]) -> Tensor:
        """Embeddings of the whole batch, (N, 2, D), from all processes and without gradient."""
        if self.everyone is None or self.everyone[0] != step:
            rank, world = processes()
            share = self.optimizer.accumulate // world
            with torch.no_grad():
                own = [
                    torch.stack(self._embed_part(places, pair, self.part(micro)), 1).float()
                    for micro in range(rank * share, (rank + 1) * share)
                ]
            self.everyone = (step, distributed.gathered(torch.cat(own)).flatten(0, 1))
        return self.everyone[1]


class LocalPretraining(Pretraining[LocalCLConfig]):
    """The first decoder levels learn to tell places of an image apart (Chaitanya et al. 2020)."""

    def __init__(
        self,
        data: PreparedSet,
        settings: LocalCLConfig,
        seed: int,
        out: Path,
        label: str,
        device: torch.device,
        encoder: Path,
    ) -> None:
        super().__init__(data, settings, seed, out, label, device, settings.type)
        before = pretrained.read(encoder)
        if any(part.startswith("decoder") for part in before.parts):
            raise TedmError(f"{encoder}: a local stage; {label} starts from one of type global")
        if before.image_shape != data.image_shape:
            raise TedmError(
                f"{encoder}: learnt images of shape {before.image_shape}, but {data.label} has"
                f" {data.image_shape}; prepare both at one size"
            )
        if settings.levels > len(before.architecture.multipliers):
            raise TedmError(
                f"{label.replace(' ', '.')}.levels: {settings.levels}, but the network has"
                f" {len(before.architecture.multipliers)} levels"
            )
        channels = data.image_shape[0]

        def make() -> LocalNetwork:
            network = UNet(
                before.architecture.width,
                before.architecture.multipliers,
                channels,
                time_conditioned=False,
            )
            return LocalNetwork(network, settings.levels, settings.features)

        module = build(make, seed, "local contrastive")
        pretrained.start_from(module.network, before, label)
        self.learner = _on(device, module)
        self.start, self.before = before.digest, before
        _, height, width = data.image_shape
        shape = module.network.layer_shapes(height, width)[f"up{settings.levels - 1}"]
        self.cell = (1 / shape.height, 1 / shape.width)
        # Two crops of three quarters share half of every side.
        if 2 * settings.side > min(shape.height, shape.width):
            raise TedmError(
                f"{label.replace(' ', '.')}.side: regions of {settings.side}×{settings.side} need a map of"
                f" {2 * settings.side}×{2 * settings.side} at least, but that of level"
                f" {settings.levels} is {shape.height}×{shape.width}; make image.size or levels larger"
            )

    def learnt(self) -> list[str]:
        """Those of the global stage, too."""
        return [*self.before.parts, *self.learner.learnt]

    def loss(self, step: int, micro: int) -> Tensor:
        """Mean over the images of a micro-batch; images are not contrasted with each other."""
        places, mine = self.epochs.batch(step), self.part(micro)
        self.prefetch(step + 1, micro)
        pair = self.draw_pair(len(places), step)
        drawn = self._draw_regions(pair, step)
        images = self.images.batch(places[mine])
        return self._contrast(images, (pair[0][mine], pair[1][mine]), drawn[mine])

    def batch_loss(self, images: Tensor, pair: tuple[View, View], places: npt.NDArray[np.int64]) -> Tensor:
        return self._contrast(images, pair, self._draw_regions(pair, "validation", int(places[0])))

    def _draw_regions(self, pair: tuple[View, View], *names: str | int) -> Tensor:
        random = seeds.generator(self.seed, self.settings.type, "regions", *names)
        return regions.draw_regions(random, *pair, self.settings.regions, self.settings.side, self.cell)

    def _contrast(self, images: Tensor, pair: tuple[View, View], places: Tensor) -> Tensor:
        first, second = (
            regions.sample(maps, view, places)
            for maps, view in zip(self.embed(images, pair), pair, strict=True)
        )
        # Regions that overlap are contrasted, too, as published; docs/baselines.md has what that does.
        return nt_xent(first, second, self.settings.temperature)


def _on(device: torch.device, module: nn.Module) -> "GlobalNetwork | LocalNetwork":
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
