"""A backbone small enough to run often, a data set for it, and features by a plain hooked forward."""

import hashlib
import math
from collections.abc import Mapping
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


def data_set(
    path: Path,
    images: int = 10,
    seed: int = 0,
    order: list[int] | None = None,
    *,
    splits: list[str] | None = None,
    subjects: list[str] | None = None,
    masks: np.ndarray | None = None,
    pixels: np.ndarray | None = None,
) -> Path:
    rng = np.random.default_rng(seed)
    if pixels is None:
        pixels = rng.integers(0, 256, (images, 1, SIZE, SIZE), dtype=np.uint8)
    names = [f"image{i:03d}" for i in range(images)]
    subjects, splits = subjects or names, splits or ["test"] * images
    rows = order or list(range(images))
    prepared.write(
        path,
        "Tiny",
        [pixels[i] for i in rows],
        None if masks is None else [masks[i] for i in rows],
        [names[i] for i in rows],
        [subjects[i] for i in rows],
        [splits[i] for i in rows],
        ["lungs"] if masks is None else [f"class{k}" for k in range(masks.shape[1])],
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
    view: int = 0,
    shared: bool = False,
    official: bool = False,
    pixels: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Features of all images, one at a time, by hooks in the network's own forward pass.

    With `pixels`, (C, H, W) in [0, 1] by id, those of these images alone, in that order.
    """
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
        seen = pixels or {name: images.images([row])[0] for row, name in enumerate(images.ids)}
        for name, x0 in seen.items():
            names = [] if shared else [name]
            rng = seeds.generator(noise_seed, "noise", *names, timestep, view)
            noise = rng.standard_normal(images.image_shape, dtype=np.float32)
            x0 = x0 if official else 2 * x0 - 1
            x_t = np.float32(math.sqrt(alpha_bar)) * x0 + np.float32(math.sqrt(1 - alpha_bar)) * noise
            network(torch.from_numpy(x_t)[None], torch.tensor([timestep]))
    for hook in hooks:
        hook.remove()
    return {layer: np.concatenate(values) for layer, values in kept.items()}
