"""The intermediate layers of a timm image encoder as a backbone."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from tedm import checkpoint, pickles
from tedm.backbones.adapter import UNFIT, Adapter
from tedm.backbones.base import InputRange
from tedm.backbones.libraries import imported
from tedm.config import TimmConfig
from tedm.errors import TedmError

INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")  # where training programs keep the weights
BLOCKS = 4  # of a network whose layers have one size


class TimmEncoder(Adapter):
    """A vision transformer or convolutional encoder; it knows no noise, so its only timestep is 0.

    Images of one channel are repeated to the network's, normalised with its mean and standard deviation
    ("official": fed as they are), and resized (bilinear) where `input_size` says so. The layers are timm's
    intermediates by their index: layer0, layer1, … of those asked for.
    """

    libraries = ("timm",)

    @classmethod
    def read(
        cls, path: Path, settings: Mapping[str, Any], image_shape: tuple[int, int, int]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Adapter: a file of weights; the settings name the model."""
        options = _settings(path, settings)
        size = options.input_size or image_shape[1]
        try:
            network = _network(options.model, options.options, size)
        except UNFIT as error:
            raise TedmError(
                f"backbone type timm: cannot build {options.model} for images of {size}×{size}"
                f" ({type(error).__name__}: {error})"
            ) from error
        if not hasattr(network, "forward_intermediates"):
            raise TedmError(f"backbone type timm: {options.model} has no intermediate layers in timm")
        about = network.pretrained_cfg
        channels = _input_channels(network)
        if image_shape[0] not in (1, channels):
            raise TedmError(
                f"{path}: {options.model} takes {channels} channels, the images have {image_shape[0]}"
                " (image.channels); images of 1 channel are repeated, others are not"
            )
        description = {
            "model": options.model,
            "options": options.options,
            "input_size": size,
            "layers": _chosen(network, size, channels, options.layers, options.model),
            "mean": _per_channel("mean", options.mean, about, channels),
            "std": _per_channel("std", options.std, about, channels),
        }
        return description, {f"network.{k}": v for k, v in _weights(path, network).items()}

    def __init__(self, description: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        super().__init__(description, image_shape)
        self.input_size: int = description["input_size"]
        self.network = _network(description["model"], description["options"], self.input_size)
        self.layers: list[int] = description["layers"]
        mean, std = (torch.tensor(description[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def activations(
        self,
        images: Tensor,
        timestep: int,  # noqa: ARG002 (it knows no noise)
        noise: Tensor,  # noqa: ARG002
        input_range: InputRange,
    ) -> dict[str, Tensor]:
        """See Adapter; nothing depends on timestep and noise."""
        size = (self.input_size, self.input_size)
        x = images if images.shape[2:] == size else F.interpolate(images, size=size, mode="bilinear")
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x = x.expand(-1, mean.shape[1], -1, -1)
        x = (x - mean) / std if input_range == "trained" else x
        found = self.network.forward_intermediates(
            x.contiguous(), indices=self.layers, intermediates_only=True
        )
        named = [(f"layer{i}", z) for i, z in zip(self.layers, found, strict=True)]
        return dict(
            sorted(named, key=lambda item: item[1].shape[2])
        )  # stable: coarsest first, then by depth


def _settings(path: Path, settings: Mapping[str, Any]) -> TimmConfig:
    try:
        return TimmConfig.model_validate({"type": "timm", "path": str(path), **settings})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise TedmError("backbone type timm: " + "; ".join(problems)) from None


def _network(model: str, options: Mapping[str, Any], size: int) -> Any:
    """The network of timm without classifier, with random weights."""
    timm = imported("timm")
    about = timm.models.get_pretrained_cfg(model, allow_unregistered=True)
    fixed = {"img_size": size} if about is not None and about.fixed_input_size else {}
    return timm.create_model(model, pretrained=False, num_classes=0, **{**fixed, **options}).eval()


def _input_channels(network: Any) -> int:
    first = next((m for m in network.modules() if isinstance(m, torch.nn.Conv2d)), None)
    return first.in_channels if first is not None else 3


def _chosen(network: Any, size: int, channels: int, asked: Sequence[int] | None, model: str) -> list[int]:
    """Indices of the layers: those asked for; else all resolutions, or evenly spaced blocks of one."""
    try:
        with torch.no_grad():
            found = network.forward_intermediates(
                torch.zeros(1, channels, size, size), intermediates_only=True
            )
    except UNFIT as error:
        raise TedmError(
            f"backbone type timm: {model} doesn't take images of {size}×{size} ({error}); set image.size,"
            " or input_size of the backbone"
        ) from error
    count = len(found)
    if asked is not None:
        for i in asked:
            if not 0 <= i < count:
                raise TedmError(f"backbone type timm: {model} has no layer {i}; it has 0 … {count - 1}")
        return sorted(asked)
    if count <= BLOCKS or len({z.shape[2:] for z in found}) > 1:
        return list(range(count))
    return [count * (k + 1) // BLOCKS - 1 for k in range(BLOCKS)]


def _per_channel(
    what: str, given: Sequence[float] | None, about: Mapping[str, Any], channels: int
) -> list[float]:
    """Mean or standard deviation of each channel: as given, or the model's own."""
    if given is not None:
        if len(given) not in (1, channels):
            raise TedmError(f"backbone type timm: {what} has {len(given)} values for {channels} channels")
        return list(given) * (channels if len(given) == 1 else 1)
    own = [float(v) for v in about[what]]
    # As timm does it where a model for colours is used with another number of channels.
    return own if len(own) == channels else [sum(own) / len(own)] * channels


def _weights(path: Path, network: Any) -> dict[str, Tensor]:
    """The file's tensors under the network's names; the classifier, which isn't used, is left out."""
    if path.is_dir():
        raise TedmError(f"{path}: a folder; expected the file of weights in it (.safetensors, .pth)")
    content = checkpoint.read_weights(path) if path.suffix == ".safetensors" else pickles.read(path)
    for key in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = (
        {k.removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, dict) and all(isinstance(k, str) for k in content)
        else {}
    )
    if not tensors:
        raise TedmError(f"{path}: holds no tensors by name; expected the weights of a timm model")
    # Where timm renames tensors of other programs, and fits position embeddings to the image size.
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        try:
            tensors = translate(tensors, network)
        except UNFIT as error:
            raise TedmError(
                f"{path}: not the weights of this model ({type(error).__name__}: {error})"
            ) from error
    classifiers = network.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    own = network.state_dict()
    return {
        k: v
        for k, v in tensors.items()
        if k in own or not k.startswith(tuple(f"{c}." for c in classifiers))
    }
