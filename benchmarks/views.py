"""How many views, and how strong: heads fitted with each choice, scored on validation images and phantoms.

    python benchmarks/views.py experiments/xray64.yaml --out results/xray64/views.csv
    python benchmarks/views.py config.yaml --out results/views.csv

Needs the experiment's prepared data and trained backbone. Real data sets are scored on their split val,
so that no test image has a say; sets that are drawn by the computer (phantoms) are scored whole. Views are
extracted into the experiment's own store, where those of other ranges are never mixed up. Prints a Markdown
table of mean Dice in percent; --out keeps every value.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from tedm import backbones, config, evaluation
from tedm.config import AugmentationConfig, Experiment
from tedm.data.prepared import PreparedSet
from tedm.features.extract import extract
from tedm.features.job import Views
from tedm.features.reader import FeatureStore
from tedm.features.shared import SharedFeatures
from tedm.features.store import Recipe
from tedm.features.viewed import ViewedFeatures
from tedm.heads import base
from tedm.seeds import seed_of

INTENSITY, GEOMETRY = ("gamma", "contrast", "brightness"), ("zoom", "rotation", "shift")
MEMORY = 4 * 2**30  # bytes


def scaled(ranges: AugmentationConfig, factor: float, kept: tuple[str, ...]) -> AugmentationConfig:
    """Ranges times a factor; those that are not kept are 0."""
    values = {k: factor * v if k in kept else 0.0 for k, v in ranges.model_dump().items()}
    return AugmentationConfig.model_validate(values)


def choices(ranges: AugmentationConfig, subjects: int) -> Iterator[tuple[str, int, Recipe | None]]:
    """Name, number of views and recipe of each choice."""
    both = (*INTENSITY, *GEOMETRY)
    yield "as they are", 0, None
    for count in (2, 4, 8, 16):
        yield f"{count} views", count, Recipe(scaled(ranges, 1, both), subjects)
    for factor in (0.5, 1.5):
        yield f"8 views, ranges × {factor:g}", 8, Recipe(scaled(ranges, factor, both), subjects)
    yield "8 views, intensity alone", 8, Recipe(scaled(ranges, 1, INTENSITY), subjects)
    yield "8 views, geometry alone", 8, Recipe(scaled(ranges, 1, GEOMETRY), subjects)
    yield "8 views, noise alone", 8, Recipe(scaled(ranges, 0, both), subjects)


class Study:
    """An experiment whose heads are fitted with other views."""

    def __init__(self, experiment: Experiment, options: argparse.Namespace) -> None:
        self.experiment, self.options, self.results = experiment, options, Path(experiment.results)
        self.name = experiment.backbone_of(options.heads[0])
        self.backbone = backbones.load(self.results / "backbones" / self.name)
        self.train_on = experiment.evaluation.train_on
        self.scored = dict.fromkeys([self.train_on, *experiment.evaluation.test_on])
        self.synthetic = set(experiment.synthetic)
        for dataset in list(self.scored):
            if dataset not in self.synthetic and dataset != self.train_on:
                del self.scored[dataset]  # a real test set
                continue
            for timestep in options.timesteps:
                self.extract(dataset, timestep, None)

    def extract(self, dataset: str, timestep: int, views: Views | None) -> None:
        extract(
            self.backbone,
            self.results / "data" / f"{dataset}.h5",
            self.store(dataset),
            None,
            timestep,
            self.experiment.features,
            self.experiment.seed,
            views=views,
        )

    def store(self, dataset: str) -> Path:
        return self.results / "features" / self.name / f"{dataset}.zarr"

    def scores(self, count: int, recipe: Recipe | None) -> Iterator[dict[str, object]]:
        """Mean Dice of each head, size and set."""
        with PreparedSet(self.results / "data" / f"{self.train_on}.h5") as prepared:
            if recipe is not None:
                for timestep in self.options.timesteps:
                    self.extract(self.train_on, timestep, Views.first(recipe, count))
            digest = recipe.digest if recipe else None
            viewed = ViewedFeatures(FeatureStore.open(self.store(self.train_on), recipe=digest), count)
            features = SharedFeatures(viewed, MEMORY)
            val = prepared.rows("val")
            for name in self.options.heads:
                chosen = self.experiment.heads[name]
                for n in self.options.sizes:
                    rows = viewed.rows_of(prepared.training_rows(n))
                    # As the workflow's fit of this head, but for its timesteps.
                    seed = seed_of(self.experiment.seed, "head", name, n, self.options.seed)
                    layers = list(features.layer_shapes)
                    head = base.create(chosen.type, chosen.settings, self.options.timesteps, layers, seed)
                    head.label, head.memory = name, MEMORY
                    start = time.perf_counter()
                    with TemporaryDirectory() as work:
                        head.fit(
                            features,
                            viewed.masks(prepared, rows),
                            rows,
                            val,
                            prepared.masks(val),
                            workdir=Path(work),
                        )
                    seconds = time.perf_counter() - start
                    for dataset in self.scored:
                        dice = self.dice(head, dataset)
                        yield {"head": name, "n": n, "set": dataset, "dice": dice, "seconds": seconds}

    def dice(self, head: base.Head, dataset: str) -> float:
        """Mean over subjects and classes, in percent."""
        with PreparedSet(self.results / "data" / f"{dataset}.h5") as prepared:
            own = dataset == self.train_on
            rows = prepared.rows("val") if own else list(range(len(prepared)))
            predicted = head.predict_proba(FeatureStore.open(self.store(dataset)), rows)
            subjects = [prepared.subjects[row] for row in rows]
            values = evaluation.scores(predicted, prepared.masks(rows), subjects, prepared.classes)
        return 100 * float(values[values["metric"] == "dice"]["value"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--heads", nargs="+", default=["LR", "TEDM"], help="of one backbone")
    parser.add_argument("--timesteps", nargs="+", type=int, default=[1, 50, 200])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 3, 6, 12])
    parser.add_argument("--seed", type=int, default=0, help="as in evaluation.seeds")
    parser.add_argument("--only", nargs="+", help="names of choices, as in the table")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    options = parser.parse_args()
    experiment = config.load(options.experiment)
    ranges = experiment.augmentation_of(experiment.evaluation.train_on)
    assert isinstance(ranges, AugmentationConfig)
    study, rows = Study(experiment, options), []
    for choice, count, recipe in choices(ranges, experiment.features.view_subjects):
        if options.only and choice not in options.only:
            continue
        for row in study.scores(count, recipe):
            rows.append({"choice": choice, "views": count, **row})
            print({**rows[-1]}, flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows).pivot_table("dice", ["head", "choice"], ["set", "n"], sort=False)
    print(table.round(1).to_markdown() if hasattr(table, "to_markdown") else table.round(1))
    print(f"seconds of fitting, median: {np.median([row['seconds'] for row in rows]):.1f}")


if __name__ == "__main__":
    main()
