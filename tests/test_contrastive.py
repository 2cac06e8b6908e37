"""Contrastive pretraining: its losses, its regions, what it changes, and how it goes on."""

import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tedm import checkpoint, cli, pretrained, supervised, training
from tedm.augmentation import draw
from tedm.config import AugmentationConfig, GlobalCLConfig, LocalCLConfig, OptimizerConfig, SupervisedConfig
from tedm.contrastive.heads import GlobalNetwork, LocalNetwork
from tedm.contrastive.losses import nt_xent
from tedm.contrastive.pretrain import GlobalPretraining, LocalPretraining, pretrain
from tedm.contrastive.regions import draw_regions, sample
from tedm.data import prepared
from tedm.digests import canonical_json
from tedm.errors import TedmError
from tedm.unet import UNet

CPU = torch.device("cpu")
TURNED = AugmentationConfig(rotation=180)
BRIEF = OptimizerConfig(steps=6, batch_size=4, learning_rate=1e-3, validate_every=2, save_every=1)
GLOBAL = GlobalCLConfig(
    type="global", data="cxr", width=8, multipliers=[1, 2], hidden=16, features=8, training=BRIEF,
)  # fmt: skip
LOCAL = LocalCLConfig(type="local", data="cxr", encoder="global", regions=5, features=8, training=BRIEF)


