"""Heads on cached features against what they replace: scikit-learn, and the authors' training step.

    python benchmarks/heads.py ridge --images 12           # against scikit-learn's LogisticRegression
    python benchmarks/heads.py ridge --images 197 --without-reference --drawn
    python benchmarks/heads.py step                        # one TEDM training step
    python benchmarks/heads.py fit --size 256 --images 50 --drawn  # LEDM, trained and scored
    python benchmarks/heads.py study --images 20 --batch 16 --memory 4000000000  # Table 1 of the paper

Every measurement runs in a process of its own, so that its peak memory is its own. Features are those of a
UNet with random weights, as large and as correlated as real ones, or with `--drawn` random numbers of their
size. They are read from a feature store, which `--keep FOLDER` keeps for the next call. Prints Markdown.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from textbook import textbook
from torch import Tensor, nn

from tedm.backbones import DiffusionBackbone
from tedm.checkpoint import channels_last
from tedm.config import FeaturesConfig, RidgeSettings
from tedm.data import prepared
from tedm.diffusion.schedule import Schedule
from tedm.features.extract import extract
from tedm.features.reader import FeatureStore
from tedm.heads import create
from tedm.heads.design import Design
from tedm.heads.perceptron import Perceptron
from tedm.heads.ridge import solve
from tedm.memory import keep_freed
from tedm.unet import UNet

STEPS = (1, 10, 25, 50, 200, 400, 600, 800)  # Rosnati et al. 2023, 4
Measured = dict[str, float]


# ── what is measured on ──


def draw_images(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth random images in [0, 1], (N, 1, H, W), and what is bright in them, uint8 (N, H, W)."""
    g = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(count, 1, 8, 8, generator=g), (size, size), mode="bicubic")
    noisy = smooth + 0.3 * torch.randn(count, 1, size, size, generator=g)
    return (0.5 + noisy / 6).clamp(0, 1), (smooth[:, 0] > 0.2).to(torch.uint8)


