"""The decoder of the study's diffusion UNet as a backbone."""

from pathlib import Path

import torch
from torch import Tensor

from tedm import checkpoint
from tedm.backbones.base import InputRange, check_input
from tedm.diffusion.schedule import Schedule
from tedm.errors import TedmError
from tedm.unet import UNet


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
        self, images: Tensor, timestep: int, noise: Tensor, input_range: InputRange = "trained"
    ) -> dict[str, Tensor]:
        """See `Backbone.features`."""
        check_input(self, images, timestep, noise)
        t = torch.full((len(images),), timestep, device=images.device)
        return self.features_at(images, t, noise, input_range)

    def features_at(
        self, images: Tensor, t: Tensor, noise: Tensor, input_range: InputRange = "trained"
    ) -> dict[str, Tensor]:
        """The same with a timestep for each image, (N,), which the caller has checked."""
        low, high = self.input_range if input_range == "trained" else (0.0, 1.0)
        with torch.no_grad():
            x_t = self.schedule.diffuse(low + (high - low) * images, t, noise)
            return self.network.decode(x_t.contiguous(memory_format=torch.channels_last), t)

    def to(self, device: torch.device | str) -> "DiffusionBackbone":
        """See `Backbone.to`."""
        self.network.to(device)
        self.schedule = self.schedule.to(device)
        return self


def load(directory: Path) -> DiffusionBackbone:
    """Load a diffusion model that was trained here or imported from the authors' code.

    Raises:
        TedmError: files that are missing, broken, of another network or changed since they were written.
    """
    network, description, digest = checkpoint.read(directory)
    if description.diffusion is None:
        raise TedmError(
            f"{directory}: a network without a diffusion process (a supervised baseline?), not a backbone"
        )
    schedule = Schedule(description.diffusion.timesteps, description.diffusion.schedule)
    return DiffusionBackbone(network, schedule, description.image_shape, description.input_range, digest)
