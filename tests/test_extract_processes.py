"""Extraction dealt out to processes, as torchrun starts them: the files of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tedm.config import AugmentationConfig, DDPMConfig, FeaturesConfig, OptimizerConfig
from tedm.data import prepared
from tedm.diffusion.train import train_backbone
from tedm.features.store import Recipe

BIN = Path(sys.executable).parent
UNTRAINED = DDPMConfig(
    type="ddpm", data="tiny", width=8, multipliers=[1, 2], samples=0, validation=0.4,
    training=OptimizerConfig(steps=0, batch_size=4),
)  # fmt: skip


@pytest.mark.parametrize("views", [0, 2])
def test_two_processes_extract_the_files_of_one_and_one_manifest_for_each_timestep(
    tmp_path: Path, views: int
) -> None:
    data = tmp_path / "tiny.h5"
    images = np.random.default_rng(0).integers(0, 256, (11, 1, 16, 16), np.uint8)
    ids = [f"i{i}" for i in range(11)]
    prepared.write(
        data, "Tiny", images, None, ids, ids, ["train"] * 11, ["lungs"], intensity_range=(0, 255),
        synthetic=True, source="drawn", licence="", cite="",
    )  # fmt: skip
    train_backbone(data, UNTRAINED, 0, tmp_path / "ddpm")
    spec = {
        "features": FeaturesConfig(images_per_shard=2, batch_size=4).model_dump(exclude={"location"}),
        "seed": 0,
        "recipe": Recipe(AugmentationConfig(), 7).stated,
    }

    def extract(name: str, *launch: str) -> dict[str, bytes]:
        store = tmp_path / name / "tiny.zarr"
        command = [
            *(*launch, str(BIN / "tedm"), "extract", "--spec", json.dumps(spec)),
            *("--backbone", str(tmp_path / "ddpm"), "--data", str(data)),
            *("--store", str(store), "--manifest", str(tmp_path / name / "tiny.t{timestep}.json")),
            *("--timesteps", "50 7 50", "--views", str(views)),
        ]
        # A GPU that the scheduler gave and that is none, as on a cluster's test node.
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0,1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr.count("a GPU was asked for and given, but torch") == 1
        manifests = [tmp_path / name / f"tiny.t{timestep:04d}.json" for timestep in (7, 50)]
        files = [*store.rglob("c.*"), *store.rglob("zarr.json"), *manifests]
        return {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files}

    one = extract("one")
    assert len(one) > 24
    torchrun = (str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python")
    assert extract("two", *torchrun) == one
