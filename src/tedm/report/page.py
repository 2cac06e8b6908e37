"""The report: one HTML file that opens without a network, of a run's tables, figures and scores."""

import base64
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from tedm import evaluation, measures
from tedm.errors import TedmError
from tedm.files import read_json, write_text
from tedm.progress import say
from tedm.report import claims, overlays, results, tables

PACKAGES = ("tedm", "torch", "numpy", "scipy", "pandas", "scikit-learn", "zarr", "h5py", "snakemake")
STAGES = {  # folder of benchmark files: what its jobs do
    "data": "prepare data",
    "backbones": "train backbones",
    "features": "extract features",
    "heads": "fit heads",
    "baselines": "train baselines",
    "scores": "predict and score",
}
CAPTIONS = {
    "figure1": "Figure 1. The pipeline: what is computed once, and what for every head.",
    "figure2": "Figure 2. Ridge classifiers of single timesteps over the training size, with 95 % bands.",
    "figure5": "Figure 5. The same for precision and recall.",
    "learning_curves": "Mean Dice of every method over the training size; bands: 95 % intervals.",
    "segmentations": "Test images with the contours of truth and predictions: of every test set one from"
    " the middle of the ranking by Dice and one from its lower fifth.",
    "reliability": "Reliability: share of foreground over the predicted probability, for each method.",
    "uncertainty": "How well the disagreement between timesteps ranks test images by Dice.",
}
# What a picture of numbers shows is in the tables; a picture of images says so.
ALTERNATIVES = {
    "figure1": "Boxes and arrows: unlabelled images train a backbone, which is run once over labelled"
    " images; heads read the stored features, predict and are scored.",
    "figure2": "Line chart; the numbers are in Table 1, in the rows of single timesteps.",
    "figure5": "Line charts; the numbers are in Table 5 or 6, in the rows of single timesteps.",
    "learning_curves": "Line charts, one per test set; the numbers are in Table 1.",
    "reliability": "Line charts, one per test set; the expected calibration errors are in More than Dice.",
    "uncertainty": "Scatter plots of Dice over uncertainty, and maps; the numbers are in uncertainty.csv.",
}


def write_page(spec: Mapping[str, Any], results_directory: Path, out: Path) -> None:
    """Write the report of one experiment.

    Everything that computes has been done by other jobs; here their files are read. The same files give the
    same bytes (times are those of Snakemake's benchmark files).

    Args:
        spec: as in `results.write_table1`; and tables, left_out (of `study`), figures (names of the files
            in figures/, in order), train_on, and config, the whole experiment.
        results_directory: of the experiment.
        out: the HTML file.
    """
    base, labels = results_directory, dict(spec["datasets"])
    scores = results.read(spec, base / "scores")
    # Of volumes alone, Table 3 is Table 1.
    twice = set(spec["tables"].get("table3", {"datasets": []})["datasets"]) == set(labels)
    sections = [
        _table(base, name, spec, labels)
        # JSON has sorted them; what the study does not have comes last.
        for name in (*(() if twice else ("table1",)), *sorted(spec["tables"], key=_place))
        if (base / f"{name}_long.csv").exists()
    ]
    pictures = overlays.collect(spec, scores, base / "data", base / "scores")
    assessed = _read(base / "statistics" / "claims.csv")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tedm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.jinja").render(
        title=spec["title"],
        synthetic=[labels[d] for d in labels if d in spec["synthetic"]],
        everything_synthetic=set(labels) <= set(spec["synthetic"]),
        facts=_facts(spec, scores, labels),
        one_seed=len(spec["seeds"]) == 1,
        claims=_claims(claims.sentences(assessed)),
        claim_sets=[label for label in labels.values() if label in set(assessed["dataset"])],
        tables=sections,
        left_out=spec["left_out"],
        statistics=_statistics(base, labels),
        published=_published(base, labels),
        cost=_cost(base),
        figures=list(_figures(base, spec)),
        overlays=_embedded(pictures),
        level=spec["level"],
        signed=claims.signed,
        stages=list(_stages(base / "benchmarks")),
        digests=list(_digests(base)),
        versions=list(_versions()),
        # Lists and small mappings on one line: a page instead of six.
        config=yaml.safe_dump(
            spec["config"], sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
        ),
        results=spec["config"]["results"],
        training=f"{labels.get(spec['train_on'], spec['train_on'])}",
    )
    write_text(out, text)
    say(f"Report: {out} ({len(text.encode()) / 1e6:.1f} MB)")


