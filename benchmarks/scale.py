"""What jobs would take that fit on no machine at hand: computed from measured units, not measured.

python benchmarks/scale.py                        the tables of docs/scale.md
python benchmarks/scale.py --tflops 25            for a device of yours (the page says how to find its rate)
python benchmarks/scale.py --into docs/scale.md   puts them into the page, with the jobs of snakemake -n
"""

import argparse
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tedm import config
from tedm.contrastive.heads import GlobalNetwork, LocalNetwork
from tedm.unet import UNet

PROJECT = Path(__file__).parents[1]

# ── measured units (docs/benchmarks.md says how; 2 cores of AMD EPYC) ────────────────────────────
STEP = 4.48 / 4  # seconds per image of a training step at 128 × 128, 2 threads
EXTRACTED = 2.80  # images a second at one timestep, extracted and written, likewise
PREPARED = 214.0  # images a second, decoded from PNG of 1024 × 1024, 2 cores
HEAD_STEP = {"LEDM": 1.07, "LEDMe": 2.67, "TEDM": 3.69}  # core-seconds, 16 images of 128 × 128
HEAD_BATCH = 4  # images of a step in the paper experiments, which leave it at its default
SMALL = 2_263_362 / 3_932_433  # of the bytes, with codec lz4 and keep_bits 6
SUBMITTED = 10.0  # seconds of a SLURM job on top of its own work

# ── assumptions ─────────────────────────────────────────────────────────────────────────────────
TFLOPS = (10.0, 40.0, 120.0)  # sustained by a device in this network
WRITTEN = 1.0  # GB/s that a shared disk takes
STEPS = 8  # timesteps of the study

SHARD_DIGEST = 44  # bytes of a shard's digest in the record of its timestep, as indented JSON
IMAGE_NAMED = 70  # bytes of an image's id, subject and split in the store's root; as long as names are
HEAD_STEPS = 20_000  # of the study's heads


@cache
def gmac(size: int, channels: int, what: str) -> float:
    """GMAC of the study's UNet for one image.

    `step`: of training; `decode`: its features; `global`, `local`: of a contrastive stage, one view of two.
    """
    with torch.device("meta"):
        network = UNet(channels=channels, out_channels=channels)
        x, t = torch.empty(1, channels, size, size), torch.zeros(1, dtype=torch.long)
        stage: nn.Module | None = None
        if what == "global":
            stage = GlobalNetwork(network, size, size, hidden=1024, features=128)
        elif what == "local":
            stage = LocalNetwork(network, levels=2, features=128)
    with FlopCounterMode(display=False) as counter:
        if stage is not None:
            stage(x).sum().backward()
        elif what == "step":
            network(x, t).sum().backward()
        else:
            with torch.no_grad():
                network.decode(x, t)
    return float(counter.get_total_flops()) / 2e9


