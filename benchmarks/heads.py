"""Heads on cached features against what they replace: scikit-learn, and the authors' training step.

    python benchmarks/heads.py ridge --images 12        # against scikit-learn's LogisticRegression
    python benchmarks/heads.py ridge --images 197 --without-reference
    python benchmarks/heads.py step                     # one TEDM training step
    python benchmarks/heads.py fit --size 256 --images 50  # LEDM

Every measurement runs in a process of its own, so that its peak memory is its own. Features are those of a
UNet with random weights on smooth random images, as large and as correlated as real ones, and are read
from files. Prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tedm.config import RidgeSettings
from tedm.heads import ArrayFeatures, create
from tedm.heads.design import Design
from tedm.heads.ridge import solve
from tedm.unet import UNet

STEPS = (1, 10, 25, 50, 200, 400, 600, 800)  # Rosnati et al. 2023, 4


def draw_images(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth random images (N, 1, H, W) and what is bright in them, uint8 (N, H, W)."""
    g = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(count, 1, 8, 8, generator=g), (size, size), mode="bicubic")
    return smooth + 0.3 * torch.randn(count, 1, size, size, generator=g), (smooth[:, 0] > 0.2).to(
        torch.uint8
    )


@torch.no_grad()
def write_features(folder: Path, count: int, size: int, width: int, steps: tuple[int, ...]) -> None:
    """Features of every image and step as float16 .npy files, read back memory-mapped."""
    images, labels = draw_images(count, size)
    torch.manual_seed(0)
    network = UNet(width=width).eval()
    shapes = network.layer_shapes(size, size)
    for t in steps:
        files = {
            k: np.lib.format.open_memmap(folder / f"{t}.{k}.npy", "w+", np.float16, (count, *shape))
            for k, shape in shapes.items()
        }
        for i in range(count):
            noisy = images[i : i + 1] + t / 800 * torch.randn(1, 1, size, size)
            for k, z in network.decode(noisy, torch.tensor([t])).items():
                files[k][i] = z[0].numpy()
    np.save(folder / "labels.npy", labels.numpy())


def read_features(folder: Path, count: int) -> tuple[ArrayFeatures, np.ndarray]:
    labels = np.load(folder / "labels.npy")[:count]
    arrays = {}
    for path in folder.glob("*.up*.npy"):
        t, layer = path.name.split(".")[:2]
        arrays[int(t), layer] = np.load(path, mmap_mode="r")[:count]
    return ArrayFeatures(dict(sorted(arrays.items())), labels.shape[1:]), labels


def upsampled(features: ArrayFeatures, rows: list[int], timestep: int) -> Tensor:
    layers = features.read(rows, timestep).values()
    size = features.image_size
    return torch.cat(
        [
            F.interpolate(torch.from_numpy(z).float(), size, mode="bilinear", align_corners=False)
            for z in layers
        ],
        1,
    )


# ── what is measured ──


def ridge_ours(folder: Path, a: argparse.Namespace) -> dict[str, float]:
    features, labels = read_features(folder, a.images)
    started = time.perf_counter()
    layers = tuple(features.layer_shapes)
    design = Design(features, range(a.images), a.steps[0], layers, "bilinear", a.memory)
    solution = solve(design, torch.from_numpy(labels), 1, RidgeSettings(), 0)
    return {"seconds": time.perf_counter() - started, "loss": solution.loss, "sweeps": solution.sweeps}


def ridge_sklearn(folder: Path, a: argparse.Namespace) -> dict[str, float]:
    """The upsampled, standardised pixels in float32, the type that makes scikit-learn fastest."""
    from sklearn.linear_model import LogisticRegression

    features, labels = read_features(folder, a.images)
    started = time.perf_counter()
    channels = sum(s[0] for s in features.layer_shapes.values())
    x = np.empty((a.images, labels[0].size, channels), np.float32)
    for i in range(a.images):
        x[i] = upsampled(features, [i], a.steps[0])[0].flatten(1).T.numpy()
    x = x.reshape(-1, channels)
    mean = x.mean(0, dtype=np.float64)
    scale = np.array([x[:, c].std(dtype=np.float64) for c in range(channels)])
    x -= mean.astype(np.float32)
    x /= np.where(scale > 0, scale, 1).astype(np.float32)
    y = labels.ravel()
    model = LogisticRegression(C=RidgeSettings().C, tol=a.tol, max_iter=10_000).fit(x, y)
    seconds = time.perf_counter() - started
    u = x @ model.coef_[0] + model.intercept_[0]
    loss = float((np.logaddexp(0, u) - y * u).sum(dtype=np.float64))
    loss += float((model.coef_**2).sum()) / (2 * RidgeSettings().C)
    return {"seconds": seconds, "loss": loss, "iterations": int(model.n_iter_[0])}


def step_ours(folder: Path, a: argparse.Namespace) -> dict[str, float]:
    """Training steps of the head as it is shipped, reads included; the first one warms up."""
    from tedm.memory import keep_freed

    keep_freed()
    features, labels = read_features(folder, a.images)
    times: list[float] = []
    settings = {"combine": "share", "steps": a.repeats + 1, "batch_size": a.batch, "validate_every": 10**6}
    head = create("mlp", settings, a.steps, None, 0)
    head.memory = a.memory
    from tedm.heads.perceptron import Perceptron

    original = Perceptron.loss

    def noted(self: Perceptron, chunks: Any, memory: int) -> Tensor:
        times.append(time.perf_counter())
        return original(self, chunks, memory)

    Perceptron.loss = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as work:
        head.fit(features, labels[:, None], range(a.images), [], labels[:0, None], workdir=Path(work))
    return {"seconds": float(np.median(np.diff(times)))}