def _facts(spec: Mapping[str, Any], scores: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """What the numbers are about, in a line."""
    subjects = scores.groupby("dataset")["subject"].nunique()
    sets = ", ".join(f"{label} ({subjects[d]} subjects)" for d, label in labels.items() if d in subjects)
    sizes, seeds = ", ".join(map(str, spec["train_sizes"])), len(spec["seeds"])
    classes = scores["class"].nunique()
    return (
        f"{len(spec['methods'])} methods{f' for {classes} classes' if classes > 1 else ''}; training sizes"
        f" {sizes}; {seeds} seed{'s' * (seeds != 1)}. Tested on {sets}."
    )


def _claims(said: Sequence[claims.Sentence]) -> list[dict[str, Any]]:
    """Sentences by claim, and by comparison and test set."""
    grouped: dict[str, dict[str, Any]] = {}
    for sentence in said:
        of_claim = grouped.setdefault(sentence.claim, {"sentences": [], "comparisons": {}})
        of_claim["sentences"].append(sentence)
        of_claim["comparisons"].setdefault(sentence.compared, {})[sentence.dataset] = sentence
    return [{"claim": claim, **of_claim} for claim, of_claim in grouped.items()]


def _table(base: Path, name: str, spec: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows of one of the study's tables."""
    cells, tests = _read(base / f"{name}_long.csv"), _read(base / f"{name}_p_values.csv")
    wanted = spec["tables"].get(name, {"methods": spec["methods"], "datasets": list(labels)})
    shown: list[dict[Any, Any]] = cells[cells["mean"].notna()].to_dict("records")
    values = {(row["metric"], row["dataset"], row["method"], int(row["n_train"])): row for row in shown}
    sizes = sorted({int(n) for n in cells["n_train"]})
    grids = []
    for metric in dict.fromkeys(cells["metric"]):
        for dataset in (d for d in labels if d in wanted["datasets"]):
            of_grid = cells[(cells["metric"] == metric) & (cells["dataset"] == dataset)]
            if of_grid.empty and metric not in evaluation.METRICS:
                continue  # distances of this data set have another unit
            of_tests = tests[(tests["metric"] == metric) & (tests["dataset"] == dataset)]
            rows = [
                (method, [_cell(values.get((metric, dataset, method, n)), n) for n in sizes])
                for method in wanted["methods"]
            ]
            subjects = 0 if of_grid.empty else int(of_grid["subjects"].max())
            data = "synthetic" if dataset in spec["synthetic"] else "real"
            grids.append(
                {
                    "metric": metric,
                    "dataset": dataset,
                    "label": labels[dataset],
                    "rows": rows,
                    "quantity": _quantity(str(metric)),
                    "facts": f"{subjects} test subject{'s' * (subjects != 1)} · {data} data",
                    "too_few": tables.too_few(of_tests, spec["level"]),
                }
            )
    return {
        "name": name,
        "title": _title(name, wanted.get("title", "Dice")),
        "sizes": sizes,
        "grids": grids,
        "too_few": [grid["label"] for grid in grids if grid["too_few"]],
        "csv": _download(base / f"{name}_long.csv"),
        "p_values": _download(base / f"{name}_p_values.csv"),
    }


def _place(name: str) -> tuple[bool, str]:
    return not name.startswith("table"), name


def _title(name: str, what: str) -> str:
    number = name.removeprefix("table")
    return f"Table {number}. {what}" if number.isdigit() else what


def _quantity(metric: str) -> str:
    name, unit = measures.named(metric)
    return f"{name} in {unit}" + " (lower is better)" * (metric in measures.LOWER_IS_BETTER)


def _cell(row: Mapping[str, Any] | None, n: int) -> dict[str, Any] | None:
    if row is None:
        return None
    digits = measures.decimals(str(row["metric"]))
    return {
        "n": n,
        "mean": f"{row['mean']:.{digits}f}",
        "std": f"{row['std']:.{digits}f}",
        "bold": bool(row["bold"]),
        "sort": f"{row['mean']:.6f}",
    }


def _statistics(base: Path, labels: Mapping[str, str]) -> dict[str, Any]:
    """Rows of the table of intervals: Dice, of every data set, size and method."""
    summary = _read(base / "statistics" / "summary.csv")
    differences: list[dict[Any, Any]] = _read(base / "statistics" / "differences.csv").to_dict("records")
    keys = ("dataset", "metric", "n_train", "method")
    gaps = {tuple(row[key] for key in keys): row for row in differences}
    dice: list[dict[Any, Any]] = summary[summary["metric"] == "dice"].to_dict("records")
    rows = [
        {**row, "label": labels[row["dataset"]], "gap": gaps.get(tuple(row[key] for key in keys))}
        for row in dice
    ]
    names = ("summary", "differences", "claims")
    return {"rows": rows, "csv": {n: _download(base / "statistics" / f"{n}.csv") for n in names}}


def _published(base: Path, labels: Mapping[str, str]) -> dict[str, Any]:
    found = _read(base / "published.csv")
    rows = [{**row, "label": labels[row["dataset"]]} for row in found.to_dict("records")]
    return {
        "rows": rows,
        "within": int(found["within_spread"].sum()) if len(found) else 0,
        "csv": _download(base / "published.csv"),
    }


def _cost(base: Path) -> list[list[str]]:
    """Table 4 as the job that makes it rounded it; empty where it was not made."""
    path = base / "table4.md"
    if not path.exists():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("\\", "") for cell in line.strip("| ").split(" | ")] for line in lines]
    return [rows[0], *rows[2:]] if len(rows) > 2 else []


