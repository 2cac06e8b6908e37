"""The resizing matrices against torch's interpolation and its gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tedm.heads.resize import Resize

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
modes = st.sampled_from(["bilinear", "nearest"])


def interpolate(x: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    extra = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(x, size=size, mode=mode, **extra)


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(source=sizes, target=sizes, mode=modes, seed=st.integers(0, 2**31))
def test_forward_equals_torch_interpolate(source, target, mode, seed):
    x = draw((2, 3, *source), seed)
    torch.testing.assert_close(
        Resize(source, target, mode, torch.float64).forward(x),
        interpolate(x, target, mode),
        rtol=0,
        atol=1e-12,
    )


@settings(max_examples=60, deadline=None)
@given(source=sizes, target=sizes, mode=modes, seed=st.integers(0, 2**31))
def test_adjoint_equals_the_gradient_of_torch_interpolate(source, target, mode, seed):
    x, y = draw((2, 3, *source), seed).requires_grad_(), draw((2, 3, *target), seed + 1)
    (expected,) = torch.autograd.grad(interpolate(x, target, mode), x, y)
    actual = Resize(source, target, mode, torch.float64).adjoint(y)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(source=sizes, target=sizes, mode=modes, seed=st.integers(0, 2**31))
def test_gather_equals_indexing_the_resized_image(source, target, mode, seed):
    x = draw((4, *source), seed)
    pixels = torch.randint(target[0] * target[1], (7,), generator=torch.Generator().manual_seed(seed))
    resize = Resize(source, target, mode, torch.float64)
    torch.testing.assert_close(
        resize.gather(x, pixels), resize.forward(x).flatten(1)[:, pixels], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("source", [16, 32, 64, 128])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_float32_agrees_with_torch_at_the_papers_sizes(source, mode):
    x = draw((1, 2, source, source), source).float()
    actual = Resize((source, source), (128, 128), mode).forward(x)
    torch.testing.assert_close(actual, interpolate(x, (128, 128), mode), rtol=0, atol=1e-5)


def test_equal_sizes_cost_nothing():
    x = draw((1, 2, 5, 6), 0)
    assert Resize((5, 6), (5, 6), "bilinear").forward(x) is x
