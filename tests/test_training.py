"""The training loop: resume, averaging, schedules of the learning rate, refusals."""

import csv
import itertools
import math
import multiprocessing as mp
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from tedm import training
from tedm.config import OptimizerConfig
from tedm.errors import TedmError

IMAGES = torch.rand(32, 2, 4, 4, generator=torch.Generator().manual_seed(0))


class Killed(BaseException):
    """Stands for the end of the process: nothing of the loop runs after it."""


def network() -> nn.Module:
    def make() -> nn.Module:
        convs = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        return nn.Sequential(convs[0], nn.BatchNorm2d(8), nn.ReLU(), convs[1])

    return training.build(make, "test").to(memory_format=torch.channels_last)


def problem(module: nn.Module, settings: OptimizerConfig, weight=None):
    epochs = training.Epochs(len(IMAGES), settings.batch_size, "order")

    def loss(step: int, micro: int) -> torch.Tensor:
        size = settings.batch_size // settings.accumulate
        x = IMAGES[torch.from_numpy(epochs.batch(step))][micro * size : (micro + 1) * size]
        noise = torch.randn(x.shape, generator=training.torch_generator("noise", step, micro))
        return F.mse_loss(module(x + 0.1 * noise), x.sum(1, keepdim=True))

    def validate() -> float:
        with torch.no_grad():
            return float(F.mse_loss(module(IMAGES[:8]), IMAGES[:8].sum(1, keepdim=True)))

    return loss, validate


SETTINGS = OptimizerConfig(
    steps=20, batch_size=4, learning_rate=0.02, warmup=3, decay="cosine", accumulate=2, clip=1.0, ema=0.9,
    validate_every=4, save_every=3,
)  # fmt: skip


def run(state: Path, settings: OptimizerConfig = SETTINGS, kill_after: int | None = None, **options):
    module = network()
    loss, validate = problem(module, settings)

    def on_step(done: int) -> None:
        if done == kill_after:
            raise Killed

    options = {"validate": validate, "on_step": on_step, "log": state / "losses.csv"} | options
    record = training.train(module, loss, settings, state, "test", **options)
    return module, record


def as_bytes(module: nn.Module) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("change", [{}, {"ema": None, "clip": None, "accumulate": 1}])
@pytest.mark.parametrize("kills", [[2], [5], [12, 13], [7, 8, 19], [20]])
def test_a_killed_and_resumed_run_gives_the_bytes_of_an_undisturbed_one(
    tmp_path, kills, change, monkeypatch
):
    monkeypatch.setattr(training, "SAVING_SHARE", math.inf)
    settings = SETTINGS.model_copy(update=change)
    expected, undisturbed = run(tmp_path / "a", settings)
    for kill in kills:
        with pytest.raises(Killed):
            run(tmp_path / "b", settings, kill_after=kill)
    module, record = run(tmp_path / "b", settings)
    assert as_bytes(module) == as_bytes(expected)
    assert record.resumed_from == 20 if kills == [20] else record.resumed_from == kills[-1] // 3 * 3
    rows = [(r.step, r.loss, r.validation, r.learning_rate) for r in record.rows]
    assert rows == [(r.step, r.loss, r.validation, r.learning_rate) for r in undisturbed.rows]
    assert (record.best_step, record.best_validation) == (
        undisturbed.best_step,
        undisturbed.best_validation,
    )


def _run_until_killed(state: Path) -> None:
    torch.set_num_threads(1)
    training.SAVING_SHARE = math.inf

    def on_step(done: int) -> None:
        if done == 11:
            os.kill(os.getpid(), 9)

    run(state, on_step=on_step)


def test_a_process_killed_by_the_system_is_resumed_to_the_same_bytes(tmp_path):
    process = mp.get_context("fork").Process(target=_run_until_killed, args=(tmp_path / "b",))
    process.start()
    process.join(60)
    assert process.exitcode == -9
    resumed, record = run(tmp_path / "b")
    assert record.resumed_from == 9
    assert as_bytes(resumed) == as_bytes(run(tmp_path / "a")[0])


def test_a_finished_run_is_not_repeated(tmp_path):
    first, _ = run(tmp_path)
    second, record = run(tmp_path, on_step=lambda _: pytest.fail("it trained again"))
    assert as_bytes(first) == as_bytes(second)
    assert record.resumed_from == 20


def test_a_finished_run_writes_its_log_again(tmp_path):
    log = tmp_path / "losses.csv"
    run(tmp_path)
    first = log.read_bytes()
    log.unlink()
    run(tmp_path)
    assert log.read_bytes() == first


