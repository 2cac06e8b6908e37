"""The authors' LEDM, LEDMe and TEDM classifiers as MLP heads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tedm.config import MLPSettings
from tedm.errors import TedmError
from tedm.heads.base import Head, Shape, create

STATISTICS = ("running_mean", "running_var")


class Linear(NamedTuple):
    """A 1×1 convolution: weight (outputs, inputs) and bias (outputs,)."""

    weight: Tensor
    bias: Tensor


class Norm(NamedTuple):
    """A BatchNorm: each (channels,)."""

    gain: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor


def head_of(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    layer_shapes: Mapping[str, Shape],
    image_size: tuple[int, int],
    file: Path,
) -> Head:
    """The head in a segmentation model of the authors' code, ready to predict and to save.

    Their classifier is a Sequential of 1×1 convolution → ReLU → BatchNorm, twice, and a last convolution,
    on decoder layers that were resized by nearest neighbour and concatenated, per timestep. What the file
    doesn't say is told by shapes: inputs for one timestep make it TEDM (`share`), inputs for all of them
    LEDM or LEDMe (`concat`). They fed images in [0, 1]: their predictions are those on features of
    `input_range: official`.

    Args:
        tensors: of the classifier, by the authors' names.
        config: the settings that it was trained with; its t_steps_to_save are the timesteps.
        layer_shapes: (C, h, w) of the backbone's layers, in the order of concatenation.
        image_size: (H, W).
        file: named in errors.

    Raises:
        TedmError: something else than such a classifier.
    """
    linears, norms = _sequence(tensors, file)
    timesteps = config.get("t_steps_to_save")
    usable = isinstance(timesteps, list | tuple) and all(type(t) is int and t >= 0 for t in timesteps)
    if not usable or not timesteps or len(set(timesteps)) < len(timesteps):
        raise TedmError(
            f"{file}: doesn't say which timesteps its classifier reads: config.t_steps_to_save is"
            f" {str(timesteps)[:60]}, expected a list of different timesteps"
        )
    inputs, per_step = linears[0].weight.shape[1], sum(shape[0] for shape in layer_shapes.values())
    if inputs not in (per_step, per_step * len(timesteps)):
        raise TedmError(
            f"{file}: its classifier reads {inputs} channels; expected {per_step}, the decoder's for one"
            f" timestep (TEDM), or {per_step * len(timesteps)} for all {len(timesteps)} (LEDM)"
        )
    outputs = len(linears[-1].weight)
    if outputs != 1:
        raise TedmError(
            f"{file}: its classifier has {outputs} outputs; only one class can be taken over, since the"
            " file doesn't say whether several exclude each other"
        )
    settings = MLPSettings(
        combine="share" if inputs == per_step else "concat",
        hidden=[len(layer.weight) for layer in linears[:-1]],
        resize="nearest",  # as their code does it
    )
    head = create("mlp", settings.model_dump(), list(timesteps), list(layer_shapes))
    head.class_count, head.present, head.synthetic = 1, (True, True), False
    head.image_size, head.layer_shapes = image_size, dict(layer_shapes)
    head.restore({f"member0/{k}": v for k, v in _state(linears, norms).items()})
    return head


def _state(linears: list[Linear], norms: list[Norm]) -> dict[str, np.ndarray]:
    """The tensors by the names of `Perceptron`."""
    state: dict[str, Tensor] = {}
    for i, linear in enumerate(linears):
        state |= {f"weights.{i}": linear.weight, f"biases.{i}": linear.bias}
    for i, norm in enumerate(norms):
        state |= {f"gains.{i}": norm.gain, f"shifts.{i}": norm.shift}
        state |= {f"mean{i}": norm.mean, f"variance{i}": norm.variance}
    return {name: value.float().numpy() for name, value in state.items()}


def _sequence(tensors: Mapping[str, Tensor], file: Path) -> tuple[list[Linear], list[Norm]]:
    """The classifier's layers in order, told by their places in the Sequential and by their shapes."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = value
    matches = [re.fullmatch(r"(.*?)(\d{1,6})", module) for module in modules]
    names = ", ".join(list(tensors)[:3])
    if not matches or any(m is None for m in matches) or len({m[1] for m in matches if m}) != 1:
        raise TedmError(
            f"{file}: holds no classifier of the authors' code beside the UNet; expected"
            f" classifier.0.weight and so on, found {names or 'nothing'}"
        )
    places = sorted((int(m[2]), module) for m, module in zip(matches, modules, strict=True) if m)
    linears: list[Linear] = []
    norms: list[Norm] = []
    last = places[0][0] - 1
    for place, module in places:
        layer = _layer(modules[module], f"{file}: {module}")
        after = norms[-1] if len(norms) == len(linears) and norms else linears[-1] if linears else None
        expected, gap = (Linear, 1) if len(norms) == len(linears) else (Norm, 2)
        if not isinstance(layer, expected) or place - last != gap:
            raise TedmError(
                f"{file}: {module} is out of order; expected convolution, ReLU, BatchNorm, … and a last"
                " convolution, as in the authors' classifier"
            )
        width = None if after is None else len(after[0])
        found = layer.weight.shape[1] if isinstance(layer, Linear) else len(layer.gain)
        if width is not None and width != found:
            raise TedmError(f"{file}: {module} takes {found} channels, but the layer before gives {width}")
        if isinstance(layer, Linear):
            linears.append(layer)
        else:
            norms.append(layer)
        last = place
    if len(linears) < 2 or len(norms) != len(linears) - 1:
        raise TedmError(
            f"{file}: a classifier of {len(linears)} convolutions and {len(norms)} BatchNorms; expected one"
            " convolution more than BatchNorms, and two or more"
        )
    return linears, norms


def _layer(tensors: Mapping[str, Tensor], where: str) -> Linear | Norm:
    for name, value in tensors.items():
        if value.layout != torch.strided or not bool(torch.isfinite(value).all()):
            raise TedmError(f"{where}.{name} has values that are not finite")
    weight, bias = tensors.get("weight"), tensors.get("bias")
    known = {"weight", "bias", "num_batches_tracked", *STATISTICS}
    if weight is None or not tensors.keys() <= known:
        raise TedmError(f"{where}: {', '.join(tensors)} is no convolution and no BatchNorm")
    if all(name in tensors for name in STATISTICS) and weight.dim() == 1:
        values = [weight, bias if bias is not None else torch.zeros_like(weight)]
        values += [tensors[name] for name in STATISTICS]
        if any(v.shape != weight.shape for v in values):
            raise TedmError(f"{where}: its weight, bias and statistics have different lengths")
        return Norm(*values)
    if weight.dim() not in (2, 4) or weight.shape[2:].numel() != 1:
        kernel = "×".join(map(str, weight.shape[2:])) or f"shape {tuple(weight.shape)}"
        raise TedmError(f"{where}.weight has a kernel of {kernel}; expected a 1×1 convolution")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise TedmError(f"{where}: its weight and bias have different lengths")
    return Linear(weight.flatten(1), bias if bias is not None else torch.zeros(len(weight)))
