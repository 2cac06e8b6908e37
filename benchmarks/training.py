"""Seconds of a training step and a forward pass: ours against a plain loop of the textbook network."""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tedm import unet
from tedm.checkpoint import channels_last
from tedm.diffusion.schedule import Schedule

HEADS, CHANNELS = unet.ATTENTION_HEADS, unet.HEAD_CHANNELS


class TextbookChannelNorm(unet.ChannelNorm):
    """Mean and variance over the channel axis of an image, written out."""

    def forward(self, tokens: Tensor) -> Tensor:
        variance = tokens.var(dim=1, unbiased=False, keepdim=True)
        mean = tokens.mean(dim=1, keepdim=True)
        return (tokens - mean) * (variance + 1e-5).rsqrt() * self.gain[None, :, None, None]


def heads_of(qkv: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values by a 1×1 convolution, each (N, heads, channels, pixels)."""
    mixed = F.conv2d(x, qkv.weight[:, :, None, None])
    return tuple(part.reshape(len(x), HEADS, CHANNELS, -1) for part in mixed.chunk(3, dim=1))


class TextbookLinearAttention(unet.LinearAttention):
    """Linear attention as it is usually written: 1×1 convolutions and two einsums at image size."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads_of(self.qkv, self.norm(x))
        q, k = q.softmax(dim=-2) * CHANNELS**-0.5, k.softmax(dim=-1)
        v = v / (x.shape[2] * x.shape[3])
        context = torch.einsum("b h d n, b h e n -> b h d e", k, v)
        out = torch.einsum("b h d e, b h d n -> b h e n", context, q)
        out = out.reshape(len(x), HEADS * CHANNELS, *x.shape[2:])
        out = F.conv2d(out, self.out.weight[:, :, None, None], self.out.bias)
        return x + cast(Tensor, self.out_norm(out))


class TextbookCosineAttention(unet.CosineAttention):
    """Full attention with its matrix of all pairs of pixels."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads_of(self.qkv, self.norm(x))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        similarity = torch.einsum("b h d i, b h d j -> b h i j", q, k) * unet.COSINE_SCALE
        out = torch.einsum("b h i j, b h d j -> b h i d", similarity.softmax(dim=-1), v)
        out = out.permute(0, 1, 3, 2).reshape(len(x), HEADS * CHANNELS, *x.shape[2:])
        return x + F.conv2d(out, self.out.weight[:, :, None, None], self.out.bias)


TEXTBOOK: dict[type[nn.Module], type[nn.Module]] = {
    unet.ChannelNorm: TextbookChannelNorm,
    unet.LinearAttention: TextbookLinearAttention,
    unet.CosineAttention: TextbookCosineAttention,
}


def textbook(network: unet.UNet) -> unet.UNet:
    """A network with the same weights, computed in the plain way and in contiguous memory."""
    plain = unet.UNet(network.width, network.multipliers, network.channels)
    plain.load_state_dict(network.state_dict())
    for module in plain.modules():
        module.__class__ = TEXTBOOK.get(type(module), type(module))
    return plain


def trainer(
    network: unet.UNet, images: Tensor, memory: torch.memory_format, fused: bool
) -> Callable[[], object]:
    """One training step: diffuse, predict, L1, backward, Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=fused)
    schedule, generator = Schedule(1000, "cosine"), torch.Generator().manual_seed(0)

    def step() -> None:
        t = torch.randint(schedule.timesteps, (len(images),), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        x_t = schedule.diffuse(images, t, noise).contiguous(memory_format=memory)
        optimizer.zero_grad(set_to_none=True)
        F.l1_loss(network(x_t, t), noise).backward()
        optimizer.step()

    return step


def forwarder(network: unet.UNet, images: Tensor, memory: torch.memory_format) -> Callable[[], object]:
    """One forward pass without gradient."""
    x, t = images.contiguous(memory_format=memory), torch.full((len(images),), 50)

    def forward() -> None:
        with torch.no_grad():
            network(x, t)

    return forward


def paired(
    ours: Callable[[], object], plain: Callable[[], object], repeats: int
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratios of neighbours in time."""
    for run in (ours, plain):
        run()
    seconds: tuple[list[float], list[float]] = [], []
    for i in range(repeats):
        for which in (0, 1) if i % 2 else (1, 0):  # taking turns: a busy machine slows both alike
            began = time.perf_counter()
            (ours, plain)[which]()
            seconds[which].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return statistics.median(seconds[0]), statistics.median(seconds[1]), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=16, help="channels of the first level")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs; medians are shown")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    ours = channels_last(unet.UNet(arguments.width))
    plain = textbook(ours)
    images = torch.rand(arguments.batch, 1, arguments.size, arguments.size) * 2 - 1
    t = torch.arange(arguments.batch)
    with torch.no_grad():
        expected = plain(images, t)
        difference = float((ours(images, t) - expected).abs().max() / expected.abs().max())
    if not difference < 1e-4 or math.isnan(difference):
        raise SystemExit(f"the two networks differ by {difference:.1e} of the largest output")

    last, contiguous = torch.channels_last, torch.contiguous_format
    rows = {
        "forward pass": paired(
            forwarder(ours, images, last), forwarder(plain, images, contiguous), arguments.repeats
        ),
        "training step": paired(
            trainer(ours, images, last, fused=True),
            trainer(plain, images, contiguous, fused=False),
            arguments.repeats,
        ),
    }
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    print(
        f"Width {arguments.width} ({millions:.1f} M parameters), {arguments.size}×{arguments.size}, batch"
        f" {arguments.batch}, {arguments.threads} threads, {platform.machine()}, torch {torch.__version__};"
        f" medians of {arguments.repeats} pairs; outputs agree to {difference:.0e}.\n"
    )
    print("| | tedm, s | plain eager float32, s | plain / tedm | tedm, images/s |\n|---|---|---|---|---|")
    for name, (mine, theirs, ratio) in rows.items():
        print(f"| {name} | {mine:.3f} | {theirs:.3f} | {ratio:.2f} | {arguments.batch / mine:.1f} |")


if __name__ == "__main__":
    main()