def test_a_training_of_no_steps_has_an_empty_log(tmp_path):
    run(tmp_path, SETTINGS.model_copy(update={"steps": 0}))
    assert (tmp_path / "losses.csv").read_text() == "step,loss,validation,learning_rate,seconds\n"


@pytest.mark.parametrize("change", [{"learning_rate": 0.01}, {"batch_size": 8}, {"ema": 0.99}])
def test_the_state_of_other_settings_is_not_resumed(tmp_path, change, capsys):
    run(tmp_path)
    _, record = run(tmp_path, SETTINGS.model_copy(update=change))
    assert record.resumed_from == 0
    assert "starting afresh" in capsys.readouterr().err


def test_the_state_of_another_identity_is_not_resumed(tmp_path):
    run(tmp_path, identity={"data": "a"})
    assert run(tmp_path, identity={"data": "a"})[1].resumed_from == 20
    assert run(tmp_path, identity={"data": "b"})[1].resumed_from == 0


def test_a_finished_run_without_decay_goes_on_when_more_steps_are_asked_for(tmp_path):
    short = SETTINGS.model_copy(update={"decay": "none", "ema": None, "steps": 8})
    long = short.model_copy(update={"steps": 16})
    run(tmp_path / "b", short, validate=None)
    module, record = run(tmp_path / "b", long, validate=None)
    assert record.resumed_from == 8
    assert as_bytes(module) == as_bytes(run(tmp_path / "a", long, validate=None)[0])


@pytest.mark.parametrize("short", [1, 7, 8, 10, 13])
def test_a_training_extended_to_more_steps_is_the_one_that_had_them_from_the_start(tmp_path, short):
    """Validation at the early end, in particular, leaves no trace: it could have kept other weights."""
    settings = SETTINGS.model_copy(update={"decay": "none", "learning_rate": 0.3, "clip": None})
    expected, undisturbed = run(tmp_path / "a", settings)
    early, record = run(tmp_path / "b", settings.model_copy(update={"steps": short}))
    assert record.rows[-1].step == short
    assert record.rows[-1].validation is not None
    again, _ = run(tmp_path / "b", settings.model_copy(update={"steps": short}))
    assert as_bytes(early) == as_bytes(again)
    module, record = run(tmp_path / "b", settings)
    assert record.resumed_from == short
    assert as_bytes(module) == as_bytes(expected)
    rows = [(r.step, r.loss, r.validation, r.learning_rate) for r in record.rows]
    assert rows == [(r.step, r.loss, r.validation, r.learning_rate) for r in undisturbed.rows]
    assert (record.best_step, record.best_validation) == (
        undisturbed.best_step,
        undisturbed.best_validation,
    )


def test_the_state_keeps_the_best_and_the_last_weights(tmp_path):
    last = {}
    settings = SETTINGS.model_copy(update={"ema": None, "learning_rate": 0.3, "decay": "none"})
    module = network()
    loss, validate = problem(module, settings)
    training.train(
        module, loss, settings, tmp_path, "test", validate=validate,
        on_step=lambda _: last.update({k: v.clone() for k, v in module.state_dict().items()}),
    )  # fmt: skip
    with safe_open(tmp_path / training.STATE_FILE, "pt") as state:
        for name, value in module.state_dict().items():
            assert torch.equal(state.get_tensor(f"best/{name}"), value)
            assert torch.equal(state.get_tensor(f"weights/{name}"), last[name])
    assert any(not torch.equal(last[k], v) for k, v in module.state_dict().items())


def test_a_gradient_above_the_limit_is_scaled_to_it(tmp_path):
    """Seen by Adam's first moment, a tenth of the first gradient."""
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor([0.0, 0.0], dtype=torch.float64))
    gradient, limit = torch.tensor([30.0, 40.0], dtype=torch.float64), 2.0
    settings = OptimizerConfig(steps=1, batch_size=1, clip=limit, save_every=1)
    training.train(module, lambda s, m: (module.w * gradient).sum(), settings, tmp_path, "clip")
    with safe_open(tmp_path / training.STATE_FILE, "pt") as state:
        moment = state.get_tensor("adam/w/exp_avg")
    torch.testing.assert_close(moment, 0.1 * gradient * limit / 50, rtol=1e-6, atol=0)


