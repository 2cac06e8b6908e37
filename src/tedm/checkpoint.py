"""A network on disk: weights as safetensors, its description as JSON, a digest of both."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

import tedm
from tedm import files
from tedm.config import DiffusionConfig, Section
from tedm.digests import digest_file, digest_of
from tedm.errors import TedmError
from tedm.unet import UNet

FORMAT = 1
WEIGHTS, DESCRIPTION, DIGEST = "model.safetensors", "config.json", "digest.json"


class Architecture(Section):
    """What makes a UNet, as in its constructor."""

    width: int = Field(ge=8, multiple_of=8)
    multipliers: list[int] = Field(min_length=2)
    channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    time_conditioned: bool

    @classmethod
    def of(cls, network: UNet) -> "Architecture":
        """The architecture of a network."""
        return cls(
            width=network.width,
            multipliers=list(network.multipliers),
            channels=network.channels,
            out_channels=network.head.out_channels,
            time_conditioned=network.time is not None,
        )

    def build(self) -> UNet:
        """A network of this architecture, in channels-last memory, with weights still to be filled in."""
        with torch.random.fork_rng(devices=[]):
            return channels_last(UNet(**self.model_dump()))


class Description(Section):
    """What config.json says of a trained network."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int
    architecture: Architecture
    image_shape: tuple[int, int, int]  # C, H, W
    input_range: tuple[float, float]  # of the images that the network was trained on
    diffusion: DiffusionConfig | None = None  # absent: not a diffusion model
    data: dict[str, Any] = Field({})  # label, digest, synthetic: what it was trained on
    training: dict[str, Any] = Field({})  # settings, seed, best step, validation loss
    parameters: int
    versions: dict[str, str] = Field({})

    @property
    def identity(self) -> dict[str, Any]:
        """The part that the network's outputs depend on."""
        identity = {"architecture", "image_shape", "input_range", "diffusion"}
        return self.model_dump(mode="json", include=identity)


class Checkpoint(NamedTuple):
    """A network that has been read from its directory."""

    network: UNet
    description: Description
    digest: str  # of weights and architecture


