"""The model card: what a model learned from, how it scored, and what nobody knows about it."""

from pathlib import Path

import pandas as pd

from tedm import comparisons, evaluation
from tedm.config import Experiment
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.models.folder import Description

SHOWN = ("dice", "precision", "recall")
NORMALISED = {
    "percentiles": "its 1st percentile becomes black, its 99th white",
    "zscore": "three standard deviations below its mean become black, three above it white",
}


def write(experiment: Experiment, results: Path, source: str, model: Description) -> str:
    """The text of a model folder's README.md.

    Args:
        experiment: that was run.
        results: directory of its results.
        source: head or baseline, by the name of its directory.
        model: what is exported.

    Raises:
        TedmError: scores or data that are missing.
    """
    train_on = experiment.evaluation.train_on
    with PreparedSet(results / "data" / f"{train_on}.h5") as data:
        labelled = _set(data)
        rows = data.training_rows(model.n)
        several = len({data.subjects[row] for row in rows}) < len(rows)
        images = f"{model.n} subjects ({len(rows)} images)" if several else f"{model.n} images"
    lines = [
        f"# {model.name}",
        "",
        f"Segments {', '.join(model.classes)}; made with tedm {model.versions['tedm']} from the experiment"
        f" *{experiment.title}*.",
        "",
        "**For research only. This is no medical device: it must not be used for diagnosis or treatment.**",
        "",
    ]
    if model.synthetic:
        lines += [
            "**It learned from synthetic images, drawn by a computer. Nothing here says how it does on"
            " images of patients.**",
            "",
        ]
    lines += ["## What it is", "", *_what(experiment, source, model), "", "## Data", ""]
    lines += [f"- Labels: {images} with masks from {labelled}"]
    lines += _unlabelled(experiment, results, source, model)
    lines += ["", "## Scores", "", *_scores(experiment, results, source, model), ""]
    lines += ["## What it was never tested on", "", *_untested(experiment, model), ""]
    lines += ["## Licence", "", *_licence(experiment, results, source, model), ""]
    lines += [
        "## Use",
        "",
        "```python",
        "import tedm",
        "",
        'found = tedm.load("path/of/this/folder").segment("image.png")',
        "found.mask, found.probability, found.uncertainty",
        "```",
        "",
        "On the command line: `tedm segment --model path/of/this/folder image.png --out masks`",
        "",
    ]
    return "\n".join(lines)


def _what(experiment: Experiment, source: str, model: Description) -> list[str]:
    size, channels = model.preprocessing.size, model.preprocessing.channels
    sees = f"It sees images as {size} × {size} pixels with {channels} channel{'s'[: channels > 1]}"
    how = {"stretch": "stretched", "pad": "padded", "crop": "cropped"}[model.preprocessing.fit]
    lines = [
        f"- {sees} (others are {how} to squares and resized); masks come back at the image's own size."
    ]
    if model.preprocessing.normalise != "none":
        scale = NORMALISED[model.preprocessing.normalise]
        lines.append(f"- The greys of each image are scaled before that: {scale}.")
    if model.kind == "network":
        return [f"- {model.method}: a UNet that sees images.", *lines]
    head = experiment.heads[source]
    steps = ", ".join(map(str, model.timesteps))
    return [
        f"- {model.method}: a head of type {head.type} on the decoder activations of the backbone"
        f" {experiment.backbone_of(source)}, at timestep{'s'[: len(model.timesteps) > 1]} {steps}.",
        *(
            [
                f"- It also learned from {head.views} augmented views of each labelled image of the first"
                f" {experiment.features.view_subjects} subjects."
            ]
            if head.views
            else []
        ),
        *lines,
    ]


def _unlabelled_set(experiment: Experiment, source: str, model: Description) -> str | None:
    """Name of the data set that it was pretrained on; None where the experiment has none."""
    if model.kind == "network":
        pretrained = experiment.baselines[source].pretrained
        return experiment.pretraining[pretrained].data if pretrained else None
    return getattr(experiment.backbones[experiment.backbone_of(source)], "data", None)


def _unlabelled(experiment: Experiment, results: Path, source: str, model: Description) -> list[str]:
    name = _unlabelled_set(experiment, source, model)
    if name:
        with PreparedSet(results / "data" / f"{name}.h5") as data:
            count = len(data.rows("unlabelled")) or len(data.rows("train"))
            return [f"- Pretraining, without masks: {count} images of {_set(data)}"]
    if model.kind == "network":
        return ["- No unlabelled images."]
    backbone = experiment.backbones[experiment.backbone_of(source)]
    return [f"- Its backbone is of type {backbone.type}: it was trained elsewhere."]


def _scores(experiment: Experiment, results: Path, source: str, model: Description) -> list[str]:
    lines = [
        "Mean over the test subjects, in percent, with the 95 % interval of a bootstrap over subjects;"
        f" masks were compared at {model.preprocessing.size} × {model.preprocessing.size} pixels.",
        "",
        "| test set | subjects | " + " | ".join(name.capitalize() for name in SHOWN) + " |",
        "|---|--:|" + "--:|" * len(SHOWN),
    ]
    folder = results / "scores" / source / f"n{model.n}" / f"seed{model.seed}"
    for name in experiment.evaluation.test_on:
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise TedmError(
                f"{path}: no such file, and a model card has scores; run the workflow for the experiment"
            )
        rows = evaluation.read_scores([path])
        cells = [_cell(rows, metric, model.method, experiment.seed) for metric in SHOWN]
        drawn = " (synthetic)" if name in experiment.synthetic else ""
        subjects = rows.loc[rows["method"] == model.method, "subject"].nunique()
        label = f"{experiment.datasets[name].label}{drawn}"
        lines.append(f"| {label} | {subjects} | " + " | ".join(cells) + " |")
    return lines


def _cell(rows: pd.DataFrame, metric: str, method: str, seed: int) -> str:
    rows = rows[(rows["metric"] == metric) & (rows["method"] == method)]
    if rows.empty:
        return "–"
    of_method = comparisons.summarise(rows, [method], seed).iloc[0]
    return f"{of_method['mean']:.1f} [{of_method['low']:.1f}, {of_method['high']:.1f}]"


def _untested(experiment: Experiment, model: Description) -> list[str]:
    side = f"{model.preprocessing.size} × {model.preprocessing.size}"
    tested = [experiment.datasets[name].label for name in experiment.evaluation.test_on]
    lines = [
        f"- Anything but {', '.join(tested)}: no other hospital, device, view, age group, disease or"
        " part of the body.",
        f"- Details finer than {side} pixels: neither seen nor scored.",
        "- Differences between groups of patients (sex, age, ethnicity, devices): not looked at.",
    ]
    if set(experiment.evaluation.test_on) <= set(experiment.synthetic):
        lines.insert(0, "- **Images of patients: all test images are synthetic.**")
    return lines


def _licence(experiment: Experiment, results: Path, source: str, model: Description) -> list[str]:
    names = [experiment.evaluation.train_on]
    unlabelled = _unlabelled_set(experiment, source, model)
    names += [unlabelled] if unlabelled and unlabelled not in names else []
    lines = [
        "The weights were learned from these images; their terms are for whoever hands the model on:",
        "",
    ]
    for name in names:
        with PreparedSet(results / "data" / f"{name}.h5") as prepared:
            terms = prepared.licence or "terms unknown"
            cite = f"; cite {prepared.cite}" if prepared.cite else ""
            lines.append(f"- {prepared.label}: {terms}{cite}")
    return [*lines, "", "tedm itself is MIT."]


def _set(data: PreparedSet) -> str:
    return f"{data.label} ({data.source or 'source unknown'})"