def write_data(path: Path, count: int = 20, size: int = 16, split: str = "unlabelled") -> Path:
    """Images of 4 × 4 grey squares, each with its own greys; masks, if any, of the bright ones."""
    greys = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4), np.uint8)
    images = list(greys.repeat(size // 4, 2).repeat(size // 4, 3))
    masks = [(image > 128).astype(np.uint8) for image in images] if split == "train" else None
    ids = [f"i{i:02d}" for i in range(count)]
    splits = [split] * count if masks is None else ["train"] * (count - 4) + ["val"] * 4
    prepared.write(
        path, "Squares", images, masks, ids, ids, splits, ["lungs"], intensity_range=(0, 255),
        synthetic=True, source="drawn", licence="", cite="",
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "cxr.h5")


@pytest.fixture(scope="module")
def stages(data, tmp_path_factory) -> Path:
    """Both stages, trained."""
    out = tmp_path_factory.mktemp("stages")
    pretrain(data, GLOBAL, 0, out / "global")
    pretrain(data, LOCAL, 0, out / "local", encoder=out / "global")
    return out


# ── losses ──────────────────────────────────────────────────────────────────────────────────────


def brute_force(first, second, temperature, contrasted):
    """NT-Xent from its definition, one pair after the other, in float64."""
    z = [np.asarray(v, np.float64) for v in (*first, *second)]
    n = len(first)

    def similarity(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) / temperature

    losses = []
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k == positive or contrasted[i % n][k % n]]
        logits = np.array([similarity(z[i], z[k]) for k in others])
        largest = logits.max()
        total = largest + np.log(np.exp(logits - largest).sum())
        losses.append(total - similarity(z[i], z[positive]))
    return np.mean(losses)


@settings(max_examples=60)
@given(
    n=st.integers(2, 9),
    features=st.integers(1, 12),
    temperature=st.sampled_from([0.01, 0.1, 0.5, 1.0, 10.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_the_loss_is_its_definition(n, features, temperature, scale, seed):
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(2, n, features)) * scale
    loss = nt_xent(torch.tensor(first), torch.tensor(second), temperature)
    expected = brute_force(first, second, temperature, ~np.eye(n, dtype=bool))
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=2e-6 / temperature)


@settings(max_examples=30)
@given(n=st.integers(2, 7), images=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_sets_are_contrasted_apart_and_only_the_pairs_that_may_be(n, images, seed):
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(2, images, n, 5))
    contrasted = random.random((images, n, n)) < 0.6
    contrasted = (contrasted | contrasted.transpose(0, 2, 1)) & ~np.eye(n, dtype=bool)
    loss = nt_xent(torch.tensor(first), torch.tensor(second), 0.1, torch.tensor(contrasted))
    expected = np.mean([brute_force(*z, 0.1, c) for *z, c in zip(first, second, contrasted, strict=True)])
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_loss_of_two_images_by_hand():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Each has its twin at similarity 1 and two others at 0.
    for temperature in (1.0, 0.1):
        expected = np.log(1 + 2 * np.exp(-1 / temperature))
        assert float(nt_xent(z, z, temperature)) == pytest.approx(expected, rel=1e-5, abs=2e-6)
    assert float(nt_xent(z, -z, 0.01)) == pytest.approx(100 + np.log(2), rel=1e-6)


def test_a_small_temperature_gives_finite_losses_and_gradients():
    first = torch.tensor([[1.0, 0.0], [-1.0, 1e-4]], requires_grad=True)
    loss = nt_xent(first, -first.detach(), 0.01)
    loss.backward()
    assert loss.item() == pytest.approx(200, rel=1e-3)
    assert torch.isfinite(first.grad).all()


def test_half_precision_embeddings_are_contrasted_in_full_precision():
    z = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z[0], z[1], 0.1)
    assert loss.dtype == torch.float32
    expected = brute_force(*z.double().numpy(), 0.1, ~np.eye(6, dtype=bool))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


# ── regions ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranges", ["study", AugmentationConfig(), TURNED])
@given(seed=st.integers(0, 2**31), size=st.sampled_from([24, 40, 64]))
@settings(max_examples=15)
def test_regions_of_two_views_show_the_same_place(ranges, seed, size):
    """Images whose intensities are their coordinates: both views must read the region's own coordinates."""
    n, side, cell = 3, 3, 4 / size
    random = np.random.default_rng(seed)
    rows = (torch.arange(size) + 0.5).view(1, 1, -1, 1).expand(n, 1, size, size) / size
    coordinates = torch.cat((rows, rows.mT), 1)
    pair = []
    for _ in range(2):
        view = draw(random, n, (size, size), ranges)
        one = torch.ones(n)
        pair.append(dataclasses.replace(view, gamma=one, contrast=one, brightness=0 * one))
    places = draw_regions(random, *pair, 6, side, (cell, cell))
    assert places.shape == (n, 6, 9, 2)
    reach = places.sub(places.mean(2, keepdim=True)).abs().amax((0, 1, 2))
    torch.testing.assert_close(reach, torch.full((2,), cell), rtol=0, atol=1e-5)
    # The whole of each region, to the corners of its outermost cells.
    outline = places[:, :, :, None] + torch.cartesian_prod(*[torch.tensor([-cell, cell]) / 2] * 2)
    assert outline.min() > -1e-5
    assert outline.max() < 1 + 1e-5
    for view in pair:
        where = view.where(outline)
        assert where.min() > -1e-5
        assert where.max() < 1 + 1e-5
        read = sample(view.images(coordinates), view, places).view(n, 6, 9, 2)
        # A centre is two pixels from the border, where a turned view may read what is repeated beyond it.
        torch.testing.assert_close(
            read * size, places * size, rtol=0, atol=0.01 if ranges == "study" else 0.25
        )
        assert (read - places).abs().mul(size).median() < 0.01


def test_regions_are_drawn_all_over_what_both_views_show():
    """Seen from the study's crops, whose shared box is known."""
    view = draw(np.random.default_rng(0), 2, (64, 64), "study")
    first, second = (view[i : i + 1] for i in range(2))
    places = draw_regions(np.random.default_rng(1), first, second, 2000, 3, (1 / 16, 1 / 16))[0]
    corners = torch.stack((first.corners()[0], second.corners()[0]))
    low, high = corners.amin(1).amax(0) + 1.5 / 16, corners.amax(1).amin(0) - 1.5 / 16
    centres = (places.mean(1) - low) / (high - low)
    for share in (0.1, 0.5, 0.9):
        below = (centres < share).float().mean(0)
        torch.testing.assert_close(below, torch.full((2,), share), rtol=0, atol=0.06)


# ── networks ────────────────────────────────────────────────────────────────────────────────────


def test_projections_have_the_published_shapes():
    with torch.device("meta"):
        full = UNet(64, (1, 2, 4, 8), time_conditioned=False)
        first, _, last = list(GlobalNetwork(full, 128, 128, 1024, 128).projection)[1:]
        assert first.weight.shape == (1024, 512 * 16 * 16)
        assert last.weight.shape == (128, 1024)
        assert first.bias is None
        assert last.bias is None
        local = LocalNetwork(full, 2, 128).projection
        assert [tuple(m.weight.shape) for m in (local[0], local[2])] == [(256, 256, 1, 1), (128, 256, 1, 1)]


def test_each_stage_gives_what_it_contrasts():
    network = UNet(8, (1, 2), time_conditioned=False)
    x = torch.rand(3, 1, 16, 16)
    assert GlobalNetwork(network, 16, 16, 32, 5)(x).shape == (3, 5)
    assert LocalNetwork(network, 1, 5)(x).shape == (3, 5, 8, 8)
    assert LocalNetwork(network, 2, 5)(x).shape == (3, 5, 16, 16)


@pytest.mark.parametrize("levels", [1, 2])
def test_what_learns_gets_a_gradient_and_nothing_else(levels):
    network = UNet(8, (1, 2, 2), time_conditioned=False)
    for make in (lambda: GlobalNetwork(network, 16, 16, 32, 5), lambda: LocalNetwork(network, levels, 5)):
        module = make()
        module.zero_grad(set_to_none=True)
        module(torch.rand(2, 1, 16, 16)).square().sum().backward()
        with_gradient = {k for k, p in module.network.named_parameters() if p.grad is not None}
        prefixes = tuple(f"{part}." for part in module.learnt)
        assert with_gradient == {k for k, _ in module.network.named_parameters() if k.startswith(prefixes)}


# ── pretraining ─────────────────────────────────────────────────────────────────────────────────


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(directory).network.state_dict()


def test_the_local_stage_leaves_the_encoder_as_it_was_to_the_bit(stages):
    before, after = weights(stages / "global"), weights(stages / "local")
    parts = pretrained.read(stages / "global").parts
    assert parts == ("stem", "encoder", "middle1", "middle_attention", "middle2")
    encoder = [k for k in before if k.startswith(tuple(f"{p}." for p in parts))]
    assert len(encoder) > 20
    assert all(torch.equal(before[k], after[k]) for k in encoder)
    learnt = set(pretrained.read(stages / "local").tensors) - set(encoder)
    assert {k.split(".")[0] for k in learnt} == {"decoder"}
    assert all(not torch.equal(before[k], after[k]) for k in learnt if k.endswith("conv.weight"))
    assert not [k for k in learnt if k.startswith("decoder.1.resample")]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(data, stages, tmp_path):
    pretrain(data, GLOBAL, 0, tmp_path / "same")
    pretrain(data, GLOBAL, 1, tmp_path / "other")
    files = [p / "model.safetensors" for p in (stages / "global", tmp_path / "same", tmp_path / "other")]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_true_is_the_default_ranges_and_the_study_has_its_own(data, stages, tmp_path):
    files = [stages / "global" / "model.safetensors"]
    for own in (AugmentationConfig(), "study"):
        out = tmp_path / str(len(files))
        pretrain(data, GLOBAL.model_copy(update={"augment": own}), 0, out)
        files.append(out / "model.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert json.loads((files[2].parent / "config.json").read_text())["training"]["augment"] == "study"


def test_it_learns_to_tell_images_apart(data, tmp_path):
    longer = GLOBAL.training.model_copy(update={"steps": 50, "validate_every": 50, "save_every": 50})
    pretrain(data, GLOBAL.model_copy(update={"training": longer}), 0, tmp_path / "g")
    with (tmp_path / "g" / "losses.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_large_sets_are_streamed_and_give_the_same(data, stages, tmp_path, monkeypatch):
    import tedm.unlabelled

    monkeypatch.setattr(tedm.unlabelled.TrainingImages.__init__, "__defaults__", (0,))
    pretrain(data, GLOBAL, 0, tmp_path / "g")
    same = (stages / "global" / "digest.json").read_text()
    assert (tmp_path / "g" / "digest.json").read_text() == same


def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(data):
    """The negatives are the whole batch, however it is shared."""
    found = []
    for parts in (1, 2, 4):
        training = BRIEF.model_copy(update={"accumulate": parts})
        with prepared.PreparedSet(data) as opened:
            stage = GlobalPretraining(
                opened, GLOBAL.model_copy(update={"training": training}), 0, Path("none"), "p", CPU
            )
            values = [stage.loss(3, micro) / parts for micro in range(parts)]
            sum(values).backward()
        assert sum(values).item() == pytest.approx(found[0][0] if found else sum(values).item(), rel=1e-6)
        found.append((sum(values).item(), stage.module.network.stem.weight.grad.clone()))
    for _, gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-6)


def test_an_image_that_is_twice_in_a_batch_is_not_its_own_negative(data):
    with prepared.PreparedSet(data) as opened:
        stage = GlobalPretraining(opened, GLOBAL, 0, Path("none"), "p", CPU)
        z = torch.randn(2, 3, 8)
        twice = torch.cat((z, z[:, :1]), 1)
        contrasted = np.array([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]], bool)
        expected = brute_force(*twice.numpy(), GLOBAL.temperature, contrasted)
        assert float(stage._contrast(*twice, np.array([5, 6, 7, 5]))) == pytest.approx(expected, rel=1e-5)


def spec(settings: GlobalCLConfig | LocalCLConfig, **training: object) -> str:
    chosen = settings.model_dump()
    chosen["training"] |= training
    return canonical_json({"name": "p", "seed": 0, "pretraining": chosen})


def command(data: Path, out: Path, text: str, processes: int = 1) -> list[str]:
    call = ["tedm", "pretrain", "--spec", text, "--data", str(data), "--out", str(out)]
    call[0] = str(Path(sys.executable).with_name("tedm"))
    if processes == 1:
        return call
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    return [torchrun, "--standalone", "--nproc-per-node", str(processes), "--no-python", *call]


def test_killed_it_goes_on_to_the_same_bytes(data, tmp_path):
    long = spec(GLOBAL, steps=80, validate_every=40, accumulate=2)
    run = [command(data, tmp_path / name, long) for name in ("killed", "whole")]
    process = subprocess.Popen(run[0], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "killed" / "state" / "state.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "digest.json").exists()
    resumed = subprocess.run(run[0], capture_output=True, text=True, check=True)
    assert "going on from step" in resumed.stdout + resumed.stderr
    # The whole run by two processes: one saved state may be finished by any number of them.
    subprocess.run(command(data, tmp_path / "whole", long, 2), capture_output=True, check=True)
    killed, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole"))
    assert killed == whole


def interrupted_at(step: int, loss):
    def fails(self, at: int, micro: int) -> torch.Tensor:
        if at == step:
            raise KeyboardInterrupt
        return loss(self, at, micro)

    return fails


def test_a_local_stage_goes_on_to_the_same_bytes(data, stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "SAVING_SHARE", math.inf)
    with monkeypatch.context() as broken:
        broken.setattr(LocalPretraining, "loss", interrupted_at(3, LocalPretraining.loss))
        with pytest.raises(KeyboardInterrupt):
            pretrain(data, LOCAL, 0, tmp_path / "l", encoder=stages / "global")
    pretrain(data, LOCAL, 0, tmp_path / "l", encoder=stages / "global")
    assert "going on from step 3 of 6" in "".join(capsys.readouterr())
    models = [path / "model.safetensors" for path in (tmp_path / "l", stages / "local")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_local_stage_needs_a_global_one(data, stages, tmp_path):
    with pytest.raises(TedmError, match="--encoder: missing"):
        pretrain(data, LOCAL, 0, tmp_path / "l")
    baseline = tmp_path / "baseline"
    steps = SupervisedConfig(width=8, multipliers=[1, 2], training=BRIEF)
    supervised.fit(write_data(tmp_path / "d.h5", split="train"), 2, 0, steps, baseline)
    with pytest.raises(TedmError, match="not a contrastive pretraining"):
        pretrain(data, LOCAL, 0, tmp_path / "l", encoder=baseline)
    with pytest.raises(
        TedmError, match=r"local: a local stage; pretraining l starts from one of type global"
    ):
        pretrain(data, LOCAL, 0, tmp_path / "l", encoder=stages / "local")
    with pytest.raises(TedmError, match="nowhere: no such pretraining; `tedm pretrain` makes one"):
        pretrain(data, LOCAL, 0, tmp_path / "l", encoder=stages / "nowhere")
    with pytest.raises(TedmError, match=r"need a map of 18×18 at least, but that of level 2 is 16×16"):
        pretrain(data, LOCAL.model_copy(update={"side": 9}), 0, tmp_path / "l", encoder=stages / "global")
    with pytest.raises(TedmError, match="a contrastive pretraining, whose output was never trained"):
        supervised.load(stages / "global")


# ── fine-tuning ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled") / "jsrt.h5", split="train")


def tuned(**changes: object) -> SupervisedConfig:
    training = BRIEF.model_copy(update={"steps": changes.pop("steps", 4), "batch_size": 2})
    return SupervisedConfig(width=8, multipliers=[1, 2], training=training, **changes)


def test_what_was_pretrained_stays_until_the_step_that_frees_it(labelled, stages, tmp_path):
    start = pretrained.read(stages / "local").tensors
    for steps, changed in ((4, False), (6, True)):
        out = tmp_path / str(steps)
        # Its best validation may come before: the last state is looked at.
        chosen = tuned(steps=steps, freeze_until=4)
        chosen = chosen.model_copy(
            update={"training": chosen.training.model_copy(update={"validate_every": 100})}
        )
        supervised.fit(labelled, 3, 0, chosen, out, pretrained=stages / "local")
        own = weights(out)
        assert all(torch.equal(own[k], v) for k, v in start.items()) is not changed
        moved = [k for k, v in start.items() if k.endswith("conv.weight") and not torch.equal(own[k], v)]
        assert bool(moved) is changed
    fresh = tmp_path / "fresh"
    supervised.fit(labelled, 3, 0, tuned(steps=0), fresh)
    other = next(k for k in own if k.startswith("final") and k.endswith("conv.weight"))
    assert not torch.equal(weights(fresh)[other], own[other])


def test_the_learning_rate_with_the_lowest_validation_loss_is_kept(labelled, tmp_path):
    rates = [1e-9, 3e-3, 1e-8]
    supervised.fit(labelled, 4, 0, tuned(steps=30, learning_rates=rates), tmp_path / "all")
    told = json.loads((tmp_path / "all" / "config.json").read_text())["training"]
    assert [t["learning_rate"] for t in told["tried"]] == rates
    losses = [t["validation_loss"] for t in told["tried"]]
    assert told["validation_loss"] == min(losses) == losses[1]
    assert told["learning_rate"] == 3e-3
    supervised.fit(labelled, 4, 0, tuned(steps=30, learning_rates=[3e-3]), tmp_path / "one")
    assert all(torch.equal(v, weights(tmp_path / "one")[k]) for k, v in weights(tmp_path / "all").items())
    names = {p.name for p in (tmp_path / "all").iterdir()}
    assert {"model.safetensors", "config.json", "digest.json", "losses.csv"} <= names
    assert "state" not in names


def test_frozen_and_killed_at_the_second_rate_it_goes_on_to_the_same_bytes(
    labelled, stages, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "SAVING_SHARE", math.inf)
    chosen = tuned(steps=6, learning_rates=[1e-3, 2e-3], freeze_until=3)
    supervised.fit(labelled, 3, 0, chosen, tmp_path / "whole", pretrained=stages / "local")
    seen, own = [], supervised.draw

    def interrupted(*arguments):
        seen.append(None)
        if len(seen) == 6 + 5:
            raise KeyboardInterrupt
        return own(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(supervised, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            supervised.fit(labelled, 3, 0, chosen, tmp_path / "killed", pretrained=stages / "local")
    supervised.fit(labelled, 3, 0, chosen, tmp_path / "killed", pretrained=stages / "local")
    models = [tmp_path / name / "model.safetensors" for name in ("killed", "whole")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_baselines_start_alike_but_for_what_was_pretrained(labelled, stages, tmp_path):
    """As the workflow's jobs do; so that they differ by the pretraining and not by luck."""
    own = {}
    for name, start in (("Supervised", []), ("global_cl", ["--pretrained", str(stages / "global")])):
        settings_ = {"name": name, "n": 2, "seed": 0, "experiment_seed": 0}
        settings_["supervised"] = tuned(steps=0).model_dump(mode="json")
        out = tmp_path / name / "model.safetensors"
        call = [
            "supervise",
            "--spec",
            canonical_json(settings_),
            "--data",
            str(labelled),
            "--out",
            str(out),
        ]
        assert CliRunner().invoke(cli.app, [*call, *start]).exit_code == 0
        own[name] = weights(out.parent)
    learnt = pretrained.read(stages / "global").tensors
    differing = {k for k, v in own["Supervised"].items() if not torch.equal(v, own["global_cl"][k])}
    assert differing
    assert differing <= set(learnt)


def test_several_learning_rates_need_images_to_choose_by(tmp_path):
    file = write_data(tmp_path / "d.h5", split="train", count=4)  # all four are val
    images = np.zeros((3, 1, 16, 16), np.uint8)
    prepared.write(
        file, "No val", images, images, list("abc"), list("abc"), ["train"] * 3, ["lungs"],
        intensity_range=(0, 255), synthetic=True, source="", licence="", cite="",
    )  # fmt: skip
    with pytest.raises(TedmError, match="no image in its split val, on which one of 2 learning rates"):
        supervised.fit(file, 2, 0, tuned(learning_rates=[1e-3, 1e-4]), tmp_path / "b")


def test_a_network_of_another_width_cannot_start_from_it(labelled, stages, tmp_path):
    wider = tuned().model_copy(update={"width": 16})
    with pytest.raises(TedmError, match="its width is 16, but it starts from a pretraining with width 8"):
        supervised.fit(labelled, 2, 0, wider, tmp_path / "b", pretrained=stages / "global")
