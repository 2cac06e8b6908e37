"""One pass of a backbone per image and timestep, for all models that read it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tedm import seeds, supervised
from tedm.backbones import Backbone, DiffusionBackbone
from tedm.digests import digest_of
from tedm.features.rounding import keep_bits
from tedm.heads.base import ArrayFeatures
from tedm.models.folder import Features
from tedm.models.loaded import Loaded

Float = NDArray[np.float32]
# Images × timesteps of a forward pass. It never depends on how many there are, since convolutions of
# another batch round otherwise: an image has one mask in whatever company. It makes small networks fast.
PAIRS_AT_ONCE = 8
LARGE = 2**19  # activations of an image that are read; networks with more are busy with one on a processor
IMAGES_AT_ONCE = 16  # whose features are in memory


class MemoryFeatures(ArrayFeatures):
    """Features of a few images, handed out without copies."""

    backbone_digest = ""

    def read(
        self, rows: Sequence[int], timestep: int, layers: Sequence[str] | None = None, view: int = 0
    ) -> dict[str, NDArray[np.floating]]:
        """See FeatureSource."""
        first, last = rows[0], rows[-1] + 1
        if view != 0 or list(rows) != list(range(first, last)):
            return super().read(rows, timestep, layers, view)
        return {layer: self.arrays[timestep, layer][first:last] for layer in layers or self.layer_shapes}


def predictions(
    models: Sequence[Loaded], squares: Float, names: Sequence[str]
) -> Iterator[tuple[slice, list[Float]]]:
    """Predict with several models that see the same squares.

    Args:
        models: of one preprocessing.
        squares: images as the networks see them, (n, C, size, size), in [0, 1].
        names: of the images; noise depends on them.

    Yields:
        Some rows, and for each model what each of its timesteps predicts, (S, rows, K, size, size).
    """
    for start in range(0, len(squares), IMAGES_AT_ONCE):
        rows = slice(start, min(start + IMAGES_AT_ONCE, len(squares)))
        found: dict[int, Float] = {}
        for group in _by_backbone(models):
            features = _features(group, squares[rows], names[rows])
            for model in group:
                found[id(model)] = _votes(model, features, squares[rows])
        yield rows, [found[id(model)] for model in models]


def _by_backbone(models: Sequence[Loaded]) -> list[list[Loaded]]:
    """Models that read the same features together; those that see the images themselves one by one."""
    groups: dict[str, list[Loaded]] = {}
    for model in models:
        said = model.description
        shared = [said.backbone, None if said.features is None else said.features.model_dump()]
        groups.setdefault(digest_of(shared) if said.backbone else f"image {id(model)}", []).append(model)
    return list(groups.values())


def _votes(model: Loaded, features: MemoryFeatures | None, squares: Float) -> Float:
    if model.network is not None:
        return supervised.predict_proba(model.network, squares)[None]
    assert model.head is not None
    assert features is not None
    steps = model.head.votes(features, range(len(squares)))
    if model.voting:
        steps = steps[[model.head.timesteps.index(t) for t in model.timesteps]]
    return np.asarray(steps, np.float32)


def _features(models: Sequence[Loaded], squares: Float, names: Sequence[str]) -> MemoryFeatures | None:
    """Features of all timesteps and layers that the models read; None where they see the images."""
    first = models[0]
    if first.backbone is None:
        return None
    heads = [model.head for model in models if model.head is not None]
    timesteps = sorted({t for head in heads for t in head.timesteps})
    layers = [layer for layer in first.backbone.layer_shapes if any(layer in h.layers for h in heads)]
    settings = first.description.features
    assert settings is not None
    arrays = compute(first.backbone, settings, squares, names, timesteps, layers, first.device)
    size = squares.shape[2], squares.shape[3]
    features = MemoryFeatures(arrays, size)
    features.backbone_digest = first.backbone.digest
    return features


def compute(
    backbone: Backbone,
    settings: Features,
    squares: Float,
    names: Sequence[str],
    timesteps: Sequence[int],
    layers: Sequence[str],
    device: str,
) -> dict[tuple[int, str], NDArray[np.floating]]:
    """Features as the extraction keeps them, (n, C, h, w) for each timestep and layer, in memory.

    The noise of an image is that of `tedm.features.extract` for an image of this name. Forward passes
    have other batches than there, so that float32 values may differ in their last bits. All passes have one
    batch size, the last being padded: an image's features do not depend on the others.
    """
    dtype = getattr(torch, settings.dtype)
    out = {
        (t, layer): np.empty((len(squares), *backbone.layer_shapes[layer]), settings.dtype)
        for t in timesteps
        for layer in layers
    }
    pairs = [(i, t) for t in timesteps for i in range(len(squares))]
    at_once = PAIRS_AT_ONCE
    if device == "cpu" and sum(int(np.prod(shape)) for shape in backbone.layer_shapes.values()) > LARGE:
        at_once = 1
    for some in _passes(backbone, pairs, at_once):
        padded = some + some[-1:] * (at_once - len(some))
        images = torch.from_numpy(squares[[i for i, _ in padded]]).to(device)
        drawn_for = {(i, t): _noise(settings, names[i], t, squares.shape[1:]) for i, t in some}
        noise = np.stack([drawn_for[pair] for pair in padded])
        steps = torch.tensor([t for _, t in padded], device=device)
        drawn = torch.from_numpy(noise).to(device)
        if isinstance(backbone, DiffusionBackbone):
            found = backbone.features_at(images, steps, drawn, settings.input_range)
        else:
            found = backbone.features(images, some[0][1], drawn, settings.input_range)
        for layer in layers:
            kept = found[layer][: len(some)].to(dtype).cpu().contiguous().numpy()
            for (i, t), values in zip(some, keep_bits(kept, settings.keep_bits), strict=True):
                out[t, layer][i] = values
    return out


def _passes(
    backbone: Backbone, pairs: list[tuple[int, int]], at_once: int
) -> Iterator[list[tuple[int, int]]]:
    """Cut pairs of image and timestep into forward passes; foreign networks take one timestep at a time."""
    groups = [pairs]
    if not isinstance(backbone, DiffusionBackbone):
        groups = [[pair for pair in pairs if pair[1] == t] for t in dict.fromkeys(t for _, t in pairs)]
    for group in groups:
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]


def _noise(settings: Features, name: str, timestep: int, shape: tuple[int, ...]) -> Float:
    names = [] if settings.shared_noise else [name]
    rng = seeds.generator(settings.noise_seed, "noise", *names, timestep, 0)
    return rng.standard_normal(shape, dtype=np.float32)
