"""The one training loop: exact resume, validation, weight averaging, mixed precision, a log of losses."""

import contextlib
import csv
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tedm import distributed, files
from tedm.adam import Adam
from tedm.config import OptimizerConfig
from tedm.digests import digest_of
from tedm.distributed import processes
from tedm.errors import DivergedError, TedmError
from tedm.progress import say, stage
from tedm.seeds import generator, seed_of

STATE_FILE = "state.safetensors"
SAVING_SHARE = 0.05  # of the time, at most: a state that is slow to write is written less often

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class LogRow:
    """What one line of the log says."""

    step: int  # optimizer steps done
    loss: float  # mean over the steps since the row before
    validation: float | None  # loss on the validation images; absent between validations
    learning_rate: float
    seconds: float  # of training up to here, over all resumed runs


@dataclass
class TrainingLog:
    """What a training did."""

    rows: list[LogRow] = field(default_factory=list)
    steps: int = 0  # optimizer steps done
    best_step: int | None = None  # after which the kept weights were reached; absent without validation
    best_validation: float | None = None
    resumed_from: int = 0  # step at which this run took over; 0: from the start
    seconds: float = 0.0  # of training, over all resumed runs


def torch_generator(*names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for everything that is drawn under these names.

    The same names give the same numbers on every CPU; a GPU draws other numbers, its own every time.
    """
    return torch.Generator(device).manual_seed(seed_of(*names))


def build(make: Callable[[], Module], *names: str | int) -> Module:
    """Make a module whose random initial weights depend on the names alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*names, "initial weights"))
        return make()


class Epochs:
    """Which images each step sees: every one once per epoch, in an order drawn for the epoch.

    Args:
        count: images.
        batch_size: images per step.
        names: of the draw.
    """

    def __init__(self, count: int, batch_size: int, *names: str | int) -> None:
        self.count, self.batch_size, self.names = count, batch_size, names
        self.order: dict[int, npt.NDArray[np.int64]] = {}

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Positions of the step's images, (batch_size,), each 0 … count-1."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(places, self.count)
        wanted = np.unique(epochs).tolist()
        self.order = {
            e: self.order[e]
            if e in self.order
            else generator(*self.names, "epoch", e).permutation(self.count)
            for e in wanted
        }
        return np.array([self.order[e][i] for e, i in zip(epochs.tolist(), within.tolist(), strict=True)])


def check_batches(settings: OptimizerConfig, where: str = "training") -> None:
    """Refuse micro-batches of different sizes, and more processes than have micro-batches to compute.

    Args:
        settings: of the optimizer.
        where: the YAML path of these settings.
    """
    if settings.batch_size % settings.accumulate:
        # Their mean would not be the mean of the step.
        raise TedmError(
            f"{where}.accumulate: {settings.accumulate} micro-batches don't divide the batch of"
            f" {settings.batch_size} evenly; change one of them"
        )
    _, world = processes()
    if settings.accumulate % world:
        raise TedmError(
            f"{where}.accumulate: {settings.accumulate} micro-batches per step can't be shared by {world}"
            f" processes; make it a multiple of {world} that divides batch_size {settings.batch_size}"
        )


def learning_rate(settings: OptimizerConfig, step: int) -> float:
    """Rate of the step with this number (from 0): warm-up, then constant or a half cosine down to 0."""
    rate = settings.learning_rate
    if step < settings.warmup:
        return rate * (step + 1) / settings.warmup
    if settings.decay == "cosine":
        progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
        return rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return rate


def train(
    module: nn.Module,
    loss: Callable[[int, int], Tensor],
    settings: OptimizerConfig,
    state: Path,
    label: str,
    *,
    identity: object = None,
    validate: Callable[[], float] | None = None,
    patience: int | None = None,
    log: Path | None = None,
    tensorboard: Path | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainingLog:
    """Train with Adam (Kingma & Ba 2015), or go on from where a killed run stopped.

    A run that is killed and resumed gives the weights of an undisturbed run, on the CPU bit for bit:
    the state holds weights, moments, average and best weights, and the loss draws from named seeds.

    Several processes (see `tedm.distributed`) share the micro-batches of a step and add their gradients
    up in a fixed order: 1, 2, 4, 8 … processes give the same bits on CPUs of one kind with as many threads
    each, and may resume each other's states. Any other number differs in the last bits.

    Args:
        module: trained in place. On return it holds the weights with the lowest validation loss (of
            their average where `settings.ema` asks for one); without `validate`, the last ones.
        loss: `loss(step, micro)` draws micro-batch 0 … accumulate-1 of step 0 … steps-1 itself, from
            seeds named by both numbers, and returns its mean loss, a scalar with gradient.
        settings: of the optimizer.
        state: directory of the resumable state; the last one stays when training is complete.
        label: what is trained, for people.
        identity: anything JSON that the result also depends on (data digest, seed …). A state that was
            made with another identity, other settings or other shapes is not resumed.
        validate: loss on the validation images; called every `validate_every` steps and at the end,
            without gradient and with the module in evaluation mode. Must not draw from global seeds, and
            must return the same value on all processes.
        patience: validations without progress after which training stops; absent: never.
        log: CSV of the losses: step, loss, validation, learning_rate, seconds.
        tensorboard: directory of a TensorBoard log; written only where it is installed.
        on_step: called with the number of steps done after each of them.

    Returns:
        Losses, and which step's weights were kept.

    Raises:
        DivergedError: a loss is not finite.
        TedmError: the state cannot be read; processes don't divide micro-batches.
    """
    check_batches(settings, f"{label}: training")
    run = _Run(module, settings, state, label, identity)
    run.resume()
    rank, _ = processes()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_compiled(module, settings))
        writer = stack.enter_context(_tensorboard(tensorboard if rank == 0 else None, run.record.steps))
        shown = stack.enter_context(stage(label, settings.steps, "steps", run.record.steps))
        run.loop(loss, validate, patience, log if rank == 0 else None, writer, on_step, shown.advance)
    run.keep_best()
    return run.record