def step_authors(_folder: Path, a: argparse.Namespace) -> dict[str, float]:
    """Every step: the UNet for each timestep, features resized and concatenated, 1×1 convolutions."""
    size = a.size
    images, labels = draw_images(a.batch, size)
    unet = UNet(width=a.width).eval()
    channels = sum(s.channels for s in unet.layer_shapes(size, size).values())
    head = nn.Sequential(
        nn.Conv2d(channels, 128, 1), nn.ReLU(), nn.BatchNorm2d(128),
        nn.Conv2d(128, 32, 1), nn.ReLU(), nn.BatchNorm2d(32), nn.Conv2d(32, 1, 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(head.parameters(), 1e-4)
    seconds = []
    for _ in range(max(1, a.repeats // 5)):
        started = time.perf_counter()
        with torch.no_grad():
            parts = []
            for t in a.steps:
                z = unet.decode(images + torch.randn_like(images), torch.full((a.batch,), t)).values()
                parts.append(torch.cat([F.interpolate(v, (size, size), mode="bilinear") for v in z], 1))
            x = torch.cat(parts)
            del parts
        y = labels.repeat(len(a.steps), 1, 1)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(head(x)[:, 0], y.float()).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return {"seconds": float(np.median(seconds))}


def fit_ours(folder: Path, a: argparse.Namespace) -> dict[str, float]:
    """LEDM: three timesteps concatenated, trained for some steps, then all images predicted."""
    from tedm.memory import keep_freed

    keep_freed()
    features, labels = read_features(folder, a.images)
    settings = {"combine": "concat", "steps": a.repeats, "batch_size": a.batch, "validate_every": 10**6}
    head = create("mlp", settings, a.steps[:3], None, 0)
    head.memory = a.memory
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        head.fit(features, labels[:, None], range(a.images), [], labels[:0, None], workdir=Path(work))
    fitted = time.perf_counter()
    for i in range(a.images):
        head.predict_proba(features, [i])
    return {"seconds": fitted - started, "predict": time.perf_counter() - fitted}


MEASURED: dict[str, dict[str, Callable[[Path, argparse.Namespace], dict[str, float]]]] = {
    "ridge": {"tedm": ridge_ours, "scikit-learn": ridge_sklearn},
    "step": {"tedm": step_ours, "as the authors": step_authors},
    "fit": {"tedm": fit_ours},
}


def peak_mb() -> float:
    """Of this program alone; getrusage would start from the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(what: str, who: str, folder: Path, arguments: list[str]) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, what, *arguments, "--measure", who, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=MEASURED)
    p.add_argument("--images", type=int, default=12)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--width", type=int, default=64, help="of the UNet; 64 gives 960 channels")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--repeats", type=int, default=5, help="training steps")
    p.add_argument("--steps", type=lambda s: tuple(map(int, s.split(","))), default=None, help="timesteps")
    p.add_argument("--memory", type=int, default=2**30, help="bytes that a head may cache")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tol", type=float, default=1e-4, help="of scikit-learn; its default")
    p.add_argument("--without-reference", action="store_true")
    p.add_argument("--measure", help=argparse.SUPPRESS)
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return p


def main() -> None:
    a = parser().parse_args()
    a.steps = a.steps or ((STEPS[3],) if a.what == "ridge" else STEPS)
    torch.set_num_threads(a.threads)
    if a.measure:
        before = peak_mb()
        result = MEASURED[a.what][a.measure](a.folder, a)
        print(json.dumps(result | {"imports_mb": before, "peak_mb": peak_mb()}))
        return
    names = list(MEASURED[a.what])[: 1 if a.without_reference else None]
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder), a.images, a.size, a.width, a.steps)
        results = {name: measure(a.what, name, Path(folder), sys.argv[2:]) for name in names}
    print(f"\n{a.what}: {a.images} images, {a.size}×{a.size}, width {a.width}, {len(a.steps)} timesteps\n")
    columns = list(dict.fromkeys(key for result in results.values() for key in result))
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, result in results.items():
        cells = (f"{result[c]:.6g}" if c in result else "" for c in columns)
        print(f"| {name} | {' | '.join(cells)} |")
    if len(results) > 1:
        ours, theirs = results.values()
        added = [r["peak_mb"] - r["imports_mb"] for r in (ours, theirs)]
        print(f"\nfaster {theirs['seconds'] / ours['seconds']:.1f}×")
        print(f"peak memory {ours['peak_mb'] / theirs['peak_mb']:.2f} of theirs;", end=" ")
        print(f"without what the imports take, {added[0] / max(added[1], 1):.2f}")
        if "loss" in ours:
            difference = (ours["loss"] - theirs["loss"]) / theirs["loss"]
            print(f"penalised loss, relative difference {difference:+.1e}")


if __name__ == "__main__":
    main()
