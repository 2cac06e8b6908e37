"""A backbone small enough to run often, a data set for it, and features by a plain hooked forward."""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch

from tedm import seeds
from tedm.backbones import DiffusionBackbone
from tedm.data import prepared
from tedm.diffusion.schedule import Schedule
from tedm.unet import UNet

SIZE = 16
T = 1000


def backbone(seed: int = 0, width: int = 8) -> DiffusionBackbone:
    torch.manual_seed(seed)
    network = UNet(width=width, multipliers=(1, 2)).eval().to(memory_format=torch.channels_last)
    digest = hashlib.sha256(f"{seed} {width}".encode()).hexdigest()
    return DiffusionBackbone(network, Schedule(T, "cosine"), (1, SIZE, SIZE), (-1.0, 1.0), digest)


def data_set(path: Path, images: int = 10, seed: int = 0, order: list[int] | None = None) -> Path:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (images, 1, SIZE, SIZE), dtype=np.uint8)
    names = [f"image{i:03d}" for i in range(images)]
    rows = order or list(range(images))
    prepared.write(
        path,
        "Tiny",
        [pixels[i] for i in rows],
        None,
        [names[i] for i in rows],
        [names[i] for i in rows],
        ["test"] * images,
        ["lungs"],
        intensity_range=(0, 255),
        synthetic=True,
        source="drawn by a test",
        licence="none",
        cite="",
    )
    return path


def hooked_features(
    model: DiffusionBackbone,
    data: Path,
    timestep: int,
    noise_seed: int,
    *,
    draw: int = 0,
    shared: bool = False,
    official: bool = False,
) -> dict[str, np.ndarray]:
    """Features of all images, one at a time, by hooks in the network's own forward pass."""
    network = model.network
    kept: dict[str, list[np.ndarray]] = {f"up{i}": [] for i in range(len(network.decoder))}
    hooks = [
        level.attention.register_forward_hook(
            lambda _module, _inputs, out, name=f"up{i}": kept[name].append(out.numpy().copy())
        )
        for i, level in enumerate(network.decoder)
    ]

    def signal(t: float) -> float:
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    # The cosine schedule (Nichol & Dhariwal 2021, eq. 17) with betas clipped to 0.999.
    alpha_bar = 1.0
    for t in range(timestep + 1):
        alpha_bar *= 1 - min(1 - signal(t + 1) / signal(t), 0.999)
    with prepared.PreparedSet(data) as images, torch.no_grad():
        for row, name in enumerate(images.ids):
            names = [] if shared else [name]
            rng = seeds.generator(noise_seed, "noise", *names, timestep, draw)
            noise = rng.standard_normal(images.image_shape, dtype=np.float32)
            x0 = images.images([row])[0]
            x0 = x0 if official else 2 * x0 - 1
            x_t = np.float32(math.sqrt(alpha_bar)) * x0 + np.float32(math.sqrt(1 - alpha_bar)) * noise
            network(torch.from_numpy(x_t)[None], torch.tensor([timestep]))
    for hook in hooks:
        hook.remove()
    return {layer: np.concatenate(values) for layer, values in kept.items()}
