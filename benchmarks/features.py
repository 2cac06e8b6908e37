"""The feature store's rates and sizes, as ratios taken in one run: medians of paired measurements.

python benchmarks/features.py --width 64 --size 128 --images 64 --pairs 5
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from textbook import textbook

from tedm import backbones
from tedm.checkpoint import channels_last
from tedm.config import FeaturesConfig
from tedm.data import prepared
from tedm.diffusion.schedule import Schedule
from tedm.features import check
from tedm.features.extract import extract
from tedm.features.reader import FeatureStore
from tedm.unet import UNet

TIMESTEP = 50
SETTINGS: list[dict[str, Any]] = [
    {"codec": "none"},
    {"codec": "lz4"},
    {"codec": "zstd"},
    {"codec": "lz4", "keep_bits": 6},
    {"codec": "zstd", "keep_bits": 5},
    {"codec": "none", "dtype": "float32"},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="directory of a trained one; absent: random weights")
    parser.add_argument("--width", type=int, default=16, help="of the random UNet")
    parser.add_argument("--size", type=int, default=64, help="of the images, pixels")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--data", type=Path, help="prepared data set; absent: smoothed noise")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5, help="measurements behind each median")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or smooth_images(Path(folder) / "images.h5", options.images, options.size)
        backbone = (
            backbones.study.load(options.backbone)
            if options.backbone
            else random_backbone(options.width, options.size)
        ).to(options.device)
        print(f"{describe(backbone)}; {options.device}, {options.threads} threads, {options.pairs} pairs\n")
        compute_table(backbone, data, Path(folder), options)
        store_table(backbone, data, Path(folder), options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory of the whole run: {peak:,.0f} MiB.")


def random_backbone(width: int, size: int) -> backbones.DiffusionBackbone:
    torch.manual_seed(0)
    network = channels_last(UNet(width=width).eval())
    return backbones.DiffusionBackbone(
        network, Schedule(1000, "cosine"), (1, size, size), (-1.0, 1.0), f"random weights, width {width}"
    )


def smooth_images(path: Path, count: int, size: int) -> Path:
    """Images with the smoothness of radiographs."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    names = [f"image{i:05d}" for i in range(count)]

    def image() -> npt.NDArray[np.uint8]:
        smooth = gaussian_filter(rng.standard_normal((size, size)), size / 16)
        lo, hi = smooth.min(), smooth.max()
        pixels: npt.NDArray[np.uint8] = (255 * (smooth - lo) / (hi - lo)).astype(np.uint8)[None]
        return pixels

    prepared.write(
        path,
        "smooth noise",
        (image() for _ in names),
        None,
        names,
        names,
        ["unlabelled"] * count,
        ["none"],
        intensity_range=(0, 255),
        synthetic=True,
        source="drawn by the benchmark",
        licence="none",
        cite="",
    )
    return path


def describe(backbone: backbones.DiffusionBackbone) -> str:
    parameters = sum(p.numel() for p in backbone.network.parameters()) / 1e6
    return f"{parameters:.1f} M parameters, images {backbone.image_shape}"


def compute_table(
    backbone: backbones.DiffusionBackbone, data: Path, folder: Path, options: argparse.Namespace
) -> None:
    """Rate of extraction over that of the network alone, in turns."""
    with prepared.PreparedSet(data) as images:
        x = torch.from_numpy(images.images(range(len(images)))).to(options.device)
    batches = [b.contiguous(memory_format=torch.channels_last) for b in x.split(options.batch_size)]
    plain_network = textbook(backbone.network).eval().to(options.device)

    def bare() -> None:
        with torch.no_grad():
            for b in batches:
                backbone.network.decode(b, torch.full((len(b),), TIMESTEP, device=b.device))
        synchronise(options.device)

    def eager() -> None:
        """What a script does: the whole textbook network, default memory layout, gradients off."""
        with torch.no_grad():
            for b in x.split(options.batch_size):
                plain_network(b, torch.full((len(b),), TIMESTEP, device=b.device))
        synchronise(options.device)

    runs = iter(range(1_000_000))

    def whole(**settings: Any) -> Callable[[], None]:
        def run() -> None:
            number = next(runs)
            store, manifest = folder / f"{number}.zarr", folder / f"{number}.json"
            features = FeaturesConfig(batch_size=options.batch_size, **settings)
            extract(backbone, data, store, manifest, TIMESTEP, features, 0, devices=[options.device])

        return run

    print("| extraction | images/s | over the decoder alone | over a plain eager forward |")
    print("|---|---|---|---|")
    bare()
    for settings in SETTINGS[:3]:
        times = [(seconds(bare), seconds(eager), seconds(whole(**settings))) for _ in range(options.pairs)]
        rate = statistics.median(len(x) / t for _, _, t in times)
        over_bare = statistics.median(b / t for b, _, t in times)
        over_eager = statistics.median(e / t for _, e, t in times)
        print(f"| {named(settings)} | {rate:.3g} | {over_bare:.2f} | {over_eager:.2f} |", flush=True)


def store_table(
    backbone: backbones.DiffusionBackbone, data: Path, folder: Path, options: argparse.Namespace
) -> None:
    """Reading over a memory copy, writing, and sizes."""
    print("\n| store | bytes per image | of upsampled float32 | read MB/s | over a copy | over zarrs |")
    print("|---|---|---|---|---|---|")
    for i, settings in enumerate(SETTINGS):
        store = folder / f"store{i}.zarr"
        features = FeaturesConfig(batch_size=options.batch_size, **settings)
        extract(backbone, data, store, folder / "m.json", TIMESTEP, features, 0, devices=[options.device])
        reader = FeatureStore.open(store)
        rows = range(len(reader))
        kept = reader.read(rows, TIMESTEP)
        size = sum(array.nbytes for array in kept.values())

        def copy(kept: dict[str, np.ndarray] = kept) -> None:
            for array in kept.values():
                torch.from_numpy(array).clone()

        def read(reader: FeatureStore = reader, rows: range = rows) -> None:
            for array in reader.read(rows, TIMESTEP).values():
                torch.from_numpy(array)

        theirs = through_zarrs(store, list(kept))
        times = [(seconds(copy), seconds(read), seconds(theirs)) for _ in range(options.pairs)]
        rate = statistics.median(size / r for _, r, _ in times) / 1e6
        over_copy = statistics.median(c / r for c, r, _ in times)
        over_zarrs = statistics.median(z / r for _, r, z in times)
        status = check.ls(store)
        stored = sum(row.bytes for row in status)
        upsampled = sum(row.bytes / row.ratio for row in status)
        print(
            f"| {named(settings)} | {stored / len(reader):,.0f} | 1/{upsampled / stored:.1f} | {rate:,.0f}"
            f" | {over_copy:.2f} | {over_zarrs:.2f} |",
            flush=True,
        )


def through_zarrs(store: Path, layers: list[str]) -> Callable[[], None]:
    """The same read through the zarrs codec pipeline, for comparison."""
    import zarr

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        arrays: list[Any] = [
            zarr.open_array(store, path=f"t{TIMESTEP:04d}/{layer}", mode="r") for layer in layers
        ]

    def read() -> None:
        for array in arrays:
            torch.from_numpy(array[:])

    return read


def named(settings: dict[str, Any]) -> str:
    bits = f", {settings['keep_bits']} bits" if "keep_bits" in settings else ""
    return f"{settings.get('dtype', 'float16')}, {settings['codec']}{bits}"


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
