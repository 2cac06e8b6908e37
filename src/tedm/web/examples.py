"""Images to try: of an experiment's test sets, with their truth."""

from pathlib import Path

import numpy as np
from PIL import Image

from tedm.config import Experiment
from tedm.data.prepared import PreparedSet
from tedm.models.images import Picture
from tedm.web.drawing import uri
from tedm.web.pictures import Given

PER_SET, MOST = 3, 12
THUMB = 96  # pixels of the longer side


def examples(experiment: Experiment) -> dict[str, Given]:
    """Some images of each test set whose data are there, by the name that visitors see."""
    found: dict[str, Given] = {}
    for dataset in experiment.evaluation.test_on:
        path = Path(experiment.results) / "data" / f"{dataset}.h5"
        if not path.is_file():
            continue
        with PreparedSet(path) as prepared:
            rows = prepared.rows("test")
            picks = np.unique(np.linspace(0, len(rows) - 1, min(PER_SET, len(rows))).round().astype(int))
            for number, pick in enumerate(picks, 1):
                row = rows[pick]
                kind = "A synthetic image" if prepared.synthetic else "An image"
                found[f"{prepared.label} {number}"] = Given(
                    name=prepared.ids[row],
                    picture=Picture(prepared.ids[row], prepared.images([row])[0]),
                    truth=prepared.masks([row])[0] if prepared.has_masks else None,
                    origin=f"{kind} of the test set {prepared.label}; no model learned from it.",
                )
    return dict(list(found.items())[:MOST])


def thumbnail(given: Given) -> str:
    """A small picture of an example, as the address of itself."""
    shown = Image.fromarray(given.picture.shown()).convert("L" if len(given.picture.pixels) == 1 else "RGB")
    scale = THUMB / max(shown.size)
    size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
    return uri(shown.resize(size, Image.Resampling.BICUBIC))