class DrawnBackbone:
    """Features of the shapes of a UNet's, drawn: correlated channels, moved for each image, and the image.

    A part of each channel is its own, of a size that differs from channel to channel, so that they
    correlate as much as a UNet's.
    """

    def __init__(self, width: int, size: int) -> None:
        self.digest = f"drawn, width {width}, {size}×{size}"
        self.timesteps = 1000
        self.image_shape = (1, size, size)
        self.layer_shapes = UNet(width=width).layer_shapes(size, size)
        self.shown = 0
        self.drawn = {}
        g = torch.Generator().manual_seed(0)
        for layer, (channels, height, width) in self.layer_shapes.items():
            smooth = F.interpolate(torch.randn(1, 8, 8, 8, generator=g), (height, width), mode="bicubic")[0]
            mixed = torch.einsum("ck,khw->chw", torch.randn(channels, 8, generator=g), smooth)
            own = 10 ** (-2 * torch.rand(channels, 1, 1, generator=g))
            noise = own * torch.randn(mixed.shape, generator=g)
            self.drawn[layer] = mixed + noise, torch.randn(channels, 1, 1, generator=g)

    def features(
        self,
        images: Tensor,
        timestep: int,
        noise: Tensor,  # noqa: ARG002
        input_range: str = "trained",  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """See tedm.backbones.Backbone."""
        out = {}
        for layer, (drawn, weight) in self.drawn.items():
            seen = F.interpolate(images, drawn.shape[1:], mode="area")
            moved = [drawn.roll((7 * (self.shown + i), timestep), (1, 2)) for i in range(len(images))]
            out[layer] = torch.stack(moved).addcmul_(weight, seen)
        self.shown += len(images)
        return out

    def to(self, _device: torch.device | str) -> "DrawnBackbone":
        """See tedm.backbones.Backbone."""
        return self


def random_backbone(width: int, size: int) -> DiffusionBackbone:
    """A UNet with random weights."""
    torch.manual_seed(0)
    network = channels_last(UNet(width=width).eval())
    schedule = Schedule(1000, "cosine")
    return DiffusionBackbone(
        network, schedule, (1, size, size), (-1.0, 1.0), f"random weights, width {width}"
    )


def write_features(folder: Path, a: argparse.Namespace) -> None:
    """A prepared data set and its features; what is there stays."""
    images, labels = draw_images(a.images, a.size)
    names = [f"image{i:04d}" for i in range(a.images)]
    prepared.write(
        folder / "images.h5",
        "smooth noise",
        list((255 * images).to(torch.uint8).numpy()),
        list(labels[:, None].numpy()),
        names,
        names,
        ["train"] * a.images,
        ["bright"],
        intensity_range=(0, 255),
        synthetic=True,
        source="drawn by the benchmark",
        licence="none",
        cite="",
    )
    backbone = (DrawnBackbone if a.drawn else random_backbone)(a.width, a.size)
    settings = FeaturesConfig(codec=a.codec, batch_size=4, images_per_shard=16)
    for t in a.steps:
        data, manifest = folder / "images.h5", folder / f"t{t:04d}.json"
        extract(backbone, data, folder / "features.zarr", manifest, t, settings, 0)


def read_features(folder: Path, a: argparse.Namespace) -> tuple[FeatureStore, np.ndarray]:
    """The store, and the class of each pixel, uint8 (N, H, W)."""
    with prepared.PreparedSet(folder / "images.h5") as images:
        masks = images.masks(range(a.images))
    return FeatureStore.open(folder / "features.zarr"), masks[:, 0]


def upsampled(features: FeatureStore, row: int, timestep: int) -> Tensor:
    """Every channel at every pixel of an image, (pixels, channels)."""
    layers = features.read([row], timestep).values()
    size = features.image_size
    resized = [
        F.interpolate(torch.from_numpy(z).float(), size, mode="bilinear", align_corners=False)
        for z in layers
    ]
    return torch.cat(resized, 1)[0].flatten(1).T


# ── ridge ──


def ridge_ours(folder: Path, a: argparse.Namespace) -> Measured:
    features, labels = read_features(folder, a)
    started = time.perf_counter()
    layers = tuple(features.layer_shapes)
    design = Design(features, range(a.images), a.steps[0], layers, "bilinear", a.memory)
    solution = solve(design, torch.from_numpy(labels), 1, RidgeSettings(), 0)
    seconds = time.perf_counter() - started
    weights = solution.weights[:, 0].numpy()
    np.savez(
        folder / "tedm.npz", mean=design.mean, scale=design.scale, weight=weights[:-1], bias=weights[-1]
    )
    return {"seconds": seconds, "iterations": solution.iterations, "passes": solution.sweeps}


def ridge_sklearn(folder: Path, a: argparse.Namespace) -> Measured:
    """The upsampled, standardised pixels; scikit-learn is fastest in float32, and exact in float64."""
    from sklearn.linear_model import LogisticRegression

    features, labels = read_features(folder, a)
    started = time.perf_counter()
    channels = sum(s[0] for s in features.layer_shapes.values())
    x = np.empty((a.images, labels[0].size, channels), a.reference_type)
    for i in range(a.images):
        x[i] = upsampled(features, i, a.steps[0]).numpy()
    x = x.reshape(-1, channels)
    mean = x.mean(0, dtype=np.float64)
    scale = np.array([x[:, c].std(dtype=np.float64) for c in range(channels)])
    x -= mean.astype(x.dtype)
    x /= np.where(scale > 0, scale, 1).astype(x.dtype)
    model = LogisticRegression(C=RidgeSettings().C, tol=a.tol, max_iter=10_000).fit(x, labels.ravel())
    seconds = time.perf_counter() - started
    np.savez(
        folder / "scikit-learn.npz", mean=mean, scale=scale, weight=model.coef_[0], bias=model.intercept_[0]
    )
    return {"seconds": seconds, "iterations": int(model.n_iter_[0])}


def compare_ridge(folder: Path, a: argparse.Namespace) -> str:
    """Penalised loss and probabilities of both, on upsampled pixels in float64."""
    features, labels = read_features(folder, a)
    both = [{k: v.astype(float) for k, v in np.load(folder / f"{name}.npz").items()} for name in REFERENCES]
    losses = [float((b["weight"] ** 2).sum()) / (2 * RidgeSettings().C) for b in both]
    largest = 0.0
    for i in range(a.images):
        x, y = upsampled(features, i, a.steps[0]).double().numpy(), labels[i].ravel()
        u = [(x - b["mean"]) / b["scale"] @ b["weight"] + b["bias"] for b in both]
        losses = [
            loss + float((np.logaddexp(0, v) - y * v).sum()) for loss, v in zip(losses, u, strict=True)
        ]
        p = [1 / (1 + np.exp(-v)) for v in u]
        largest = max(largest, float(np.abs(p[0] - p[1]).max()))
    ours, theirs = losses
    return (
        f"penalised loss {ours:.8g}, scikit-learn {theirs:.8g}, relative difference"
        f" {(ours - theirs) / theirs:+.1e}; probabilities differ by at most {largest:.1e}"
    )


# ── MLP ──


def step_ours(folder: Path, a: argparse.Namespace, combine: str = "share", last: int = 1000) -> Measured:
    """Training steps of the head as it is shipped, reads included; the first two warm up.

    Args:
        folder: with the features.
        a: arguments of the command line.
        combine: share for TEDM, concat for LEDM.
        last: largest timestep that is read.
    """
    keep_freed()
    features, labels = read_features(folder, a)
    times: list[tuple[float, float]] = []
    settings = {"combine": combine, "steps": a.repeats + 2, "batch_size": a.batch, "validate_every": 10**6}
    head = create("mlp", settings, [t for t in a.steps if t <= last], None, 0)
    head.memory = a.memory
    original = Perceptron.loss

    def noted(self: Perceptron, chunks: Any, memory: int) -> Tensor:
        times.append((time.perf_counter(), time.process_time()))
        return original(self, chunks, memory)

    Perceptron.loss = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as work:
        head.fit(features, labels[:, None], range(a.images), [], labels[:0, None], workdir=Path(work))
    seconds, cpu = np.median(np.diff(times, axis=0)[1:], axis=0)
    return {"seconds": float(seconds), "CPU seconds": float(cpu)}


def step_authors(_folder: Path, a: argparse.Namespace) -> Measured:
    """One step: the UNet for each timestep, features resized and concatenated, 1×1 convolutions."""
    size = a.size
    images, labels = draw_images(a.batch, size)
    unet = textbook(UNet(width=a.width).eval())
    channels = sum(s.channels for s in unet.layer_shapes(size, size).values())
    seen: list[Tensor] = []
    for i in range(len(unet.layers)):
        attention = unet.get_submodule(f"decoder.{i}.attention")
        attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    head = nn.Sequential(
        nn.Conv2d(channels, 128, 1), nn.ReLU(), nn.BatchNorm2d(128),
        nn.Conv2d(128, 32, 1), nn.ReLU(), nn.BatchNorm2d(32), nn.Conv2d(32, 1, 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(head.parameters(), 1e-4)
    with torch.no_grad():
        unet(images[:1], torch.zeros(1))  # warms up
    started, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        parts = []
        for t in a.steps:
            seen.clear()
            unet(images + torch.randn_like(images), torch.full((a.batch,), t))
            parts.append(torch.cat([F.interpolate(v, (size, size), mode="bilinear") for v in seen], 1))
        x = torch.cat(parts)
        del parts
    forward = time.perf_counter() - started
    y = labels.repeat(len(a.steps), 1, 1)
    optimizer.zero_grad()
    nn.functional.binary_cross_entropy_with_logits(head(x)[:, 0], y.float()).backward()
    optimizer.step()
    return {
        "seconds": time.perf_counter() - started,
        "CPU seconds": time.process_time() - cpu,
        "UNet and resizing, seconds": forward,
    }


def fit_ours(folder: Path, a: argparse.Namespace) -> Measured:
    """LEDM: three timesteps concatenated, trained for some steps, then all images predicted."""
    keep_freed()
    features, labels = read_features(folder, a)
    settings = {"combine": "concat", "steps": a.repeats, "batch_size": a.batch, "validate_every": 10**6}
    head = create("mlp", settings, a.steps, None, 0)
    head.memory = a.memory
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        head.fit(features, labels[:, None], range(a.images), [], labels[:0, None], workdir=Path(work))
    fitted = time.perf_counter()
    for i in range(a.images):
        head.predict_proba(features, [i])
    return {"seconds": fitted - started, "prediction, seconds": time.perf_counter() - fitted}


# ── how it is measured ──

MEASURED: dict[str, dict[str, Callable[[Path, argparse.Namespace], Measured]]] = {
    "ridge": {"tedm": ridge_ours, "scikit-learn": ridge_sklearn},
    "step": {"tedm": step_ours, "as the authors": step_authors},
    "fit": {"tedm": fit_ours},
    "study": {
        "LEDM": partial(step_ours, combine="concat", last=25),  # three timesteps, as many as LEDM's
        "LEDMe": partial(step_ours, combine="concat"),
        "TEDM": step_ours,
    },
}
REFERENCES = tuple(MEASURED["ridge"])
TIMESTEPS = {"ridge": STEPS[3:4], "step": STEPS, "fit": (50, 150, 250), "study": STEPS}  # fit: LEDM's
STUDY_SIZES, STUDY_STEPS = 5, 20_000  # training sizes of the paper's Table 1; steps of a head


def peak_mb() -> float:
    """Of this program alone; getrusage would start from the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(what: str, who: str, folder: Path, arguments: list[str]) -> Measured:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, what, *arguments, "--measure", who, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: Measured = json.loads(done.stdout.splitlines()[-1])
    return result


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=MEASURED)
    p.add_argument("--images", type=int, default=12)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--width", type=int, default=64, help="of the UNet; 64 gives 960 channels")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--repeats", type=int, default=5, help="training steps")
    p.add_argument("--pairs", type=int, default=3, help="of measurements; medians are printed")
    p.add_argument("--steps", type=lambda s: tuple(map(int, s.split(","))), default=None, help="timesteps")
    p.add_argument("--memory", type=int, default=2**30, help="bytes that a head may cache")
    p.add_argument("--codec", default="none", help="of the store")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tol", type=float, default=1e-4, help="of scikit-learn; its default")
    p.add_argument("--reference-type", choices=("float32", "float64"), default="float32")
    p.add_argument("--drawn", action="store_true", help="draw the features: much sooner there")
    p.add_argument("--without-reference", action="store_true")
    p.add_argument("--keep", type=Path, help="folder for the features; what is there is used again")
    p.add_argument("--only-features", action="store_true", help="make them, measure nothing")
    p.add_argument("--measure", help=argparse.SUPPRESS)
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return p


def main() -> None:
    a = parser().parse_args()
    a.steps = a.steps or TIMESTEPS[a.what]
    torch.set_num_threads(a.threads)
    if a.measure:
        before = peak_mb()
        result = MEASURED[a.what][a.measure](a.folder, a)
        print(json.dumps(result | {"imports, MB": before, "peak, MB": peak_mb()}))
        return
    names = list(MEASURED[a.what])[: 1 if a.without_reference else None]
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_features(folder, a)
        if a.only_features:
            return
        pairs = [
            {name: measure(a.what, name, folder, sys.argv[2:]) for name in names} for _ in range(a.pairs)
        ]
        report(pairs, folder, a)


def report(pairs: list[dict[str, Measured]], folder: Path, a: argparse.Namespace) -> None:
    steps = f"{len(a.steps)} timestep" + "s" * (len(a.steps) > 1)
    print(f"\n{a.what}: {a.images} images, {a.size}×{a.size}, width {a.width}, {steps}, batch {a.batch},")
    print(f"codec {a.codec}; {a.threads} threads, {processor()}, medians of {a.pairs} pairs\n")
    names = list(pairs[0])
    columns = list(dict.fromkeys(key for name in names for key in pairs[0][name]))
    print(f"| | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for name in names:
        medians = {c: statistics.median(p[name][c] for p in pairs) for c in pairs[0][name]}
        cells = (f"{medians[c]:.4g}" if c in medians else "" for c in columns)
        print(f"| {name} | {' | '.join(cells)} |")
    if a.what == "study":
        print(f"\n{estimate({n: statistics.median(p[n]['CPU seconds'] for p in pairs) for n in names}, a)}")
    elif len(names) > 1:
        ours, theirs = names

        def ratio(function: Callable[[Measured], float]) -> float:
            return statistics.median(function(p[theirs]) / function(p[ours]) for p in pairs)

        print(f"\nfaster {ratio(lambda m: m['seconds']):.1f}×", end="")
        if "CPU seconds" in pairs[0][ours]:
            print(f", in CPU time {ratio(lambda m: m['CPU seconds']):.1f}×", end="")
        print(end="; ")
        print(f"peak memory 1/{ratio(lambda m: m['peak, MB']):.1f},", end=" ")
        print(f"without what the imports take 1/{ratio(lambda m: m['peak, MB'] - m['imports, MB']):.1f}")
        if a.what == "ridge":
            print(compare_ridge(folder, a))


def estimate(seconds: dict[str, float], a: argparse.Namespace) -> str:
    """CPU time of all heads of the paper's Table 1, from that of one step of each."""
    hours = STUDY_SIZES * STUDY_STEPS * sum(seconds.values()) / 3600
    native = sum(
        s.channels * s.height * s.width for s in UNet(width=a.width).layer_shapes(a.size, a.size).values()
    )
    pixels, hidden, steps = a.size**2, 128 * 32 + 32, len(a.steps)
    first = (
        4 * 128 * native * (3 + 2 * steps)
    )  # forward and gradient; each multiplication with its addition
    deeper = 6 * hidden * pixels * (2 + steps)
    total = STUDY_SIZES * STUDY_STEPS * a.batch * (first + deeper)
    return (
        f"{STUDY_SIZES} training sizes × {len(seconds)} heads × {STUDY_STEPS:,} steps: {hours:.0f}"
        f" core-hours here, computed from these steps. Their matrix products alone, without resizing, are"
        f" {total / 1e15:.1f} PFLOP. Nothing was measured on a GPU."
    )


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
