"""The UNet's parts against plain definitions, and the size of the study's network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tedm import unet
from tedm.unet import UNet


def test_the_network_of_the_study_has_36_2_million_parameters():
    assert round(sum(p.numel() for p in UNet(64).parameters()) / 1e6, 1) == 36.2


def test_the_layers_of_the_study_are_960_channels():
    shapes = UNet(64).layer_shapes(128, 128)
    assert shapes == {
        "up0": (512, 16, 16),
        "up1": (256, 32, 32),
        "up2": (128, 64, 64),
        "up3": (64, 128, 128),
    }
    assert sum(s.channels for s in shapes.values()) == 960


def draw_module(make, seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make().double()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return module


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def channel_norm(x: np.ndarray, gain: torch.Tensor) -> np.ndarray:
    """(N, C, H, W) over C."""
    mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gain.detach().numpy()[None, :, None, None]


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def qkv(module, x: np.ndarray) -> list[np.ndarray]:
    """Each (N, heads, 32, pixels)."""
    normed = channel_norm(x, module.norm.gain)
    mixed = np.einsum("oc,nchw->nohw", module.qkv.weight.detach().numpy(), normed)
    return [part.reshape(len(x), 4, 32, -1) for part in np.split(mixed, 3, axis=1)]


def projected(module, attended: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(N, heads, 32, pixels) → (N, C, H, W)."""
    flat = attended.reshape(len(x), 128, *x.shape[2:])
    out = np.einsum("co,nohw->nchw", module.out.weight.detach().numpy(), flat)
    return out + module.out.bias.detach().numpy()[None, :, None, None]


def memory(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@settings(deadline=None, max_examples=20)
@given(
    channels=st.sampled_from([8, 40, 120, 128, 136, 256]),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**31),
    last=st.booleans(),
)
def test_linear_attention_is_its_definition_below_and_above_128_channels(channels, size, seed, last):
    """Shen et al. 2021: softmax of queries over channels, of keys over pixels, context = K Vᵀ."""
    module = draw_module(lambda: unet.LinearAttention(channels), seed)
    x = numbers(2, channels, *size, seed=seed)
    q, k, v = qkv(module, x.numpy())
    q, k = softmax(q, 2) * 32**-0.5, softmax(k, 3)
    context = np.einsum("nhdp,nhep->nhde", k, v / (size[0] * size[1]))
    attended = np.einsum("nhde,nhdp->nhep", context, q)
    expected = x.numpy() + channel_norm(projected(module, attended, x.numpy()), module.out_norm.gain)
    ours = module(memory(x, last)).detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(
    channels=st.sampled_from([8, 64, 200]),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 2**31),
    last=st.booleans(),
)
def test_cosine_attention_is_its_definition(channels, size, seed, last):
    """Queries and keys of unit length over the pixels, as in the authors' code; scale 16."""
    module = draw_module(lambda: unet.CosineAttention(channels), seed)
    x = numbers(2, channels, *size, seed=seed)
    q, k, v = qkv(module, x.numpy())
    q, k = (a / np.maximum(np.linalg.norm(a, axis=3, keepdims=True), 1e-12) for a in (q, k))
    attention = softmax(np.einsum("nhdi,nhdj->nhij", q, k) * 16, 3)
    attended = np.einsum("nhij,nhdj->nhdi", attention, v)
    expected = x.numpy() + projected(module, attended, x.numpy())
    ours = module(memory(x, last)).detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


@given(t=st.lists(st.integers(0, 999), min_size=1, max_size=4), channels=st.sampled_from([8, 16, 64]))
def test_timesteps_are_embedded_as_sines_and_cosines_of_geometric_frequencies(t, channels):
    half = channels // 2
    frequencies = 10_000.0 ** (-np.arange(half) / (half - 1))
    angles = np.array(t)[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    ours = unet.sinusoidal_embedding(torch.tensor(t), channels)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-4)


ARCHITECTURES = st.sampled_from([(8, (1, 2), 1), (8, (1, 2, 4), 3), (16, (2, 1), 2), (8, (1, 2, 4, 8), 1)])


@settings(deadline=None, max_examples=10)
@given(architecture=ARCHITECTURES, height=st.integers(2, 4), width=st.integers(2, 4), n=st.integers(1, 3))
def test_outputs_and_layers_have_the_shapes_that_are_promised(architecture, height, width, n):
    base, multipliers, channels = architecture
    network = UNet(base, multipliers, channels, out_channels=5)
    size = height * network.reduction, width * network.reduction
    x, t = torch.randn(n, channels, *size), torch.arange(n)
    with torch.no_grad():
        assert network(x, t).shape == (n, 5, *size)
        layers = network.decode(x, t)
        assert network.encode(x, t).shape[1:] == layers["up0"].shape[1:]
    assert tuple(layers) == network.layers
    assert {k: tuple(v.shape[1:]) for k, v in layers.items()} == network.layer_shapes(*size)


def test_a_gradient_reaches_every_parameter():
    network = UNet(8, (1, 2), 1)
    network(torch.randn(2, 1, 8, 8), torch.tensor([3, 700])).abs().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**31), width=st.sampled_from([8, 32]))
def test_memory_format_changes_neither_output_nor_gradient(seed, width):
    network = draw_module(lambda: UNet(width, (1, 4), 1), seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = numbers(2, 1, 8, 8, seed=seed), torch.tensor([3, 700])
    results = []
    for last in (False, True):
        network = network.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        network.zero_grad()
        out = network(memory(x, last), t)
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in network.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_an_image_is_processed_alone():
    network = draw_module(lambda: UNet(8, (1, 2), 1), 0)
    x, t = numbers(3, 1, 8, 8, seed=0), torch.tensor([0, 10, 500])
    with torch.no_grad():
        together = network(x, t)
        for i in range(3):
            torch.testing.assert_close(network(x[i : i + 1], t[i : i + 1]), together[i : i + 1])


def test_without_a_timestep_the_network_has_no_use_for_one():
    network = UNet(8, (1, 2), time_conditioned=False)
    x = torch.randn(1, 1, 8, 8)
    assert network.time is None
    assert torch.equal(network(x), network(x, torch.tensor([5])))


@pytest.mark.parametrize("width", [8, 16])
def test_different_timesteps_give_different_outputs(width):
    network = UNet(width, (1, 2))
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(network(x, torch.tensor([5])), network(x, torch.tensor([500])))
