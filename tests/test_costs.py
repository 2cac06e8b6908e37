"""Table 4: multiplications counted by hand, and the table from files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from tedm import checkpoint, costs
from tedm.backbones import DiffusionBackbone
from tedm.cli import app
from tedm.diffusion.schedule import Schedule
from tedm.errors import TedmError
from tedm.heads import base
from tedm.report.cost import write_table4
from tedm.supervised import Baseline
from tedm.unet import UNet


def test_convolutions_products_and_attention_are_counted_as_by_hand():
    conv, image = nn.Conv2d(3, 5, 3, padding=1), torch.zeros(1, 3, 8, 6)
    assert costs.macs(lambda: conv(image)) == 8 * 6 * 5 * 3 * 9
    assert costs.macs(lambda: nn.Linear(7, 11)(torch.zeros(4, 7))) == 4 * 7 * 11
    q, k, v = torch.zeros(3, 1, 2, 10, 4)
    assert costs.macs(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * 2 * 10 * 10 * 4
    assert costs.macs(lambda: F.group_norm(image, 1).relu()) == 0


def test_the_networks_of_the_study_cost_what_the_paper_says():
    """Table 4 of the paper: 29.2 GMAC for a baseline, 88.0 for LEDM, 234.6 for LEDMe and TEDM."""
    torch.manual_seed(0)
    supervised = checkpoint.channels_last(UNet(64, time_conditioned=False).eval())
    baseline = costs.baseline_part("Supervised", Baseline(supervised, (1, 128, 128), ""))
    whole = costs.macs(baseline.run) / 1e9
    assert whole == pytest.approx(29.2, abs=0.05)
    network = checkpoint.channels_last(UNet(64).eval())
    schedule = Schedule(1000, "cosine")
    ddpm = DiffusionBackbone(network, schedule, (1, 128, 128), (-1.0, 1.0), "")
    one = costs.macs(costs.backbone_part("ddpm", ddpm).run) / 1e9
    # Features end before the last convolution of 64 to 64 channels, the final block (128 to 64, 64 to 64
    # and a skip) and the output, all at image size: a tenth of the paper's passes.
    left_out = 128**2 * (64 * 64 * 9 + 128 * 64 * 9 + 64 * 64 * 9 + 128 * 64 + 64) / 1e9
    timestep = 1e-3  # its layers, most of them 256 to 1024
    assert one == pytest.approx(whole - left_out, abs=10 * timestep)
    assert 3 * (one + left_out) == pytest.approx(88.0, rel=0.01)
    assert 8 * (one + left_out) == pytest.approx(234.6, rel=0.01)


def fitted(kind: str, settings: dict[str, object], tmp_path: Path) -> base.Head:
    rng = np.random.default_rng(0)
    arrays = {
        (t, layer): rng.standard_normal((2, *shape)).astype(np.float32)
        for t in (1, 10)
        for layer, shape in {"up0": (6, 4, 4), "up1": (3, 8, 8)}.items()
    }
    masks = rng.integers(0, 2, (2, 1, 8, 8)).astype(np.uint8)
    head = base.create(kind, settings, [1, 10])
    features = base.ArrayFeatures(arrays, (8, 8))
    return head.fit(features, masks, [0, 1], [], masks[:0], workdir=tmp_path / "work")


@pytest.mark.parametrize("combine", ["share", "concat"])
def test_the_head_of_the_study_costs_its_layers_at_native_resolution(combine, tmp_path):
    settings = {"combine": combine, "hidden": [16, 5], "steps": 1}
    part = costs.head_part("TEDM", fitted("mlp", settings, tmp_path))
    resizing = 16 * (8 * 4 * 4 + 8 * 4 * 8)  # 16 hidden channels from 4×4 to 8×8, by whole matrices at most
    first = 16 * (6 * 16 + 3 * 64)
    deeper = 64 * (16 * 5 + 5 * 1)
    counted = costs.macs(part.run)
    votes = 2 if combine == "share" else 1
    assert part.per == (2 if combine == "share" else 0)
    assert 2 * first + votes * deeper < counted <= 2 * (first + resizing) + votes * deeper


def test_a_head_outside_pytorch_counts_nothing(tmp_path):
    settings = {"estimator": "sklearn.tree.DecisionTreeClassifier", "pixels": 20}
    assert costs.macs(costs.head_part("tree", fitted("sklearn", settings, tmp_path)).run) == 0


METHODS = [
    {"name": "Supervised", "source": "Supervised", "backbone": None, "timesteps": []},
    {"name": "LEDM", "source": "LEDM", "backbone": "ddpm", "timesteps": [50, 150, 250]},
    {"name": "TEDM", "source": "TEDM", "backbone": "ddpm", "timesteps": [1, 10, 25, 50]},
    {"name": "TEDM t=1", "source": "TEDM", "backbone": "ddpm", "timesteps": [1]},
    {"name": "Tree_%", "source": "Tree_%", "backbone": "ddpm", "timesteps": [1]},
]


def write_parts(path: Path, quantity: str, values: list[float], **more: object) -> Path:
    kinds = ["baseline", "backbone", "head", "head", "head"]
    names = ["Supervised", "ddpm", "LEDM", "TEDM", "Tree_%"]
    steps = [False, True, False, True, True]
    columns = {"kind": kinds, "name": names, "per_timestep": steps, quantity: values, **more}
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture
def parts(tmp_path) -> tuple[Path, Path]:
    gmac = write_parts(tmp_path / "gmac.csv", "gmac", [29.2, 29.0, 0.5, 0.25, 0.0])
    values = [0.9, 0.8, 0.1, 0.05, 0.2]
    return gmac, write_parts(tmp_path / "seconds.csv", "seconds", values, device="Some CPU", threads=2)


def test_the_table_adds_up_passes_and_heads(parts, tmp_path):
    write_table4({"methods": METHODS}, *parts, tmp_path / "table4.csv")
    table = pd.read_csv(tmp_path / "table4.csv").set_index("method")
    assert table["passes"].tolist() == [1, 3, 4, 1, 1]
    np.testing.assert_allclose(table["gmac"], [29.2, 87.5, 117, 29.25, 29.0], rtol=1e-3)
    np.testing.assert_allclose(table["seconds"], [0.9, 2.5, 3.4, 0.85, 1.0])
    assert np.isnan(table["head_gmac"]["Tree_%"])
    markdown, latex = ((tmp_path / f"table4.{form}").read_text() for form in ("md", "tex"))
    row = next(line for line in markdown.splitlines() if line.startswith(r"| Tree\_%"))
    assert [cell.strip() for cell in row.split("|")[2:7]] == ["1", "29", "–", "29", "1"]
    assert "Some CPU, 2 threads" in markdown
    assert r"Tree\_\% & 1 & 29 & -- & 29 & 1 \\" in latex
    first = [p.read_bytes() for p in sorted(tmp_path.glob("table4.*"))]
    write_table4({"methods": METHODS}, *parts, tmp_path / "table4.csv")
    assert [p.read_bytes() for p in sorted(tmp_path.glob("table4.*"))] == first


def test_costs_of_another_experiment_are_refused(parts, tmp_path):
    method = {"name": "New", "source": "New", "backbone": "ddpm", "timesteps": [1]}
    with pytest.raises(TedmError, match="nothing of the head New"):
        write_table4({"methods": [method]}, *parts, tmp_path / "table4.csv")
    parts[0].write_text("a,b\n1,2\n")
    with pytest.raises(TedmError, match=r"gmac\.csv: not a file of `tedm cost`"):
        write_table4({"methods": METHODS}, *parts, tmp_path / "table4.csv")


def test_the_command_counts_the_same_bytes_twice_and_measures_with_the_machine_named(tmp_path):
    torch.manual_seed(0)
    network = checkpoint.channels_last(UNet(8, [1, 2], 1, 1, time_conditioned=False))
    shape, about = (1, 16, 16), ((0.0, 1.0), None, {}, {})
    directory = tmp_path / "baselines/Supervised/n4/seed0"
    checkpoint.write(directory, network, checkpoint.describe(network, shape, *about))
    spec = json.dumps({"baselines": ["Supervised"], "heads": {}, "n": 4, "seed": 0})
    for quantity, name in (("gmac", "a.csv"), ("gmac", "b.csv"), ("seconds", "c.csv")):
        arguments = ["cost", "--spec", spec, "--results", str(tmp_path), "--quantity", quantity]
        done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    measured = pd.read_csv(tmp_path / "c.csv").iloc[0]
    assert measured["seconds"] > 0
    assert measured["device"]
    assert measured["threads"] >= 1
