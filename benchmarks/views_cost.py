"""What views cost at the study's size: extraction, fitting, memory and bytes, with views and without.

    python benchmarks/views_cost.py --repeats 3

Draws a dozen random images of 128 × 128 and an untrained UNet of width 64 (times do not depend on the
weights), extracts them at one timestep as they are and in eight views, and fits a ridge head (one timestep)
and TEDM (20 steps) without and with views. Pairs are measured in turn, each in a new process, which
tells its peak memory; medians and ratios are printed. Store sizes are counted.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # as the workflow's jobs; before torch is imported

import numpy as np
import torch

from tedm import checkpoint
from tedm.backbones import DiffusionBackbone
from tedm.config import AugmentationConfig, FeaturesConfig
from tedm.data import prepared
from tedm.diffusion.schedule import Schedule
from tedm.features.extract import extract
from tedm.features.job import Views
from tedm.features.reader import FeatureStore
from tedm.features.store import Recipe
from tedm.features.viewed import ViewedFeatures
from tedm.heads import base
from tedm.unet import UNet

IMAGES, VIEWS, T = 12, 8, 50
RECIPE = Recipe(AugmentationConfig(), IMAGES)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "ridge": ("ridge", {"C": 0.01}),
    "TEDM": ("mlp", {"combine": "share", "steps": 20, "validate_every": 20}),
}


def make(folder: Path, size: int) -> Path:
    """A prepared set of random images whose masks are their bright halves."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((IMAGES, 1, 16, 16), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    pixels = (255 * smooth.numpy()).astype(np.uint8)
    ids = [f"image{i:02d}" for i in range(IMAGES)]
    prepared.write(
        folder / "data.h5",
        "Random",
        list(pixels),
        [(p > 127).astype(np.uint8) for p in pixels],
        ids,
        ids,
        ["train"] * IMAGES,
        ["bright"],
        intensity_range=(0, 255),
        synthetic=True,
        source="drawn by a benchmark",
        licence="none",
        cite="",
    )
    return folder / "data.h5"


def alone(work: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    """Seconds and peak MB of some work in a new process."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe()
    process = context.Process(target=_measured, args=(writer, work, arguments))
    process.start()
    writer.close()
    measured: tuple[float, float] = reader.recv()
    process.join()
    return measured


def _measured(writer: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    start = time.perf_counter()
    work(*arguments)
    seconds = time.perf_counter() - start
    writer.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def extracting(data: Path, store: Path, width: int, size: int, views: Views | None) -> None:
    torch.manual_seed(0)
    network = checkpoint.channels_last(UNet(width).eval())
    model = DiffusionBackbone(network, Schedule(1000, "cosine"), (1, size, size), (-1.0, 1.0), "0" * 64)
    extract(model, data, store, None, T, FeaturesConfig(), 0, views=views)


def fitting(data: Path, store: Path, name: str, count: int) -> None:
    kind, settings = HEADS[name]
    with prepared.PreparedSet(data) as images, TemporaryDirectory() as work:
        viewed = ViewedFeatures(FeatureStore.open(store), count)
        rows = viewed.rows_of(range(IMAGES))
        head = base.create(kind, settings, [T])
        no_masks = images.masks([])
        head.fit(viewed, viewed.masks(images, rows), rows, [], no_masks, workdir=Path(work))


def bytes_of(store: Path, views: bool) -> int:
    return sum(
        path.stat().st_size for path in store.rglob("c.*") if ("view" in path.parent.parent.name) == views
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="pairs")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    views = Views.first(RECIPE, VIEWS)
    found: dict[str, list[tuple[float, float]]] = {}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = make(folder, options.size)
        for turn in range(options.repeats):
            store = folder / f"{turn}.zarr"
            for name, wanted in (("extraction, as they are", None), ("extraction, views", views)):
                measured = alone(extracting, data, store, options.width, options.size, wanted)
                found.setdefault(name, []).append(measured)
            for head in HEADS:
                for name, count in ((f"{head}, as they are", 0), (f"{head}, views", VIEWS)):
                    found.setdefault(name, []).append(alone(fitting, data, store, head, count))
        plain, viewed = bytes_of(store, views=False), bytes_of(store, views=True)
    print(f"one thread of {os.cpu_count()} cores, medians of {options.repeats} pairs")
    print("|  | s | s with views | ratio | peak MB | peak MB with views |")
    print("|---|--:|--:|--:|--:|--:|")
    for name in ("extraction", *HEADS):
        a, b = found[f"{name}, as they are"], found[f"{name}, views"]
        ratio = statistics.median(y[0] / x[0] for x, y in zip(a, b, strict=True))
        seconds = [statistics.median(s for s, _ in part) for part in (a, b)]
        memory = [statistics.median(m for _, m in part) for part in (a, b)]
        print(
            f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} | {ratio:.2f} | {memory[0]:.0f} |"
            f" {memory[1]:.0f} |"
        )
    print(f"store, one timestep: {plain / 1e6:.1f} MB as they are, {viewed / 1e6:.1f} MB of views")
    if options.out:
        options.out.write_text(json.dumps({"measured": found, "bytes": [plain, viewed]}, indent=1))


if __name__ == "__main__":
    main()
