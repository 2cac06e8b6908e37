"""The study's UNet: predicts the noise in an image, and gives its decoder activations as features."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_HEADS = 4
HEAD_CHANNELS = 32
HIDDEN = ATTENTION_HEADS * HEAD_CHANNELS  # of every attention, whatever the width of the network
NORM_GROUPS = 8
COSINE_SCALE = 16.0  # of the middle attention's similarities: its queries and keys are unit vectors


class LayerShape(NamedTuple):
    """Shape of one decoder layer's activation for one image."""

    channels: int
    height: int
    width: int


def sinusoidal_embedding(t: Tensor, channels: int) -> Tensor:
    """Embed timesteps as sines and cosines of geometric frequencies (Vaswani et al. 2017, 3.5).

    Args:
        t: timesteps, (N,).
        channels: size of the embedding, even.

    Returns:
        Sines then cosines, (N, channels), float32.
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / max(half - 1, 1)))
    angles = t[:, None].float() * frequencies[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with a gain and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise (N, pixels, C) over C."""
        return F.layer_norm(tokens, (tokens.shape[-1],), self.gain, None, 1e-5)


class ConvBlock(nn.Module):
    """3×3 convolution, group norm, optional scale and shift by the timestep, SiLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, channels_out)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.conv(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = torch.addcmul(shift, x, scale + 1)
        return F.silu(x)


class ResidualBlock(nn.Module):
    """Two convolution blocks around a skip; the first is conditioned on the timestep."""

    def __init__(self, channels_in: int, channels_out: int, time_channels: int | None) -> None:
        super().__init__()
        self.time = nn.Linear(time_channels, 2 * channels_out) if time_channels else None
        self.block1 = ConvBlock(channels_in, channels_out)
        self.block2 = ConvBlock(channels_out, channels_out)
        self.skip = (
            nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        )

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        scale_shift = None
        if self.time is not None and time is not None:
            scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
            scale_shift = (scale, shift)
        out: Tensor = self.block2(self.block1(x, scale_shift)) + self.skip(x)
        return out


def to_tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H·W, C); free of copies in channels-last memory."""
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, like: Tensor) -> Tensor:
    """(N, H·W, C) → (N, C, H, W) with the height and width of `like`."""
    return tokens.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


class LinearAttention(nn.Module):
    """Attention in time linear in the number of pixels (Shen et al. 2021), around a skip.

    Values and the output projection are linear, so below 128 channels they are applied to the small
    context matrix instead of to every pixel: the same numbers, without two 128-channel images. That
    is most of the network's memory traffic at small widths.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Linear(channels, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, channels)
        self.out_norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(to_tokens(x))
        n, pixels, channels = tokens.shape
        w_q, w_k, w_v = self.qkv.weight.split(HIDDEN)
        # Keys are made pixels-last, so that each softmax runs over contiguous memory; by bmm, because
        # matmul would compute them pixels-first and then copy.
        q = F.linear(tokens, w_q).view(n, pixels, ATTENTION_HEADS, HEAD_CHANNELS).softmax(dim=3)
        k = torch.bmm(w_k.expand(n, -1, -1), tokens.transpose(1, 2)).softmax(dim=2)
        scale = HEAD_CHANNELS**-0.5 / pixels
        if channels >= HIDDEN:
            k = k.view(n, ATTENTION_HEADS, HEAD_CHANNELS, pixels)
            v = F.linear(tokens, w_v).view(n, pixels, ATTENTION_HEADS, HEAD_CHANNELS)
            context = torch.matmul(k, v.transpose(1, 2)) * scale  # (N, heads, 32, 32)
            attended = torch.matmul(q.transpose(1, 2), context)
            out = self.out(attended.transpose(1, 2).flatten(2))
        else:
            summary = torch.bmm(k, tokens).view(n, ATTENTION_HEADS, HEAD_CHANNELS, channels)
            w_v = w_v.view(ATTENTION_HEADS, HEAD_CHANNELS, channels)
            w_out = self.out.weight.view(channels, ATTENTION_HEADS, HEAD_CHANNELS) * scale
            context = torch.einsum("nhac,hbc->nhab", summary, w_v)
            mixing = torch.einsum("nhab,chb->nhac", context, w_out).flatten(1, 2)
            out = torch.baddbmm(self.out.bias, q.flatten(2), mixing)
        return x + to_image(self.out_norm(out), x)


class CosineAttention(nn.Module):
    """Full attention between all pixels on l2-normalised queries and keys, around a skip.

    The authors' code normalises over the pixels, not over the channels of a query; the published
    weights were trained so, and this keeps it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Linear(channels, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(to_tokens(x))).unflatten(2, (3, ATTENTION_HEADS, HEAD_CHANNELS))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, pixels, channels)
        q, k = F.normalize(q, dim=2), F.normalize(k, dim=2)
        attended = F.scaled_dot_product_attention(q, k, v, scale=COSINE_SCALE)
        return x + to_image(self.out(attended.transpose(1, 2).flatten(2)), x)