def test_tensorboard_shows_what_the_log_says(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, record = run(tmp_path / "run", tensorboard=tmp_path / "board")
    shown = EventAccumulator(str(tmp_path / "board")).Reload()
    for name in ("loss", "validation", "learning_rate"):
        wanted = [(r.step, getattr(r, name)) for r in record.rows if getattr(r, name) is not None]
        events = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [step for step, _ in events] == [step for step, _ in wanted]
        np.testing.assert_allclose([v for _, v in events], [v for _, v in wanted], rtol=1e-6)


def test_a_broken_state_is_refused_by_name(tmp_path):
    run(tmp_path)
    file = tmp_path / training.STATE_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TedmError, match=rf"{training.STATE_FILE}: .*delete it"):
        run(tmp_path)


def test_the_kept_weights_have_the_lowest_validation_loss_of_the_log(tmp_path):
    settings = SETTINGS.model_copy(
        update={"learning_rate": 0.3, "decay": "none", "clip": None, "ema": None}
    )
    module, record = run(tmp_path, settings)
    _, validate = problem(module, settings)
    validations = {r.step: r.validation for r in record.rows if r.validation is not None}
    assert sorted(validations) == [4, 8, 12, 16, 20]
    assert record.best_validation == min(validations.values()) == validations[record.best_step]
    assert validate() == record.best_validation
    assert record.best_step != 20  # else the test shows nothing


def test_one_step_is_the_step_of_adam_as_published(tmp_path):
    """Kingma & Ba 2015, algorithm 1, in float64 NumPy; two steps of a quadratic."""
    start, goal = np.array([1.0, -2.0]), np.array([0.3, 0.4])
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    settings = OptimizerConfig(steps=2, batch_size=1, learning_rate=0.1)
    target = torch.from_numpy(goal)
    training.train(module, lambda s, m: (module.w - target).square().sum(), settings, tmp_path, "adam")
    w, m, v = start.copy(), np.zeros(2), np.zeros(2)
    for step in (1, 2):
        g = 2 * (w - goal)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w -= 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(module.w.detach().numpy(), w, rtol=1e-12)


def test_accumulated_micro_batches_equal_one_big_batch(tmp_path):
    """In float64, and without batch norm, whose statistics are of one micro-batch."""
    x = IMAGES.double()

    def trained(parts: int) -> torch.Tensor:
        module = training.build(lambda: nn.Conv2d(2, 1, 3).double(), "test")
        settings = OptimizerConfig(steps=5, batch_size=8, learning_rate=0.1, accumulate=parts, clip=0.5)

        def loss(step: int, micro: int) -> torch.Tensor:
            size = 8 // parts
            first = step * 2 + micro * size
            return module(x[first : first + size]).square().mean()

        training.train(module, loss, settings, tmp_path / str(parts), "test")
        return module.weight.detach()

    torch.testing.assert_close(trained(4), trained(1), rtol=1e-12, atol=1e-14)


def test_the_average_is_the_recursion_with_a_faster_start(tmp_path):
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros((), dtype=torch.float64))
    seen = []
    settings = OptimizerConfig(steps=30, batch_size=1, learning_rate=0.1, ema=0.8)
    training.train(
        module, lambda s, m: (module.w - 1).square(), settings, tmp_path, "ema",
        on_step=lambda _: seen.append(module.w.item()),
    )  # fmt: skip
    average = 0.0
    for step, w in enumerate(seen, 1):
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * w
    assert module.w.item() == pytest.approx(average, rel=1e-12)


def test_patience_ends_training_after_so_many_validations_without_progress(tmp_path):
    module = network()
    values = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    loss, _ = problem(module, SETTINGS)
    record = training.train(
        module, loss, SETTINGS, tmp_path, "test", validate=lambda: next(values), patience=2
    )
    assert (record.best_step, record.steps) == (8, 16)
    again = training.train(
        network(), loss, SETTINGS, tmp_path, "test", validate=lambda: pytest.fail("went on"), patience=2
    )
    assert (again.best_step, again.steps) == (8, 16)


