"""Pretrained networks of other projects as backbones: what a kind is, how one is imported and loaded."""

import abc
import importlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

import tedm
from tedm import checkpoint, files
from tedm.backbones.base import InputRange, check_input
from tedm.config import Section
from tedm.errors import TedmError
from tedm.progress import say
from tedm.unet import LayerShape

GROUP = "tedm.backbones"  # entry points
BUILT_IN = {
    "diffusers": "tedm.backbones.diffusers_unet:DiffusersUNet",
    "timm": "tedm.backbones.timm_encoder:TimmEncoder",
}
# What libraries raise for settings and sizes that their networks don't take.
UNFIT = (ValueError, TypeError, KeyError, IndexError, RuntimeError, AttributeError, AssertionError,
         NotImplementedError, ZeroDivisionError)  # fmt: skip


class Adapter(nn.Module, abc.ABC):
    """A network of another project as a backbone (see `Backbone`).

    A new kind is a subclass with three methods. `read` runs once, when the backbone is imported, and looks
    at the user's files. From then on there are our copy of the weights and a description: `__init__` builds
    the network that the description tells, its weights are filled in, and `activations` runs it.

    Args:
        description: what `read` gave.
        image_shape: C, H, W of the experiment's images.

    Attributes:
        timesteps: T; 1 for a network that knows no noise.
        libraries: distributions whose versions are noted beside the weights.
    """

    timesteps: int = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, description: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.description, self.image_shape = dict(description), image_shape
        self.digest = ""
        self.layer_shapes: dict[str, LayerShape] = {}

    @classmethod
    @abc.abstractmethod
    def read(
        cls, path: Path, settings: Mapping[str, Any], image_shape: tuple[int, int, int]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read what the user has, executing nothing of it.

        Args:
            path: file or folder.
            settings: of this kind, as in the configuration; those of kinds that ship have been checked.
            image_shape: C, H, W of the experiment's images.

        Returns:
            All that `__init__` needs, as JSON values, and the network's tensors by their names in its
            `state_dict`, every one of them.

        Raises:
            TedmError: what there is isn't such a network, or doesn't take such images.
        """

    @abc.abstractmethod
    def activations(
        self, images: Tensor, timestep: int, noise: Tensor, input_range: InputRange
    ) -> dict[str, Tensor]:
        """Layers by name, coarsest first, (N, channels, height, width); as `Backbone.features`."""

    def features(
        self, images: Tensor, timestep: int, noise: Tensor, input_range: InputRange = "trained"
    ) -> dict[str, Tensor]:
        """See `Backbone.features`."""
        check_input(self, images, timestep, noise)
        with torch.no_grad():
            return {k: v.float() for k, v in self.activations(images, timestep, noise, input_range).items()}


def import_backbone(
    path: Path, out: Path, kind: str, settings: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> None:
    """Write a pretrained network as a backbone: a copy of its weights and its description.

    Args:
        path: file or folder of the network, as its kind wants it.
        out: backbone directory to write.
        kind: diffusers, timm, a name in the entry point group `tedm.backbones`, or package.module:Class.
        settings: of that kind.
        image_shape: C, H, W of the experiment's images.

    Raises:
        TedmError: an unknown kind, a library that isn't installed, files that are missing, broken or of
            another network, images that it doesn't take.
    """
    found = adapter_class(kind)
    if not path.exists():
        raise TedmError(f"{path}: no such file or folder")
    description, tensors = found.read(path, settings, image_shape)
    network = _built(found, description, image_shape, str(path))
    checkpoint.fill(network, tensors, str(path))
    said = Description(
        format=checkpoint.FORMAT,
        adapter=kind,
        image_shape=image_shape,
        timesteps=network.timesteps,
        layers=_measured(network, str(path)),
        description=description,
        imported_from=path.name,
        parameters=checkpoint.parameters(network),
        versions={
            "tedm": tedm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{library: importlib.metadata.version(library) for library in found.libraries},
        },
    )
    with files.only_one(out / checkpoint.WEIGHTS, f"the backbone {out.name}"):
        # Cloned: one safetensors file can't hold two names of the same memory.
        copies = {name: value.clone() for name, value in network.state_dict().items()}
        digest = checkpoint.write_parts(out, copies, said.model_dump(mode="json"), said.identity)
    millions, names = said.parameters / 1e6, ", ".join(layer for layer, _ in said.layers)
    say(f"{path}: imported as {kind} backbone {out}, {millions:.1f} M parameters, layers {names}")
    say(f"{out}: timesteps 0 … {said.timesteps - 1}, digest {digest[:12]}")


def load(directory: Path, *, allow_imports: bool = False) -> Adapter:
    """Load what `import_backbone` wrote. Nothing in the directory is executed.

    Args:
        directory: of the backbone.
        allow_imports: whether a kind `package.module:Class` that it names may be imported. Kinds that
            ship and entry points always may.

    Raises:
        TedmError: files that are missing, broken, or changed since they were written.
    """
    try:
        said = Description.model_validate(checkpoint.read_description(directory))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(top level)"
        raise TedmError(
            f"{directory / checkpoint.DESCRIPTION}: {where}: {first['msg']}; import the backbone again"
        ) from None
    if ":" in said.adapter and not allow_imports:
        raise TedmError(
            f"{directory}: needs {said.adapter}, and importing it runs its code; pass allow_imports=True if"
            " you trust the directory"
        )
    checkpoint.check_complete(directory)
    found = adapter_class(said.adapter)
    network = _built(found, said.description, said.image_shape, str(directory))
    weights = directory / checkpoint.WEIGHTS
    checkpoint.fill(network, checkpoint.read_weights(weights), str(weights))
    network.digest = checkpoint.checked_digest(directory, said.identity)
    network.layer_shapes = {layer: LayerShape(*shape) for layer, shape in said.layers}
    return network


class Description(Section):
    """What config.json says of an imported network."""

    format: int = Field(ge=checkpoint.FORMAT, le=checkpoint.FORMAT)
    adapter: str
    image_shape: tuple[int, int, int]
    timesteps: int = Field(ge=1)
    layers: list[tuple[str, tuple[int, int, int]]]  # pairs: JSON sorts keys, and the order means something
    description: dict[str, Any]
    imported_from: str
    parameters: int
    versions: dict[str, str]

    @property
    def identity(self) -> dict[str, Any]:
        """The part that the network's outputs depend on."""
        return self.model_dump(mode="json", exclude={"imported_from", "versions"})


def adapter_class(kind: str) -> type[Adapter]:
    """The class behind a kind of backbone; imports it."""
    points = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    path = BUILT_IN.get(kind) or points.get(kind) or (kind if ":" in kind else None)
    if path is None:
        known = ", ".join([*BUILT_IN, *sorted(points)])
        raise TedmError(f"backbone type {kind}: not known (known: {known}; or package.module:Class)")
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise TedmError(f"backbone type {kind}: cannot import {path} ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise TedmError(f"backbone type {kind}: {path} is not a subclass of tedm.backbones.Adapter")
    return found


def _built(
    found: type[Adapter], description: Mapping[str, Any], image_shape: tuple[int, int, int], where: str
) -> Adapter:
    """The network of a description, in evaluation mode; its weights are still to be filled in."""
    try:
        with torch.random.fork_rng(devices=[]):
            network = found(description, image_shape)
    except UNFIT as error:
        raise TedmError(
            f"{where}: {found.__name__} cannot build this network ({type(error).__name__}: {error})"
        ) from error
    return network.eval().requires_grad_(False)


def _measured(network: Adapter, where: str) -> list[tuple[str, tuple[int, int, int]]]:
    """Layers and their shapes, by running the network once."""
    blank = torch.zeros(2, *network.image_shape)
    try:
        layers = network.features(blank, 0, blank)
    except UNFIT as error:
        _, height, width = network.image_shape
        raise TedmError(
            f"{where}: the network doesn't take images of {height}×{width} ({error}); change image.size"
        ) from error
    for layer, value in layers.items():
        if value.dim() != 4 or len(value) != len(blank) or not layer.isidentifier():
            raise TedmError(
                f"{where}: layer {layer} has the shape {tuple(value.shape)} for {len(blank)} images;"
                " expected (N, channels, height, width), and a name of letters and digits"
            )
    if not layers:
        raise TedmError(f"{where}: {type(network).__name__}.activations gave no layer")
    return [(layer, (v.shape[1], v.shape[2], v.shape[3])) for layer, v in layers.items()]
