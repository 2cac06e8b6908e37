"""What a backbone is to the stages that use one, and how to load it."""

from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from tedm import checkpoint
from tedm.diffusion.schedule import Schedule
from tedm.errors import TedmError
from tedm.unet import LayerShape, UNet


class Backbone(Protocol):
    """A frozen network that turns images into features of several resolutions.

    Attributes:
        digest: of weights and architecture; features of another digest are other features.
        timesteps: T; `features` takes timesteps 0 … T-1.
        image_shape: C, H, W of the images that it takes.
        layer_shapes: of its layers for one image, coarsest first.
    """

    digest: str
    timesteps: int
    image_shape: tuple[int, int, int]
    layer_shapes: dict[str, LayerShape]

    def features(
        self,
        images: Tensor,
        timestep: int,
        noise: Tensor,
        input_range: Literal["trained", "official"] = "trained",
    ) -> dict[str, Tensor]:
        """Activations of every layer for images that are noised to one timestep.

        Args:
            images: (N, C, H, W), float32 in [0, 1].
            timestep: 0 … T-1.
            noise: standard normal, like images.
            input_range: "trained" maps the images to the range that the network was trained on;
                "official" feeds them as they are, as the authors' code does.

        Returns:
            Per layer (N, channels, height, width), float32, without gradient.

        Raises:
            TedmError: images of another shape, or a timestep outside the chain.
        """
        ...

    def to(self, device: torch.device | str) -> "Backbone":
        """The backbone, moved to a device."""
        ...


class DiffusionBackbone:
    """The decoder of a denoising diffusion UNet (Rosnati et al. 2023, 2.2)."""

    def __init__(
        self,
        network: UNet,
        schedule: Schedule,
        image_shape: tuple[int, int, int],
        input_range: tuple[float, float],
        digest: str,
    ) -> None:
        self.network, self.schedule = network, schedule
        self.timesteps = schedule.timesteps
        self.image_shape = image_shape
        self.input_range = input_range
        self.digest = digest
        self.layer_shapes = network.layer_shapes(*image_shape[1:])

    def features(
        self,
        images: Tensor,
        timestep: int,
        noise: Tensor,
        input_range: Literal["trained", "official"] = "trained",
    ) -> dict[str, Tensor]:
        """See `Backbone.features`."""
        if tuple(images.shape[1:]) != self.image_shape or images.shape != noise.shape:
            raise TedmError(
                f"images of shape {tuple(images.shape)} with noise of shape {tuple(noise.shape)}: the"
                f" backbone takes (N, {', '.join(map(str, self.image_shape))}) for both; prepare the"
                " images at the size and with the channels that it was trained on"
            )
        if not 0 <= timestep < self.timesteps:
            raise TedmError(f"timestep {timestep} is outside the backbone's 0 … {self.timesteps - 1}")
        low, high = self.input_range if input_range == "trained" else (0.0, 1.0)
        with torch.no_grad():
            t = torch.full((len(images),), timestep, device=images.device)
            x_t = self.schedule.diffuse(low + (high - low) * images, t, noise)
            return self.network.decode(x_t.contiguous(memory_format=torch.channels_last), t)

    def to(self, device: torch.device | str) -> "DiffusionBackbone":
        """See `Backbone.to`."""
        self.network.to(device)
        self.schedule = self.schedule.to(device)
        return self


def load(directory: Path, device: torch.device | str = "cpu") -> DiffusionBackbone:
    """Load a backbone from its directory (config.json, model.safetensors, digest.json).

    Raises:
        TedmError: files that are missing, broken, of another network or changed since they were written.
    """
    network, description, digest = checkpoint.read(directory)
    if description.diffusion is None:
        raise TedmError(
            f"{directory}: a network without a diffusion process (a supervised baseline?), not a backbone"
        )
    schedule = Schedule(description.diffusion.timesteps, description.diffusion.schedule)
    backbone = DiffusionBackbone(
        network, schedule, description.image_shape, description.input_range, digest
    )
    return backbone.to(device)
