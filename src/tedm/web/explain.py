"""How the vote of a model comes about: what each timestep says, how many agree, where they do not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tedm import disagreement, evaluation
from tedm.models import Segmentation
from tedm.models.images import restored
from tedm.web import drawing

SIDE = 160  # pixels of a small map
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Map:
    """A small map of one class."""

    title: str
    uri: str
    path: str  # contour of what it would segment by itself
    note: str = ""


@dataclass(frozen=True)
class Vote:
    """One class of one model.

    Attributes:
        name: of the class.
        size: width and height of the maps.
        steps: what each timestep says.
        outcome: mean, agreement and doubt; only the probability where the model does not vote.
        sentence: what is to be seen, in words.
    """

    name: str
    size: tuple[int, int]
    steps: list[Map]
    outcome: list[Map]
    sentence: str


def votes(found: Segmentation, shape: tuple[int, int], fit: str) -> list[Vote]:
    """The vote on each class.

    Args:
        found: with its steps.
        shape: height and width of the image.
        fit: how it was brought to the network's size.
    """
    assert found.steps is not None
    scale = min(1.0, SIDE / max(shape))
    small = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
    steps = np.stack([restored(step, small, fit) for step in found.steps])  # type: ignore[arg-type]
    mean = np.asarray(steps.mean(axis=0), np.float32)
    said = [evaluation.segment(step[None])[0] for step in steps]
    result = evaluation.segment(mean[None])[0]
    lines = [drawing.contours(drawing.margins(step)) for step in steps]
    outcome_lines = drawing.contours(drawing.margins(mean))
    size = (small[1], small[0])
    out = []
    for k, name in enumerate(found.classes):
        whole = Map("probability", drawing.grey(mean[k]), outcome_lines[k], "outlined: above one half")
        if not found.timesteps:
            sentence = (
                "This model does not vote: it reads its inputs together and gives one probability for each"
                " pixel. A pixel belongs to the mask where the class is the most probable."
            )
            out.append(Vote(name, size, [], [whole], sentence))
            continue
        overlap = [_dice(one[k], result[k]) for one in said]
        count = np.sum([one[k] for one in said], axis=0)
        bits = disagreement.information(steps[:, None])[0, k]
        maps = [
            Map(f"t = {t}", drawing.grey(steps[i, k]), lines[i][k], f"{100 * overlap[i]:.0f} %")
            for i, t in enumerate(found.timesteps)
        ]
        number = len(found.timesteps)
        outcome = [
            Map("mean", drawing.grey(mean[k]), outcome_lines[k], "outlined: the mask"),
            Map(
                "votes", drawing.counted(count, number), outcome_lines[k], f"black none, white all {number}"
            ),
            Map("uncertainty", drawing.doubt(bits), outcome_lines[k], "blue 0, yellow from ½ bit on"),
        ]
        odd = int(np.argmin(overlap))
        unanimous = float(np.mean((count == 0) | (count == number)))
        sentence = (
            f"{number} timesteps look at the image with more or less noise on it, and each gives every"
            f" pixel a probability. The mask is where the mean of the {number} is above one half"
            f"{' (and above that of the other classes)' if len(found.classes) > 1 else ''}."
            f" Here all {number} say the same of {100 * unanimous:.1f} % of the pixels;"
            f" t = {found.timesteps[odd]} is furthest from the outcome (Dice {100 * overlap[odd]:.0f} %)."
        )
        out.append(Vote(name, size, maps, outcome, sentence))
    return out


def _dice(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0
