"""Subjects behind a cell of a table: the best, the middle and the worst, as images with contours."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from tedm.data.prepared import PreparedSet
from tedm.report import figures
from tedm.report.results import slice_shown
from tedm.scoring import read_masks

SHOWN = ("best", "middle", "worst")
Overlays = dict[str, Any]


def collect(spec: Mapping[str, Any], rows: pd.DataFrame, data: Path, scores: Path) -> Overlays:
    """Choose three subjects for each cell of the tables of Dice, and trace their contours.

    An image is kept once, however many cells show it; contours are SVG paths, in half pixels.

    Args:
        spec: as in `results.write_table1`.
        rows: scores; the first seed is shown.
        data: directory of prepared data sets.
        scores: directory of masks.

    Returns:
        For JSON. images: by "dataset|subject" the picture, its size, name and the paths of its truth, one
        for each class. cells: by "dataset|method|n" best, middle and worst as [subject, Dice in %, paths].
        colours: of the classes; classes: by data set their names; remark: which seed is shown, where there
        are several.
    """
    images: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    classes: dict[str, list[str]] = {}
    seed = spec["seeds"][0]
    remark = f"Of {len(spec['seeds'])} seeds, seed {seed} is shown; the number in the table is their mean."
    dice = rows[(rows["metric"] == "dice") & (rows["seed"] == seed)]
    means = dice.groupby(["dataset", "method", "n_train", "subject"])["value"].mean().dropna()
    chosen = {key: _three(of_cell) for key, of_cell in means.groupby(["dataset", "method", "n_train"])}
    for dataset, _ in spec["datasets"]:
        with PreparedSet(data / f"{dataset}.h5") as prepared:
            classes[dataset] = list(prepared.classes)
            subjects = {s for (d, _, _), three in chosen.items() if d == dataset for s, _ in three}
            shown = {subject: slice_shown(prepared, subject) for subject in sorted(subjects)}
            for subject, row in shown.items():
                images[f"{dataset}|{subject}"] = _picture(prepared, row)
            names = {subject: prepared.ids[row] for subject, row in shown.items()}
        for source in spec["sources"]:
            for n in spec["train_sizes"]:
                path = scores / source / f"n{n}" / f"seed{seed}" / f"{dataset}.npz"
                ids, masks = read_masks(path, ids=list(names.values()))
                place = {name: i for i, name in enumerate(ids)}
                for method, predicted in masks.items():
                    cells[f"{dataset}|{method}|{n}"] = [
                        [subject, round(100 * value, 1), _paths(predicted[place[names[subject]]])]
                        for subject, value in chosen.get((dataset, method, n), [])
                    ]
    return {
        "images": images,
        "cells": cells,
        "classes": classes,
        "colours": list(figures.OVERLAY),
        "shown": SHOWN,
        "remark": remark if len(spec["seeds"]) > 1 else "",
    }


def _three(values: pd.Series) -> list[tuple[str, float]]:
    """Best, middle and worst subject with their Dice; fewer where there are fewer."""
    ranked = values.sort_values(ascending=False, kind="stable")
    subjects = ranked.index.get_level_values("subject")
    places = dict.fromkeys((0, len(ranked) // 2, len(ranked) - 1))
    return [(str(subjects[i]), float(ranked.iloc[i])) for i in places]


def _picture(prepared: PreparedSet, row: int) -> dict[str, Any]:
    image, truth = prepared.images([row])[0], prepared.masks([row])[0]
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    shown = Image.fromarray(np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels[0])
    file = io.BytesIO()
    shown.save(file, format="PNG", optimize=True)
    return {
        "name": prepared.ids[row],
        "size": [shown.width, shown.height],
        "uri": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}",
        "truth": _paths(truth),
    }


def _paths(masks: NDArray[np.uint8]) -> list[str]:
    """The contours of each class, (K, H, W), as SVG paths; a unit is half a pixel, 0 the image's corner."""
    return [_path(mask) for mask in masks]


def _path(mask: NDArray[np.uint8]) -> str:
    if not mask.any():
        return ""
    # A border of background closes the contour of what touches the edge.
    lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5)
    text = ""
    for line in lines:
        # Index i of the padded mask is the middle of pixel i - 1, at (i - 0.5) pixels from the corner.
        points = np.rint(2 * np.asarray(line) - 1).astype(int)
        steps = np.diff(points, axis=0)
        turns = np.flatnonzero(np.any(np.diff(steps, axis=0) != 0, axis=1)) + 1
        corners = points[np.concatenate([[0], turns, [len(points) - 1]])]
        moves = np.diff(corners, axis=0)[:-1]
        text += f"M{corners[0, 0]} {corners[0, 1]}l" + " ".join(f"{x} {y}" for x, y in moves) + "z"
    return text
