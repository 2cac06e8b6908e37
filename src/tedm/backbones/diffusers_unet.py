"""The up blocks of a diffusers UNet2DModel as a backbone."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tedm import checkpoint, files
from tedm.backbones.adapter import UNFIT, Adapter
from tedm.backbones.base import InputRange
from tedm.backbones.libraries import imported
from tedm.errors import TedmError

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class DiffusersUNet(Adapter):
    """A pixel-space, unconditional UNet2DModel with a scheduler that has a ᾱ for each timestep.

    Images become x_t as in Ho et al. (2020, eq. 4), with the scheduler's ᾱ. The layers are the outputs of
    the up blocks, up0, up1, …. Images of one channel are repeated where the network has more; the noise of
    channel c of C is the given one shifted down by c·H/C rows, so that at no pixel two channels share it.
    """

    libraries = ("diffusers",)

    @classmethod
    def read(
        cls, path: Path, settings: Mapping[str, Any], image_shape: tuple[int, int, int]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See Adapter: a pipeline's folder, or that of its UNet with the scheduler's beside or in it."""
        if settings:
            raise TedmError(f"backbone type diffusers: has no settings, got {', '.join(settings)}")
        unet = _unet_folder(path)
        config = files.read_json(unet / CONFIG)
        _check(config, unet / CONFIG, image_shape)
        tensors = _weights(unet)
        scheduler = _scheduler_file(path, unet)
        tensors["alphas_cumprod"] = alphas = _alphas_cumprod(scheduler)
        described = {key: value for key, value in config.items() if not key.startswith("_")}
        prediction = files.read_json(scheduler).get("prediction_type", "epsilon")
        return {"unet": described, "timesteps": len(alphas), "prediction_type": prediction}, tensors

    def __init__(self, description: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
        super().__init__(description, image_shape)
        self.unet = imported("diffusers").UNet2DModel.from_config(description["unet"])
        self.timesteps = int(description["timesteps"])
        self.register_buffer("alphas_cumprod", torch.ones(self.timesteps))
        # A network that centres its input itself was trained on pipelines that hand it [0, 1].
        self.trained_range = (0.0, 1.0) if self.unet.config.center_input_sample else (-1.0, 1.0)

    def activations(
        self, images: Tensor, timestep: int, noise: Tensor, input_range: InputRange
    ) -> dict[str, Tensor]:
        """See Adapter."""
        low, high = self.trained_range if input_range == "trained" else (0.0, 1.0)
        x0 = low + (high - low) * images
        channels = self.unet.config.in_channels
        if x0.shape[1] < channels:
            rows = noise.shape[2]
            shifted = [noise.roll(c * rows // channels, dims=2) for c in range(channels)]
            x0, noise = x0.expand(-1, channels, -1, -1), torch.cat(shifted, 1)
        signal = self.get_buffer("alphas_cumprod")[timestep]
        x_t = signal.sqrt() * x0 + (1 - signal).sqrt() * noise
        layers: dict[str, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for i, block in enumerate(self.unet.up_blocks):
                hooks.enter_context(block.register_forward_hook(_keeping(layers, f"up{i}")))
            self.unet(x_t, torch.full((len(images),), timestep, device=images.device))
        return layers


def _keeping(layers: dict[str, Tensor], name: str) -> Any:
    def keep(_block: Any, _inputs: Any, output: Tensor) -> None:
        layers[name] = output

    return keep


def _unet_folder(path: Path) -> Path:
    index = path / "model_index.json"
    if index.exists():
        parts = files.read_json(index)
        latent = [part for part in ("vqvae", "vae") if part in parts]
        if latent:
            raise TedmError(
                f"{path}: a latent diffusion pipeline ({latent[0]}): its UNet sees codes, not images;"
                " expected one in pixel space"
            )
    unet = path / "unet" if (path / "unet").is_dir() else path
    if not (unet / CONFIG).is_file():
        raise TedmError(
            f"{path}: not a diffusers folder: no unet/{CONFIG} and no {CONFIG} in it; expected what"
            " save_pretrained writes for a pipeline or its UNet2DModel"
        )
    return unet


def _check(config: Any, file: Path, image_shape: tuple[int, int, int]) -> None:
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != "UNet2DModel":
        raise TedmError(
            f"{file}: describes a {kind or 'network without _class_name'}, expected UNet2DModel"
        )
    if config.get("num_class_embeds") is not None or config.get("class_embed_type") is not None:
        raise TedmError(f"{file}: a network that wants a class label with each image; expected one without")
    channels, height, width = image_shape
    takes = config.get("in_channels", 3)
    if channels not in (1, takes):
        raise TedmError(
            f"{file}: the network takes {takes} channels, the images have {channels} (image.channels);"
            " images of 1 channel are repeated, others are not"
        )
    size = config.get("sample_size")
    trained_on = [size, size] if isinstance(size, int) else size
    if trained_on is not None and list(trained_on) != [height, width]:
        raise TedmError(
            f"{file}: the network was trained on images of {'×'.join(map(str, trained_on))}, not"
            f" {height}×{width}; set image.size to that"
        )


def _weights(unet: Path) -> dict[str, Tensor]:
    """The UNet's tensors, under today's names where an old version wrote them; all of them, or an error."""
    file = unet / WEIGHTS
    if not file.is_file():
        raise TedmError(
            f"{unet}: no {WEIGHTS}; other formats are not read: load it with diffusers and write it again"
            " by save_pretrained(folder, safe_serialization=True)"
        )
    checkpoint.read_weights(file)  # says what is wrong with a broken file
    try:
        network, report = imported("diffusers").UNet2DModel.from_pretrained(
            unet, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False,
            output_loading_info=True,
        )  # fmt: skip
    except (*UNFIT, OSError) as error:
        first = str(error).strip().partition("\n")[0][:300]
        raise TedmError(f"{file}: not the weights of the network in {CONFIG} ({first})") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[what]:
            raise TedmError(
                f"{file}: not the weights of the network in {CONFIG}: {what.replace('_', ' ')}"
                f" {', '.join(map(str, list(report[what])[:3]))}"
            )
    return {f"unet.{name}": value.float() for name, value in network.state_dict().items()}


def _scheduler_file(path: Path, unet: Path) -> Path:
    name = "scheduler_config.json"
    places = [path / "scheduler" / name, unet / name, unet.parent / "scheduler" / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise TedmError(
            f"{path}: no scheduler/{name}, which says how much noise a timestep has; put the pipeline's"
            " scheduler folder beside the UNet's"
        )
    return found


def _alphas_cumprod(file: Path) -> Tensor:
    """ᾱ of each timestep, (T,), as the scheduler of the pipeline has them."""
    config = files.read_json(file)
    diffusers = imported("diffusers")
    name = config.get("_class_name") if isinstance(config, dict) else None
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise TedmError(f"{file}: {name} is no scheduler of diffusers {diffusers.__version__}")
    try:
        alphas = kind.from_config(config).alphas_cumprod  # type: ignore[attr-defined]
        alphas = alphas.float()
        usable = alphas.dim() == 1 and bool(((alphas >= 0) & (alphas <= 1)).all())
    except UNFIT as error:
        raise TedmError(f"{file}: {name} gives no table of noise per timestep ({error})") from error
    if not usable:
        raise TedmError(f"{file}: {name} has values of ᾱ outside 0 … 1")
    return torch.as_tensor(alphas)
