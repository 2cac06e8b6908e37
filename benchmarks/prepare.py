"""Images per second of `tedm prepare` against decoding and resizing alone, and of reading what it wrote.

python benchmarks/prepare.py --images 2000

Draws PNG of 1024 × 1024 like radiographs, then prepares them at 128 × 128 in turn with a plain loop that
decodes and resizes them and keeps nothing. The memory is the greatest of the preparing process alone. Then
a network trains for a few steps, in turn on images that are read batch by batch and on images in memory.
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
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from tedm import memory
from tedm.config import DatasetConfig, ImageConfig
from tedm.data.prepare import prepare
from tedm.data.prepared import PreparedSet
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


class Taken(NamedTuple):
    """What a pass over the images took."""

    seconds: float
    cpu_seconds: float  # of all cores; hardly changes when others use them, too
    peak: int = 0  # bytes


def alone(folder: Path, workers: int, limit: int) -> Taken:
    """Decode and resize so many images with so many processes."""
    paths = sorted(folder.iterdir())[:limit]
    before = _cpu(resource.RUSAGE_CHILDREN)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        list(pool.map(decode, paths[:workers]))  # the processes are there
        began = time.perf_counter()
        sum(pool.map(decode, paths, chunksize=16))
        seconds = time.perf_counter() - began
    return Taken(seconds, _cpu(resource.RUSAGE_CHILDREN) - before)


def prepared(folder: Path, out: Path, workers: int, limit: int) -> Taken:
    """A whole preparation in a process of its own, and its greatest memory."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_prepare, args=(folder, out, workers, limit, send))
    process.start()
    taken = Taken(*receive.recv())
    process.join()
    return taken


def _cpu(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def _prepare(folder: Path, out: Path, workers: int, limit: int, send: object) -> None:
    dataset = DatasetConfig.model_validate(
        {
            "label": "drawn",
            "source": {"type": "folder", "images": str(folder), "limit": limit},
            "split": {"unlabelled": 1.0},
        }
    )
    memory.keep_freed()  # as the command does
    began, before = time.perf_counter(), _cpu(resource.RUSAGE_SELF)
    prepare(
        dataset, "drawn", ImageConfig(size=SIZE), 0, Path(), out, out.with_suffix(".json"), threads=workers
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    used = _cpu(resource.RUSAGE_SELF) - before
    send.send((time.perf_counter() - began, used, peak))  # type: ignore[attr-defined]


def streamed(file: Path, batch: int, steps: int) -> dict[str, float]:
    """Images per second from the file, with checksums compared, and training steps that read them."""
    # Not before: what prepares images has no need of torch, and its memory is measured.
    import torch

    from tedm import unet
    from tedm.checkpoint import channels_last
    from tedm.unlabelled import TrainingImages

    rng, device, seconds = np.random.default_rng(0), torch.device("cpu"), dict[str, list[float]]()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with PreparedSet(file) as data:
        rows = data.rows("unlabelled")
        order = [rng.integers(0, len(rows), batch) for _ in range(500)]
        began = time.perf_counter()
        for places in order:
            data.images([rows[place] for place in places])
        read = batch * len(order) / (time.perf_counter() - began)
        network = channels_last(unet.UNet(width=16))
        sources = {
            "held": TrainingImages(data, rows, device),
            "streamed": TrainingImages(data, rows, device, limit=0),
        }
        for step in range(2 * steps + 2):
            name = ("held", "streamed")[step % 2]
            sources["streamed"].prefetch(order[step])
            began = time.perf_counter()
            images = sources[name].batch(order[step])
            network(images, torch.zeros(batch, dtype=torch.int64)).abs().mean().backward()
            if step > 1:
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    pairs = [a / b for a, b in zip(seconds["held"], seconds["streamed"], strict=True)]
    return {
        "images_per_second_read_at_random": round(read),
        "images_per_second_trained_streamed": round(batch / statistics.median(seconds["streamed"]), 2),
        "images_per_second_trained_held": round(batch / statistics.median(seconds["held"]), 2),
        "streamed_of_held": round(statistics.median(pairs), 3),
    }


def main() -> None:
    """Measure and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="of training, each way; 0: none")
    parser.add_argument("--images-at", type=Path, help="keep and reuse the drawn images here")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.images_at or Path(scratch, "images")
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(chosen.images):
            if not (folder / f"{index:06d}.png").exists():
                draw(folder, index)
        say(f"{chosen.images} images drawn")
        pairs = []
        for repeat in range(chosen.repeats):
            plain = alone(folder, chosen.workers, chosen.images)
            whole = prepared(folder, Path(scratch, f"{repeat}.h5"), chosen.workers, chosen.images)
            rates = [f"{chosen.images / taken.seconds:.1f}" for taken in (plain, whole)]
            say(f"alone {rates[0]} images/s, prepared {rates[1]}")
            pairs.append((plain, whole))
        few = prepared(folder, Path(scratch, "few.h5"), chosen.workers, max(chosen.images // 8, 1))
        rate = chosen.images / statistics.median(whole.seconds for _, whole in pairs)
        result = {
            "processor": platform.processor() or platform.machine(),
            "workers": chosen.workers,
            "images": chosen.images,
            "bytes_per_png": round(statistics.mean(path.stat().st_size for path in folder.iterdir())),
            "images_per_second": round(rate, 1),
            "of_decoding_and_resizing_alone": [round(p.seconds / w.seconds, 3) for p, w in pairs],
            "the_same_in_cpu_seconds": [round(p.cpu_seconds / w.cpu_seconds, 3) for p, w in pairs],
            "peak_memory_mb": round(max(whole.peak for _, whole in pairs) / 1e6),
            "peak_memory_mb_of_an_eighth": round(few.peak / 1e6),
            f"extrapolated_hours_of_{WHOLE}": round(WHOLE / rate / 3600, 2),
        }
        if chosen.steps:
            result |= streamed(Path(scratch, "0.h5"), chosen.batch, chosen.steps)
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