def test_a_loss_that_is_not_finite_stops_with_step_and_last_good_state(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVING_SHARE", math.inf)
    module = network()
    loss, _ = problem(module, SETTINGS)

    def broken(step: int, micro: int) -> torch.Tensor:
        return loss(step, micro) * (math.nan if step == 10 else 1.0)

    with pytest.raises(
        TedmError, match=r"not finite at step 11\. The last good state is step 9, .*learning_"
    ):
        training.train(module, broken, SETTINGS, tmp_path, "test")
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_validation_loss_that_is_not_finite_stops_too(tmp_path):
    module = network()
    loss, _ = problem(module, SETTINGS)
    with pytest.raises(TedmError, match="validation loss is not finite at step 4"):
        training.train(module, loss, SETTINGS, tmp_path, "test", validate=lambda: math.inf)


def test_no_steps_leave_the_initial_weights(tmp_path):
    module, record = run(tmp_path, SETTINGS.model_copy(update={"steps": 0}))
    assert as_bytes(module) == as_bytes(network())
    assert record.best_step == 0
    assert record.best_validation == pytest.approx(problem(network().eval(), SETTINGS)[1]())


def test_the_log_has_every_validation_and_the_rates_that_were_used(tmp_path):
    _, record = run(tmp_path)
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "validation", "learning_rate", "seconds"]
    assert [int(r["step"]) for r in rows if r["validation"]] == [4, 8, 12, 16, 20]
    for row in rows:
        rate = training.learning_rate(SETTINGS, int(row["step"]) - 1)
        assert float(row["learning_rate"]) == rate
    assert [float(r["loss"]) for r in rows] == [r.loss for r in record.rows]


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero():
    settings = OptimizerConfig(steps=110, learning_rate=2.0, warmup=10, decay="cosine")
    rates = [training.learning_rate(settings, step) for step in range(110)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.2)
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-3
    flat = settings.model_copy(update={"decay": "none"})
    assert {training.learning_rate(flat, step) for step in range(10, 110)} == {2.0}


@given(count=st.integers(1, 30), size=st.integers(1, 40), epochs=st.integers(1, 4))
def test_every_image_is_seen_once_per_epoch(count, size, epochs):
    order = training.Epochs(count, size, "order")
    batches = [order.batch(step) for step in range(-(-count * epochs // size))]
    assert all(len(batch) == size for batch in batches)
    seen = np.concatenate(batches)[: count * epochs].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(count), (epochs, 1)))


@given(count=st.integers(1, 30), size=st.integers(1, 40), step=st.integers(0, 1000))
def test_a_batch_depends_on_its_step_only(count, size, step):
    order = training.Epochs(count, size, "order")
    order.batch(step + 1)
    np.testing.assert_array_equal(order.batch(step), training.Epochs(count, size, "order").batch(step))


def test_initial_weights_depend_on_the_names_only():
    torch.manual_seed(1)
    a = network()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b = network()
    assert as_bytes(a) == as_bytes(b)
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_trains_to_nearly_the_same_loss(tmp_path):
    _, exact = run(tmp_path / "a")
    _, rough = run(tmp_path / "b", SETTINGS.model_copy(update={"precision": "bfloat16"}))
    assert rough.best_validation == pytest.approx(exact.best_validation, rel=0.1)


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiling_compiles_while_it_trains_and_changes_little(tmp_path):
    from torch._dynamo.utils import counters

    _, plain = run(tmp_path / "a")
    counters.clear()
    module, compiled = run(tmp_path / "b", SETTINGS.model_copy(update={"compile": True}))
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled.best_validation == pytest.approx(plain.best_validation, rel=0.1)
    assert "forward" not in vars(module)


def test_without_a_compiler_training_goes_on_with_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    plain, _ = run(tmp_path / "a")
    eager, _ = run(tmp_path / "b", SETTINGS.model_copy(update={"compile": True}))
    assert as_bytes(plain) == as_bytes(eager)
    assert "no C++ compiler" in capsys.readouterr().err


def _trained_by(rank: int, world: int, directory: Path, queue) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(directory / f"store{world}"), world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    module = training.build(lambda: nn.Conv2d(2, 1, 3).double(), "test")
    settings = OptimizerConfig(steps=5, batch_size=8, learning_rate=0.1, accumulate=4, clip=0.5)
    x = IMAGES.double()

    def loss(step: int, micro: int) -> torch.Tensor:
        return module(x[step * 2 + micro * 2 :][:2]).square().mean()

    training.train(module, loss, settings, directory / str(world), "test")
    queue.put(module.weight.detach().numpy())
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_result_of_one_for_the_same_batches(tmp_path):
    context = mp.get_context("fork")
    weights = {}
    for world in (1, 2):
        queue = context.Queue()
        crew = [
            context.Process(target=_trained_by, args=(rank, world, tmp_path, queue))
            for rank in range(world)
        ]
        for process in crew:
            process.start()
        weights[world] = [queue.get(timeout=60) for _ in crew]
        for process in crew:
            process.join(60)
    np.testing.assert_allclose(weights[2][0], weights[1][0], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(weights[2][0], weights[2][1])
