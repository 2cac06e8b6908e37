"""Chooses the timesteps of a head: greedy forward selection on validation images, from cached features."""

import csv
import io
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tedm import evaluation
from tedm.config import Experiment
from tedm.data.prepared import PreparedSet
from tedm.digests import digest_of
from tedm.errors import TedmError
from tedm.features.adopt import recipe_of
from tedm.features.reader import FeatureStore
from tedm.features.shared import SharedFeatures
from tedm.features.viewed import ViewedFeatures
from tedm.files import only_one, read_json, write_json, write_text
from tedm.heads import base
from tedm.progress import say
from tedm.seeds import seed_of

MEMORY = 2**30  # bytes of features that all fits share

Subset = tuple[int, ...]  # ascending
Score = Callable[[Subset], float]


class BudgetSpentError(Exception):
    """No further fit is allowed."""


@dataclass
class Budget:
    """How much a search may do.

    Attributes:
        sizes: largest subset.
        fits: heads fitted at most while searching, without the two of the comparison at its end; None: any
            number.
        seconds: after which no further fit begins; None: never.
    """

    sizes: int = 8
    fits: int | None = None
    seconds: float | None = None
    used: int = 0
    started: float = field(default_factory=time.monotonic)

    def spend(self) -> None:
        """Count one fit, or refuse it."""
        if self.fits is not None and self.used >= self.fits:
            raise BudgetSpentError
        if self.seconds is not None and time.monotonic() - self.started >= self.seconds:
            raise BudgetSpentError
        self.used += 1


