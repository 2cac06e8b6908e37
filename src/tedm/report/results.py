"""The report's jobs: read the scores of an experiment, write its table and figures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tedm import evaluation
from tedm.data.prepared import PreparedSet
from tedm.progress import say
from tedm.report import tables
from tedm.scoring import read_masks

EXAMPLES_PER_DATASET = 2  # rows of the figure of segmentations


def write_table1(spec: Mapping[str, Any], scores: Path, out: Path) -> None:
    """Write Table 1 (Rosnati et al. 2023): Dice of every method, data set and training size.

    Args:
        spec: title, methods (rows), datasets (pairs of name and label), synthetic (names), level of the
            test; and sources (heads and baselines), train_sizes and seeds, which name the score files.
        scores: directory of the score files.
        out: table1.csv; the other forms lie beside it.
    """
    written = tables.write(_table(spec, scores), out)
    say(f"Table 1: {', '.join(str(path) for path in written)}")


def draw_learning_curves(spec: Mapping[str, Any], scores: Path, out: Path) -> None:
    """Draw mean Dice over the training size; arguments as in write_table1.

    Readings of a head at some of its timesteps stay in the table: nobody could tell so many lines apart.
    """
    from tedm.report import figures

    figures.learning_curves(out, _table({**spec, "methods": spec["sources"]}, scores))
    say(f"Learning curves: {out}")


def draw_segmentations(spec: Mapping[str, Any], data: Path, scores: Path, out: Path) -> None:
    """Draw test images with the contours of truth and predictions.

    The images of a data set are those in the middle and at the lower fifth of the methods' mean Dice: what
    is usual, and what is hard. The best ones would flatter.

    Args:
        spec: methods (columns), datasets (pairs of name and label), synthetic (names), size n and seed.
        data: directory of prepared data sets.
        scores: directory of score files and masks.
        out: figure (.png).
    """
    from tedm.report import figures

    images, truth, labels = [], [], []
    predictions: dict[str, list[Any]] = {method: [] for method in spec["methods"]}
    classes: list[str] = []
    for dataset, label in spec["datasets"]:
        run = {m: scores / m / f"n{spec['n']}" / f"seed{spec['seed']}" / dataset for m in spec["methods"]}
        chosen = _examples(evaluation.read_scores(path.with_suffix(".csv") for path in run.values()), spec)
        with PreparedSet(data / f"{dataset}.h5") as prepared:
            rows = [row for row in prepared.rows("test") if prepared.subjects[row] in chosen]
            rows = rows[:EXAMPLES_PER_DATASET]
            images.append(prepared.images(rows))
            truth.append(prepared.masks(rows))
            labels += [f"{label}\n{_short(prepared.ids[row])}" for row in rows]
            classes = list(prepared.classes)
            for method, path in run.items():
                ids, masks = read_masks(path.with_suffix(".npz"))
                predictions[method].append(masks[method][[ids.index(prepared.ids[row]) for row in rows]])
    figures.segmentations(
        out,
        np.concatenate(images),
        np.concatenate(truth),
        {method: np.concatenate(parts) for method, parts in predictions.items()},
        labels=labels,
        classes=classes,
        synthetic=bool(spec["synthetic"]),
        note=f"Heads and baselines learned from n = {spec['n']} labelled images.",
    )
    say(f"Segmentations: {out}")


def _examples(scores: Any, spec: Mapping[str, Any]) -> list[str]:
    dice = scores[(scores["metric"] == "dice") & scores["method"].isin(spec["methods"])]
    ranked = dice.groupby("subject")["value"].mean().sort_values(kind="stable").index
    return [str(ranked[len(ranked) // 2]), str(ranked[len(ranked) // 5])]


def _table(spec: Mapping[str, Any], scores: Path) -> tables.Table:
    return tables.table(
        evaluation.read_scores(_score_files(spec, scores)),
        "dice",
        spec["methods"],
        dict(spec["datasets"]),
        spec["level"],
        spec["title"] + ".",
        synthetic=spec["synthetic"],
    )


def _score_files(spec: Mapping[str, Any], scores: Path) -> Iterator[Path]:
    for source in spec["sources"]:
        for n in spec["train_sizes"]:
            for seed in spec["seeds"]:
                for dataset, _ in spec["datasets"]:
                    yield scores / source / f"n{n}" / f"seed{seed}" / f"{dataset}.csv"


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
