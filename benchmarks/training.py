"""Seconds of a training step and a forward pass: this project's loop against a plain eager float32 one.

python benchmarks/training.py --width 64 --size 128 --batch 4
"""

import argparse
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from features import smooth_images
from textbook import textbook
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tedm import memory, unet
from tedm.checkpoint import channels_last
from tedm.config import DDPMConfig, OptimizerConfig
from tedm.data.prepared import PreparedSet
from tedm.diffusion.schedule import Schedule
from tedm.diffusion.train import Training
from tedm.training import train
from tedm.unlabelled import TrainingImages

IMAGES = 256
MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the product that stands for the device's peak


class Finished(BaseException):
    """The referee has seen enough."""


class Clock:
    """Answers the referee's requests with seconds; a step is timed from the request to its end."""

    def __init__(self, referee: Connection, steps: int, device: str) -> None:
        self.referee, self.steps, self.device = referee, steps, device
        self.began, self.done = 0.0, 0

    def forwards(self, run: Callable[[], object]) -> None:
        """Time forward passes until a step is asked for."""
        while self.referee.recv() == "forward":
            began = time.perf_counter()
            for _ in range(self.steps):
                run()
            self._synchronise()
            self.referee.send((time.perf_counter() - began) / self.steps)
        self.began = time.perf_counter()

    def stepped(self, _done: int = 0) -> None:
        """Called after each training step."""
        self.done += 1
        if self.done % self.steps:
            return
        self._synchronise()
        self.referee.send((time.perf_counter() - self.began) / self.steps)
        if self.referee.recv() == "end":
            raise Finished
        self.began = time.perf_counter()

    def _synchronise(self) -> None:
        if self.device == "cuda":  # so several steps are timed at once there
            torch.cuda.synchronize()


def ours(referee: Connection, arguments: argparse.Namespace) -> None:
    """The loop of `tedm train`, with images read from a prepared file."""
    memory.keep_freed()  # as every command does
    begin(arguments)
    settings = DDPMConfig(
        type="ddpm",
        data="images",
        width=arguments.width,
        training=OptimizerConfig(
            batch_size=arguments.batch,
            precision=arguments.precision,
            compile=arguments.compile,
            validate_every=10**9,
            save_every=10**9,
        ),
    )
    clock = Clock(referee, arguments.steps, arguments.device)
    waited, read = Stopwatch(), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        file = smooth_images(Path(folder, "images.h5"), IMAGES, arguments.size)
        with PreparedSet(file) as data:
            device = torch.device(arguments.device)
            training = Training(data, settings, 0, Path(folder, "out"), "ours", device)
            training.images = TrainingImages(data, training.images.rows, device, limit=0)
            # mypy: a method is replaced, to be timed.
            data.images = read.of(data.images)  # type: ignore[method-assign]
            training.images.batch = waited.of(training.images.batch)  # type: ignore[method-assign]
            clock.forwards(forwarder(training.network, arguments, torch.channels_last))
            waited.seconds = read.seconds = 0.0
            try:
                train(
                    training.network,
                    training.loss,
                    training.optimizer,
                    Path(folder, "state"),
                    "ours",
                    on_step=clock.stepped,
                )
            except Finished:
                referee.send((waited.seconds / clock.done, read.seconds / clock.done))


def plain(referee: Connection, arguments: argparse.Namespace) -> None:
    """What a script does: the textbook network, contiguous float32, Adam, images in memory."""
    begin(arguments)
    network = textbook(unet.UNet(arguments.width)).to(arguments.device)
    clock = Clock(referee, arguments.steps, arguments.device)
    clock.forwards(forwarder(network, arguments, torch.contiguous_format))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    schedule = Schedule(1000, "cosine", arguments.device)
    images = torch.rand(IMAGES, 1, arguments.size, arguments.size, device=arguments.device) * 2 - 1
    try:
        while True:
            x0 = images[torch.randint(IMAGES, (arguments.batch,), device=arguments.device)]
            t = torch.randint(schedule.timesteps, (arguments.batch,), device=arguments.device)
            noise = torch.randn_like(x0)
            optimizer.zero_grad()
            F.l1_loss(network(schedule.diffuse(x0, t, noise), t), noise).backward()
            optimizer.step()
            clock.stepped()
    except Finished:
        referee.send((0.0, 0.0))


