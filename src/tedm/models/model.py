"""One model, loaded from its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from tedm import backbones, supervised
from tedm.backbones import Backbone
from tedm.errors import TedmError
from tedm.heads import base
from tedm.models import folder as folders
from tedm.models.folder import Description
from tedm.models.loaded import Loaded
from tedm.models.segmentation import Segmentation
from tedm.models.segmenting import segment

# Heads of which a fitted one can be told to look at some of its timesteps only.
SEPARABLE = ("ridge", "mlp")


class Model(Loaded):
    """One model that segments; what it consists of is in `Loaded`."""

    @overload
    def segment(
        self,
        image: list[Any],
        *,
        ids: Sequence[str] | None = None,
        keep_largest: int | None = None,
        fill_holes: bool = False,
    ) -> list[Segmentation]: ...

    @overload
    def segment(
        self,
        image: Any,
        *,
        ids: Sequence[str] | None = None,
        keep_largest: int | None = None,
        fill_holes: bool = False,
    ) -> Segmentation: ...

    def segment(
        self,
        image: Any,
        *,
        ids: Sequence[str] | None = None,
        keep_largest: int | None = None,
        fill_holes: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image, or a list of images, which fills the passes of a model of few timesteps.

        The noise that a diffusion backbone adds is the same for every image (in a volume, for every slice
        of one number), so that an image gets one mask, whatever file it comes in. With `ids` it is that
        of the workflow for images of these names.

        Args:
            image: path (PNG, JPEG, TIFF, GIF, DICOM, NIfTI), Pillow image, array, or what `images.read`
                gave; or a list of them.
            ids: name of each image, for a list or for one image; of a volume's slices their beginning.
            keep_largest: connected parts of each class that stay in the mask; None: all.
            fill_holes: fill background that a class encloses.

        Raises:
            TedmError: an image that cannot be read, or that is none for this model.
        """
        many = image if isinstance(image, list) else [image]
        found = [each[self.name] for each in segment([self], many, ids, keep_largest, fill_holes)]
        return found if isinstance(image, list) else found[0]


def load(folder: Path | str, device: str = "cpu", *, allow_imports: bool = False) -> Model:
    """Load a model folder. Nothing in it is executed.

    Args:
        folder: that `tedm export` wrote.
        device: cpu, or cuda.
        allow_imports: whether classes `package.module:Class` that it names may be imported. Those that
            ship with tedm and entry points of installed packages always may.

    Raises:
        TedmError: no model folder, one of another version, or files that were changed.
    """
    return load_sharing(Path(folder), device, {}, allow_imports=allow_imports)


def load_sharing(
    folder: Path, device: str, shared: dict[str, Backbone], *, allow_imports: bool = False
) -> Model:
    """Load a model folder, but a backbone only where `shared` does not have it; it is added there."""
    said = folders.read(folder)
    if said.kind == "network":
        folders.network_digest(folder, folders.NETWORK, said.network)
        parts = {folders.NETWORK: folder / folders.NETWORK}
    else:
        folders.network_digest(folder, folders.BACKBONE, said.backbone)
        head = folders.check_file(folder, folders.HEAD, said.head)
        parts = {folders.BACKBONE: folder / folders.BACKBONE, folders.HEAD: head}
    return assemble(said, parts, device, shared, allow_imports=allow_imports)


def assemble(
    said: Description,
    parts: Mapping[str, Path],
    device: str,
    shared: dict[str, Backbone],
    *,
    allow_imports: bool = False,
) -> Model:
    """Make a model of its description and its files, wherever they lie; further as in `load_sharing`."""
    if said.kind == "network":
        network = supervised.load(parts[folders.NETWORK], device)
        if network.digest != said.network:
            raise TedmError(f"{parts[folders.NETWORK]}: is not the network of {said.name}")
        return Model(said, None, None, network, device)
    assert said.backbone is not None
    head = base.load(parts[folders.HEAD], allow_imports=allow_imports)
    if head.backbone_digest and head.backbone_digest != said.backbone:
        raise TedmError(f"{parts[folders.HEAD]}: reads another backbone; export the model again")
    if said.backbone not in shared:
        shared[said.backbone] = backbones.load(parts[folders.BACKBONE], device, allow_imports=allow_imports)
    head.device = device
    if head.voting and head.type in SEPARABLE:
        head.timesteps = tuple(said.timesteps)
    return Model(said, shared[said.backbone], head, None, device)
