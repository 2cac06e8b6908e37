"""The forward process: how much image and how much noise there is at each timestep."""

import math
from typing import Literal

import torch
from torch import Tensor

from tedm.errors import TedmError

COSINE_OFFSET = 0.008  # s [Nichol & Dhariwal 2021, eq. 17]
LARGEST_BETA = 0.999  # the cosine schedule's last betas are clipped to it [same place]
LINEAR_BETAS = (1e-4, 2e-2)  # first and last for T = 1000 [Ho et al. 2020, 4]


def betas(timesteps: int, kind: Literal["cosine", "linear"]) -> Tensor:
    """Variances of the noise that each step adds.

    Args:
        timesteps: T, length of the chain.
        kind: "cosine" (Nichol & Dhariwal 2021, eq. 17) or "linear" (Ho et al. 2020, 4; scaled by 1000/T).

    Returns:
        beta_t, (T,), float32, between 0 and 0.999.
    """
    if kind == "cosine":
        # In the authors' order and in float32: their networks were trained with its rounding, which moves
        # sqrt(1 - alpha_bar_0) by 5e-4 of itself.
        u = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float32) / timesteps
        f = torch.cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi * 0.5) ** 2
        f = f / f[0]
        return (1 - f[1:] / f[:-1]).clamp(0, LARGEST_BETA)
    first, last = (1000 / timesteps * b for b in LINEAR_BETAS)
    return torch.linspace(first, last, timesteps, dtype=torch.float32).clamp(max=LARGEST_BETA)


class Schedule:
    """The forward process q(x_t | x_0) of one chain.

    Attributes:
        timesteps: T.
        beta: variances of the steps.
        alpha_bar: cumulative product of 1 - beta_t.
        signal: sqrt(alpha_bar), the share of the image in x_t.
        noise: sqrt(1 - alpha_bar), the share of the noise.

    All are (T,), float32; `beta` and `alpha_bar` stay on the CPU.

    Raises:
        TedmError: a chain of less than two steps.
    """

    def __init__(
        self, timesteps: int, kind: Literal["cosine", "linear"], device: torch.device | str = "cpu"
    ) -> None:
        if timesteps < 2:
            raise TedmError(f"diffusion.timesteps: {timesteps} steps are no chain; give 2 or more")
        self.timesteps = timesteps
        self.kind = kind
        self.beta = betas(timesteps, kind)
        self.alpha_bar = (1 - self.beta).cumprod(0)
        self.signal = self.alpha_bar.sqrt().to(device)
        self.noise = (1 - self.alpha_bar).sqrt().to(device)

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule on another device."""
        return Schedule(self.timesteps, self.kind, device)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar), (T,), float32."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Sample x_t ~ q(x_t | x_0) in closed form (Ho et al. 2020, eq. 4).

        Args:
            x0: clean images in the range that the network is trained on, (N, C, H, W).
            t: timestep of each image, 0 … T-1, (N,).
            noise: standard normal, like x0.

        Returns:
            Noisy images, (N, C, H, W).
        """
        return per_image(self.signal, t) * x0 + per_image(self.noise, t) * noise


def per_image(values: Tensor, t: Tensor) -> Tensor:
    """Values of (T,) at timesteps (N,), shaped (N, 1, 1, 1) to multiply images."""
    return values[t].view(-1, 1, 1, 1)
