"""Adam moves parameters as torch.optim does, to the bit, and without loading torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tedm.adam import Adam


def drawn(dtype: torch.dtype, device: str) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(5)
    shapes = [(16, 3, 3, 3), (16,), (), (1, 257)]
    return [nn.Parameter(torch.randn(s, generator=random, dtype=dtype).to(device)) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)
def test_steps_have_the_bits_of_torch_optim(dtype: torch.dtype, device: str) -> None:
    ours, theirs = drawn(dtype, device), drawn(dtype, device)
    adam = Adam(ours)
    reference = torch.optim.Adam(theirs, lr=1.0, fused=True)
    random = torch.Generator().manual_seed(6)
    for step in range(30):
        rate = 10.0 ** -(step % 5)
        adam.zero_grad()
        reference.zero_grad(set_to_none=True)
        for i, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(own.shape, generator=random, dtype=dtype).to(device) * 10.0**-i
            if (i, step % 3) != (1, 2):  # one parameter has no gradient now and then
                own.grad, other.grad = gradient.clone(), gradient.clone()
        adam.step(rate)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own, other)
        for name, value in reference.state[other].items():
            assert torch.equal(adam.state[own][name], value), name


def test_a_parameter_without_gradient_stays_and_has_no_state() -> None:
    still, moved = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    adam = Adam([still, moved])
    adam.step(0.1)
    assert not adam.state
    moved.grad = torch.tensor([1.0, -2.0, 0.5])
    adam.step(0.1)
    assert still not in adam.state
    assert torch.equal(still, torch.ones(3))
    # The first step is the learning rate in the gradient's direction, whatever its size.
    torch.testing.assert_close(moved.detach(), torch.tensor([0.9, 1.1, 0.9]))


def test_a_training_step_does_not_load_the_compiler() -> None:
    code = """
import sys, torch
from tedm.adam import Adam
p = torch.nn.Parameter(torch.ones(3))
adam = Adam([p])
p.square().sum().backward()
adam.step(0.1)
adam.zero_grad()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
