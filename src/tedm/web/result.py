"""What the page shows of one image: each model's contours, numbers, mask to download and vote."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tedm import evaluation
from tedm.models import Model, Models, Segmentation
from tedm.models.outputs import mask_image
from tedm.web import drawing, explain, pieces
from tedm.web.pictures import Given
from tedm.web.view import own_size, view

OPEN_UP_TO = 2  # models whose vote is shown without being asked for
MOST_COLUMNS = 5  # one for each training size, so that a row is a method


@dataclass(frozen=True)
class Line:
    """The contour of one class."""

    path: str
    colour: str
    truth: bool


@dataclass(frozen=True)
class Card:
    """What one model makes of the image."""

    name: str
    method: str
    n: int
    lines: list[Line]
    numbers: list[tuple[str, str]]
    dice: float | None  # mean of the classes, in %
    doubt: str | None
    mask: str
    file: str
    votes: list[explain.Vote]


def page(given: Given, models: Models, names: Sequence[str]) -> str:
    """Segment an image with some models; HTML.

    Raises:
        TedmError: no image for these models.
    """
    shown = view(given.picture)
    ids = [given.name] if given.truth is not None else None  # the workflow's noise, hence its Dice
    found: Mapping[str, Segmentation] = models.segment(shown, names=names, ids=ids)
    truth = [] if given.truth is None else drawing.contours_of_masks(given.truth)
    cards = [_card(given, models[name], found[name], truth) for name in found]
    height, width = given.picture.pixels.shape[1:]
    classes = list(dict.fromkeys(c for name in found for c in models[name].classes))
    return pieces.render(
        "result",
        given=given,
        photo=drawing.uri(shown.image()),
        size=(shown.shape[1], shown.shape[0]),
        own=(width, height),
        spacing=given.picture.spacing_mm,
        cards=cards,
        table=_table(cards),
        seconds=max((one.seconds for one in found.values()), default=0.0),
        key=_key(classes, given.truth is not None),
        opened=len(cards) <= OPEN_UP_TO,
        columns=max(3, min(MOST_COLUMNS, len({card.n for card in cards}))),
        doubt=any(card.doubt for card in cards),
    )


def _card(given: Given, model: Model, found: Segmentation, truth: Sequence[str]) -> Card:
    masks = own_size(given.picture, model, found)
    one = len(model.classes) == 1
    colours = [drawing.PREDICTION_COLOUR] if one else drawing.COLOURS
    truth_colours = [drawing.TRUTH_COLOUR] if one else drawing.COLOURS
    paths = drawing.contours(drawing.margins(found.probability))
    lines = [Line(path, truth_colours[k % len(truth_colours)], truth=True) for k, path in enumerate(truth)]
    lines += [Line(path, colours[k % len(colours)], truth=False) for k, path in enumerate(paths)]
    dice = _dice(given.truth, masks, model.classes)
    values = [value for value in dice.values() if not np.isnan(value)]
    numbers = []
    for k, name in enumerate(model.classes):
        label = "" if one else f" ({name})"
        if name in dice:
            known = not np.isnan(dice[name])
            numbers.append(
                (f"Dice{label}", f"{100 * dice[name]:.1f}\u00a0%" if known else "not in the truth")
            )
        numbers.append((f"Area{label}", _area(int(masks[k].sum()), given)))
        if name in found.disagreement:
            numbers.append((f"Disagreement{label}", f"{100 * found.disagreement[name]:.1f}\u00a0%"))
    height, width = given.picture.pixels.shape[1:]
    return Card(
        name=model.name,
        method=model.method,
        n=model.n,
        lines=lines,
        numbers=numbers,
        dice=100 * float(np.mean(values)) if values else None,
        doubt=None if found.uncertainty is None else drawing.doubt(found.uncertainty.max(axis=0)),
        mask=drawing.uri(mask_image(_indices(masks), model.classes)),
        file=f"{_plain(given.name)}_{_plain(model.name)}_mask.png",
        votes=explain.votes(found, (height, width), model.preprocessing.fit),
    )


def _indices(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    order = np.arange(1, len(masks) + 1, dtype=np.uint8)[:, None, None]
    return np.asarray((masks * order).max(axis=0), np.uint8)


def _dice(
    truth: NDArray[np.uint8] | None, masks: NDArray[np.uint8], classes: Sequence[str]
) -> dict[str, float]:
    if truth is None or len(truth) != len(classes):
        return {}
    rows = evaluation.scores(masks[None], truth[None], ["image"], classes)
    dice: pd.DataFrame = rows[rows["metric"] == "dice"]
    return dict(zip(dice["class"], dice["value"].astype(float), strict=True))


def _area(pixels: int, given: Given) -> str:
    height, width = given.picture.pixels.shape[1:]
    share = f"({100 * pixels / (height * width):.1f}\u00a0%)"
    if given.picture.spacing_mm is None:
        return f"{pixels:,}\u00a0px {share}"
    return f"{pixels * float(np.prod(given.picture.spacing_mm)) / 100:,.1f}\u00a0cm² {share}"


def _table(cards: Sequence[Card]) -> dict[str, object] | None:
    """Mean Dice by method and training size, where there is a truth and more than one row or column."""
    sizes = sorted({card.n for card in cards})
    methods = list(dict.fromkeys(card.method for card in cards))
    if len(cards) <= OPEN_UP_TO or any(card.dice is None for card in cards):
        return None
    # With several seeds the first one counts.
    place = {(card.method, card.n): i for i, card in reversed(list(enumerate(cards)))}
    rows = []
    for method in methods:
        cells = [place.get((method, n)) for n in sizes]
        rows.append((method, [(i, None if i is None else cards[i].dice) for i in cells]))
    return {"sizes": sizes, "rows": rows}


def _key(classes: Sequence[str], truth: bool) -> list[tuple[str, str, bool]]:
    """Name, colour and whether dashed, of all lines."""
    if len(classes) == 1:
        lines = [(f"{classes[0]}: the model", drawing.PREDICTION_COLOUR, False)]
        return [(f"{classes[0]}: the truth", drawing.TRUTH_COLOUR, False), *lines] if truth else lines
    lines = [(name, drawing.COLOURS[k % len(drawing.COLOURS)], False) for k, name in enumerate(classes)]
    return [*lines, ("dashed: the truth", "currentColor", True)] if truth else lines


def _plain(name: str) -> str:
    """A name as a part of the name of a file."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "image"


def message(text: str) -> str:
    """A sentence in the place of a result; HTML."""
    return f'<p class="tedm-empty">{html.escape(text)}</p>'
