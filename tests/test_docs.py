"""The code in the documentation runs, and its YAML is valid."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml

from tedm import config
from tedm.backbones import DiffusionBackbone
from tedm.config import AugmentationConfig, FeaturesConfig
from tedm.data import prepared
from tedm.diffusion.schedule import Schedule
from tedm.features.extract import extract
from tedm.features.job import Views
from tedm.features.reader import FeatureStore
from tedm.features.store import Recipe
from tedm.heads import base
from tedm.unet import UNet

PROJECT = Path(__file__).parents[1]
DEMO = yaml.safe_load((PROJECT / "config.yaml").read_text())


def blocks(path: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (PROJECT / path).read_text(), flags=re.M | re.S)


@pytest.fixture(autouse=True)
def my_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module of the docs, where Python finds it."""
    (tmp_path / "my_heads.py").write_text(blocks("docs/heads.md", "python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_heads", None)


def test_the_head_of_the_docs_learns_votes_and_survives_a_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    masks = np.zeros((5, 1, 16, 16), np.uint8)
    masks[:, :, 4:12, 2:9] = 1
    signal = {"up0": masks[:, :, ::4, ::4], "up1": masks}
    arrays = {
        (t, layer): draw.normal(size=(5, 6, *m.shape[2:])).astype(np.float16) + 4 * m
        for t in (1, 10, 25)
        for layer, m in signal.items()
    }
    features = base.ArrayFeatures(arrays, (16, 16))
    entry = yaml.safe_load(blocks("docs/heads.md", "yaml")[0])["heads"]["Nearest"]
    head = base.create(entry["type"], {}, entry["timesteps"], seed=0)
    head.fit(features, masks[:3], [0, 1, 2], [3], masks[3:4], workdir=tmp_path / "state")
    head.save(tmp_path / "head.safetensors", classes=["lungs"])
    loaded = base.load(tmp_path / "head.safetensors", allow_imports=True)
    probabilities = loaded.predict_proba(features, [4])
    np.testing.assert_array_equal(probabilities, head.predict_proba(features, [4]))
    assert ((probabilities > 0.5) == masks[4:]).mean() > 0.95


@pytest.mark.parametrize(
    ("path", "index"),
    [
        ("README.md", 0),
        ("docs/heads.md", 0),
        ("docs/heads.md", 1),
        ("docs/baselines.md", 0),
        ("docs/data.md", 0),
        ("docs/data.md", 1),
        ("docs/features.md", 0),
        ("docs/report.md", 0),
        ("docs/timesteps.md", 0),
        ("docs/training.md", 0),
    ],
    ids=lambda x: str(x),
)
def test_yaml_of_the_docs_fits_into_the_demo(path: str, index: int) -> None:
    snippet: dict[str, Any] = yaml.safe_load(blocks(path, "yaml")[index])
    experiment = DEMO | {
        k: v if not isinstance(v, dict) else DEMO.get(k, {}) | v for k, v in snippet.items()
    }
    config.parse(experiment, path)


PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def tiny_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and its data set where the docs have them, as small as they can be."""
    folder = tmp_path_factory.mktemp("docs")
    data = folder / "results" / "data" / "jsrt.h5"
    names = [f"jsrt-{i}" for i in range(6)]
    masks = np.zeros((6, 1, 16, 16), np.uint8)
    masks[..., :8] = 1
    about = {"intensity_range": (0, 255), "synthetic": True, "source": "test", "licence": "", "cite": ""}
    prepared.write(data, "Tiny", 200 * masks, masks, names, names, ["train"] * 6, ["lungs"], **about)
    torch.manual_seed(0)
    network = UNet(width=8, multipliers=(1, 1, 1, 1)).eval()
    backbone = DiffusionBackbone(network, Schedule(1000, "cosine"), (1, 16, 16), (-1.0, 1.0), "digest")
    store = folder / "results" / "features" / "ddpm" / "jsrt.zarr"
    for t in (1, 50, 200, 800):
        extract(backbone, data, store, store.with_name(f"jsrt.t{t:04d}.json"), t, FeaturesConfig(), 0)
    views = Views.first(Recipe(AugmentationConfig(), 6), 1)
    extract(backbone, data, store, None, 50, FeaturesConfig(), 0, views=views)
    return folder


FEATURES_BLOCKS = blocks("docs/features.md", "python")


@pytest.mark.parametrize("code", FEATURES_BLOCKS, ids=range(len(FEATURES_BLOCKS)))
def test_the_code_about_features_runs(
    tiny_results: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    if "import xarray" in code:
        pytest.importorskip("xarray")
    monkeypatch.chdir(tiny_results)
    names: dict[str, Any] = {}
    try:
        exec(code, names)
    finally:
        plt.close("all")
    if "step" in names:  # the same numbers as ours
        ours = FeatureStore.open("results/features/ddpm/jsrt.zarr").read([3], 50)
        for layer, values in ours.items():
            np.testing.assert_array_equal(names["step"][layer][3].values, values[0])
