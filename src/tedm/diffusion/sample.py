"""Images drawn from a trained model, as tensors and as pictures."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tedm import checkpoint, files
from tedm.diffusion.objective import Objective, image_and_noise
from tedm.diffusion.schedule import Schedule, per_image
from tedm.errors import TedmError
from tedm.progress import stage
from tedm.training import torch_generator

GAP = 2  # pixels between images of a grid
LEAST_SIGNAL = 0.05  # of sqrt(alpha_bar): where DDIM starts
COLUMNS = 8  # timesteps that the figure of the process shows
ROWS = 2  # images that it shows
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
        steps: timesteps that are visited, spread evenly from the last that holds some signal down to 0.
        input_range: to which the predicted images are clamped.

    Yields:
        Every step; the last one's `following` are the images, in `input_range`.
    """
    if not 1 <= steps <= schedule.timesteps:
        raise TedmError(f"sampling_steps: {steps} is outside 1 … {schedule.timesteps} (the chain's length)")
    # Where x_t holds no signal, predicted x_0 is the network's error divided by nearly nothing: clamped, it
    # turns whole images black or white. x_T is as good a draw of the first x_t that holds some.
    first = int((schedule.signal >= LEAST_SIGNAL).nonzero().max())
    visited = np.linspace(first, 0, min(steps, first + 1)).round().astype(int).tolist()
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


def sample_backbone(
    directory: Path,
    out: Path,
    *,
    count: int = 16,
    seed: int = 0,
    sampler: Literal["ddim", "ddpm"] = "ddim",
    steps: int = 50,
    device: torch.device | str = "cpu",
) -> None:
    """Draw images from a backbone: samples.png, a grid, and process.png, x_t and predicted x_0 along t.

    Args:
        directory: of the backbone.
        out: directory to write.
        count: images.
        seed: of the noise; image i of a seed is the same in any number of images.
        sampler: "ddim" is deterministic and takes `steps` steps; "ddpm" takes all T, with fresh noise.
        steps: of DDIM.
        device: that draws.

    Raises:
        TedmError: the directory is not a whole backbone, or steps is more than its timesteps.
    """
    if count < 1:
        raise TedmError(f"count: {count} images can't be drawn; ask for 1 or more")
    network, description, _ = checkpoint.read(directory)
    process = description.diffusion
    if process is None:
        raise TedmError(f"{directory}: a network without a diffusion process; nothing to sample from")
    network = network.to(device)
    schedule = Schedule(process.timesteps, process.schedule, device)
    x, limits = start(count, description.image_shape, seed, device), description.input_range
    if sampler == "ddim":
        moments = ddim(network, schedule, process.objective, x, steps, limits)
    else:
        moments = ddpm(network, schedule, process.objective, x, seed, limits)
    total = steps if sampler == "ddim" else process.timesteps
    columns = set(np.linspace(0, total - 1, min(total, COLUMNS)).round().astype(int).tolist())
    shown = []
    with stage(f"sampling {directory.name}", total, "steps") as progress:
        for i, moment in enumerate(moments):
            x = moment.following
            if i in columns:
                shown.append(_few(moment))
            progress.advance()
    low, high = limits
    images = ((x - low) / (high - low)).cpu().numpy()
    _write_png(out / "samples.png", grid(images, math.ceil(math.sqrt(count))))
    caption = f"{sampler.upper()}, seed {seed}; {directory.name}"
    if "label" in description.data:  # of an import nobody knows what it learned
        kind = "synthetic" if description.data.get("synthetic") else "real"
        caption += f" learned {description.data['label']} ({kind} images)"
    write_process(out / "process.png", shown, limits, caption)


def _few(moment: Moment) -> Moment:
    """The images of a moment that the figure shows."""
    x_t, x0, following = (v[:ROWS].cpu() for v in (moment.x_t, moment.x0, moment.following))
    return Moment(moment.timestep, x_t, x0, following)


def write_process(
    path: Path, moments: Sequence[Moment], input_range: tuple[float, float], caption: str = ""
) -> None:
    """Draw one column per moment: for each image x_t above, and below it the x_0 predicted from it."""
    # Figure, not pyplot, which keeps figures and may look for a display.
    from matplotlib.figure import Figure

    low, high = input_range
    rows = 2 * len(moments[0].x_t)
    figure = Figure(figsize=(1.3 * len(moments) + 0.4, 1.3 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(moments), squeeze=False)
    for column, moment in enumerate(moments):
        axes[0, column].set_title(f"t = {moment.timestep}", fontsize=8)
        for i in range(rows):
            values, name = (moment.x_t, "$x_t$") if i % 2 == 0 else (moment.x0, "predicted $x_0$")
            pixels = ((values[i // 2] - low) / (high - low)).clamp(0, 1).numpy()
            shown = np.moveaxis(pixels, 0, 2) if len(pixels) == 3 else pixels[0]
            axes[i, column].imshow(shown, cmap="gray", vmin=0, vmax=1)
            axes[i, column].set_xticks([])
            axes[i, column].set_yticks([])
            if column == 0:
                axes[i, column].set_ylabel(name, fontsize=8)
    figure.supxlabel(caption, fontsize=8)
    with files.whole(path) as partial:
        figure.savefig(partial, format="png")


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
    """Write a PNG with real images in the left block and drawn ones, if any, in the right block."""
    columns = math.isqrt(max(len(real), len(drawn)))
    blocks = [grid(images, columns) for images in (real, drawn) if len(images)]
    height = max(len(block) for block in blocks)
    gap = np.full((height, 8 * GAP, *blocks[0].shape[2:]), PAPER, np.uint8)
    parts = [part for block in blocks for part in (gap, _padded(block, height))]
    _write_png(path, np.concatenate(parts[1:], axis=1))


def _padded(block: npt.NDArray[np.uint8], height: int) -> npt.NDArray[np.uint8]:
    """The block with paper below it."""
    below = [(0, height - len(block)), *[(0, 0)] * (block.ndim - 1)]
    return np.pad(block, below, constant_values=PAPER)


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with files.whole(path) as partial:
        Image.fromarray(pixels).save(partial, format="png")
