"""Segmenting one image with all methods at five training sizes: together, and each model on its own.

    python benchmarks/segment.py --width 16 --size 40     # the demo
    python benchmarks/segment.py --width 64 --size 128    # the study

Networks and heads have the architectures of config.yaml and random weights: time does not depend on them.
The contrastive baselines have the network of the supervised one. Prints a Markdown table of medians. The
floor is what no way of doing it can save: the diffusion UNet at the study's eight timesteps.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tedm import checkpoint, config, memory, supervised
from tedm.backbones import DiffusionBackbone
from tedm.diffusion.schedule import Schedule
from tedm.heads import base
from tedm.heads.mlp import MLPHead
from tedm.heads.ridge import RidgeHead
from tedm.models import Model, Models, passes
from tedm.models.folder import FORMAT, VERSION, Description, Features, Preprocessing, default_name
from tedm.unet import UNet

METHODS = ("Supervised", "Global CL", "Global & Local CL", "LR", "LEDM", "LEDMe", "TEDM")
SIZES = (1, 3, 6, 12, 48)
SETTINGS = Features(
    noise_seed=0, shared_noise=False, input_range="trained", dtype="float16", keep_bits=None
)


def network(width: int, *, time_conditioned: bool) -> UNet:
    return checkpoint.channels_last(UNet(width=width, time_conditioned=time_conditioned)).eval()


def make_models(width: int, size: int, experiment: config.Experiment) -> Models:
    shape = (1, size, size)
    backbone = DiffusionBackbone(
        network(width, time_conditioned=True), Schedule(1000, "cosine"), shape, (-1.0, 1.0), "random"
    )
    made = []
    for method in METHODS:
        for n in SIZES:
            said: dict[str, Any] = {"format": FORMAT, "format_version": VERSION, "method": method, "n": n}
            said |= {"name": default_name(method, n, 0), "seed": 0, "classes": ["lungs"], "synthetic": True}
            said["preprocessing"] = Preprocessing(
                size=size, channels=1, fit="stretch", intensity_range=(0, 255), deep=False
            )
            if method in experiment.heads:
                head = make_head(experiment.heads[method], backbone, size)
                said |= {"kind": "head", "timesteps": list(head.timesteps), "backbone": "random"}
                said["features"] = SETTINGS
                made.append(Model(Description(**said), backbone, head, None, "cpu"))
            else:
                trained = supervised.Baseline(network(width, time_conditioned=False), shape, "random")
                said |= {"kind": "network", "timesteps": []}
                made.append(Model(Description(**said), None, None, trained, "cpu"))
    return Models(made)


def make_head(settings: config.HeadConfig, backbone: DiffusionBackbone, size: int) -> base.Head:
    shapes = {layer: tuple(shape) for layer, shape in backbone.layer_shapes.items()}
    head = base.create(settings.type, settings.settings, sorted(settings.timesteps), list(shapes))
    head.class_count, head.image_size, head.present = 1, (size, size), (True, True)
    head.layer_shapes = {layer: (c, h, w) for layer, (c, h, w) in shapes.items()}
    if isinstance(head, MLPHead):
        head.networks = [head._network().draw(0, "benchmark")]
    else:
        assert isinstance(head, RidgeHead)
        channels = sum(shape[0] for shape in shapes.values())
        rng = np.random.default_rng(0)
        for t in head.timesteps:
            weight = rng.normal(size=(channels, 1)).astype(np.float32) / channels
            zero, one = np.zeros(channels, np.float32), np.ones(channels, np.float32)
            head.classifiers[t] = {
                "weight": weight,
                "bias": np.zeros(1, np.float32),
                "mean": zero,
                "scale": one,
            }
    return head


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(models: Models, image: NDArray[np.uint8], pairs: int) -> dict[str, float]:
    backbone = next(model.backbone for model in models.values() if model.backbone is not None)
    squares = np.zeros((1, *backbone.image_shape), np.float32)
    layers = list(backbone.layer_shapes)
    all_steps = sorted({t for model in models.values() for t in model.timesteps})
    parts: dict[str, Callable[[], object]] = {
        "floor": lambda: passes.compute(
            backbone, SETTINGS, squares, ["new"], config.STUDY_TIMESTEPS, layers, "cpu"
        ),
        "together": lambda: models.segment(image),
        "passes": lambda: passes.compute(backbone, SETTINGS, squares, ["new"], all_steps, layers, "cpu"),
        "baselines": lambda: models.segment(image, names=[m for m in models if not models[m].timesteps]),
        "alone": lambda: [model.segment(image) for model in models.values()],
    }
    parts["together"]()  # warms up
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for i in range(pairs):
        for name, run in parts.items():
            if name != "alone" or i == 0:  # long, and its sum averages by itself
                taken[name].append(seconds(run))
    return {name: statistics.median(values) for name, values in taken.items()} | {"steps": len(all_steps)}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--size", type=int, default=40)
    options.add_argument("--image", type=int, default=512, help="pixels along each side of the image")
    options.add_argument("--pairs", type=int, default=3)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    memory.keep_freed()
    torch.set_num_threads(given.threads)
    experiment = config.load(Path(__file__).parents[1] / "config.yaml")
    torch.manual_seed(0)
    models = make_models(given.width, given.size, experiment)
    image = np.random.default_rng(0).integers(0, 256, (given.image, given.image), dtype=np.uint8)
    found = measure(models, image, given.pairs)
    heads = found["together"] - found["passes"] - found["baselines"]
    about = f"width {given.width}, {given.size} × {given.size}, {given.threads} threads"
    print(f"| {about}, {len(models)} models on one image of {given.image} × {given.image} | seconds |")
    print("|---|--:|")
    print(f"| floor: the UNet at eight timesteps | {found['floor']:.2f} |")
    print(f"| all together | {found['together']:.2f} ({found['together'] / found['floor']:.1f} × floor) |")
    print(f"| … the UNet at the {found['steps']} timesteps of all methods | {found['passes']:.2f} |")
    print(f"| … {3 * len(SIZES)} networks that see the image | {found['baselines']:.2f} |")
    print(f"| … {4 * len(SIZES)} heads, votes, maps at the image's size | {heads:.2f} |")
    ratio = found["alone"] / found["together"]
    print(f"| each model on its own, one after the other | {found['alone']:.2f} ({ratio:.1f} × together) |")


if __name__ == "__main__":
    main()
