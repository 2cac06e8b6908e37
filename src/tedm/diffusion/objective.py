"""What the UNet predicts, and the loss of a prediction."""

from typing import Literal

from torch import Tensor

from tedm.config import DiffusionConfig
from tedm.diffusion.schedule import Schedule, per_image

Objective = Literal["noise", "image", "velocity"]


def target(objective: Objective, schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What a perfect network would predict, (N, C, H, W).

    The noise (Ho et al. 2020, eq. 14), the image, or the velocity
    v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, 4).
    """
    if objective == "noise":
        return noise
    if objective == "image":
        return x0
    return per_image(schedule.signal, t) * noise - per_image(schedule.noise, t) * x0


def image_and_noise(
    objective: Objective, schedule: Schedule, x_t: Tensor, t: Tensor, prediction: Tensor
) -> tuple[Tensor, Tensor]:
    """The x_0 and the noise that a prediction stands for, each (N, C, H, W).

    The two always mix to x_t again, whatever the objective.
    """
    a, b = per_image(schedule.signal, t), per_image(schedule.noise, t)
    if objective == "noise":
        return (x_t - b * prediction) / a, prediction
    if objective == "image":
        return prediction, (x_t - a * prediction) / b
    return a * x_t - b * prediction, b * x_t + a * prediction


def p2_weights(schedule: Schedule, gamma: float, k: float) -> Tensor:
    """Loss weights (k + SNR)^-gamma of the timesteps (Choi et al. 2022, eq. 8), (T,), float32."""
    return (k + schedule.snr) ** -gamma


def per_image_loss(
    prediction: Tensor, wanted: Tensor, t: Tensor, settings: DiffusionConfig, weights: Tensor | None
) -> Tensor:
    """Mean absolute or squared error over the pixels of each image, weighted by its timestep, (N,).

    Args:
        prediction: of the network, (N, C, H, W); any precision.
        wanted: see `target`, (N, C, H, W).
        t: timesteps, (N,).
        settings: `loss` is l1 or l2.
        weights: of the timesteps, (T,), or None for 1.
    """
    error = prediction.float() - wanted
    loss = (error.abs() if settings.loss == "l1" else error.square()).flatten(1).mean(1)
    return loss if weights is None else loss * weights[t]