def channels_last(network: UNet) -> UNet:
    """The network with its weights in channels-last memory, in place."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def check_size(label: str, image_shape: tuple[int, int, int], multipliers: Sequence[int]) -> None:
    """Refuse images that a network with these multipliers can't halve often enough."""
    _, height, width = image_shape
    reduction = 2 ** (len(multipliers) - 1)
    if height % reduction or width % reduction:
        raise TedmError(
            f"{label}: images of {height}×{width}, but {len(multipliers)} levels need a multiple of"
            f" {reduction}; change image.size or multipliers"
        )


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def describe(
    network: UNet,
    image_shape: tuple[int, int, int],
    input_range: tuple[float, float],
    diffusion: DiffusionConfig | None,
    data: Mapping[str, Any],
    training: Mapping[str, Any],
) -> Description:
    """Describe a network for its config.json."""
    return Description(
        format=FORMAT,
        architecture=Architecture.of(network),
        image_shape=image_shape,
        input_range=input_range,
        diffusion=diffusion,
        data=dict(data),
        training=dict(training),
        parameters=parameters(network),
        versions={
            "tedm": tedm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def write(directory: Path, network: UNet, description: Description) -> str:
    """Write weights and description, then the digest, which says that the directory is complete.

    Returns:
        The digest.
    """
    return write_parts(
        directory, network.state_dict(), description.model_dump(mode="json"), description.identity
    )


def write_parts(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    description: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> str:
    """Write tensors, what is said of them, then the digest of the tensors and of `identity`; returns it."""
    (directory / DIGEST).unlink(missing_ok=True)
    with files.whole(directory / WEIGHTS) as partial:
        # No metadata: its order in the file would vary, and the digest with it. Not save_file, which makes
        # files that only their owner can read.
        partial.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    files.write_json(directory / DESCRIPTION, description)
    digest = _digest(directory, identity)
    files.write_json(directory / DIGEST, {"digest": digest})
    return digest


def read(directory: Path) -> Checkpoint:
    """Read a network and check that its files belong together.

    Raises:
        TedmError: a file is missing, broken or of something else; weights don't fit the description, are
            not finite, or changed since the digest was written.
    """
    values = read_description(directory)
    if "adapter" in values:
        raise TedmError(
            f"{directory}: a backbone of type {values['adapter']}, which gives features and nothing else;"
            " expected a network that tedm trained or imported"
        )
    try:
        description = Description.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(top level)"
        raise TedmError(
            f"{directory / DESCRIPTION}: {where}: {first['msg']}; this is not a description that tedm wrote"
        ) from None
    if description.format != FORMAT:
        raise TedmError(
            f"{directory / DESCRIPTION}: format {description.format}, but this tedm reads format {FORMAT};"
            " use the tedm that wrote it, or train again"
        )
    check_complete(directory)
    network = description.architecture.build()
    fill(network, read_weights(directory / WEIGHTS), str(directory / WEIGHTS))
    return Checkpoint(network.eval(), description, checked_digest(directory, description.identity))


def read_description(directory: Path) -> dict[str, Any]:
    """What a backbone's config.json holds, unchecked."""
    if not (directory / DESCRIPTION).exists():
        raise TedmError(f"{directory}: not a backbone: it has no {DESCRIPTION}")
    values = files.read_json(directory / DESCRIPTION)
    if not isinstance(values, dict):
        raise TedmError(f"{directory / DESCRIPTION}: expected keys and values; not written by tedm")
    return values


def check_complete(directory: Path) -> None:
    """Refuse a directory whose digest, which is written last, is missing."""
    if not (directory / DIGEST).exists():
        raise TedmError(
            f"{directory}: incomplete: it has no {DIGEST}, which is written last; train it again"
        )


def checked_digest(directory: Path, identity: Mapping[str, Any]) -> str:
    """The digest of the weights and of `identity`, which must be the one that was written."""
    digest = _digest(directory, identity)
    recorded = files.read_json(directory / DIGEST)
    if recorded != {"digest": digest}:
        raise TedmError(
            f"{directory / DIGEST}: does not belong to {WEIGHTS} and {DESCRIPTION} beside it: one of them"
            " was changed or copied from elsewhere; train or import the backbone again"
        )
    return digest


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except FileNotFoundError:
        raise TedmError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise TedmError(
            f"{path}: not a complete safetensors file ({error}); copy it or train it again"
        ) from None
    return tensors


def fill(network: nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy tensors into a network; names and shapes must be the network's own, values finite."""
    own = network.state_dict()
    check_fit(own, tensors, where)
    for name in own:
        if not bool(torch.isfinite(tensors[name]).all()):
            raise TedmError(f"{where}: {name} has values that are not finite; the training had diverged")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def check_fit(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse tensors whose names, shapes or kinds of numbers are not those of a network's own."""
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or foreign:
        problem = (
            f"has no {missing[0]}" if missing else f"has a tensor {foreign[0]}, which the network has not"
        )
        raise TedmError(
            f"{where}: {problem} ({len(missing)} missing, {len(foreign)} foreign tensors); these are the"
            " weights of another network"
        )
    for name, value in own.items():
        given = tensors[name]
        if given.shape != value.shape:
            raise TedmError(
                f"{where}: {name} has the shape {tuple(given.shape)}, expected {tuple(value.shape)};"
                " the weights are of another architecture"
            )
        if given.layout != value.layout or given.is_floating_point() != value.is_floating_point():
            raise TedmError(f"{where}: {name} holds {given.dtype} ({given.layout}), expected {value.dtype}")


def _digest(directory: Path, identity: Mapping[str, Any]) -> str:
    return digest_of({"weights": digest_file(directory / WEIGHTS), **identity})
