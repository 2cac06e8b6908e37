"""Several processes that train one network together, as torchrun starts them."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from tedm import devices, progress
from tedm.errors import TedmError

BUCKET = 25_000_000  # bytes of gradient in one message; what DistributedDataParallel takes
PATIENCE = timedelta(hours=1)  # for a process that draws samples or writes while the others wait
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOST = (
    "a process of this training ended, or can't be reached any more. Its own message or the machine's log"
    " says why; the same command goes on from the last saved state"
)

T = TypeVar("T")


def processes() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) unless they have been joined."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def joined() -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and give the device of this one.

    Only the first process speaks. Where one fails, it alone says why, and all end with status 1: the others
    notice within seconds that it has gone.

    Raises:
        TedmError: torchrun's variables are incomplete, or there are more processes than GPUs.
    """
    environment = {name: os.environ[name] for name in NEEDED if name in os.environ}
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield devices.usable()
        return
    missing = [name for name in NEEDED if name not in environment]
    if missing:
        raise TedmError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} is not set; start"
            " several processes with torchrun"
        )
    store, rank, world = next(rendezvous("env://"))
    if rank != 0:
        progress.mute()
    try:
        device = devices.usable(int(environment["LOCAL_RANK"]))
        before = signal.signal(signal.SIGTERM, _end)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("tedm", store),
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
        yield device
        dist.destroy_process_group()
        signal.signal(signal.SIGTERM, before)
    except Exception:
        # Not destroyed here: that would wait for a process that has gone.
        if _failed_before(store):
            sys.exit(1)
        raise


def share() -> tuple[tuple[int, int], torch.device]:
    """This process's part of work that processes do apart: (k, n), the k-th of n, and its device.

    Unlike those of `joined` they never wait for each other. Only the first one shows how far it is.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if rank != 0:
        progress.mute()
    return (rank, world), devices.usable(int(os.environ.get("LOCAL_RANK", "0")))


def _end(*_: Any) -> None:
    """What torchrun and schedulers ask for by SIGTERM."""
    raise TedmError(LOST)


def _failed_before(store: Any) -> bool:
    """Whether another process has failed, and has said why."""
    try:
        return bool(store.add("tedm failures", 1) > 1)
    except RuntimeError:  # the store ended with the process that held it
        return False


@contextmanager
def explained() -> Iterator[None]:
    """Turn a lost connection into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise TedmError(LOST) from error


def gathered(values: Tensor) -> Tensor:
    """The values of every process, (processes, …), on every one of them; a barrier, too."""
    _, world = processes()
    if world == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(world)]
    with explained():
        dist.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def in_fixed_order(parts: Sequence[T], add: Callable[[T, T], T]) -> T:
    """Add up parts by halves; an odd number of them one after the other.

    The sum of 2^k blocks of equal length, each added up by this rule, is the sum of all parts by this rule:
    so one process adds up 8 micro-batches to the same bits as 2, 4 or 8 processes.
    """
    if len(parts) % 2 == 0:
        half = len(parts) // 2
        return add(in_fixed_order(parts[:half], add), in_fixed_order(parts[half:], add))
    total = parts[0]
    for part in parts[1:]:
        total = add(total, part)
    return total


