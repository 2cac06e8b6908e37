"""The networks of both stages: part of the UNet, and the projection whose output is contrasted."""

from typing import cast

from torch import Tensor, nn

from tedm.unet import UNet

ENCODER = ("stem", "encoder", "middle1", "middle_attention", "middle2")


class GlobalNetwork(nn.Module):
    """Encoder and middle, and one vector of each image (Chen et al. 2020, 2.1; sizes of the study's code).

    Args:
        network: UNet without timestep; its decoder stays as it is.
        height: of the images, pixels.
        width: likewise.
        hidden: size of the projection's hidden layer.
        features: size of the vector.
    """

    def __init__(self, network: UNet, height: int, width: int, hidden: int, features: int) -> None:
        super().__init__()
        self.network = network
        middle = network.layer_shapes(height, width)["up0"]  # the middle's, too
        self.projection = nn.Sequential(
            nn.Flatten(),
            nn.Linear(middle.channels * middle.height * middle.width, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, features, bias=False),
        )
        learn_only(network, ENCODER)

    @property
    def learnt(self) -> tuple[str, ...]:
        """Parts of the UNet that learn."""
        return ENCODER

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (N, features) of images (N, C, H, W)."""
        return cast(Tensor, self.projection(self.network.encode(x)))


class LocalNetwork(nn.Module):
    """First decoder levels behind a frozen encoder, and a map of vectors (Chaitanya et al. 2020, 3).

    Args:
        network: UNet without timestep, whose encoder and middle have learnt before.
        levels: of its decoder that learn, from the coarsest on.
        features: channels of the map.
    """

    def __init__(self, network: UNet, levels: int, features: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels
        channels = network.layer_shapes(1, 1)[f"up{levels - 1}"].channels
        self.projection = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, features, 1, bias=False),
        )
        learn_only(network, self.learnt)

    @property
    def learnt(self) -> tuple[str, ...]:
        """Parts of the UNet that learn; the last level's upsampling comes after the map."""
        last = f"decoder.{self.levels - 1}"
        return (
            *(f"decoder.{i}" for i in range(self.levels - 1)),
            *(f"{last}.{block}" for block in ("residual1", "residual2", "attention")),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, features, h, w) of images (N, C, H, W)."""
        layers = self.network.decode(x, levels=self.levels)
        return cast(Tensor, self.projection(layers[f"up{self.levels - 1}"]))


def learn_only(network: UNet, parts: tuple[str, ...]) -> None:
    """Let these parts of a network learn and freeze all others."""
    prefixes = tuple(f"{part}." for part in parts)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