class Level(nn.Module):
    """Two residual blocks, an attention and a change of resolution."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        skip_channels: int,
        time_channels: int | None,
        resample: nn.Module,
    ) -> None:
        super().__init__()
        middle = channels_out if skip_channels else channels_in
        self.residual1 = ResidualBlock(channels_in + skip_channels, middle, time_channels)
        self.residual2 = ResidualBlock(middle + skip_channels, middle, time_channels)
        self.attention = LinearAttention(middle)
        self.resample = resample


class Upsample(nn.Module):
    """Nearest ×2, then a 3×3 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class UNet(nn.Module):
    """UNet with linear attention at every level (Rosnati et al. 2023, 2.1; 36.2 M parameters at width 64).

    Args:
        width: channels of the first level; a multiple of 8.
        multipliers: of the width, one per level.
        channels: of the image.
        out_channels: of the output; the image's own where noise is predicted.
        time_conditioned: False for the supervised baseline, which has no timestep.
    """

    def __init__(
        self,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        channels: int = 1,
        out_channels: int | None = None,
        time_conditioned: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.multipliers = tuple(multipliers)
        self.channels = channels
        sizes = [width, *(width * m for m in multipliers)]
        pairs = list(pairwise(sizes))
        time = 4 * width if time_conditioned else None

        self.stem = nn.Conv2d(channels, width, 7, padding=3)
        self.time = (
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width))
            if time_conditioned
            else None
        )
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for i, (inner, outer) in enumerate(pairs):
            last = i == len(pairs) - 1
            down = (
                nn.Conv2d(inner, outer, 3, padding=1)
                if last
                else nn.Conv2d(inner, outer, 4, stride=2, padding=1)
            )
            self.encoder.append(Level(inner, outer, 0, time, down))
        for i, (inner, outer) in enumerate(reversed(pairs)):
            last = i == len(pairs) - 1
            up: nn.Module = nn.Conv2d(outer, inner, 3, padding=1) if last else Upsample(outer, inner)
            self.decoder.append(Level(outer, outer, inner, time, up))
        self.middle1 = ResidualBlock(sizes[-1], sizes[-1], time)
        self.middle_attention = CosineAttention(sizes[-1])
        self.middle2 = ResidualBlock(sizes[-1], sizes[-1], time)
        self.final = ResidualBlock(2 * width, width, time)
        self.head = nn.Conv2d(width, channels if out_channels is None else out_channels, 1)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the decoder layers, coarsest first (up0, up1, …)."""
        return tuple(f"up{i}" for i in range(len(self.multipliers)))

    @property
    def reduction(self) -> int:
        """Height and width of an image must be multiples of this."""
        return int(2 ** (len(self.multipliers) - 1))

    def layer_shapes(self, height: int, width: int) -> dict[str, LayerShape]:
        """Shapes of the decoder layers for an image of this size."""
        top = len(self.multipliers) - 1
        return {
            f"up{i}": LayerShape(
                self.width * self.multipliers[top - i],
                height // 2 ** (top - i),
                width // 2 ** (top - i),
            )
            for i in range(top + 1)
        }

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Predict from noisy images (N, C, H, W) at timesteps (N,); returns (N, out_channels, H, W)."""
        out, _ = self._run(x, t, to_output=True)
        return cast(Tensor, out)

    def decode(self, x: Tensor, t: Tensor | None = None, levels: int | None = None) -> dict[str, Tensor]:
        """Decoder activations after each level's attention, before upsampling; no output is computed.

        Args:
            x: images, (N, C, H, W).
            t: timesteps, (N,).
            levels: how many, from the coarsest on; absent: all.
        """
        _, layers = self._run(x, t, to_output=False, levels=levels)
        return dict(zip(self.layers, layers, strict=False))

    def encode(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Activation of the middle, (N, C, h, w): what a contrastive pretraining projects."""
        return self._encode(x, self._embed(t))[0]

    def _embed(self, t: Tensor | None) -> Tensor | None:
        if self.time is None or t is None:
            return None
        weight = self.stem.weight
        return cast(Tensor, self.time(sinusoidal_embedding(t, self.width).to(weight.dtype)))

    def _encode(self, x: Tensor, time: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x = self.stem(x)
        skips = [x]
        for level in cast("list[Level]", self.encoder):
            x = level.residual1(x, time)
            skips.append(x)
            x = level.attention(level.residual2(x, time))
            skips.append(x)
            x = level.resample(x)
        x = self.middle2(self.middle_attention(self.middle1(x, time)), time)
        return x, skips

    def _run(
        self, x: Tensor, t: Tensor | None, to_output: bool, levels: int | None = None
    ) -> tuple[Tensor | None, list[Tensor]]:
        time = self._embed(t)
        x, skips = self._encode(x, time)
        layers: list[Tensor] = []
        wanted = len(self.decoder) if levels is None else levels
        for i, level in enumerate(cast("list[Level]", self.decoder)):
            if i == wanted:
                break
            x = level.residual1(torch.cat((x, skips.pop()), dim=1), time)
            x = level.attention(level.residual2(torch.cat((x, skips.pop()), dim=1), time))
            layers.append(x)
            if to_output or i < wanted - 1:
                x = level.resample(x)
        if not to_output:
            return None, layers
        x = self.final(torch.cat((x, skips.pop()), dim=1), time)
        return self.head(x), layers
