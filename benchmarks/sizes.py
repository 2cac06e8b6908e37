"""What each setting of the feature store costs: bytes, rates, and Dice of the heads refitted on it.

    python benchmarks/sizes.py config.yaml --heads LR LEDM TEDM --bits 6 5 4
    python benchmarks/sizes.py experiments/xray64.yaml --heads LR LEDM TEDM --bits 6 5

Needs the experiment's prepared data and trained backbone. The UNet runs once, into a float32 store that is
the reference; every other store is written by the same extraction from a backbone that replays it. Rates
count images at one timestep. Changes in Dice, in points, are against the heads fitted on the reference: of
heads fitted again on each store, with the same seeds (mean over heads for each test set, largest for each
head), and of the reference's heads reading the other store (largest of all). The last row is the yardstick:
nothing lossy, but other noise on the images. Prints a Markdown table.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tedm import backbones, config
from tedm.backbones import Backbone
from tedm.config import Experiment, FeaturesConfig
from tedm.features import check
from tedm.features.extract import extract
from tedm.features.reader import FeatureStore
from tedm.fitting import fit_head
from tedm.scoring import score_head

REFERENCE = FeaturesConfig(dtype="float32", codec="none")
SETTINGS = [
    FeaturesConfig(codec="none"),
    *(FeaturesConfig(codec=codec) for codec in ("lz4", "zstd")),
    *(FeaturesConfig(codec=codec, keep_bits=bits) for bits in (7, 6, 5, 4, 3) for codec in ("lz4", "zstd")),
]
BATCH_OF_READING = 64  # images


class Replay:
    """A backbone that answers with what a reference store keeps, in the order of the data set."""

    def __init__(self, of: Backbone, store: Path) -> None:
        self.digest, self.timesteps = of.digest, of.timesteps
        self.image_shape, self.layer_shapes = of.image_shape, of.layer_shapes
        self.store = FeatureStore.open(store)

    def start(self, timestep: int) -> None:
        """Take a timestep into memory, so that its reading is not in the time of writing."""
        kept = self.store.read(range(len(self.store)), timestep)
        self.kept, self.next = {layer: torch.from_numpy(values) for layer, values in kept.items()}, 0

    def features(self, images: Tensor, *_: Any, **__: Any) -> dict[str, Tensor]:
        """The next images; the last batch is padded, as extraction pads it."""
        rows = torch.arange(self.next, self.next + len(images)).clamp(max=len(self.store) - 1)
        self.next += len(images)
        return {layer: values[rows] for layer, values in self.kept.items()}

    def to(self, _device: torch.device | str) -> "Replay":
        return self


class Bench:
    """One experiment, its trained backbone, and a scratch folder."""

    def __init__(self, experiment: Experiment, options: argparse.Namespace, scratch: Path) -> None:
        self.experiment, self.options, self.scratch = experiment, options, scratch
        self.results = Path(experiment.results)
        self.heads = {name: experiment.heads[name] for name in options.heads}
        (self.name,) = {experiment.backbone_of(name) for name in self.heads}
        self.backbone = backbones.study.load(self.results / "backbones" / self.name)
        self.train_on, self.test_on = experiment.evaluation.train_on, experiment.evaluation.test_on
        self.datasets = sorted({self.train_on, *self.test_on})
        self.timesteps = sorted({t for head in self.heads.values() for t in head.timesteps})

    def data(self, dataset: str) -> Path:
        return self.results / "data" / f"{dataset}.h5"

    def extract(self, features: FeaturesConfig, seed: int, source: Path | None, folder: Path) -> float:
        """Make the stores of all data sets in `folder`; the seconds that extraction took."""
        seconds = 0.0
        for dataset in self.datasets:
            replay = Replay(self.backbone, source / f"{dataset}.zarr") if source else None
            for t in self.timesteps:
                if replay:
                    replay.start(t)
                start = time.perf_counter()
                backbone = replay or self.backbone
                store, manifest = folder / f"{dataset}.zarr", folder / f"{dataset}.t{t:04d}.json"
                extract(backbone, self.data(dataset), store, manifest, t, features, seed, devices=["cpu"])
                seconds += time.perf_counter() - start
        return seconds

    def read(self, folder: Path) -> float:
        """Seconds to read all stores of a folder into memory, batch by batch."""
        start = time.perf_counter()
        for store in self.stores(folder):
            for t in store.timesteps:
                for first in range(0, len(store), BATCH_OF_READING):
                    store.read(range(first, min(first + BATCH_OF_READING, len(store))), t)
        return time.perf_counter() - start

    def stores(self, folder: Path) -> Iterator[FeatureStore]:
        for dataset in self.datasets:
            yield FeatureStore.open(folder / f"{dataset}.zarr")

    def refitted(self, folder: Path) -> pd.Series:
        """Mean Dice, in points, by (dataset, method), of heads fitted and scored on a folder's stores."""
        for name, head in self.heads.items():
            spec = {
                "name": name,
                "type": head.type,
                "settings": head.settings,
                "timesteps": sorted(head.timesteps),
                "layers": head.layers,
                "n": self.options.train_size,
                "seed": 0,
                "experiment_seed": self.experiment.seed,
            }
            digest = self.results / "backbones" / self.name / "digest.json"
            store, out = str(folder / f"{self.train_on}.zarr"), self.head(folder, name)
            fit_head(spec, self.data(self.train_on), store, digest, out)
        return self.scored(folder, folder)

    def scored(self, fitted: Path, folder: Path) -> pd.Series:
        """The same, of the heads that were fitted on the stores of `fitted`, on those of `folder`."""
        tables = []
        for name in self.heads:
            out = folder / "scores" / fitted.name / name
            spec = {"method": name, "readings": {}, "datasets": self.test_on, "seed": 0}
            spec["n"] = self.options.train_size
            score_head(spec, self.head(fitted, name), self.results / "data", str(folder), out)
            tables += [pd.read_csv(out / f"{dataset}.csv") for dataset in self.test_on]
        table = pd.concat(tables)
        table = table[table.metric == "dice"]
        return 100 * table.groupby(["dataset", "method"])["value"].mean()

    def head(self, folder: Path, name: str) -> Path:
        return folder / "heads" / name / "head.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--heads", nargs="+", required=True, help="to refit on each store")
    parser.add_argument("--train-size", type=int, default=12, help="images to refit them on")
    parser.add_argument("--bits", nargs="*", type=int, help="only these mantissa bits")
    parser.add_argument("--repeats", type=int, default=3, help="readings behind each median")
    parser.add_argument("--scratch", type=Path, help="where stores are made; absent: the system's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        table(Bench(config.load(options.experiment), options, Path(folder)))


def table(bench: Bench) -> None:
    """Measure setting by setting and print a row for each."""
    scratch, options = bench.scratch, bench.options
    titles = ["store", "bytes per image and timestep", "of upsampled float32", "write, /s", "read, /s"]
    titles += [f"Dice, {dataset}" for dataset in bench.test_on]
    titles += [f"largest, {head}" for head in bench.heads] + ["largest, not refitted"]
    print(f"| {' | '.join(titles)} |\n|---|{'--:|' * (len(titles) - 1)}", flush=True)
    reference = scratch / "reference"
    bench.extract(REFERENCE, 0, None, reference)
    exact = bench.refitted(reference)
    changes: dict[tuple[str, int | None], list[str]] = {
        (REFERENCE.dtype, None): _changes(bench, 0 * exact, 0 * exact)
    }
    kept = [s for s in SETTINGS if not options.bits or s.keep_bits in (None, *options.bits)]
    for features in (REFERENCE, *kept):
        folder = scratch / f"{features.dtype}-{features.codec}-{features.keep_bits}"
        written = bench.extract(features, 0, reference, folder)
        read = statistics.median(bench.read(folder) for _ in range(options.repeats))
        status = [row for store in bench.stores(folder) for row in check.ls(store.path)]
        count = sum(len(store) * len(store.timesteps) for store in bench.stores(folder))
        stored = sum(row.bytes for row in status)
        upsampled = sum(row.bytes / row.ratio for row in status)
        values = (features.dtype, features.keep_bits)
        if values not in changes:  # the codec changes no value
            changes[values] = _changes(
                bench, bench.refitted(folder) - exact, bench.scored(reference, folder) - exact
            )
        cells = [_named(features), f"{stored / count:,.0f}", f"1/{upsampled / stored:.1f}"]
        cells += [f"{count / written:,.0f}", f"{count / read:,.0f}", *changes[values]]
        print(f"| {' | '.join(cells)} |", flush=True)
        shutil.rmtree(folder)
    other = scratch / "other-noise"
    bench.extract(REFERENCE, 1, None, other)
    noise = _changes(bench, bench.refitted(other) - exact, bench.scored(reference, other) - exact)
    print(f"| {' | '.join(['float32, other noise', '', '', '', '', *noise])} |")
    print(f"\nDice of the heads on the reference, points:\n\n{exact.to_markdown()}")
    print(f"\n{', '.join(bench.heads)} fitted on {options.train_size} images; {os.cpu_count()} cores.")


def _changes(bench: Bench, refitted: pd.Series, scored: pd.Series) -> list[str]:
    """Cells: the mean over heads for each test set, the largest over test sets for each head, of both."""
    means = [f"{refitted[dataset].mean():+.3f}" for dataset in bench.test_on]
    largest = [f"{refitted.xs(head, level='method').abs().max():.3f}" for head in bench.heads]
    return [*means, *largest, f"{scored.abs().max():.3f}"]


def _named(features: FeaturesConfig) -> str:
    bits = f", {features.keep_bits} bits" if features.keep_bits else ""
    return f"{features.dtype}, {features.codec}{bits}"


if __name__ == "__main__":
    main()
