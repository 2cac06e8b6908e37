"""Where a job computes: on the GPU that it was given, else on the CPU, which it says."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tedm.errors import TedmError
from tedm.progress import say

if TYPE_CHECKING:
    import torch

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and of either under Windows


def driver_here() -> bool:
    """Whether this machine has a driver for GPUs; loads no torch."""
    return any(Path(driver).exists() for driver in DRIVERS)


def usable(local_rank: int = 0) -> "torch.device":
    """The device of a job, or of one of its processes.

    A job that was given a GPU and cannot use it says so and goes on, slowly, on the CPU.

    Args:
        local_rank: of this process on this machine, 0 … processes-1.

    Raises:
        TedmError: fewer GPUs than processes.
    """
    import torch

    if not torch.cuda.is_available():
        if local_rank == 0 and os.environ.get("CUDA_VISIBLE_DEVICES", "-1") not in ("", "-1", "NoDevFiles"):
            cpu_only = torch.version.cuda is None and getattr(torch.version, "hip", None) is None
            why = "is built for CPUs only" if cpu_only else "finds no driver for it (nvidia-smi says more)"
            say(f"a GPU was asked for and given, but torch {torch.__version__} {why}: computing on the CPU")
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise TedmError(
            f"{local_rank + 1} processes or more on a machine with {torch.cuda.device_count()} GPUs; give"
            " torchrun --nproc-per-node as many as there are GPUs"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
