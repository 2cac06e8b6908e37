"""Weights that a contrastive pretraining learnt, for another network to start from."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tedm import checkpoint
from tedm.errors import TedmError
from tedm.unet import UNet


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining learnt."""

    architecture: checkpoint.Architecture
    image_shape: tuple[int, int, int]  # C, H, W
    tensors: dict[str, Tensor]  # of the parts of the UNet that have learnt
    parts: tuple[str, ...]  # their names
    digest: str


def read(directory: Path) -> Pretrained:
    """Read a pretraining's directory.

    Raises:
        TedmError: files that are missing, broken, changed, or of something else.
    """
    if not (directory / checkpoint.DESCRIPTION).exists():
        raise TedmError(f"{directory}: no such pretraining; `tedm pretrain` makes one")
    network, description, digest = checkpoint.read(directory)
    parts = tuple(description.training.get("learnt", ()))
    if not parts:
        raise TedmError(f"{directory}: not a contrastive pretraining; `tedm pretrain` makes one")
    prefixes = tuple(f"{part}." for part in parts)
    tensors = {k: v for k, v in network.state_dict().items() if k.startswith(prefixes)}
    return Pretrained(description.architecture, description.image_shape, tensors, parts, digest)


def start_from(network: UNet, pretrained: Pretrained, where: str) -> list[str]:
    """Copy what a pretraining learnt into a network; its other weights stay as they are.

    Args:
        network: to change.
        pretrained: see `read`.
        where: names the network in errors.

    Returns:
        Names of the tensors that were copied.

    Raises:
        TedmError: the two have other widths, levels or channels.
    """
    shape = pretrained.architecture
    for name, expected, given in (
        ("width", shape.width, network.width),
        ("multipliers", list(shape.multipliers), list(network.multipliers)),
        ("channels", shape.channels, network.channels),
    ):
        if expected != given:
            raise TedmError(
                f"{where}: its {name} is {given}, but it starts from a pretraining with {name} {expected};"
                " make them equal"
            )
    own = network.state_dict()
    with torch.no_grad():
        for name, value in pretrained.tensors.items():
            own[name].copy_(value)
    return list(pretrained.tensors)
