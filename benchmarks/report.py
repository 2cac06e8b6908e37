"""How long the report takes: 100,000 score rows to all tables, figures and the page.

    python benchmarks/report.py                            # the demo's methods on drawn masks and scores

Draws masks and scores of the demo's methods on three test sets, and runs every job of the report as
Snakemake would, each in a process of its own, one after the other. Prints Markdown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tedm import config, evaluation
from tedm.data import prepared
from tedm.report import study

SIZES = [1, 3, 6, 12, 24, 49, 98, 197]
PROJECT = Path(__file__).parents[1]


def draw_run(base: Path, e: config.Experiment, sources: dict[str, list[str]], subjects: int) -> int:
    """Data, masks and scores as the jobs before would leave them; returns the number of score rows."""
    size, rows = e.image.size, 0
    y, x = np.mgrid[:size, :size]
    for i, dataset in enumerate(e.evaluation.test_on):
        draw = np.random.default_rng(i)
        centre = draw.uniform(0.4, 0.6, (2, subjects, 1, 1)) * size
        radius = draw.uniform(0.15, 0.3, (subjects, 1, 1)) * size
        distance = np.hypot(y - centre[0], x - centre[1])
        truth = (distance < radius).astype(np.uint8)[:, None]
        noise = draw.integers(0, 60, (subjects, 1, size, size))
        names = [f"{dataset}-{k:04d}" for k in range(subjects)]
        prepared.write(
            *(base / "data" / f"{dataset}.h5", dataset, (noise + 150 * truth).astype(np.uint8), truth),
            *(names, names, ["test"] * subjects, list(e.image.classes)),
            intensity_range=(0, 255),
            synthetic=True,
            source="drawn",
            licence="",
            cite="",
        )
        (base / "data" / f"{dataset}.json").write_text(json.dumps({"digest": "drawn"}))
        for source, methods in sources.items():
            for n in e.evaluation.train_sizes:
                tables, masks = [], {}
                for method in methods:
                    off = draw.normal(0, 6 / np.sqrt(n), (subjects, 1, 1))
                    masks[method] = (distance < radius + off).astype(np.uint8)[:, None]
                    found = evaluation.scores(masks[method], truth, names, e.image.classes)
                    tables.append(
                        evaluation.labelled(
                            found, dataset=dataset, method=method, n_train=n, seed=0, synthetic=True
                        )
                    )
                    rows += len(found)
                out = base / "scores" / source / f"n{n}" / "seed0" / dataset
                evaluation.write_scores(out.with_suffix(".csv"), pd.concat(tables))
                packed: dict[str, Any] = {f"mask:{m}": np.packbits(mask) for m, mask in masks.items()}
                packed |= {"ids": np.array(names), "shape": np.array(truth.shape)}
                np.savez_compressed(out.with_suffix(".npz"), **packed)
    return rows


def jobs(base: Path, e: config.Experiment) -> dict[str, list[str]]:
    """The arguments of `tedm` for every job of the report."""
    common: dict[str, Any] = {
        "title": e.title,
        "synthetic": e.synthetic,
        "methods": e.methods(),
        "datasets": [[d, e.datasets[d].label] for d in e.evaluation.test_on],
        "sources": [*e.baselines, *e.heads],
        "train_sizes": e.evaluation.train_sizes,
        "seeds": e.evaluation.seeds,
        "level": e.evaluation.level,
        "train_on": e.evaluation.train_on,
        "seed": e.seed,
        "tables": study.tables(e),
    }
    claims = {"claims": study.claims(e), "published": study.published_names(e)}
    drawn: dict[str, Any] = {
        "figures": study.figures(e),
        "examples": study.examples(e),
        "pipeline": study.pipeline(e),
    }
    drawn["reliability"] = None
    pictures = ["figure1", "learning_curves", *study.figures(e), "segmentations", *study.examples(e)]
    of_page = {"left_out": study.left_out(e), "figures": pictures, "config": e.model_dump(mode="json")}
    few = {**common, "methods": common["sources"], "n": SIZES[2], "seed": 0}
    at = {"scores": base / "scores", "data": base / "data", "figures": base / "figures"}
    summary = base / "statistics" / "summary.csv"

    def job(name: str, spec: dict[str, Any], **options: Path) -> list[str]:
        given = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        return [name, "--spec", json.dumps(spec), *given]

    pages = at["figures"]
    return {
        "table1": job("table", common, scores=at["scores"], out=base / "table1.csv"),
        "study_tables": job("study-tables", common | claims, scores=at["scores"], out=base),
        "learning_curves": job(
            "learning-curves", common, scores=at["scores"], out=pages / "learning_curves.png"
        ),
        "segmentations": job(
            "segmentations", few, data=at["data"], scores=at["scores"], out=pages / "segmentations.png"
        ),
        "study_figures": job(
            "study-figures",
            common | drawn,
            scores=at["scores"],
            summary=summary,
            data=at["data"],
            out=pages,
        ),
        "report": job("report", common | of_page, results=base, out=base / "report.html"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--subjects", type=int, default=82, help="of each test set")
    arguments = parser.parse_args()
    demo = config.load(PROJECT / "config.yaml")
    evaluated = demo.evaluation.model_copy(update={"train_sizes": SIZES})
    e = demo.model_copy(
        update={"evaluation": evaluated, "image": demo.image.model_copy(update={"size": 128})}
    )
    sources = {name: [name] for name in e.baselines}
    sources |= {name: [name, *head.readings] for name, head in e.heads.items()}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        rows = draw_run(base, e, sources, arguments.subjects)
        print(f"{rows:,} score rows, images of {e.image.size} pixels\n\n| job | seconds |\n|---|--:|")
        total = 0.0
        for name, command in jobs(base, e).items():
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", "from tedm.cli import main; main()", *command],
                check=True,
                stderr=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - started
            total += seconds
            print(f"| {name} | {seconds:.1f} |", flush=True)
        size = (base / "report.html").stat().st_size
        print(f"| **together** | **{total:.1f}** |\n\nThe page has {size / 1e6:.1f} MB.")


if __name__ == "__main__":
    main()
