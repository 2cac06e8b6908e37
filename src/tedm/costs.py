"""What predicting one image takes: multiplications by a flop counter, and seconds by the clock."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tedm import backbones, supervised
from tedm.backbones import Backbone
from tedm.files import whole
from tedm.heads import base
from tedm.progress import say

Quantity = Literal["gmac", "seconds"]
REPEATS = 7  # of a timing; the median counts, after one pass that warms up


class Part(NamedTuple):
    """One thing that a prediction computes."""

    kind: str  # baseline, backbone, head
    name: str
    run: Callable[[], object]  # computes it once, for one image
    per: int  # timesteps that `run` covers and that can be read alone


def macs(run: Callable[[], object]) -> float:
    """Multiply-accumulates of a computation in PyTorch: of convolutions, matrix products and attention.

    Half of what `torch.utils.flop_counter` counts. Norms, activations, softmax, additions and whatever is
    computed outside PyTorch are not counted.
    """
    # Attention as two matrix products: the fused one of the CPU is unknown to the counter.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return float(counter.get_total_flops()) / 2


def seconds(run: Callable[[], object]) -> float:
    """Median time of a computation."""
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def measure(spec: Mapping[str, Any], results: Path, quantity: Quantity, out: Path, device: str) -> None:
    """Write what every part of the experiment's predictions takes for one image.

    Columns: kind (baseline, backbone, head), name, per_timestep (whether the number is for one timestep)
    and gmac or seconds; with seconds the machine, its threads and device.

    Args:
        spec: baselines (names), heads (name → backbone), n and seed of the fitted ones that are taken.
        results: directory of the experiment's results.
        quantity: that is counted or measured.
        out: CSV to write.
        device: of the networks; heads compute on the CPU, as in the workflow.
    """
    rows = []
    for part in _parts(spec, results, device):
        value = macs(part.run) / 1e9 if quantity == "gmac" else seconds(part.run)
        row = {
            "kind": part.kind,
            "name": part.name,
            "per_timestep": part.kind != "baseline" and part.per > 0,
        }
        rows.append(row | {quantity: value / max(1, part.per)})
    table = pd.DataFrame(rows)
    if quantity == "seconds":
        where = torch.cuda.get_device_name() if device == "cuda" else _processor()
        table = table.assign(device=where, threads=torch.get_num_threads())
    with whole(out) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
    say(f"{quantity} of {len(rows)} networks and heads: {out}")


def _parts(spec: Mapping[str, Any], results: Path, device: str) -> Iterator[Part]:
    fitted = f"n{spec['n']}/seed{spec['seed']}"
    for name in spec["baselines"]:
        yield baseline_part(name, supervised.load(results / "baselines" / name / fitted, device))
    for name in dict.fromkeys(spec["heads"].values()):
        backbone = backbones.load(results / "backbones" / name, device, allow_imports=True)
        yield backbone_part(name, backbone, device)
    for name in spec["heads"]:
        file = results / "heads" / name / fitted / "head.safetensors"
        yield head_part(name, base.load(file, allow_imports=True))


def baseline_part(name: str, baseline: supervised.Baseline) -> Part:
    """One pass of a supervised network."""
    images = np.zeros((1, *baseline.image_shape), np.float32)
    return Part("baseline", name, lambda: supervised.predict_proba(baseline, images), 0)


def backbone_part(name: str, backbone: Backbone, device: str = "cpu") -> Part:
    """One pass of a backbone: its features of an image at one timestep."""
    images = torch.zeros(1, *backbone.image_shape, device=device)
    return Part("backbone", name, lambda: backbone.features(images, 0, images), 1)


def head_part(name: str, head: base.Head) -> Part:
    """A head's prediction from features in memory, at all of its timesteps."""
    arrays = {
        (timestep, layer): np.zeros((1, *shape), np.float32)
        for timestep in head.timesteps
        for layer, shape in head.layer_shapes.items()
    }
    features = base.ArrayFeatures(arrays, head.image_size)
    return Part(
        "head", name, lambda: head.predict_steps(features, [0]), len(head.timesteps) if head.voting else 0
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
