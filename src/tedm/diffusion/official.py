"""Import of checkpoints of the authors' code: their weights under our names, nothing executed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from tedm import checkpoint, files, pickles
from tedm.config import DiffusionConfig
from tedm.diffusion.objective import Objective
from tedm.diffusion.schedule import Schedule
from tedm.digests import digest_file
from tedm.errors import TedmError
from tedm.progress import say
from tedm.unet import UNet

OBJECTIVES: dict[str, Objective] = {"pred_noise": "noise", "pred_x0": "image", "pred_v": "velocity"}
SAME_SCHEDULE = 1e-4  # largest difference of sqrt(alpha_bar) between two ways of computing it

# Names of the authors' tensors, and ours; applied in this order.
RENAMES = [
    (r"^init_conv\.", "stem."),
    (r"^time_mlp\.1\.", "time.0."),
    (r"^time_mlp\.3\.", "time.2."),
    (r"^mid_block(\d)\.", r"middle\1."),
    (r"^mid_attn\.", "middle_attention."),
    (r"^final_res_block\.", "final."),
    (r"^final_conv\.", "head."),
    (r"^downs\.", "encoder."),
    (r"^ups\.", "decoder."),
    (r"^(encoder|decoder)\.(\d+)\.0\.", r"\1.\2.residual1."),
    (r"^(encoder|decoder)\.(\d+)\.1\.", r"\1.\2.residual2."),
    (r"^(encoder|decoder)\.(\d+)\.2\.", r"\1.\2.attention."),
    (r"^(encoder|decoder)\.(\d+)\.3\.1\.", r"\1.\2.resample.conv."),
    (r"^(encoder|decoder)\.(\d+)\.3\.", r"\1.\2.resample."),
    (r"\.time_mlp\.1\.", ".time."),
    (r"\.proj\.", ".conv."),
    (r"\.res_conv\.", ".skip."),
    (r"\.fn\.fn\.to_qkv\.", ".qkv."),
    (r"\.fn\.fn\.to_out\.1\.g$", ".out_norm.gain"),
    (r"\.fn\.fn\.to_out\.(0\.)?", ".out."),
    (r"\.fn\.norm\.g$", ".norm.gain"),
]

SUFFIXES = (".pt", ".pth")  # of the authors' files
TABLES = {  # of their diffusion module
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "p2_loss_weight",
}  # fmt: skip


class Namespace:
    """Stands in for argparse.Namespace, the one class that the authors' files name; holds values only."""


class Contents(NamedTuple):
    """What an authors' checkpoint holds."""

    file: Path
    unet: dict[str, Tensor]  # by the authors' names inside the UNet
    tables: dict[str, Tensor]  # of the diffusion process
    rest: dict[str, Tensor]  # of what was put on top: a segmentation model's classifier
    config: dict[str, Any]  # the settings that it was trained with
    step: int | None


def read(path: Path) -> Contents:
    """Read an authors' checkpoint.

    Args:
        path: what the authors' code saved, a pickle with model_state_dict and, mostly, config; or a folder
            with one such file.

    Raises:
        TedmError: the pickle wants more than tensors, plain values and settings, and was not run; the file
            is broken, or holds no UNet of theirs.
    """
    file = _only_file(path)
    content = pickles.read(file, [(Namespace, "argparse.Namespace")])
    if not isinstance(content, dict):
        raise TedmError(f"{file}: holds a {type(content).__name__}, expected a dict with model_state_dict")
    tensors, config = _parts(content, file)
    prefix = _prefix(tensors, file)
    outside = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    tables = {k: v for k, v in outside.items() if k.rpartition(".")[2] in TABLES}
    step = content.get("step")
    return Contents(
        file,
        unet={k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)},
        tables={k.rpartition(".")[2]: v for k, v in tables.items()},
        rest={k: v for k, v in outside.items() if k not in tables},
        config=config,
        step=step if isinstance(step, int) else None,
    )


def import_checkpoint(
    path: Path, out: Path, image_size: int | None = None, channels: int | None = None
) -> None:
    """Write the network of an authors' checkpoint as a directory of this project; see `write`."""
    contents = read(path)
    write(contents, out, image_size, channels)
    if contents.rest:
        say(
            f"{contents.file}: {len(contents.rest)} tensors outside the UNet are left out,"
            f" {next(iter(contents.rest))} the first of them"
        )


def write(contents: Contents, out: Path, image_size: int | None = None, channels: int | None = None) -> str:
    """Write the network of an authors' checkpoint as a directory of this project; returns its digest.

    A diffusion model becomes a backbone. A supervised network, which has no schedule, becomes a baseline.
    From a segmentation model that contains a diffusion model, that diffusion model is taken. Width,
    multipliers and channels are read off the tensors' shapes.

    Args:
        contents: see `read`.
        out: directory to write.
        image_size: side of the images that it was trained on, in pixels; absent: as its config says.
        channels: of the experiment's images; absent: the network's.

    Raises:
        TedmError: its tensors are not those of this UNet or not finite; the image size is unknown or
            another; another number of channels.
    """
    file, config = contents.file, contents.config
    network = _network(contents.unet, file)
    if channels is not None and channels != network.channels:
        raise TedmError(
            f"{file}: was trained on images of {network.channels} channels, not {channels} (image.channels)"
        )
    size = _image_size(config, image_size, file)
    shape = (network.channels, size, size)
    checkpoint.check_size(str(file), shape, network.multipliers)
    diffusion = _diffusion(contents.tables, config, file)
    normalised = diffusion is not None and config.get("normalize", True) is not False
    description = checkpoint.describe(
        network,
        shape,
        (-1.0, 1.0) if normalised else (0.0, 1.0),
        diffusion,
        data={"label": str(config.get("dataset", "unknown"))[:80], "synthetic": False},
        training={
            "imported_from": file.name,
            "file_digest": digest_file(file),
            "step": contents.step,
        },
    )
    with files.only_one(out / checkpoint.WEIGHTS, f"the backbone {out.name}"):
        digest = checkpoint.write(out, network, description)
    kind = "supervised baseline" if diffusion is None else "backbone"
    millions = description.parameters / 1e6
    say(f"{file}: imported as {kind} {out}, {millions:.1f} M parameters, digest {digest[:12]}")
    return digest


