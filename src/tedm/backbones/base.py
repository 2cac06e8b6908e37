"""What a backbone is to the stages that use one."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from tedm.errors import TedmError
from tedm.unet import LayerShape

InputRange = Literal["trained", "official"]


class Backbone(Protocol):
    """A frozen network that turns images into features of several resolutions.

    Attributes:
        digest: of weights and architecture; features of another digest are other features.
        timesteps: T; `features` takes timesteps 0 … T-1. 1: a network that knows no noise.
        image_shape: C, H, W of the images that it takes.
        layer_shapes: of its layers for one image, coarsest first.
    """

    digest: str
    timesteps: int
    image_shape: tuple[int, int, int]
    layer_shapes: dict[str, LayerShape]

    def features(
        self, images: Tensor, timestep: int, noise: Tensor, input_range: InputRange = "trained"
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


def check_input(backbone: Backbone, images: Tensor, timestep: int, noise: Tensor) -> None:
    """Refuse images and timesteps that a backbone was not made for."""
    if tuple(images.shape[1:]) != backbone.image_shape or images.shape != noise.shape:
        raise TedmError(
            f"images of shape {tuple(images.shape)} with noise of shape {tuple(noise.shape)}: the"
            f" backbone takes (N, {', '.join(map(str, backbone.image_shape))}) for both; prepare the"
            " images at the size and with the channels that it was trained on"
        )
    if not 0 <= timestep < backbone.timesteps:
        known = f"0 … {backbone.timesteps - 1}" if backbone.timesteps > 1 else "only one, 0"
        raise TedmError(f"timestep {timestep} is outside the backbone's {known}")
