"""The report's jobs: read the scores of an experiment, write its table and figures."""

import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tedm import comparisons, disagreement, evaluation, measures
from tedm.data.prepared import PreparedSet
from tedm.files import whole, write_text
from tedm.progress import say
from tedm.report import beside, claims, tables
from tedm.scoring import read_bins, read_masks

EXAMPLES_PER_DATASET = 2  # rows of the figure of segmentations
LABEL = 20  # letters of a line beside a row


def write_table1(spec: Mapping[str, Any], scores: Path, out: Path) -> None:
    """Write Table 1 (Rosnati et al. 2023): Dice of every method, data set and training size.

    Args:
        spec: title, methods (rows), datasets (pairs of name and label), synthetic (names), level of the
            test; and sources (heads and baselines), train_sizes and seeds, which name the score files;
            labels (the method of a source, where that has another name).
        scores: directory of the score files.
        out: table1.csv; the other forms lie beside it.
    """
    written = tables.write(_table(spec, scores), out)
    say(f"Table 1: {', '.join(str(path) for path in written)}")


def write_tables(spec: Mapping[str, Any], scores: Path, out: Path) -> None:
    """Write the study's further tables, the statistics beside them, its claims and its numbers beside ours.

    Args:
        spec: as in write_table1; and tables and claims (of `study`), published (`study.published_names`),
            train_on, and seed of the bootstrap.
        scores: directory of the score files.
        out: directory to write: table2.csv …, statistics/, published.csv.
    """
    rows = read(spec, scores)
    labels = dict(spec["datasets"])
    for name, wanted in spec["tables"].items():
        made = []
        for metric in measures.found_names(wanted["metrics"], set(rows["metric"])) or wanted["metrics"]:
            there = set(rows.loc[rows["metric"] == metric, "dataset"])
            datasets = [d for d in wanted["datasets"] if d in there or metric in evaluation.METRICS]
            chosen = {**spec, "methods": wanted["methods"], "datasets": _labelled(spec, datasets)}
            made.append(_made(chosen, rows, metric))
        tables.write(made, out / f"{name}.csv")
    summaries, differences = [], []
    further = [
        m for m in dict.fromkeys(rows["metric"]) if m not in (*evaluation.METRICS, disagreement.METRIC)
    ]
    for metric in (*evaluation.METRICS, *further):
        for dataset in labels:
            chosen = rows[(rows["metric"] == metric) & (rows["dataset"] == dataset)]
            if len(chosen):
                summaries.append(comparisons.summarise(chosen, spec["methods"], spec["seed"]))
                differences.append(comparisons.differences(chosen, spec["methods"], spec["seed"]))
    assessed = claims.assess(rows, spec["claims"], labels, spec["train_on"], spec["level"], spec["seed"])
    known = {**spec, "datasets": _labelled(spec, spec["published"]["datasets"])}
    cells = pd.concat([_made(known, rows, metric).cells for metric in evaluation.METRICS])
    for name, frame in {
        "statistics/summary.csv": pd.concat(summaries),
        "statistics/differences.csv": pd.concat(differences),
        "statistics/claims.csv": assessed,
        "published.csv": beside.compare(cells, spec["published"]),
    }.items():
        with whole(out / name) as partial:
            frame.to_csv(partial, index=False, na_rep="nan", lineterminator="\n", encoding="utf-8")
    write_text(out / "statistics" / "claims.md", claims.markdown(assessed))
    say(f"Tables: {', '.join([*spec['tables'], 'statistics', 'published'])} in {out}")


def draw_figures(spec: Mapping[str, Any], scores: Path, summary: Path, data: Path, out: Path) -> None:
    """Draw the study's figures: the pipeline (1), single timesteps (2, 5), segmentations by size (3, 4).

    Args:
        spec: as in write_table1; and figures, examples, reliability and pipeline (of `study`).
        scores: directory of score files and masks.
        summary: statistics/summary.csv of `write_tables`.
        data: directory of prepared data sets.
        out: directory to write, figure1.png, figure1.pdf and so on.
    """
    from tedm.report import pipeline, reliability, step_curves

    rows = read(spec, scores)
    intervals = pd.read_csv(summary, keep_default_na=False, na_values=["nan"])
    formats = (".png", ".pdf")
    for suffix in formats:
        pipeline.draw(out / f"figure1{suffix}", spec["pipeline"])
    for name, wanted in spec["figures"].items():
        methods = [*(method for _, method in wanted["steps"]), *wanted["beside"]]
        chosen = {**spec, "methods": methods, "datasets": _labelled(spec, wanted["datasets"])}
        made = [_made(chosen, rows, metric) for metric in wanted["metrics"]]
        for suffix in formats:
            step_curves.draw(out / f"{name}{suffix}", made, intervals, wanted["steps"], wanted["beside"])
    for name, dataset in spec["examples"].items():
        figures_of_one = _example(spec, rows, dataset, scores, data)
        for suffix in formats:
            figures_of_one(out / f"{name}{suffix}")
    if spec["reliability"] is not None:
        n, seed = spec["reliability"]["n"], spec["seeds"][0]
        panels = {
            label: {
                method: read_bins(scores / source / f"n{n}" / f"seed{seed}" / f"{dataset}.npz")[method]
                for source, method in _own_methods(spec).items()
            }
            for dataset, label in spec["datasets"]
        }
        synthetic = all(dataset in spec["synthetic"] for dataset, _ in spec["datasets"])
        for suffix in formats:
            reliability.draw(out / f"reliability{suffix}", panels, n, synthetic)
    say(f"Figures: {', '.join(['figure1', *spec['figures'], *spec['examples']])} in {out}")


