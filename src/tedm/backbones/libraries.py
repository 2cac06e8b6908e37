"""Import of the libraries that only some backbones need."""

import contextlib
import importlib
import os
from types import ModuleType

import torch

from tedm.errors import TedmError

UNGUARDED = ("nms", "qnms")  # operators that torchvision describes without asking whether they are there


def imported(library: str) -> ModuleType:
    """A library of an extra of the same name; it is told to stay off the network.

    Raises:
        TedmError: it isn't installed, or cannot be imported.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # both ask a hub for files that they don't find
    _settle_torchvision()
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise TedmError(
            f"backbones of type {library} need the library {library} ({error}); install it:"
            f" pip install 'tedm[{library}]'"
        ) from error


def _settle_torchvision() -> None:
    """Make torchvision importable beside a torch of another build.

    timm needs torchvision, and diffusers takes it where it is. The wheel on PyPI is made for the CUDA build
    of torch: beside the CPU build its compiled operators don't load, and its import ends in a RuntimeError
    where two of them are described. No backbone uses them: their names are declared and the import goes on.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise TedmError(
                f"torchvision cannot be imported ({error}); install the build that belongs to torch"
                f" {torch.__version__}"
            ) from error
        for operator in UNGUARDED:
            torch.library.define(f"torchvision::{operator}", "(Tensor boxes) -> Tensor")
        with contextlib.suppress(ImportError):
            importlib.import_module("torchvision")
