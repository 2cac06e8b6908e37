"""Backbones: frozen networks whose activations are kept as features."""

from pathlib import Path

import torch

from tedm import checkpoint
from tedm.backbones import adapter, study
from tedm.backbones.adapter import Adapter
from tedm.backbones.base import Backbone, InputRange
from tedm.backbones.study import DiffusionBackbone

__all__ = ["Adapter", "Backbone", "DiffusionBackbone", "InputRange", "load"]


def load(directory: Path, device: torch.device | str = "cpu", *, allow_imports: bool = False) -> Backbone:
    """Load a backbone from its directory (config.json, model.safetensors, digest.json).

    Args:
        directory: of the backbone.
        device: to move it to.
        allow_imports: whether a type `package.module:Class` that the directory names may be imported.

    Raises:
        TedmError: files that are missing, broken, of another network or changed since they were written.
    """
    if "adapter" in checkpoint.read_description(directory):
        return adapter.load(directory, allow_imports=allow_imports).to(device)
    return study.load(directory).to(device)
