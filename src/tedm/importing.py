"""Takes over what the authors' code saved: a backbone or baseline, and the head on top of it."""

from pathlib import Path

from tedm import backbones
from tedm.diffusion import official
from tedm.digests import digest_file
from tedm.errors import TedmError
from tedm.heads.official import head_of
from tedm.progress import say


def import_authors(
    path: Path,
    out: Path,
    head: Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> None:
    """Write an authors' checkpoint as files of this project, executing nothing in it.

    Args:
        path: what their code saved: a diffusion model, a supervised network, or a segmentation model (LEDM,
            LEDMe, TEDM), which is a diffusion model and a classifier; or a folder with one such file.
        out: backbone or baseline directory to write.
        head: head to write (.safetensors), of a segmentation model; absent: its classifier is left out.
        image_size: side of the images that it was trained on, in pixels; absent: as it says.
        channels: of the images; absent: as its shapes say.

    Raises:
        TedmError: it is something else, broken, or wants more than weights and settings.
    """
    if head is None:
        official.import_checkpoint(path, out, image_size, channels)
        return
    contents = official.read(path)
    digest = official.write(contents, out, image_size, channels)
    if "sqrt_alphas_cumprod" not in contents.tables:
        raise TedmError(
            f"{contents.file}: a supervised network, which has no head of its own; leave out --head"
        )
    backbone = backbones.load(out)
    fitted = head_of(
        contents.rest,
        contents.config,
        {k: (s.channels, s.height, s.width) for k, s in backbone.layer_shapes.items()},
        backbone.image_shape[1:],
        contents.file,
    )
    if max(fitted.timesteps) >= backbone.timesteps:
        raise TedmError(
            f"{contents.file}: its classifier reads timestep {max(fitted.timesteps)}, outside the"
            f" {backbone.timesteps} of its diffusion"
        )
    fitted.digest = digest_file(contents.file)
    fitted.save(head, backbone_digest=digest)
    kind = "one network for all timesteps" if fitted.voting else "timesteps concatenated"
    say(
        f"{contents.file}: its classifier is the head {head} ({kind}, {list(fitted.timesteps)}); it expects"
        " features of input_range: official"
    )
