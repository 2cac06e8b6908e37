"""Import of checkpoints of the authors' code: their weights under our names, nothing executed."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tedm import checkpoint, files
from tedm.config import DiffusionConfig
from tedm.diffusion.objective import Objective
from tedm.diffusion.schedule import Schedule
from tedm.digests import digest_file
from tedm.errors import TedmError
from tedm.progress import say
from tedm.unet import UNet

OBJECTIVES: dict[Any, Objective] = {"pred_noise": "noise", "pred_x0": "image", "pred_v": "velocity"}
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


# What torch.load raises for files that are no checkpoints, or only the beginning of one.
BROKEN = (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile)


class Namespace:
    """Stands in for argparse.Namespace, the one class that the authors' files name; holds values only."""


def import_checkpoint(file: Path, out: Path, image_size: int | None = None) -> None:
    """Write the network of an authors' checkpoint as a directory of this project.

    A diffusion model becomes a backbone. A supervised network, which has no schedule, becomes a baseline.
    From a segmentation model that contains a diffusion model, that diffusion model is taken. Width,
    multipliers and channels are read off the tensors' shapes.

    Args:
        file: what the authors' code saved: a pickle with model_state_dict and, mostly, config.
        out: directory to write.
        image_size: side of the images that it was trained on, in pixels; absent: as its config says.

    Raises:
        TedmError: the pickle wants more than tensors, plain values and settings, and was not run; the file
            is broken; its tensors are not those of this UNet or not finite; the image size is unknown.
    """
    content = _unpickled(file)
    tensors, config = _parts(content, file)
    prefix = _prefix(tensors, file)
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    network = _network(own, file)
    size = _image_size(config, image_size, file)
    shape = (network.channels, size, size)
    checkpoint.check_size(str(file), shape, network.multipliers)
    diffusion = _diffusion(tensors, config, file)
    normalised = diffusion is not None and config.get("normalize", True) is not False
    description = checkpoint.describe(
        network,
        shape,
        (-1.0, 1.0) if normalised else (0.0, 1.0),
        diffusion,
        data={"label": str(config.get("dataset", "unknown")), "synthetic": False},
        training={
            "imported_from": file.name,
            "file_digest": digest_file(file),
            "step": content.get("step"),
        },
    )
    with files.only_one(out / checkpoint.WEIGHTS, f"the backbone {out.name}"):
        digest = checkpoint.write(out, network, description)
    kind = "supervised baseline" if diffusion is None else "backbone"
    millions = description.parameters / 1e6
    say(f"{file}: imported as {kind} {out}, {millions:.1f} M parameters, digest {digest[:12]}")
    left = [k for k in tensors if not k.startswith(prefix) and tensors[k].dim() > 1]
    if left:
        say(f"{file}: {len(left)} tensors outside the UNet are left out, {left[0]} the first of them")


def _unpickled(file: Path) -> dict[str, Any]:
    """The pickle's content, read by an unpickler that knows tensors and plain values only."""
    allowed: list[Any] = [(Namespace, "argparse.Namespace")]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TedmError(f"{file}: no such file") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise TedmError(
                f"{file}: refused: its pickle asks for {named[1]}, which weights have no use for and"
                " which could run a stranger's code; nothing of it was run. If you trust it, load it with"
                " the program that wrote it and save model_state_dict alone"
            ) from None
        raise TedmError(f"{file}: not a checkpoint of the authors' code, or truncated") from None
    except BROKEN as error:
        raise TedmError(
            f"{file}: not a checkpoint of PyTorch, or truncated ({_first_line(error)})"
        ) from None
    if not isinstance(content, dict):
        raise TedmError(f"{file}: holds a {type(content).__name__}, expected a dict with model_state_dict")
    return content


def _parts(content: Mapping[str, Any], file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the settings."""
    state = content.get("model_state_dict", content)
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise TedmError(
            f"{file}: has no model_state_dict with tensors; found {', '.join(map(str, content))}"
        )
    config = content.get("config")
    if isinstance(config, Namespace):
        return tensors, dict(vars(config))
    return tensors, dict(config) if isinstance(config, dict) else {}


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
    levels = 1 + max((int(m[1]) for k in tensors if (m := re.match(r"downs\.(\d+)\.", k))), default=-1)
    try:
        width, channels = tensors["init_conv.weight"].shape[:2]
        sizes = [tensors[f"downs.{i}.3.weight"].shape[0] for i in range(levels)]
        out_channels = tensors["final_conv.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise TedmError(f"{file}: the UNet has no usable {error}; the file is not whole") from None
    if levels < 2 or width % 8 or any(size % width for size in sizes):
        raise TedmError(
            f"{file}: a UNet of first width {width} and levels {sizes}; expected a multiple of 8, and"
            " 2 or more levels that are multiples of it"
        )
    architecture = checkpoint.Architecture(
        width=width,
        multipliers=[size // width for size in sizes],
        channels=channels,
        out_channels=out_channels,
        time_conditioned="time_mlp.1.weight" in tensors,
    )
    network = architecture.build()
    shapes = {k: v.shape for k, v in network.state_dict().items()}
    ours = {}
    for name, value in tensors.items():
        renamed = name
        for pattern, replacement in RENAMES:
            renamed = re.sub(pattern, replacement, renamed)
        # The authors' 1×1 convolutions and gains have extra axes of length 1.
        fits = renamed in shapes and value.squeeze().shape == torch.Size(
            s for s in shapes[renamed] if s > 1
        )
        ours[renamed] = value.reshape(shapes[renamed]) if fits else value
    checkpoint.fill(network, ours, str(file))
    return network.eval()


def _image_size(config: Mapping[str, Any], image_size: int | None, file: Path) -> int:
    recorded = config.get("img_size")
    recorded = recorded if isinstance(recorded, int) and recorded > 0 else None
    if image_size is None and recorded is None:
        raise TedmError(f"{file}: doesn't say which image size it was trained on; give it")
    if image_size is not None and recorded is not None and image_size != recorded:
        raise TedmError(
            f"{file}: was trained on images of {recorded}×{recorded}, not {image_size}×{image_size}"
        )
    return image_size or recorded or 0


def _diffusion(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: Path
) -> DiffusionConfig | None:
    """The process whose tables lie beside the weights; None where there are none."""
    tables = [v for k, v in tensors.items() if k.rpartition(".")[2] == "sqrt_alphas_cumprod"]
    if not tables:
        return None
    table = tables[0].flatten().float()
    kinds: list[Literal["cosine", "linear"]] = ["cosine", "linear"]
    for kind in kinds:
        if len(table) > 1 and (Schedule(len(table), kind).signal - table).abs().max() < SAME_SCHEDULE:
            objective = OBJECTIVES.get(config.get("objective", "pred_noise"))
            if objective is None:
                raise TedmError(
                    f"{file}: objective {config['objective']!r} (known: {', '.join(OBJECTIVES)})"
                )
            return DiffusionConfig(timesteps=len(table), schedule=kind, objective=objective)
    raise TedmError(
        f"{file}: its noise schedule of {len(table)} timesteps is neither the cosine nor the linear one"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:120] or type(error).__name__