def _example(
    spec: Mapping[str, Any], rows: pd.DataFrame, dataset: str, scores: Path, data: Path
) -> Callable[[Path], None]:
    """How to draw one subject of a data set: the one in the middle of the ranking by mean Dice."""
    from tedm.report import examples

    seed = spec["seeds"][0]
    dice = rows[
        (rows["metric"] == "dice")
        & (rows["dataset"] == dataset)
        & (rows["seed"] == seed)
        & rows["method"].isin(_own_methods(spec).values())
    ]
    ranked = dice.groupby("subject")["value"].mean().sort_values(kind="stable").index
    subject = str(ranked[len(ranked) // 2])
    of_subject = dice[dice["subject"] == subject].groupby(["method", "n_train"])["value"].mean()
    with PreparedSet(data / f"{dataset}.h5") as prepared:
        row = slice_shown(prepared, subject)
        image, truth = prepared.images([row])[0], prepared.masks([row])[0]
        name, classes, label = prepared.ids[row], list(prepared.classes), prepared.label
    predicted = {}
    for source, method in _own_methods(spec).items():
        for n in spec["train_sizes"]:
            path = scores / source / f"n{n}" / f"seed{seed}" / f"{dataset}.npz"
            predicted[method, n] = read_masks(path, [method], [name])[1][method][0]
    synthetic = "Synthetic image, drawn by a program: no patient. " * (dataset in spec["synthetic"])
    note = (
        f"{synthetic}Of {len(ranked)} test subjects the one in the middle of the ranking by mean Dice over"
        f" methods and sizes. Numbers are its Dice in %. Seed {seed}."
    )
    values = {key: float(of_subject.get(key, np.nan)) for key in predicted}
    return partial(
        examples.draw,
        image=image,
        truth=truth,
        predicted=predicted,
        dice=values,
        classes=classes,
        title=f"{label} · {name}",
        note=note,
    )


def slice_shown(prepared: PreparedSet, subject: str) -> int:
    """The row that shows a test subject: of a volume, the slice with most foreground."""
    rows = [row for row in prepared.rows("test") if prepared.subjects[row] == subject]
    if len(rows) == 1:
        return rows[0]
    return rows[int(np.argmax(prepared.masks(rows).sum(axis=(1, 2, 3), dtype=np.int64)))]


def draw_learning_curves(spec: Mapping[str, Any], scores: Path, out: Path) -> None:
    """Draw mean Dice over the training size; arguments as in write_table1, and seed of the bootstrap.

    Readings of a head at some of its timesteps stay in the table: nobody could tell so many lines apart.
    """
    from tedm.report import figures

    rows = read(spec, scores)
    methods = list(_own_methods(spec).values())
    made = _made({**spec, "methods": methods}, rows, "dice")
    dice = rows[rows["metric"] == "dice"]
    summary = pd.concat(
        comparisons.summarise(dice[dice["dataset"] == dataset], methods, spec["seed"])
        for dataset, _ in spec["datasets"]
    )
    for suffix in (out.suffix, ".pdf"):
        figures.learning_curves(out.with_suffix(suffix), made, summary)
    say(f"Learning curves: {out} (.pdf)")


def draw_segmentations(spec: Mapping[str, Any], data: Path, scores: Path, out: Path) -> None:
    """Draw test images with the contours of truth and predictions.

    The images of a data set are those in the middle and at the lower fifth of the methods' mean Dice: what
    is usual, and what is hard. The best ones would flatter.

    Args:
        spec: sources (columns) and their labels as in write_table1, datasets (pairs of name and label),
            synthetic (names), size n and seed.
        data: directory of prepared data sets.
        scores: directory of score files and masks.
        out: figure (.png).
    """
    from tedm.report import figures

    images, truth, labels = [], [], []
    methods = _own_methods(spec)
    predictions: dict[str, list[Any]] = {method: [] for method in methods.values()}
    dice: dict[str, list[float]] = {method: [] for method in methods.values()}
    classes: list[str] = []
    unit = "images"
    for dataset, label in spec["datasets"]:
        run = {
            method: scores / source / f"n{spec['n']}" / f"seed{spec['seed']}" / dataset
            for source, method in methods.items()
        }
        found = _subjects_dice(evaluation.read_scores(path.with_suffix(".csv") for path in run.values()))
        chosen = _examples(found[found.index.get_level_values("method").isin(list(run))])
        with PreparedSet(data / f"{dataset}.h5") as prepared:
            rows = sorted({slice_shown(prepared, subject) for subject in chosen})[:EXAMPLES_PER_DATASET]
            images.append(prepared.images(rows))
            truth.append(prepared.masks(rows))
            labels += [_label(label, prepared.ids[row]) for row in rows]
            classes = list(prepared.classes)
            if len(set(prepared.subjects)) < len(prepared.subjects):
                unit = "volumes"
            for method, path in run.items():
                names = [prepared.ids[row] for row in rows]
                _, masks = read_masks(path.with_suffix(".npz"), [method], names)
                predictions[method].append(masks[method])
                dice[method] += [float(found.loc[method, prepared.subjects[row]]) for row in rows]
    drawn = [label for dataset, label in spec["datasets"] if dataset in spec["synthetic"]]
    mixed = f"Synthetic, drawn by a program: {', '.join(drawn)}. " if drawn else ""
    everything = len(drawn) == len(spec["datasets"])
    for suffix in (out.suffix, ".pdf"):
        figures.segmentations(
            out.with_suffix(suffix),
            np.concatenate(images),
            np.concatenate(truth),
            {method: np.concatenate(parts) for method, parts in predictions.items()},
            dice=dice,
            labels=labels,
            classes=classes,
            synthetic=everything,
            note=f"{'' if everything else mixed}Heads and baselines learned from n = {spec['n']} labelled"
            f" {unit}, seed {spec['seed']}.",
        )
    say(f"Segmentations: {out} (.pdf)")


def _subjects_dice(scores: pd.DataFrame) -> "pd.Series[float]":
    """Dice by method and subject, mean of its classes."""
    return scores[scores["metric"] == "dice"].groupby(["method", "subject"])["value"].mean()


def _own_methods(spec: Mapping[str, Any]) -> dict[str, str]:
    """What each head and baseline predicts by itself is called, by the name of its directory."""
    labels = spec.get("labels", {})
    return {source: labels.get(source, source) for source in spec["sources"]}


def _examples(dice: "pd.Series[float]") -> list[str]:
    ranked = dice.groupby(level="subject").mean().sort_values(kind="stable").index
    return [str(ranked[len(ranked) // 2]), str(ranked[len(ranked) // 5])]


def read(spec: Mapping[str, Any], scores: Path) -> pd.DataFrame:
    """Every score of an experiment; arguments as in write_table1."""
    return evaluation.read_scores(_score_files(spec, scores))


def _table(spec: Mapping[str, Any], scores: Path) -> tables.Table:
    return _made(spec, read(spec, scores), "dice")


def _made(spec: Mapping[str, Any], rows: pd.DataFrame, metric: str) -> tables.Table:
    return tables.table(
        rows,
        metric,
        spec["methods"],
        dict(spec["datasets"]),
        spec["level"],
        spec["title"] + ".",
        synthetic=spec["synthetic"],
    )


def _labelled(spec: Mapping[str, Any], names: Collection[str]) -> list[tuple[str, str]]:
    return [(name, label) for name, label in spec["datasets"] if name in names]


def _score_files(spec: Mapping[str, Any], scores: Path) -> Iterator[Path]:
    for source in spec["sources"]:
        for n in spec["train_sizes"]:
            for seed in spec["seeds"]:
                for dataset, _ in spec["datasets"]:
                    yield scores / source / f"n{n}" / f"seed{seed}" / f"{dataset}.csv"


def _label(label: str, name: str) -> str:
    """Data set and name of an image, broken into lines that a row of a figure has room for."""
    lines = [""]
    for piece in re.findall(
        r"[^_/. -]+[_/. -]?|[_/. -]", name
    ):  # names are long, and say most at their ends
        if lines[-1] and len(lines[-1] + piece) > LABEL:
            lines.append("")
        lines[-1] += piece
    return "\n".join([*textwrap.wrap(label, LABEL), *lines])