def _only_file(path: Path) -> Path:
    """The checkpoint itself, where its folder is given."""
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if len(found) != 1:
        what = ", ".join(p.name for p in found[:5]) or "none"
        raise TedmError(
            f"{path}: a folder with {len(found)} checkpoints ({what}), expected one .pt or .pth; name the"
            " one to import"
        )
    return found[0]


def _parts(content: Mapping[str, Any], file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the settings."""
    state = content.get("model_state_dict", content)
    named = state.items() if isinstance(state, dict) else ()
    tensors = {k: v for k, v in named if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise TedmError(
            f"{file}: has no model_state_dict with tensors; found {', '.join(map(str, content))}"
        )
    config = content.get("config")
    settings = vars(config) if isinstance(config, Namespace) else config
    return tensors, dict(settings) if isinstance(settings, dict) else {}


def _prefix(tensors: Mapping[str, Tensor], file: Path) -> str:
    """What stands before the UNet's names: `model.` in a diffusion model, more where that is a part."""
    marker = "init_conv.weight"
    found = sorted({k.removesuffix(marker) for k in tensors if k.endswith(marker)}, key=len)
    if not found:
        raise TedmError(
            f"{file}: no tensor is called {marker}, so it isn't the authors' UNet; found"
            f" {', '.join(list(tensors)[:3])} …"
        )
    if len(found) > 1:
        raise TedmError(f"{file}: holds {len(found)} UNets ({', '.join(found)}); expected one")
    return found[0]


def _network(tensors: Mapping[str, Tensor], file: Path) -> UNet:
    """A UNet of the architecture that the shapes tell, filled with the tensors."""
    try:
        levels = 1 + max(
            (int(m[1]) for k in tensors if (m := re.match(r"downs\.(\d{1,3})\.", k))), default=0
        )
        width, channels = tensors["init_conv.weight"].shape[:2]
        sizes = [tensors[f"downs.{i}.3.weight"].shape[0] for i in range(levels)]
        out_channels = tensors["final_conv.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise TedmError(f"{file}: the UNet has no usable {error}; the file is not whole") from None
    if levels < 2 or width < 8 or width % 8 or any(s < width or s % width for s in sizes):
        raise TedmError(
            f"{file}: a UNet of first width {width} and levels {sizes}; expected a multiple of 8, and"
            " 2 or more levels that are multiples of it"
        )
    try:
        architecture = checkpoint.Architecture(
            width=width,
            multipliers=[size // width for size in sizes],
            channels=channels,
            out_channels=out_channels,
            time_conditioned="time_mlp.1.weight" in tensors,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise TedmError(f"{file}: the UNet's {problem['loc'][0]}: {problem['msg']}") from None
    with torch.device("meta"):  # shapes without memory: what a file claims may be any size
        shapes = UNet(**architecture.model_dump()).state_dict()
    ours = {}
    for name, value in tensors.items():
        renamed = name
        for pattern, replacement in RENAMES:
            renamed = re.sub(pattern, replacement, renamed)
        # The authors' 1×1 convolutions and gains have extra axes of length 1.
        fits = renamed in shapes and value.squeeze().shape == torch.Size(
            s for s in shapes[renamed].shape if s > 1
        )
        ours[renamed] = value.reshape(shapes[renamed].shape) if fits else value
    checkpoint.check_fit(shapes, ours, str(file))
    network = architecture.build()
    checkpoint.fill(network, ours, str(file))
    return network.eval()


def _image_size(config: Mapping[str, Any], image_size: int | None, file: Path) -> int:
    recorded = config.get("img_size")
    recorded = recorded if type(recorded) is int and recorded > 0 else None
    if image_size is None and recorded is None:
        raise TedmError(f"{file}: doesn't say which image size it was trained on; give it")
    if image_size is not None and recorded is not None and image_size != recorded:
        raise TedmError(
            f"{file}: was trained on images of {recorded}×{recorded}, not {image_size}×{image_size}"
        )
    return image_size or recorded or 0


def _diffusion(
    tables: Mapping[str, Tensor], config: Mapping[str, Any], file: Path
) -> DiffusionConfig | None:
    """The process whose tables lie beside the weights; None where there are none."""
    if "sqrt_alphas_cumprod" not in tables:
        return None
    table = tables["sqrt_alphas_cumprod"].flatten().float()
    kinds: list[Literal["cosine", "linear"]] = ["cosine", "linear"]
    for kind in kinds:
        if len(table) > 1 and (Schedule(len(table), kind).signal - table).abs().max() < SAME_SCHEDULE:
            named = str(config.get("objective", "pred_noise"))
            objective = OBJECTIVES.get(named)
            if objective is None:
                raise TedmError(f"{file}: objective {named[:40]!r} (known: {', '.join(OBJECTIVES)})")
            return DiffusionConfig(timesteps=len(table), schedule=kind, objective=objective)
    raise TedmError(
        f"{file}: its noise schedule of {len(table)} timesteps is neither the cosine nor the linear one"
    )