class Stopwatch:
    """Adds up the seconds that a function takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def begin(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)


def forwarder(
    network: nn.Module, arguments: argparse.Namespace, layout: torch.memory_format
) -> Callable[[], object]:
    """One forward pass without gradient, float32."""
    shape = (arguments.batch, 1, arguments.size, arguments.size)
    x = torch.rand(shape, device=arguments.device).contiguous(memory_format=layout)
    t = torch.full((arguments.batch,), 50, device=arguments.device)

    def forward() -> Tensor:
        with torch.no_grad():
            result: Tensor = network(x, t)
            return result

    return forward


def difference(arguments: argparse.Namespace) -> float:
    """Largest difference of the two networks' outputs, as a share of the largest output."""
    network = channels_last(unet.UNet(arguments.width))
    images = torch.rand(2, 1, arguments.size, arguments.size) * 2 - 1
    with torch.no_grad():
        expected = textbook(network)(images, torch.tensor([1, 500]))
        found = network(images, torch.tensor([1, 500]))
    return float((found - expected).abs().max() / expected.abs().max())


def operations(arguments: argparse.Namespace) -> int:
    """Floating-point operations of a step's forward and backward pass, as PyTorch counts them."""
    network = unet.UNet(arguments.width)
    x, t = torch.rand(1, 1, arguments.size, arguments.size), torch.tensor([50])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(x, t).mean().backward()
    return int(counter.get_total_flops()) * int(arguments.batch)


def peak(arguments: argparse.Namespace) -> float:
    """Operations per second of a large matrix product in the precision of our training."""
    dtype = getattr(torch, arguments.precision)
    n = MATRIX[arguments.device]
    a, b = torch.randn(2, n, n, device=arguments.device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.matmul(a, b)
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return float(2 * n**3 / best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--width", type=int, default=16, help="channels of the first level")
    parser.add_argument("--size", type=int, default=40, help="pixels")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs; medians are shown")
    parser.add_argument("--steps", type=int, default=20 if gpu else 1, help="training steps per run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu")
    parser.add_argument("--precision", default="bfloat16" if gpu else "float32", help="of our training")
    parser.add_argument("--compile", action="store_true", default=gpu, help="our training")
    arguments = parser.parse_args()
    begin(arguments)
    agreement = difference(arguments)
    if not agreement < 1e-4:
        raise SystemExit(f"the two networks differ by {agreement:.1e} of the largest output")

    rows, (waited, read) = compete(arguments)
    parameters = sum(p.numel() for p in unet.UNet(arguments.width).parameters()) / 1e6
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    print(
        f"Width {arguments.width} ({parameters:.1f} M parameters), {arguments.size}×{arguments.size}, batch"
        f" {arguments.batch}, {arguments.threads} threads, {where}, {arguments.precision}, torch"
        f" {torch.__version__}; medians of {arguments.repeats} pairs; outputs agree to {agreement:.0e}.\n"
    )
    print("| | tedm, s | plain eager float32, s | plain / tedm | tedm, images/s |\n|---|--:|--:|--:|--:|")
    for name, (mine, theirs, ratio) in rows.items():
        print(f"| {name} | {mine:.3f} | {theirs:.3f} | {ratio:.2f} | {arguments.batch / mine:.1f} |")
    step = rows["training step"][0]
    share = operations(arguments) / step / peak(arguments)
    print(
        f"\nInput from HDF5: reading a batch takes {1000 * read:.1f} ms, beside the computing; the loop"
        f" waits {1000 * waited:.1f} ms for it, {waited / step:.1%} of a step. A step runs at {share:.0%}"
        f" of the rate of a {MATRIX[arguments.device]}² matrix product in {arguments.precision}."
    )


def compete(
    arguments: argparse.Namespace,
) -> tuple[dict[str, tuple[float, float, float]], tuple[float, float]]:
    """Median seconds of both and of their ratios, and our seconds of waiting for and reading input.

    Each has a process of its own, so that neither computes with the other's memory settings; they take
    turns, so that a busy machine slows both alike.
    """
    context = multiprocessing.get_context("spawn")
    pipes, crew = [], []
    for contestant in (ours, plain):
        here, there = context.Pipe()
        process = context.Process(target=contestant, args=(there, arguments))
        process.start()
        there.close()
        pipes.append(here)
        crew.append(process)
    rows = {}
    for what in ("forward", "step"):
        taken: tuple[list[float], list[float]] = ([], [])
        for i in range(-1, arguments.repeats):
            for which in (0, 1) if i % 2 else (1, 0):
                pipes[which].send(what)
                seconds = pipes[which].recv()
                if i >= 0:  # the first is a warm-up
                    taken[which].append(seconds)
        ratios = [b / a for a, b in zip(*taken, strict=True)]
        mine, theirs = (statistics.median(t) for t in taken)
        name = "forward pass" if what == "forward" else "training step"
        rows[name] = (mine, theirs, statistics.median(ratios))
    for pipe in pipes:
        pipe.send("end")
    input_seconds, _ = (pipe.recv() for pipe in pipes)
    for process in crew:
        process.join()
    return rows, input_seconds


if __name__ == "__main__":
    main()
