"""The model folder: what is in it, written whole or not at all, read without executing anything."""

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from tedm import files
from tedm.config import Normalising, Section
from tedm.data.decoders import nifti
from tedm.digests import digest_file, digest_of
from tedm.errors import TedmError

FORMAT, VERSION = "tedm model", 1
DESCRIPTION, CARD, HEAD = "model.json", "README.md", "head.safetensors"
BACKBONE, NETWORK = "backbone", "network"  # directories of networks, as `tedm.checkpoint` writes them

Pair = tuple[float, float]


class VolumeScaling(Section):
    """How the intensities of a volume become what the network sees; one of the published preparations.

    window: black and white are given. percentiles: they are those of each volume's non-zero voxels. brain:
    the same, clipped before, and what is zero is black. standardised: mean and deviation of each channel
    over the training volumes.
    """

    kind: Literal["window", "percentiles", "brain", "standardised"]
    axis: nifti.Axis  # slices are perpendicular to it
    channels: list[str]  # behind the name, in the file of each channel
    window: Pair | None = None
    percentiles: Pair = (1.0, 99.0)
    brightest: float | None = None  # values beyond are clipped
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    limit: float = 0.0  # deviations beyond which values are clipped
    crop: tuple[int, int] | None = None  # height and width of the middle of a slice that is kept
    slices: int | None = None  # the middle ones that are looked at; absent: all


class Preprocessing(Normalising):
    """From an image to what the network sees, as `tedm prepare` made the training set."""

    size: int = Field(ge=1)  # pixels along each side
    channels: int = Field(ge=1)
    fit: Literal["stretch", "pad", "crop"]
    black: float | None = None  # around a padded image; absent: 0, or the least pixel below it
    intensity_range: Pair  # stored values that became 0 and 1
    deep: bool  # whether the training images had more than 8 bits
    dicom_window: Pair | Literal["file"] | None = None
    volume: VolumeScaling | None = None  # absent: the model learned from single images


class Features(Section):
    """How the features were made that the head learned from."""

    noise_seed: int
    shared_noise: bool
    input_range: Literal["trained", "official"]
    dtype: Literal["float16", "float32"]
    keep_bits: int | None


class Description(Section):
    """What model.json says."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    format: str
    format_version: int
    name: str
    method: str
    n: int
    seed: int
    kind: Literal["head", "network"]
    classes: list[str] = Field(min_length=1)
    timesteps: list[int]  # that are read; [] for a network
    preprocessing: Preprocessing
    features: Features | None = None  # absent: a network that sees images
    backbone: str | None = None  # digest, as in backbone/digest.json
    network: str | None = None  # digest, as in network/digest.json
    head: str | None = None  # SHA-256 of head.safetensors
    synthetic: bool
    versions: dict[str, str] = Field({})


def write(out: Path, description: Description, parts: Mapping[str, Path], card: str) -> None:
    """Write a model folder; it appears under its name when it is complete.

    Args:
        out: the folder; must not exist, or be empty.
        description: of the model.
        parts: files and directories to copy, by their name in the folder.
        card: text of README.md.

    Raises:
        TedmError: the folder is there already, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TedmError(f"{out}: is there already; remove it, or give another name with --out")
    out = Path(str(out))  # without a slash at its end
    with files.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.mkdir()
            for name, source in parts.items():
                if source.is_dir():
                    (partial / name).mkdir()
                    # What belongs to the network, not its training's state.
                    for file in ("model.safetensors", "config.json", "digest.json"):
                        shutil.copyfile(source / file, partial / name / file)
                else:
                    shutil.copyfile(source, partial / name)
            files.write_text(partial / CARD, card)
            said = description.model_dump(mode="json")
            files.write_json(partial / DESCRIPTION, {**said, "digest": digest_of(said)})
            if out.exists():
                out.rmdir()  # empty
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def read(folder: Path) -> Description:
    """Read what a model folder says of itself.

    Raises:
        TedmError: no model folder, one of a newer tedm, or a description that was changed.
    """
    if not folder.is_dir():
        raise TedmError(f"{folder}: no such folder; `tedm export --out {folder}` writes a model")
    if not (folder / DESCRIPTION).is_file():
        raise TedmError(f"{folder}: not a model folder: it has no {DESCRIPTION}; `tedm export` writes one")
    said = files.read_json(folder / DESCRIPTION)
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise TedmError(f"{folder / DESCRIPTION}: not the description of a model that tedm exported")
    version = said.get("format_version")
    if version != VERSION:
        raise TedmError(
            f"{folder / DESCRIPTION}: has format version {version}, this tedm reads {VERSION};"
            " export the model again, or use the tedm that wrote it"
        )
    recorded = said.pop("digest", None)
    if recorded != digest_of(said):
        raise TedmError(
            f"{folder / DESCRIPTION}: was changed since it was written (its digest differs); copy the"
            " folder again, or export the model again"
        )
    try:
        return Description.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "(top level)"
        raise TedmError(
            f"{folder / DESCRIPTION}: {where}: {first['msg']}; export the model again"
        ) from None


def check_file(folder: Path, name: str, digest: str | None) -> Path:
    """A file of the folder, which must be the one that the description names."""
    path = folder / name
    if not path.is_file():
        raise TedmError(f"{path}: missing; copy the folder again, or export the model again")
    if digest_file(path) != digest:
        raise TedmError(
            f"{path}: not the file that {DESCRIPTION} was written for (its digest differs); copy the folder"
            " again, or export the model again"
        )
    return path


def network_digest(folder: Path, name: str, digest: str | None) -> str:
    """Digest of a network of the folder, which must be the one that the description names.

    That the weights have it is checked when they are read (`tedm.checkpoint`).
    """
    path = folder / name / "digest.json"
    found: Any = files.read_json(path)
    if found != {"digest": digest}:
        raise TedmError(
            f"{path}: the {name} of another model; copy the folder again, or export the model again"
        )
    return str(digest)


def default_name(method: str, n: int, seed: int) -> str:
    """What a model is called."""
    return f"{method} n={n}" + (f" seed {seed}" if seed else "")
