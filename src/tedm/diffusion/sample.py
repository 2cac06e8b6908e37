"""Images drawn from a trained model, as tensors and as pictures."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tedm import files
from tedm.diffusion.objective import Objective, image_and_noise
from tedm.diffusion.schedule import Schedule, per_image
from tedm.errors import TedmError
from tedm.training import torch_generator

GAP = 2  # pixels between images of a grid
PAPER = 255  # grey level of the gap


class Moment(NamedTuple):
    """One step of the reverse process."""

    timestep: int
    x_t: Tensor  # before the step, (N, C, H, W)
    x0: Tensor  # predicted from x_t, clamped to the range of the images
    following: Tensor  # after the step


Network = Callable[[Tensor, Tensor], Tensor]


def start(count: int, image_shape: Sequence[int], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal x_T for `count` images; image i is the same in any number of images."""
    noises = [
        torch.randn(
            *image_shape, generator=torch_generator(seed, "sample", i, device=device), device=device
        )
        for i in range(count)
    ]
    return torch.stack(noises).contiguous(memory_format=torch.channels_last)


def ddim(
    network: Network,
    schedule: Schedule,
    objective: Objective,
    x: Tensor,
    steps: int,
    input_range: tuple[float, float] = (-1.0, 1.0),
) -> Iterator[Moment]:
    """Deterministic reverse process in few steps (Song et al. 2021, eq. 12 with eta = 0).

    Args:
        network: predicts from (x_t, t).
        schedule: of the forward process.
        objective: what the network predicts.
        x: start, (N, C, H, W).
        steps: timesteps that are visited, spread evenly from T-1 down to 0; at most T.
        input_range: to which the predicted images are clamped.

    Yields:
        Every step; the last one's `following` are the images, in `input_range`.
    """
    if not 1 <= steps <= schedule.timesteps:
        raise TedmError(f"sampling_steps: {steps} is outside 1 … {schedule.timesteps} (the chain's length)")
    visited = np.linspace(schedule.timesteps - 1, 0, steps).round().astype(int).tolist()
    for i, timestep in enumerate(visited):
        x0, noise, _ = _predict(network, schedule, objective, x, timestep, input_range)
        following = x0
        if i + 1 < len(visited):
            t = torch.full((len(x),), visited[i + 1], device=x.device)
            following = schedule.diffuse(x0, t, noise)
        yield Moment(timestep, x, x0, following)
        x = following


def ddpm(
    network: Network,
    schedule: Schedule,
    objective: Objective,
    x: Tensor,
    seed: int,
    input_range: tuple[float, float] = (-1.0, 1.0),
) -> Iterator[Moment]:
    """Ancestral sampling through the whole chain (Ho et al. 2020, algorithm 2, eq. 6 and 7).

    The noise of a step is named by seed, timestep and image. Arguments and yields as in `ddim`.
    """
    alpha_bar, beta = schedule.alpha_bar, schedule.beta
    for timestep in range(schedule.timesteps - 1, -1, -1):
        x0, _, _ = _predict(network, schedule, objective, x, timestep, input_range)
        following = x0
        if timestep > 0:
            before, now = float(alpha_bar[timestep - 1]), float(alpha_bar[timestep])
            b = float(beta[timestep])
            of_x0 = math.sqrt(before) * b / (1 - now)
            of_xt = math.sqrt(1 - b) * (1 - before) / (1 - now)
            deviation = math.sqrt(b * (1 - before) / (1 - now))
            noise = torch.stack(
                [
                    torch.randn(
                        x.shape[1:],
                        generator=torch_generator(seed, "ancestral", timestep, i, device=x.device),
                        device=x.device,
                    )
                    for i in range(len(x))
                ]
            )
            following = of_x0 * x0 + of_xt * x + deviation * noise
        yield Moment(timestep, x, x0, following)
        x = following


def _predict(
    network: Network,
    schedule: Schedule,
    objective: Objective,
    x: Tensor,
    timestep: int,
    input_range: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """The clamped x_0, the noise that goes with it, and the timesteps."""
    t = torch.full((len(x),), timestep, device=x.device)
    with torch.no_grad():
        prediction = network(x, t).float()
    x0, _ = image_and_noise(objective, schedule, x, t, prediction)
    x0 = x0.clamp(*input_range)
    noise = (x - per_image(schedule.signal, t) * x0) / per_image(schedule.noise, t)
    return x0, noise, t


def draw(
    network: Network,
    schedule: Schedule,
    objective: Objective,
    x: Tensor,
    steps: int,
    input_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """Images in [0, 1], (N, C, H, W), drawn with DDIM from the start `x`."""
    images = x
    for moment in ddim(network, schedule, objective, x, steps, input_range):
        images = moment.following
    low, high = input_range
    return (images - low) / (high - low)


def grid(images: npt.NDArray[np.float32], columns: int) -> npt.NDArray[np.uint8]:
    """Lay images in [0, 1], (N, C, H, W), out in rows; three channels are colours, else the first is shown.

    Returns:
        Bytes, (height, width) or (height, width, 3), with white gaps.
    """
    colour = images.shape[1] == 3
    shown = np.rint(np.clip(images if colour else images[:, :1], 0, 1) * 255).astype(np.uint8)
    n, c, height, width = shown.shape
    rows = -(-n // columns)
    sheet = np.full((c, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), PAPER, np.uint8)
    for i, image in enumerate(shown):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[:, top : top + height, left : left + width] = image
    return np.moveaxis(sheet, 0, 2) if colour else sheet[0]


def write_samples(path: Path, real: npt.NDArray[np.float32], drawn: npt.NDArray[np.float32]) -> None:
    """Write a PNG with real images in the left block and as many drawn ones in the right block."""
    columns = max(1, math.isqrt(len(drawn)))
    left, right = grid(real, columns), grid(drawn, columns)
    gap = np.full((right.shape[0], 8 * GAP, *right.shape[2:]), PAPER, np.uint8)
    _write_png(path, np.concatenate([left, gap, right], axis=1))


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with files.whole(path) as partial:
        Image.fromarray(pixels).save(partial, format="png")
