"""From images to segmentations, with many models at once."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tedm import disagreement, evaluation
from tedm.digests import digest_of
from tedm.errors import TedmError
from tedm.models.folder import Preprocessing
from tedm.models.images import Picture, Scan, as_picture
from tedm.models.loaded import Loaded
from tedm.models.passes import IMAGES_AT_ONCE, predictions
from tedm.models.segmentation import Segmentation

Float = NDArray[np.float32]


def segment(
    models: Sequence[Loaded],
    images: Sequence[Any],
    ids: Sequence[str] | str | None,
    keep_largest: int | None,
    fill_holes: bool,
) -> list[dict[str, Segmentation]]:
    """Segment images with several models; arguments as in `Model.segment`.

    Returns:
        For each image the segmentation of each model, by its name.
    """
    if isinstance(ids, str):
        ids = [ids]
    if ids is not None and len(ids) != len(images):
        raise TedmError(f"ids: {len(ids)} names for {len(images)} images; give one for each")
    if keep_largest is not None and keep_largest < 1:
        raise TedmError(f"keep_largest: {keep_largest} parts; give 1 or more, or leave it out")
    found: list[dict[str, Segmentation]] = [{} for _ in images]
    for group in _by_preprocessing(models):
        like = group[0].preprocessing
        for places, pictures, reading in _batches(images, like):
            began = time.perf_counter() - reading
            names = None if ids is None else [ids[place] for place in places]
            made = _segment(group, pictures, like, names)
            seconds = (time.perf_counter() - began) / len(places)
            for place, of_image in zip(places, made, strict=True):
                for name, one in of_image.items():
                    timed = replace(one, seconds=seconds)
                    found[place][name] = timed.cleaned(keep_largest, fill_holes)
    return [{model.name: each[model.name] for model in models} for each in found]


def _by_preprocessing(models: Sequence[Loaded]) -> list[list[Loaded]]:
    groups: dict[str, list[Loaded]] = {}
    for model in models:
        groups.setdefault(digest_of(model.preprocessing.model_dump()), []).append(model)
    return list(groups.values())


def _batches(
    images: Sequence[Any], like: Preprocessing
) -> Iterator[tuple[list[int], list[Picture | Scan], float]]:
    """Read images: some pictures, or one volume, with their places and the seconds that reading took."""
    places: list[int] = []
    pictures: list[Picture | Scan] = []
    reading = 0.0
    for place, given in enumerate(images):
        began = time.perf_counter()
        picture = as_picture(given, like)
        if pictures and (picture.volume or pictures[-1].volume or len(pictures) == IMAGES_AT_ONCE):
            yield places, pictures, reading
            places, pictures, reading = [], [], 0.0
            began = time.perf_counter()
        places.append(place)
        pictures.append(picture)
        reading += time.perf_counter() - began
    if pictures:
        yield places, pictures, reading


def _segment(
    models: Sequence[Loaded],
    pictures: Sequence[Picture | Scan],
    like: Preprocessing,
    ids: Sequence[str] | None,
) -> list[dict[str, Segmentation]]:
    """Segment pictures, or one volume, with models of one preprocessing."""
    parts = [picture.squares(like) for picture in pictures]
    squares = np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts])
    # New images all get the same noise: a file saved in another way must not get another mask.
    starts = ["new"] * len(pictures) if ids is None else ids
    names = [n for start, picture in zip(starts, pictures, strict=True) for n in picture.names(start, like)]
    gathered = [_Gathered(model, keep_steps=not pictures[0].volume) for model in models]
    for _, votes in predictions(models, squares, names):
        for gather, steps in zip(gathered, votes, strict=True):
            gather.add(steps)
    return [
        {
            gather.model.name: gather.segmentation(picture, slice(end - len(part), end), like)
            for gather in gathered
        }
        for picture, part, end in zip(pictures, parts, ends, strict=True)
    ]


class _Gathered:
    """What one model predicts, batch by batch; of a volume only what is needed in the end."""

    def __init__(self, model: Loaded, *, keep_steps: bool) -> None:
        self.model, self.keep_steps = model, keep_steps
        self.mean: list[Float] = []
        self.information: list[Float] = []
        self.overlaps: list[NDArray[np.int64]] = []
        self.steps: list[Float] = []

    def add(self, steps: Float) -> None:
        """Take in a batch, (S, n, K, h, w)."""
        # As Head.combine does it, to the bit.
        self.mean.append(np.asarray(steps.mean(axis=0, dtype=np.float64), np.float32))
        if self.model.voting and len(steps) > 1:
            self.information.append(disagreement.information(steps))
            self.overlaps.append(disagreement.overlaps(steps))
        if self.keep_steps:
            self.steps.append(steps)

    def segmentation(self, picture: Picture | Scan, rows: slice, like: Preprocessing) -> Segmentation:
        """The segmentation of one picture or volume, whose squares are `rows`."""
        classes = self.model.classes
        probability = picture.back(_rows(self.mean, rows), like)
        flat = probability.reshape(1, len(classes), *_plane(probability.shape[1:]))
        masks = evaluation.segment(flat).reshape(probability.shape)
        order = np.arange(1, len(classes) + 1, dtype=np.uint8).reshape(-1, *[1] * (masks.ndim - 1))
        uncertainty, doubts = None, {}
        if self.information:
            uncertainty = picture.back(_rows(self.information, rows), like)
            common = np.concatenate(self.overlaps)[rows]
            table = disagreement.scores(common, ["image"] * len(common), classes)
            doubts = dict(zip(table["class"], table["value"].astype(float), strict=True))
        steps = np.concatenate(self.steps, axis=1)[:, rows.start] if self.keep_steps else None
        return Segmentation(
            classes=classes,
            mask=np.asarray((masks * order).sum(axis=0, dtype=np.uint8)),
            probability=probability,
            uncertainty=uncertainty,
            steps=steps,
            timesteps=self.model.timesteps if self.model.voting else (),
            disagreement=doubts,
            spacing_mm=picture.spacing_mm,
            seconds=0.0,
            back=lambda maps: picture.back(maps[None], like),
        )


def _rows(parts: list[Float], rows: slice) -> Float:
    return (parts[0] if len(parts) == 1 else np.concatenate(parts))[rows]


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of an image, or of a volume laid out as one."""
    return shape[0], int(np.prod(shape[1:]))
