"""The study's UNet as textbooks write it: what the benchmarks call plain eager PyTorch."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tedm import unet

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