@dataclass(frozen=True)
class Store:
    """The files of a store, as `tedm.features.store` lays them out, without a codec."""

    images: int
    timesteps: int
    layers: Mapping[str, tuple[int, int, int]]  # (C, h, w)
    images_per_shard: int = 64
    itemsize: int = 2

    @property
    def shards(self) -> int:
        """Shards of an array."""
        return -(-self.images // min(self.images_per_shard, self.images))

    @property
    def shard_files(self) -> int:
        """Files of features."""
        return self.shards * len(self.layers) * self.timesteps

    @property
    def files(self) -> int:
        """All files: also a zarr.json of each array, each timestep and the root."""
        return self.shard_files + (len(self.layers) + 1) * self.timesteps + 1

    @property
    def shard_bytes(self) -> int:
        """Bytes of the features: each image with its checksum, each shard with its index."""
        image = sum(math.prod(shape) * self.itemsize + 4 for shape in self.layers.values())
        index = 16 * min(self.images_per_shard, self.images) + 4
        return self.timesteps * (self.images * image + self.shards * len(self.layers) * index)

    @property
    def record_bytes(self) -> int:
        """Bytes of a timestep's record of finished shards, without what does not grow."""
        return self.shards * len(self.layers) * SHARD_DIGEST

    @property
    def root_bytes(self) -> int:
        """Bytes of the root's metadata, nearly."""
        return self.images * IMAGE_NAMED

    @property
    def records_written(self) -> int:
        """Bytes written to all records, each of which is written anew after each of its shards."""
        return self.timesteps * self.shards * self.record_bytes


def layers(size: int) -> dict[str, tuple[int, int, int]]:
    """Those of the study's UNet."""
    with torch.device("meta"):
        shapes = UNet().layer_shapes(size, size)
    return {name: (s.channels, s.height, s.width) for name, s in shapes.items()}


@cache
def experiment(name: str) -> config.Experiment:
    """One of the experiments that are shipped."""
    return config.load(PROJECT / "experiments" / f"{name}.yaml")


@dataclass(frozen=True)
class Study:
    """One experiment of the study: what is trained, and what is extracted."""

    name: str
    size: int
    channels: int
    images: int  # whose features are kept

    @property
    def experiment(self) -> config.Experiment:
        """Its settings."""
        return experiment(self.name)

    @property
    def fits(self) -> int:
        """How often a method is trained."""
        return len(self.experiment.evaluation.train_sizes) * len(self.experiment.evaluation.seeds)

    @property
    def store(self) -> Store:
        """Features of all its data sets, as if they were one."""
        timesteps = {t for head in self.experiment.heads.values() for t in head.timesteps}
        return Store(self.images, len(timesteps), layers(self.size))

    @property
    def training(self) -> float:
        """PFLOP of the diffusion model."""
        models = [b for b in self.experiment.backbones.values() if isinstance(b, config.DDPMConfig)]
        images = sum(model.training.steps * model.training.batch_size for model in models)
        return 2e-6 * gmac(self.size, self.channels, "step") * images

    @property
    def pretraining(self) -> dict[str, float]:
        """PFLOP of each contrastive stage."""
        return {
            stage.type: 2e-6
            * gmac(self.size, self.channels, stage.type)
            * (stage.training.steps * stage.training.batch_size * 2)
            for stage in self.experiment.pretraining.values()
        }

    @property
    def baselines(self) -> float:
        """PFLOP of the networks without features, at all training sizes and learning rates."""
        images = sum(
            network.training.steps * network.training.batch_size * len(network.learning_rates or [0])
            for network in self.experiment.baselines.values()
        )
        return 2e-6 * gmac(self.size, self.channels, "step") * images * self.fits

    @property
    def extraction(self) -> float:
        """PFLOP of the features."""
        store = self.store
        return 2e-6 * gmac(self.size, self.channels, "decode") * store.images * store.timesteps

    @property
    def heads(self) -> float:
        """Core-hours of the trained heads; the measured step, scaled by the images and their pixels."""
        images = HEAD_STEPS * HEAD_BATCH * self.fits * (self.size / 128) ** 2
        return sum(HEAD_STEP.values()) / 16 * images / 3600


# JSRT, NIH and Montgomery; 338 patients of 155 slices; 612 volumes of about 100 slices.
STUDIES = (
    Study("paper_cxr", 128, 1, 247 + 100 + 138),
    Study("paper_brats", 176, 4, 338 * 155),
    Study("paper_ukbb_few", 128, 1, 612 * 100),
)

LARGE = {
    "112,120 radiographs": Store(112_120, STEPS, layers(128)),
    "3.4 million slices": Store(3_400_000, STEPS, layers(128)),
}


def hours(pflop: float, tflops: float) -> float:
    """Hours of a device that sustains so many TFLOP/s."""
    return pflop * 1e3 / tflops / 3600


def units_table() -> str:
    """Counted and measured units."""
    step, decode = gmac(128, 1, "step"), gmac(128, 1, "decode")
    kept = Store(64, 1, layers(128))
    rows = [
        ("training step, one image of 128 × 128", f"{step:.0f} GMAC", "counted"),
        *(
            (
                f"the same of the {kind} contrastive stage, two views",
                f"{2 * cost:.0f} GMAC",
                "counted",
            )
            for kind in ("global", "local")
            for cost in [gmac(128, 1, kind)]
        ),
        ("features of one image at one timestep", f"{decode:.1f} GMAC", "counted"),
        (
            "training step of one image, 2 threads",
            f"{STEP:.2f} s = {2 * step / STEP:,.0f} GFLOP/s",
            "measured",
        ),
        ("extraction of one image, 2 threads", f"{1 / EXTRACTED:.2f} s", "measured"),
        ("the same on the disk, float16", f"{kept.shard_bytes / 64:,.0f} bytes", "counted"),
        ("with `codec: lz4` and `keep_bits: 6`", f"{SMALL:.2f} of it", "measured"),
        *(
            (f"a step of {name}, batch 16", f"{s:.2f} core-seconds", "measured")
            for name, s in HEAD_STEP.items()
        ),
        ("preparing, 2 cores", f"{PREPARED:.0f} images/s", "measured"),
        ("a SLURM job, on top of its own work", f"{SUBMITTED:.0f} s", "measured"),
    ]
    return table(("unit", "", ""), rows)


def study_table(tflops: Sequence[float]) -> str:
    """The study at its own scale."""
    rows = []
    for study in STUDIES:
        store = study.store
        for what, pflop in (
            ("train the diffusion model", study.training),
            *((f"pretrain, {kind} contrastive stage", pflop) for kind, pflop in study.pretraining.items()),
            (f"baselines, {len(study.experiment.baselines)} × {study.fits} fits", study.baselines),
            (f"features, {store.images:,} images × {store.timesteps} timesteps", study.extraction),
        ):
            shown = [number(hours(pflop, rate)) for rate in tflops]
            rows.append((f"`{study.name}`: {what}", number(pflop), *shown))
        rows.append((f"`{study.name}`: heads", f"{study.heads:,.0f} core-hours", *("" for _ in tflops)))
    return table(("", "PFLOP", *(f"GPU hours at {rate:g} TFLOP/s" for rate in tflops)), rows)


def disk_table() -> str:
    """Bytes and files of every store."""
    rows = []
    stores = {f"`{study.name}`": study.store for study in STUDIES} | LARGE
    for name, store in stores.items():
        rows.append(
            (
                f"{name}, {store.timesteps} timesteps",
                size(store.shard_bytes),
                size(store.shard_bytes * SMALL),
                f"{store.files:,}",
                size(store.root_bytes),
                size(store.records_written),
            )
        )
    big = LARGE["3.4 million slices"]
    few = Store(big.images, big.timesteps, big.layers, 512)
    name = "the same with `images_per_shard: 512`"
    rows.append((name, "", "", f"{few.files:,}", "", size(few.records_written)))
    return table(("store", "bytes", "lz4, 6 bits", "files", "root", "written to records"), rows)


def large_table(tflops: Sequence[float]) -> str:
    """The two large extractions: computing against writing."""
    rows = []
    decode = gmac(128, 1, "decode")
    for name, store in LARGE.items():
        pflop = 2e-6 * decode * store.images * store.timesteps
        writing = store.shard_bytes / (WRITTEN * 1e9) / 3600
        cpu = store.images * store.timesteps / EXTRACTED / 3600
        rows.append(
            (
                f"{name} × {store.timesteps} timesteps",
                number(pflop),
                *(number(hours(pflop, r)) for r in tflops),
            )
        )
        rows.append(("&nbsp;&nbsp;writing, at 1 GB/s", "", *(f"{number(writing)} h" for _ in tflops)))
        rows.append(("&nbsp;&nbsp;with 2 CPU cores", "", *(f"{number(cpu)} h" for _ in tflops)))
    even = (
        2
        * decode
        * 1e9
        * WRITTEN
        * 1e9
        / (LARGE["112,120 radiographs"].shard_bytes / 112_120 / STEPS)
        / 1e12
    )
    lines = table(("", "PFLOP", *(f"GPU hours at {rate:g} TFLOP/s" for rate in tflops)), rows)
    return f"{lines}\n\nComputing and writing 1 GB/s take equally long at {even:.0f} TFLOP/s."


def jobs_table() -> str:
    """Jobs that Snakemake plans for all that an experiment reports."""
    counts = {study.name: planned_jobs(study.name) for study in STUDIES}
    rules = sorted({rule for jobs in counts.values() for rule in jobs} - {"total", "all"})
    few = {name: jobs["total"] - sum(jobs.get(rule, 0) for rule in rules) for name, jobs in counts.items()}
    assert all(left in (0, 1) for left in few.values()), counts
    rows = [(f"`{rule}`", *(str(jobs.get(rule, 0)) for jobs in counts.values())) for rule in rules]
    rows.append(
        ("**all**", *(f"**{sum(jobs.get(rule, 0) for rule in rules)}**" for jobs in counts.values()))
    )
    return table(("rule", *(f"`{name}`" for name in counts)), rows)


def planned_jobs(name: str) -> dict[str, int]:
    """Jobs by rule, as `snakemake -n` counts them; no data are needed for that."""
    experiment = str(PROJECT / "experiments" / f"{name}.yaml")
    run = subprocess.run(
        [Path(sys.executable).with_name("snakemake"), "--dry-run", "--configfile", experiment],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        rule: int(count)
        for rule, count in re.findall(r"^(\w+) +(\d+)$", run.stdout + run.stderr, flags=re.M)
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown; numbers to the right."""
    align = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *rows))


def number(value: float) -> str:
    """Two digits, three from a hundred on: nothing here is known better."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{float(f'{value:.2g}'):g}"


def size(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} TB"


def into(page: str, blocks: Mapping[str, str]) -> str:
    """The page with its marked blocks replaced."""
    for name, block in blocks.items():
        start, end = f"<!-- scale: {name} -->\n", "\n<!-- end -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.S)
        if not pattern.search(page):
            raise SystemExit(f"the page has no block {name}")
        page = pattern.sub(lambda _, text=start + block + end: text, page)  # type: ignore[misc]
    return page


def computed(tflops: Sequence[float] = TFLOPS) -> dict[str, str]:
    """The blocks of the page that take no time."""
    return {
        "units": units_table(),
        "study": study_table(tflops),
        "large": large_table(tflops),
        "disk": disk_table(),
    }


def main() -> None:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tflops", type=float, nargs="+", default=TFLOPS, help="sustained by the device")
    parser.add_argument("--into", type=Path, help="page whose tables are replaced")
    chosen = parser.parse_args()
    blocks = computed(chosen.tflops)
    if chosen.into is None:
        print("\n\n".join(blocks.values()))
        return
    blocks["jobs"] = jobs_table()
    chosen.into.write_text(into(chosen.into.read_text(encoding="utf-8"), blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