class SharedGradients:
    """Gradients of a step, added up over micro-batches and processes in one fixed order.

    Each process owns one part of every message: it gets that part from all (all-to-all), adds the parts
    up by `in_fixed_order` and sends the sum to all (all-gather). The traffic is that of a ring all-reduce,
    whose order of summation depends on the number of processes. The first half runs while the backward
    pass still computes earlier layers.

    Args:
        parameters: of the network, in the order of the forward pass; the same on all processes.
        micro_batches: of this process in each step.
        bucket: bytes of gradient per message.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], micro_batches: int, bucket: int = BUCKET
    ) -> None:
        self.parameters = list(parameters)
        self.rank, self.world = processes()
        self.micro_batches = micro_batches
        odd = micro_batches
        while odd % 2 == 0:
            odd //= 2
        # So many are added up one after the other, by autograd itself, before sums are added by halves.
        self.run = 2 if odd == 1 and micro_batches > 1 else odd
        self.pending: list[dict[int, Tensor]] = []  # sums of earlier runs, oldest first
        self.buckets = self._bucketed(bucket) if self.world > 1 else []
        self.bucket_of = {id(p): b for b in self.buckets for p in b.parameters}
        self.sending = False
        for parameter in self.parameters if self.world > 1 else []:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def backward(self, value: Tensor, micro: int) -> None:
        """Add the gradient of this process's micro-batch 0 … micro_batches-1 of a step.

        After the last one every parameter's `grad` is the sum over all micro-batches of all processes.
        """
        done = micro + 1
        if done < self.micro_batches:
            torch.autograd.backward(value)
            if done % self.run == 0:
                self._set_aside(done // self.run)
            return
        self.sending = self.world > 1
        for bucket in self.buckets:
            bucket.waiting = len(bucket.parameters)
        try:
            torch.autograd.backward(value)
        finally:
            self.sending = False
        if self.world == 1:
            for parameter in self.parameters:
                self._complete(parameter)
        else:
            with explained():
                self._exchange()
        self.pending = []

    def _bucketed(self, size: int) -> "list[_Bucket]":
        buckets: list[list[torch.nn.Parameter]] = []
        filled = size
        for parameter in reversed(self.parameters):  # the order in which the backward pass makes gradients
            changed = bool(buckets) and buckets[-1][0].dtype != parameter.dtype
            if filled >= size or changed:
                buckets.append([])
                filled = 0
            buckets[-1].append(parameter)
            filled += parameter.numel() * parameter.element_size()
        return [_Bucket(parameters, self.world) for parameters in buckets]

    def _set_aside(self, run: int) -> None:
        """Keep the sum of run 1, 2, …, added to those of the runs that make a block with it."""
        taken = {id(p): p.grad for p in self.parameters if p.grad is not None}
        for parameter in self.parameters:
            parameter.grad = None
        while run % 2 == 0:
            taken = _added(self.pending.pop(), taken)
            run //= 2
        self.pending.append(taken)

    def _complete(self, parameter: torch.nn.Parameter) -> None:
        """Add the sums of earlier runs to a parameter's last gradient."""
        for earlier in reversed(self.pending):
            part = earlier.get(id(parameter))
            if part is not None:
                parameter.grad = part if parameter.grad is None else parameter.grad.add_(part)

    def _ready(self, parameter: Tensor) -> None:
        """Called by autograd for each parameter: send every message that is complete, in order."""
        if not self.sending:
            return
        self.bucket_of[id(parameter)].waiting -= 1
        for bucket in self.buckets:
            if bucket.work is not None:
                continue
            if bucket.waiting:
                break
            self._send(bucket)

    def _send(self, bucket: "_Bucket") -> None:
        for parameter in bucket.parameters:
            self._complete(parameter)
        bucket.send()

    def _exchange(self) -> None:
        for bucket in self.buckets:
            if bucket.work is None:  # it has a parameter that the loss doesn't depend on
                self._send(bucket)
        for bucket in self.buckets:
            bucket.sum_up()
        for bucket in self.buckets:
            bucket.receive()


class _Bucket:
    """Gradients that travel in one message."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], world: int) -> None:
        self.parameters = list(parameters)
        self.sizes = [p.numel() for p in parameters]
        self.waiting = len(self.parameters)
        part = -(-sum(self.sizes) // world)
        like = self.parameters[0]
        self.own = torch.zeros(part * world, dtype=like.dtype, device=like.device)  # the last few: padding
        self.theirs = torch.empty_like(self.own)  # one part, as every process has it
        self.work: Any = None

    def send(self) -> None:
        """Start to give every process its part of the gradients of this one."""
        for parameter, place in zip(self.parameters, self.own.split(self._sizes()), strict=False):
            if parameter.grad is None:
                place.zero_()
            else:
                place.view_as(parameter).copy_(parameter.grad)
        with explained():
            self.work = dist.all_to_all_single(self.theirs, self.own, async_op=True)

    def sum_up(self) -> None:
        """Add up the part of this process and start to give the sum to all."""
        self.work.wait()
        _, world = processes()
        total = in_fixed_order(self.theirs.chunk(world), torch.add)
        self.work = dist.all_gather(list(self.own.chunk(world)), total, async_op=True)

    def receive(self) -> None:
        """Put the sums into the parameters' gradients."""
        self.work.wait()
        self.work = None
        for parameter, place in zip(self.parameters, self.own.split(self._sizes()), strict=False):
            if parameter.grad is not None:
                parameter.grad.copy_(place.view_as(parameter))

    def _sizes(self) -> list[int]:
        return [*self.sizes, len(self.own) - sum(self.sizes)]


def _added(earlier: Mapping[int, Tensor], later: Mapping[int, Tensor]) -> dict[int, Tensor]:
    both = dict(earlier)
    for key, value in later.items():
        both[key] = both[key].add_(value) if key in both else value
    return both