@dataclass(frozen=True)
class Trial:
    """One subset that the search looked at."""

    size: int
    added: int  # the timestep by which it differs from the best subset of the size before
    subset: Subset
    dice: float  # mean over validation subjects and classes, 0 … 1
    chosen: bool


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        subset: the best one.
        dice: on the validation images, of a head that was fitted on this subset alone.
        configured_dice: the same of the head's own timesteps; None where the store lacks one of them.
        trials: everything that was looked at, in that order.
        fits: heads fitted while searching.
    """

    subset: Subset
    dice: float
    configured_dice: float | None
    trials: list[Trial]
    fits: int


def forward_selection(candidates: Sequence[int], sizes: int, score: Score) -> list[Trial]:
    """Add one timestep at a time, always the one that helps most; equal ones: the first candidate.

    Args:
        candidates: timesteps.
        sizes: largest subset.
        score: of a subset, the higher the better; may raise BudgetSpentError, which ends the search. Trials
            of a size that was not gone through are not kept: its best would depend on the order.
    """
    trials: list[Trial] = []
    best: Subset = ()
    for size in range(1, min(sizes, len(candidates)) + 1):
        tried: list[tuple[float, int, Subset]] = []
        try:
            for timestep in (t for t in candidates if t not in best):
                subset = tuple(sorted((*best, timestep)))
                tried.append((score(subset), timestep, subset))
        except BudgetSpentError:
            say(f"search: the budget is spent; not all subsets of {size} were tried, so none counts")
            break
        winner = max(range(len(tried)), key=lambda i: tried[i][0])
        best = tried[winner][2]
        trials += [Trial(size, t, s, value, i == winner) for i, (value, t, s) in enumerate(tried)]
        say(f"search: best {size}: {list(best)}, validation Dice {100 * tried[winner][0]:.2f}")
    return trials


def best_of(trials: Iterable[Trial]) -> Subset:
    """The best subset on the path of the search; of equal ones the smallest."""
    path = [trial for trial in trials if trial.chosen]
    return max(path, key=lambda trial: (trial.dice, -trial.size)).subset


def search_timesteps(
    experiment: Experiment,
    name: str,
    n: int,
    out: Path,
    *,
    budget: Budget,
    seed: int = 0,
    candidates: Sequence[int] = (),
    refit: bool = False,
) -> Found:
    """Search the timesteps at which a head of the experiment reads best, and write them as a head.

    The head is fitted on the first n training images and judged by its Dice on the validation images. Test
    images are not read.

    A head that votes is fitted once, on all candidates; its votes on the validation images are then those
    of every subset, so that a subset costs an average. For classifiers that share nothing between
    timesteps that is exact; for one network shared by all of them it is the subset's reading (Rosnati et
    al. 2023, Table 2), not the network that learns from the subset alone. Whatever wins is therefore
    fitted by itself at the end, and that is the Dice which is reported. `refit` fits every subset, as is
    always done for a head that combines its timesteps.

    Args:
        experiment: whose prepared data, backbones and stores are there.
        name: of the head in `heads`; its type, settings and layers are kept.
        n: training images.
        out: directory to write: timesteps.yaml and path.csv.
        budget: of the search.
        seed: as in evaluation.seeds.
        candidates: timesteps; none: all that the store has.
        refit: whether a head that votes is fitted anew for every subset, too.

    Raises:
        TedmError: before anything is fitted: no such head, no validation images, a candidate or a layer
            that the store lacks, a budget too small for subsets of one timestep.
    """
    if name not in experiment.heads:
        raise TedmError(f"heads: no head {name} (heads: {', '.join(experiment.heads) or 'none'})")
    results, head, train_on = (
        Path(experiment.results),
        experiment.heads[name],
        experiment.evaluation.train_on,
    )
    backbone = experiment.backbone_of(name)
    with (
        only_one(out / "path.csv", f"the search {out}"),
        PreparedSet(results / "data" / f"{train_on}.h5") as prepared,
    ):
        val_rows = prepared.rows("val")
        if not val_rows:
            raise TedmError(
                f"{prepared.path}: the split val is empty, and a search compares subsets on validation"
                f" images; give datasets.{train_on}.split.val and prepare the data set again"
            )
        digest = read_json(results / "backbones" / backbone / "digest.json")["digest"]
        store = FeatureStore.open(
            results / "features" / backbone / f"{train_on}.zarr",
            backbone_digest=digest,
            data_digest=prepared.digest,
            recipe=recipe_of(experiment).digest if head.views else None,
        )
        features = ViewedFeatures(store, head.views)
        layers = head.layers or list(store.layer_shapes)
        steps = _candidates(features, layers, candidates)
        fitting = _Fitting(
            experiment,
            f"{name}-found",
            head.type,
            head.settings,
            layers,
            n,
            seed,
            out / "state",
            prepared,
            features,
        )
        reuse = fitting.voting and not refit
        least = 1 if reuse else len(steps)
        if budget.fits is not None and budget.fits < least:
            raise TedmError(
                f"--fits: {budget.fits} is too few; to compare the candidates {steps} takes {least}"
            )
        found = _search(fitting, steps, budget, reuse, head.timesteps)
    write_text(out / "path.csv", _csv(found.trials))
    write_text(out / "timesteps.yaml", _snippet(name, head.model_dump(), found, n, seed, len(val_rows)))
    shutil.rmtree(out / "state", ignore_errors=True)
    return found


def _search(
    fitting: "_Fitting", steps: Sequence[int], budget: Budget, reuse: bool, configured: Sequence[int]
) -> Found:
    if reuse:
        budget.spend()
        votes = fitting.votes(steps)

        def score(subset: Subset) -> float:
            return fitting.dice(votes[[steps.index(t) for t in subset]].mean(0, dtype=np.float64))

    else:

        def score(subset: Subset) -> float:
            budget.spend()
            return fitting.refitted(subset)

    trials = forward_selection(steps, budget.sizes, score)
    if not trials:
        raise TedmError(
            "search: the budget was spent before every timestep was tried once; allow more --seconds"
            " (fits that are done are kept: the same command goes on from there)"
        )
    winner = best_of(trials)
    dice = fitting.refitted(winner)
    own = None
    if all(fitting.has(t) for t in configured):
        own = fitting.refitted(tuple(sorted(configured)))
    return Found(winner, dice, own, trials, budget.used)


class _Fitting:
    """Fits the head on subsets of timesteps; a search that was killed finds those it has done."""

    def __init__(
        self,
        experiment: Experiment,
        name: str,
        kind: str,
        settings: dict[str, Any],
        layers: Sequence[str],
        n: int,
        seed: int,
        state: Path,
        prepared: PreparedSet,
        features: ViewedFeatures,
    ) -> None:
        self.kind, self.settings, self.layers, self.state, self.name = kind, settings, layers, state, name
        # That of the workflow's own fit of the head which is found: it is then the same one.
        self.seed = seed_of(experiment.seed, "head", name, n, seed)
        self.features = SharedFeatures(features, MEMORY)
        self.rows, self.val_rows = features.rows_of(prepared.training_rows(n)), prepared.rows("val")
        self.masks, self.val_masks = features.masks(prepared, self.rows), prepared.masks(self.val_rows)
        self.subjects = [prepared.subjects[row] for row in self.val_rows]
        self.classes = prepared.classes
        self.voting = self._head(features.timesteps[:1]).voting
        self.identity = digest_of(
            [
                kind,
                settings,
                list(layers),
                self.seed,
                n,
                prepared.digest,
                features.attributes,
                features.count,
            ]
        )
        self.known: dict[str, float] = {}
        if (state / "scores.json").exists():
            kept = read_json(state / "scores.json")
            self.known = kept["dice"] if kept.get("identity") == self.identity else {}

    def has(self, timestep: int) -> bool:
        """Whether the store has all that a head reads at a timestep."""
        return all(self.features.why_absent(timestep, layer) is None for layer in self.layers)

    def votes(self, timesteps: Sequence[int]) -> np.ndarray:
        """Probabilities of the validation images, (S, n, K, H, W), of a head fitted on these timesteps."""
        head = self._head(timesteps)
        work = self.state / "-".join(map(str, timesteps))
        head.fit(self.features, self.masks, self.rows, self.val_rows, self.val_masks, workdir=work)
        shutil.rmtree(work, ignore_errors=True)
        return head.votes(self.features, self.val_rows)

    def refitted(self, subset: Subset) -> float:
        """Dice of a head that is fitted on this subset alone."""
        key = " ".join(map(str, subset))
        if key not in self.known:
            self.known[key] = self.dice(self.votes(subset).mean(0, dtype=np.float64))
            write_json(self.state / "scores.json", {"identity": self.identity, "dice": self.known})
        return self.known[key]

    def dice(self, probabilities: np.ndarray) -> float:
        """Mean Dice over validation subjects and classes."""
        scores = evaluation.scores(
            probabilities.astype(np.float32), self.val_masks, self.subjects, self.classes
        )
        return float(scores[scores["metric"] == "dice"]["value"].mean())

    def _head(self, timesteps: Sequence[int]) -> base.Head:
        head = base.create(self.kind, self.settings, tuple(timesteps), self.layers, self.seed)
        head.label = f"{self.name} {list(timesteps)}"
        return head


def _candidates(store: ViewedFeatures, layers: Sequence[str], asked: Sequence[int]) -> list[int]:
    """The timesteps to choose from, ascending; each has all layers, and views where they are read."""
    if store.count and not asked:
        asked = [t for t in store.timesteps if all(store.why_absent(t, layer) is None for layer in layers)]
    for layer in layers:
        for timestep in asked or store.timesteps:
            reason = store.why_absent(timestep, layer)
            if reason is not None:
                raise TedmError(reason)
    steps = sorted(set(asked or store.timesteps))
    if not steps:
        raise TedmError(f"{store.store.path}: has no complete timestep; extract the features first")
    return steps


def _csv(trials: Iterable[Trial]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["size", "added", "timesteps", "dice", "chosen"])
    for trial in trials:
        subset = " ".join(map(str, trial.subset))
        writer.writerow([trial.size, trial.added, subset, repr(trial.dice), int(trial.chosen)])
    return text.getvalue()


def _snippet(name: str, head: dict[str, Any], found: Found, n: int, seed: int, images: int) -> str:
    own = ""
    if found.configured_dice is not None:
        own = f" ({100 * found.configured_dice:.2f} with the timesteps of {name})"
    about = (
        f"# Found by `tedm search-timesteps` for {name}: n = {n}, seed {seed}, {found.fits} fits.\n"
        f"# Dice on the {images} validation images that chose it: {100 * found.dice:.2f}{own};\n"
        "# on other images expect less. Test images were not read.\n"
    )
    kept = {k: v for k, v in head.items() if k != "readings" and v is not None}
    entry = {"heads": {f"{name}-found": kept | {"timesteps": list(found.subset)}}}
    return about + yaml.safe_dump(entry, sort_keys=False, default_flow_style=None, allow_unicode=True)
