"""Images per second of `tedm prepare` against decoding and resizing alone, on the same cores.

python benchmarks/prepare.py --images 2000

Draws PNG of 1024 × 1024 like radiographs, then prepares them at 128 × 128 in turn with a plain loop that
decodes and resizes them and keeps nothing. The memory is the greatest of the preparing process alone.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from tedm import memory
from tedm.config import DatasetConfig, ImageConfig
from tedm.data.prepare import prepare
from tedm.progress import say

SIDE, SIZE = 1024, 128
WHOLE = 112_120  # images of ChestX-ray14


def draw(folder: Path, index: int) -> None:
    """A smooth image with the noise of a detector: as large as a radiograph when compressed."""
    rng = np.random.default_rng(index)
    coarse = rng.standard_normal((32, 32))
    smooth = ndimage.zoom(coarse, SIDE / 32, order=1)
    grey = 128 + 40 * smooth / np.abs(smooth).max() + rng.normal(0, 1.2, (SIDE, SIDE))
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(folder / f"{index:06d}.png")


def decode(path: Path) -> int:
    """What no preparation can do without."""
    with Image.open(path) as image:
        small = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return int(np.asarray(small)[0, 0])


def alone(folder: Path, workers: int) -> float:
    """Seconds to decode and resize all images with so many processes."""
    paths = sorted(folder.iterdir())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        list(pool.map(decode, paths[:workers]))  # the processes are there
        began = time.perf_counter()
        sum(pool.map(decode, paths, chunksize=16))
        return time.perf_counter() - began


def prepared(folder: Path, out: Path, workers: int, limit: int | None = None) -> tuple[float, int]:
    """Seconds of a whole preparation in a process of its own, and its greatest memory in bytes."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_prepare, args=(folder, out, workers, limit, send))
    process.start()
    seconds, peak = receive.recv()
    process.join()
    return seconds, peak


def _prepare(folder: Path, out: Path, workers: int, limit: int | None, send: object) -> None:
    dataset = DatasetConfig.model_validate(
        {
            "label": "drawn",
            "source": {"type": "folder", "images": str(folder), "limit": limit},
            "split": {"unlabelled": 1.0},
        }
    )
    memory.keep_freed()  # as the command does
    began = time.perf_counter()
    prepare(
        dataset, "drawn", ImageConfig(size=SIZE), 0, Path(), out, out.with_suffix(".json"), threads=workers
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    send.send((time.perf_counter() - began, peak))  # type: ignore[attr-defined]


def main() -> None:
    """Measure and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--images-at", type=Path, help="keep and reuse the drawn images here")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.images_at or Path(scratch, "images")
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(chosen.images):
            if not (folder / f"{index:06d}.png").exists():
                draw(folder, index)
        say(f"{chosen.images} images drawn")
        pairs, memories = [], []
        for repeat in range(chosen.repeats):
            plain = alone(folder, chosen.workers)
            whole, peak = prepared(folder, Path(scratch, f"{repeat}.h5"), chosen.workers, chosen.images)
            say(f"alone {chosen.images / plain:.1f} images/s, prepared {chosen.images / whole:.1f}")
            pairs.append((plain, whole))
            memories.append(peak)
        _, few = prepared(folder, Path(scratch, "few.h5"), chosen.workers, max(chosen.images // 8, 1))
        rate = chosen.images / statistics.median(whole for _, whole in pairs)
        result = {
            "processor": platform.processor() or platform.machine(),
            "workers": chosen.workers,
            "images": chosen.images,
            "bytes_per_png": round(statistics.mean(path.stat().st_size for path in folder.iterdir())),
            "images_per_second": round(rate, 1),
            "of_decoding_and_resizing_alone": round(statistics.median(p / w for p, w in pairs), 3),
            "peak_memory_mb": round(max(memories) / 1e6),
            "peak_memory_mb_of_an_eighth": round(few / 1e6),
            f"extrapolated_hours_of_{WHOLE}": round(WHOLE / rate / 3600, 2),
        }
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