def _figures(base: Path, spec: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    labels = dict(spec["datasets"])
    for name in spec["figures"]:
        path = base / f"{name}.png" if name == "uncertainty" else base / "figures" / f"{name}.png"
        kind, _, dataset = name.partition("_")
        if name in CAPTIONS:
            caption = CAPTIONS[name]
        else:
            number = kind.removeprefix("figure")
            caption = (
                f"Figure {number}. {labels[dataset]}: image, truth, and each method at each training size."
            )
        yield {
            "name": name,
            "caption": caption,
            "alternative": ALTERNATIVES.get(
                name,
                f"{caption} The Dice of each prediction is written into its corner and is in the scores.",
            ),
            "uri": _uri(path, "image/png"),
        }


def _embedded(pictures: overlays.Overlays) -> str:
    """The overlays as JSON that may stand inside a script element."""
    return json.dumps(pictures, separators=(",", ":"), ensure_ascii=True, allow_nan=False).replace(
        "<", "\\u003c"
    )


def _stages(benchmarks: Path) -> Iterator[dict[str, Any]]:
    """Jobs, wall-clock and CPU time, and largest memory of each stage: Snakemake's benchmark files."""
    for folder, what in STAGES.items():
        files = sorted((benchmarks / folder).rglob("*.tsv"))
        if files:
            yield _spent(what, files)
    rest = sorted(
        f
        for f in benchmarks.rglob("*.tsv")
        if f.relative_to(benchmarks).parts[0] not in STAGES and f.name != "report.tsv"
    )
    if rest:
        yield _spent("tables, figures, costs", rest)


def _spent(what: str, files: Sequence[Path]) -> dict[str, Any]:
    measured = pd.concat([pd.read_csv(file, sep="\t", na_values=["-", "NA"]) for file in files])
    return {
        "stage": what,
        "jobs": len(files),
        "seconds": _span(float(measured["s"].sum())),
        "cpu": _span(float(measured["cpu_time"].sum())),
        "memory": "–" if measured["max_rss"].isna().all() else f"{measured['max_rss'].max():.0f} MB",
        "sort": f"{measured['s'].sum():.1f}",
    }


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _digests(base: Path) -> Iterator[tuple[str, str, str]]:
    for path in sorted((base / "data").glob("*.json")):
        yield "data", path.stem, str(read_json(path)["digest"])
    for path in sorted((base / "backbones").glob("*/digest.json")):
        yield "backbone", path.parent.name, str(read_json(path)["digest"])


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=["nan"])
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise TedmError(
            f"{path}: cannot be read ({error}); `snakemake --cores all {path}` makes it again"
        ) from None


def _download(path: Path) -> dict[str, str]:
    return {"name": path.name, "uri": _uri(path, "text/csv")}


def _uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