class _Run:
    """A training under way: what is saved, and how it moves by one step."""

    def __init__(
        self, module: nn.Module, settings: OptimizerConfig, state: Path, label: str, identity: object
    ) -> None:
        self.module, self.settings, self.label = module, settings, label
        self.file = state / STATE_FILE
        self.record = TrainingLog()
        self.parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = Adam(self.parameters.values())
        rank, world = processes()
        share = settings.accumulate // world
        self.micro_batches = range(rank * share, (rank + 1) * share)
        self.gradients = distributed.SharedGradients(list(self.parameters.values()), share)
        self.average = _copy(module) if settings.ema is not None else None
        self.best: dict[str, Tensor] | None = None
        # Sum of losses since the last row, its number of steps, and the first step that was not finite:
        # tensors, so that a GPU never waits for the host.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.loss_count = 0
        self.broken_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.saved_step, self.saved_at, self.saving_cost = 0, time.monotonic(), 0.0
        free = {"save_every"} | ({"steps"} if settings.decay == "none" else set())
        self.digest = digest_of(
            {
                "settings": settings.model_dump(mode="json", exclude=free),
                "shapes": {k: list(v.shape) for k, v in module.state_dict().items()},
                "identity": identity,
            }
        )

    # ── steps ──

    def loop(
        self,
        loss: Callable[[int, int], Tensor],
        validate: Callable[[], float] | None,
        patience: int | None,
        log: Path | None,
        writer: Any,
        on_step: Callable[[int], None] | None,
        advance: Callable[[int, str], None],
    ) -> None:
        settings, record = self.settings, self.record
        before, started = record.seconds, time.monotonic()
        self.module.train()
        while record.steps < settings.steps and not self._exhausted(patience):
            rate = self._step(loss)
            done, last = record.steps, record.steps == settings.steps
            record.seconds = before + time.monotonic() - started
            note = ""
            validating = validate is not None and done % settings.validate_every == 0
            if validating or done % _row_every(done) == 0:
                row = self._row(rate, validate if validating else None)
                note = f"loss {row.loss:.4g}"
                if writer is not None:
                    _to_tensorboard(writer, row)
            saved = self._save_if_due(last)
            if log is not None and (saved or validating):
                write_log(log, record.rows)
            advance(1, note)
            if on_step is not None:
                on_step(done)
        self._check_finite()
        if self.saved_step < record.steps:  # patience ended it
            self._save()
        self._close(validate, writer)
        if log is not None:  # also where no step was left to do: the log may have been deleted
            write_log(log, record.rows)

    def _close(self, validate: Callable[[], float] | None, writer: Any) -> None:
        """Log and validate the last step, where neither was due.

        The saved state knows nothing of it, so that a training that goes on to more steps is the one that
        had them from the start.
        """
        record = self.record
        if record.steps == 0:
            if validate is not None:
                record.best_validation, record.best_step = self._validated(validate), 0
            return
        last = record.rows[-1] if record.rows and record.rows[-1].step == record.steps else None
        if last is not None and (validate is None or last.validation is not None):
            return
        row = self._row(learning_rate(self.settings, record.steps - 1), validate)
        if last is not None:  # the losses since the row before are in it already
            row = replace(last, validation=row.validation)
            record.rows[-2:] = [row]
        if writer is not None:
            _to_tensorboard(writer, row)

    def _step(self, loss: Callable[[int, int], Tensor]) -> float:
        settings, step = self.settings, self.record.steps
        rate = learning_rate(settings, step)
        self.optimizer.zero_grad()
        values = []
        for i, micro in enumerate(self.micro_batches):
            with self.autocast():
                value = loss(step, micro) / settings.accumulate
            self.gradients.backward(value, i)
            values.append(value.detach().double())
        everyone = distributed.gathered(torch.stack(values)).flatten()
        total = distributed.in_fixed_order(everyone.unbind(), torch.add)
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip)
        self.broken_step = torch.where(
            torch.isfinite(total) | (self.broken_step >= 0), self.broken_step, step + 1
        )
        if self.device.type == "cpu":
            self._check_finite()
        self.optimizer.step(rate)
        self.loss_sum += total
        self.loss_count += 1
        self.record.steps = step + 1
        if self.average is not None:
            self._move_average()
        return rate

    def _move_average(self) -> None:
        """Move the average towards the weights; in the first steps faster, so that it forgets the start."""
        assert self.settings.ema is not None
        assert self.average is not None
        decay = min(self.settings.ema, (1 + self.record.steps) / (10 + self.record.steps))
        current = self.module.state_dict()
        smooth = [k for k, v in current.items() if v.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.average[k] for k in smooth], [current[k] for k in smooth], weight=1.0 - decay
            )
            for k in current.keys() - set(smooth):
                self.average[k].copy_(current[k])

    def autocast(self) -> torch.autocast:
        """The precision that the settings ask for."""
        wanted = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    def _check_finite(self) -> None:
        step = int(self.broken_step)
        if step >= 0:
            self._not_finite("loss", step)

    def _not_finite(self, what: str, step: int) -> None:
        saved = self._saved_step()
        kept = (
            f"The last good state is step {saved}, {self.file}" if saved else "No state has been saved yet"
        )
        raise DivergedError(
            f"{self.label}: the {what} is not finite at step {step}. {kept}. Lower training.learning_rate,"
            " set training.clip or training.warmup, or use precision: float32; and look at the images."
        )

    # ── validation ──

    def _row(self, rate: float, validate: Callable[[], float] | None) -> LogRow:
        self._check_finite()
        record = self.record
        validation = None
        if validate is not None:
            validation = self._validated(validate)
            if record.best_validation is None or validation < record.best_validation:
                record.best_validation, record.best_step = validation, record.steps
                self.best = {k: v.detach().clone() for k, v in (self.average or self._weights()).items()}
        loss = float(self.loss_sum) / max(1, self.loss_count)
        row = LogRow(record.steps, loss, validation, rate, round(record.seconds, 3))
        record.rows.append(row)
        self.loss_sum.zero_()
        self.loss_count = 0
        return row

    def _validated(self, validate: Callable[[], float]) -> float:
        current = None
        if self.average is not None:
            current = _copy(self.module)
            _fill(self.module, self.average)
        self.module.eval()
        with torch.no_grad(), self.autocast():
            value = float(validate())
        self.module.train()
        if current is not None:
            _fill(self.module, current)
        if not math.isfinite(value):
            self._not_finite("validation loss", self.record.steps)
        return value

    def _exhausted(self, patience: int | None) -> bool:
        if patience is None or self.record.best_step is None:
            return False
        steps = [row.step for row in self.record.rows if row.validation is not None]
        return sum(step > self.record.best_step for step in steps) >= patience

    def keep_best(self) -> None:
        """Leave in the module what the training is for, and forget its gradients."""
        kept = self.best or self.average
        if kept is not None:
            _fill(self.module, kept)
        self.optimizer.zero_grad()
        self.module.eval()

    # ── state ──

    def _weights(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def _save_if_due(self, last: bool) -> bool:
        due = self.record.steps % self.settings.save_every == 0
        affordable = self.saving_cost <= SAVING_SHARE * (time.monotonic() - self.saved_at)
        if last or (due and affordable):
            self._check_finite()
            self._save()
            return True
        return False

    def _save(self) -> None:
        if processes()[0] != 0:
            return
        began = time.monotonic()
        tensors = {f"weights/{k}": v for k, v in self._weights().items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"adam/{name}/{k}": v for k, v in self.optimizer.state.get(parameter, {}).items()}
        tensors |= {f"average/{k}": v for k, v in (self.average or {}).items()}
        tensors |= {f"best/{k}": v for k, v in (self.best or {}).items()}
        tensors["loss_sum"] = self.loss_sum
        record = asdict(self.record) | {"loss_count": self.loss_count, "digest": self.digest}
        # As bytes: save_file hides the reason of a failure, a full disk say, from files.whole.
        content = save(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            {"training": json.dumps(record)},
        )
        with files.whole(self.file) as partial:
            partial.write_bytes(content)
        self.saved_step, self.saved_at = self.record.steps, time.monotonic()
        self.saving_cost = self.saved_at - began

    def _saved_step(self) -> int:
        """Steps of the state on disk, which the first process saves; 0 without one of this training."""
        with contextlib.suppress(SafetensorError, KeyError, ValueError, OSError):
            with safe_open(self.file, "pt", device="cpu") as saved:
                record = json.loads((saved.metadata() or {})["training"])
            return int(record["steps"]) if record["digest"] == self.digest else 0
        return 0

    def resume(self) -> None:
        """Take over the state of an earlier run, if there is one and it belongs to this training."""
        self._take_over()
        begun = seed_of(self.digest, self.record.steps)
        if len(distributed.gathered(torch.tensor([begun], device=self.device)).unique()) > 1:
            raise TedmError(
                f"{self.label}: the processes were given different settings, data or states; start all of"
                f" them with one command, on one file system, where {self.file} is the same file"
            )

    def _take_over(self) -> None:
        if not self.file.exists():
            return
        try:
            with safe_open(self.file, "pt", device="cpu") as saved:
                record = json.loads((saved.metadata() or {})["training"])
                if record.pop("digest") != self.digest or record["steps"] > self.settings.steps:
                    say(f"{self.label}: {self.file} is of other settings, weights or data; starting afresh")
                    return
                groups: dict[str, dict[str, Tensor]] = {
                    "weights": {},
                    "adam": {},
                    "average": {},
                    "best": {},
                }
                for key in saved.keys():  # noqa: SIM118 (not a dict)
                    group, _, name = key.partition("/")
                    if name:
                        groups[group][name] = saved.get_tensor(key)
                self.loss_sum.copy_(saved.get_tensor("loss_sum"))
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise TedmError(
                f"{self.file}: the saved state can't be read ({error}); delete it to start afresh"
            ) from error
        _fill(self.module, groups["weights"])
        if self.average is not None:
            self._into(self.average, groups["average"])
        if groups["best"]:
            self.best = {k: v.detach().clone() for k, v in self._weights().items()}
            self._into(self.best, groups["best"])
        for name, parameter in self.parameters.items():
            if f"{name}/step" not in groups["adam"]:  # the loss doesn't depend on it
                continue
            moments = {k: torch.empty_like(parameter) for k in ("exp_avg", "exp_avg_sq")}
            for k, v in moments.items():
                v.detach().copy_(groups["adam"][f"{name}/{k}"])
            step = groups["adam"][f"{name}/step"].to(self.device)
            self.optimizer.state[parameter] = {"step": step, **{k: v.detach() for k, v in moments.items()}}
        self.loss_count = record.pop("loss_count")
        rows = [LogRow(**row) for row in record.pop("rows")]
        self.record = TrainingLog(**(record | {"rows": rows, "resumed_from": record["steps"]}))
        self.saved_step = self.record.steps
        say(f"{self.label}: going on from step {self.record.steps} of {self.settings.steps}")

    @staticmethod
    def _into(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
        for k, v in target.items():
            v.copy_(source[k])


def write_log(path: Path, rows: list[LogRow]) -> None:
    """Write the losses as CSV; validation is empty in rows between validations."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "loss", "validation", "learning_rate", "seconds"])
    for row in rows:
        shown = "" if row.validation is None else repr(row.validation)
        writer.writerow([row.step, repr(row.loss), shown, repr(row.learning_rate), f"{row.seconds:.3f}"])
    files.write_text(path, text.getvalue())


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the module's own tensors, which keep their place and memory format."""
    with torch.no_grad():
        for k, v in module.state_dict().items():
            v.copy_(tensors[k])


def _row_every(step: int) -> int:
    """Steps between rows of the log around this step: about a hundredth of it.

    It depends on nothing that a longer training has more of.
    """
    return int(10 ** max(0, len(str(step)) - 2))


@contextlib.contextmanager
def _compiled(module: nn.Module, settings: OptimizerConfig) -> Iterator[None]:
    """Compile the module's forward pass while the block runs, where the machine can."""
    wanted = settings.compile and settings.steps > 0
    device = next(module.parameters()).device.type
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if wanted and device == "cpu" and compiler is None:
        say("training.compile: no C++ compiler found; training goes on without compiling")
        wanted = False
    if not wanted:
        yield
        return
    # Not module.compile(): torch 2.13 then goes on eagerly without a word.
    module.forward = torch.compile(module.forward)
    try:
        yield
    finally:
        del module.forward


@contextlib.contextmanager
def _tensorboard(directory: Path | None, step: int) -> Iterator[Any]:
    if directory is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield None
        return
    writer = SummaryWriter(str(directory), purge_step=step)
    try:
        yield writer
    finally:
        writer.close()


def _to_tensorboard(writer: Any, row: LogRow) -> None:
    writer.add_scalar("loss", row.loss, row.step)
    writer.add_scalar("learning_rate", row.learning_rate, row.step)
    if row.validation is not None:
        writer.add_scalar("validation", row.validation, row.step)
