"""Several processes that train one backbone: one result, one voice, one end."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from torch import nn

from tedm import distributed, training
from tedm.config import DDPMConfig, OptimizerConfig
from tedm.data import prepared
from tedm.diffusion.train import train_backbone
from tedm.errors import TedmError

BIN = Path(sys.executable).parent
SETTINGS = DDPMConfig(
    type="ddpm", data="tiny", width=8, multipliers=[1, 2], samples=0, validation=0.4,
    training=OptimizerConfig(
        steps=24, batch_size=4, accumulate=4, learning_rate=1e-3, warmup=3, clip=0.5, ema=0.9,
        validate_every=5, save_every=1,
    ),
)  # fmt: skip


def changed(**settings) -> DDPMConfig:
    return SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update=settings)})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 16, 16), np.uint8)
    ids = [f"i{i}" for i in range(20)]
    prepared.write(
        path, "Tiny", images, None, ids, ids, ["unlabelled"] * 20, ["lungs"], intensity_range=(0, 255),
        synthetic=True, source="drawn", licence="", cite="",
    )  # fmt: skip
    return path


def tedm_train(data: Path, out: Path, settings: DDPMConfig) -> list[str]:
    spec = {"name": "ddpm", "backbone": settings.model_dump(), "seed": 0}
    return [str(BIN / "tedm"), "train", "--spec", json.dumps(spec), "--data", str(data), "--out", str(out)]


def torchrun(processes: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    launch = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(processes), "--no-python"]
    return subprocess.run([*launch, *command], capture_output=True, text=True, timeout=300)


def start_both(command: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes as torchrun starts them, but with nobody to watch over them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"MASTER_PORT": str(port), "RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]


def saved_step(out: Path) -> int:
    try:
        with safe_open(out / "state" / training.STATE_FILE, "pt") as state:
            return int(json.loads(state.metadata()["training"])["steps"])
    except (OSError, SafetensorError):
        return 0


def result(out: Path) -> tuple[bytes, list[list[str]]]:
    """The weights, and the log without its clock."""
    rows = [line.split(",")[:4] for line in (out / "losses.csv").read_text().splitlines()]
    return (out / "model.safetensors").read_bytes(), rows


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    train_backbone(data, SETTINGS, 0, out)
    return out


def test_two_processes_under_torchrun_write_the_bytes_of_one(data, alone, tmp_path):
    run = torchrun(2, tedm_train(data, tmp_path, SETTINGS))
    assert run.returncode == 0, run.stderr
    assert result(tmp_path) == result(alone)
    assert (tmp_path / "digest.json").read_bytes() == (alone / "digest.json").read_bytes()
    assert run.stderr.count("24/24 steps") == 1
    assert run.stderr.count("validation loss") == 1


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow  # the other way round is quick, below
def test_two_processes_go_on_from_the_state_of_one(data, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVING_SHARE", float("inf"))

    def kill(_run: object, done: int) -> None:
        if done == 11:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("tedm.diffusion.train.Training.look", kill)
        with pytest.raises(Killed):
            train_backbone(data, SETTINGS, 0, tmp_path)
    assert saved_step(tmp_path) == 11
    run = torchrun(2, tedm_train(data, tmp_path, SETTINGS))
    assert "going on from step 11 of 24" in run.stderr, run.stderr
    assert result(tmp_path) == result(alone)


def test_a_killed_process_ends_the_other_with_one_line_and_one_goes_on_from_the_state_of_two(
    data, tmp_path
):
    longer = changed(steps=60, batch_size=2, accumulate=2)
    first, second = start_both(tedm_train(data, tmp_path / "b", longer))
    try:
        deadline = time.monotonic() + 120
        while saved_step(tmp_path / "b") == 0:
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.05)
        second.send_signal(signal.SIGKILL)
        began = time.monotonic()
        _, said = first.communicate(timeout=60)
        assert time.monotonic() - began < 20
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert first.returncode == 1
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if line.startswith("error")] == [
        f"error: {distributed.LOST}"
    ]
    step = saved_step(tmp_path / "b")
    assert 0 < step < 60
    train_backbone(data, longer, 0, tmp_path / "b")
    train_backbone(data, longer, 0, tmp_path / "a")
    assert result(tmp_path / "b") == result(tmp_path / "a")


def test_micro_batches_that_two_processes_cannot_share_are_refused_once_and_by_name(data, tmp_path):
    both = start_both(tedm_train(data, tmp_path, changed(accumulate=1)))
    said = "".join(process.communicate(timeout=120)[1] for process in both)
    assert [process.returncode for process in both] == [1, 1]
    assert said.startswith(
        "error: backbones.ddpm.training.accumulate: 1 micro-batches per step can't be shared by 2 processes"
    )
    assert said.count("\n") == 1
    assert not tmp_path.joinpath("state").exists()


def test_incomplete_variables_of_torchrun_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(TedmError, match=r"LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        distributed.joined(),
    ):
        pass


@given(blocks=st.integers(0, 5), odd=st.sampled_from([1, 3, 5]), seed=st.integers(0, 99))
def test_a_power_of_two_of_blocks_adds_up_to_the_bits_of_the_whole(blocks, odd, seed):
    parts = list(np.random.default_rng(seed).standard_normal(odd * 2**blocks).astype(np.float32))
    add = np.add
    whole = distributed.in_fixed_order(parts, add)
    exact = sum(Fraction(float(p)) for p in parts)
    assert abs(float(Fraction(float(whole)) - exact)) <= 1e-6 * sum(abs(float(p)) for p in parts)
    for k in range(blocks + 1):
        size = len(parts) // 2**k
        sums = [distributed.in_fixed_order(parts[i : i + size], add) for i in range(0, len(parts), size)]
        assert distributed.in_fixed_order(sums, add).tobytes() == whole.tobytes()


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6, 8, 12])
def test_accumulated_gradients_are_the_fixed_order_sum_of_each_micro_batch(parts):
    torch.manual_seed(parts)
    module = nn.Linear(5, 3)
    unused = nn.Parameter(torch.ones(2))
    inputs = torch.randn(parts, 7, 5)
    alone = []
    for x in inputs:
        module.zero_grad()
        module(x).square().mean().backward()
        alone.append([p.grad.clone() for p in module.parameters()])
    module.zero_grad()
    shared = distributed.SharedGradients([*module.parameters(), unused], parts)
    for i, x in enumerate(inputs):
        shared.backward(module(x).square().mean(), i)
    for parameter, grads in zip(module.parameters(), zip(*alone, strict=True), strict=True):
        assert torch.equal(parameter.grad, distributed.in_fixed_order(grads, torch.add))
    assert unused.grad is None


def test_messages_hold_every_gradient_once_in_the_order_in_which_they_are_made(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: (0, 2))
    parameters = [nn.Parameter(torch.zeros(n)) for n in (100, 3, 50, 7)]
    parameters.insert(2, nn.Parameter(torch.zeros(5, dtype=torch.float64)))
    buckets = distributed.SharedGradients(parameters, 1, bucket=200).buckets
    sent = list(itertools.chain.from_iterable(bucket.parameters for bucket in buckets))
    assert [id(p) for p in sent] == [id(p) for p in reversed(parameters)]
    assert [[len(p) for p in b.parameters] for b in buckets] == [[7, 50], [5], [3, 100]]
    assert all(len(b.own) % 2 == 0 and len(b.own) >= sum(b.sizes) for b in buckets)


@pytest.mark.slow
def test_the_rule_starts_as_many_processes_as_its_resources_ask_for(tmp_path):
    from test_workflow import snakemake, write_experiment

    def share(experiment: dict) -> None:
        experiment["backbones"]["ddpm"]["training"] |= {"steps": 4, "accumulate": 2}

    write_experiment(tmp_path, share)
    target = "results/backbones/ddpm/digest.json"
    gpus = ("--set-resources", "train_backbone:gpu=2", "--resources", "gpu=2")
    run = snakemake(tmp_path, *gpus, "--", target)
    assert run.returncode == 0, run.stderr[-3000:]
    description = json.loads((tmp_path / "results/backbones/ddpm/config.json").read_text())
    assert description["training"]["processes"] == 2
    log = (tmp_path / "results/logs/backbones/ddpm.log").read_text()
    assert log.count("validation loss") == 1
    assert (tmp_path / target).exists()
