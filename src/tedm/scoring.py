"""Predicts with a head or a baseline on test sets: masks, and the scores of every subject."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tedm import disagreement, evaluation, measures
from tedm.data.prepared import PreparedSet
from tedm.digests import digest_file, digest_of
from tedm.errors import TedmError
from tedm.features.reader import FeatureStore
from tedm.features.shared import SharedFeatures
from tedm.files import whole
from tedm.heads import base
from tedm.parallel import side_by_side
from tedm.progress import say, stage

FORMAT = 2  # of a scoring job's files; another one is scored again
IMAGES_AT_A_TIME = 8
MEMORY = 2**30  # bytes of the features of a batch that several heads share

UNREADABLE = (  # what NumPy raises for an archive that is damaged
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
)

Probabilities = NDArray[np.float32]
Masks = NDArray[np.uint8]
Fit = tuple[int, int]  # training size and seed


def score_heads(
    spec: Mapping[str, Any], heads: Path, data: Path, features: str, out: Path, threads: int = 1
) -> None:
    """Score the heads of all training sizes and seeds on every test set, each batch being read once.

    The files are those of `score_head`. Scores that are there already, of the same head on the same
    features, stay. Where one head cannot be scored, the others are.

    Args:
        spec: as in score_head, but with `fits`, pairs of n and seed, instead of the one n and seed.
        heads: directory of the fitted heads: n{n}/seed{seed}/head.safetensors.
        data: as in score_head.
        features: as in score_head.
        out: directory to write: n{n}/seed{seed}/{dataset}.csv and .npz.
        threads: test sets at once.

    Raises:
        TedmError: after all, naming the test sets where something failed.
    """
    place = {(n, seed): f"n{n}/seed{seed}" for n, seed in spec["fits"]}
    tasks = {
        f"{spec['method']} on {dataset}": partial(
            _score_heads,
            spec,
            dataset,
            {fit: heads / where / "head.safetensors" for fit, where in place.items()},
            data / f"{dataset}.h5",
            f"{features}/{dataset}.zarr",
            {fit: out / where for fit, where in place.items()},
        )
        for dataset in spec["datasets"]
    }
    failed = side_by_side(tasks, threads)
    if failed:
        raise TedmError(f"not scored: {'; '.join(failed)} (what went wrong is said above)")


def score_head(spec: Mapping[str, Any], head: Path, data: Path, features: str, out: Path) -> None:
    """Score a head, and each reading of it at a subset of its timesteps, on every test set.

    Args:
        spec: method (the head's name), readings (name → timesteps), datasets, n and seed; and metrics,
            names of measures beyond Dice, where there are any.
        head: the fitted head.
        data: directory of prepared data sets.
        features: directory of the stores of the backbone that the head was fitted on.
        out: directory to write, {dataset}.csv and {dataset}.npz.
    """
    fit = (spec["n"], spec["seed"])
    for dataset in spec["datasets"]:
        store = f"{features}/{dataset}.zarr"
        _score_heads(spec, dataset, {fit: head}, data / f"{dataset}.h5", store, {fit: out})


def score_supervised(spec: Mapping[str, Any], model: Path, data: Path, out: Path) -> None:
    """Score a supervised baseline on every test set; arguments as in score_head."""
    from tedm import supervised

    network = supervised.load(model.parent)
    for dataset in spec["datasets"]:
        with PreparedSet(data / f"{dataset}.h5") as prepared:
            predictions = _Predictions(spec.get("metrics", ()))
            for rows in _batches(prepared, f"{spec['method']} n={spec['n']} on {dataset}"):
                probabilities = supervised.predict_proba(network, prepared.images(rows))
                predictions.add(spec["method"], probabilities, prepared.masks(rows))
            _write(predictions, prepared, dataset, (spec["n"], spec["seed"]), out)


@dataclass
class _Predictions:
    """What one head or baseline made of the test images, by method and batch by batch."""

    metrics: Sequence[str] = ()  # beyond Dice
    masks: dict[str, list[Masks]] = field(default_factory=dict)
    bins: dict[str, list[measures.Counts]] = field(default_factory=dict)
    maps: dict[str, list[Masks]] = field(default_factory=dict)
    overlaps: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)

    def add(
        self, method: str, probabilities: Probabilities, truth: Masks, steps: Probabilities | None = None
    ) -> None:
        """Take in a batch and its truth, (n, K, H, W), and the votes behind it, (S, n, K, H, W), if any."""
        self.masks.setdefault(method, []).append(evaluation.segment(probabilities))
        if not set(measures.CALIBRATION).isdisjoint(self.metrics):
            self.bins.setdefault(method, []).append(measures.bins(probabilities, truth))
        if steps is None or len(steps) < 2:
            return
        bits = np.rint(disagreement.information(steps) * disagreement.LEVELS).astype(np.uint8)
        self.maps.setdefault(method, []).append(bits)
        self.overlaps.setdefault(method, []).append(disagreement.overlaps(steps))


def _score_heads(
    spec: Mapping[str, Any],
    dataset: str,
    heads: Mapping[Fit, Path],
    data: Path,
    features: str,
    out: Mapping[Fit, Path],
) -> None:
    """Score some heads on one test set."""
    with PreparedSet(data) as prepared:
        failures: dict[Fit, TedmError] = {}
        asked: dict[Fit, tuple[base.Head, str]] = {}
        predictions: dict[Fit, _Predictions] = {}
        store = FeatureStore.open(features, data_digest=prepared.digest)
        for fit, path in heads.items():
            made_from = _made_from(spec, path, store)
            if made_from is not None and _kept(out[fit] / dataset) == made_from:
                for suffix in (".csv", ".npz"):
                    os.utime(_with(out[fit] / dataset, suffix))  # not older than what it was made from
                say(f"{spec['method']} n={fit[0]}: scored on {dataset} before")
                continue
            try:
                # The heads are this workflow's own, and their type was named in the experiment.
                head = base.load(path, allow_imports=True)
                FeatureStore.open(features, backbone_digest=head.backbone_digest)
            except TedmError as error:
                failures[fit] = error
                continue
            asked[fit] = (head, made_from or "")
            predictions[fit] = _Predictions(spec.get("metrics", ()))
        for rows in (
            _batches(prepared, f"{spec['method']} on {dataset}, {len(asked)} heads") if asked else ()
        ):
            shared = SharedFeatures(store, MEMORY if len(asked) > 1 else 0)
            truth = prepared.masks(rows)
            for fit, (head, _) in asked.items():
                if fit not in failures:
                    try:
                        _predict(head, spec, shared, rows, truth, predictions[fit])
                    except TedmError as error:
                        failures[fit] = error
        for fit, (_, made_from) in asked.items():
            if fit not in failures:
                _write(predictions[fit], prepared, dataset, fit, out[fit], made_from)
    if failures:
        raise TedmError(
            "; ".join(f"{spec['method']}, n={n}, seed {seed}: {e}" for (n, seed), e in failures.items())
        )


def _predict(
    head: base.Head,
    spec: Mapping[str, Any],
    features: base.FeatureSource,
    rows: list[int],
    truth: Masks,
    predictions: _Predictions,
) -> None:
    steps = head.votes(features, rows)
    for method, timesteps in {spec["method"]: None, **spec["readings"]}.items():
        votes = None
        if head.voting:
            votes = steps[[head.timesteps.index(t) for t in timesteps or head.timesteps]]
        predictions.add(method, head.combine(steps, timesteps), truth, votes)


def _batches(prepared: PreparedSet, label: str) -> Iterator[list[int]]:
    rows = prepared.rows("test")
    if not rows:
        raise TedmError(f"{prepared.label}: evaluation.test_on names it, but its split test is empty")
    with stage(label, len(rows), "images") as progress:
        for start in range(0, len(rows), IMAGES_AT_A_TIME):
            batch = rows[start : start + IMAGES_AT_A_TIME]
            yield batch
            progress.advance(len(batch))


def _write(
    predictions: _Predictions, prepared: PreparedSet, dataset: str, fit: Fit, out: Path, made_from: str = ""
) -> None:
    rows, (n, seed) = prepared.rows("test"), fit
    truth = prepared.masks(rows)
    subjects = [prepared.subjects[row] for row in rows]
    masks = {method: np.concatenate(parts) for method, parts in predictions.masks.items()}
    tables = []
    for method, mask in masks.items():
        found = [evaluation.scores(mask, truth, subjects, prepared.classes)]
        if method in predictions.overlaps:
            common = np.concatenate(predictions.overlaps[method])
            found.append(disagreement.scores(common, subjects, prepared.classes))
        if predictions.metrics:
            known = None if prepared.spacings_mm is None else prepared.spacings_mm[rows]
            found.append(
                measures.of_masks(mask, truth, subjects, prepared.classes, predictions.metrics, known)
            )
        if method in predictions.bins:
            counts = np.concatenate(predictions.bins[method])
            found.append(measures.of_bins(counts, subjects, prepared.classes, predictions.metrics))
        tables += [
            evaluation.labelled(
                rows_of_method,
                dataset=dataset,
                method=method,
                n_train=n,
                seed=seed,
                synthetic=prepared.synthetic,
            )
            for rows_of_method in found
        ]
    scores = out / f"{dataset}.csv"
    evaluation.write_scores(scores, pd.concat(tables))
    arrays: dict[str, Any] = {
        "ids": np.array([prepared.ids[row] for row in rows]),
        "shape": np.array(truth.shape),
        "synthetic": np.array(prepared.synthetic),
        "made_from": np.array([made_from, digest_file(scores)]),
        "bits_per_level": np.array(1 / disagreement.LEVELS),
    }
    arrays |= {f"mask:{method}": np.packbits(mask) for method, mask in masks.items()}
    arrays |= {f"uncertainty:{method}": np.concatenate(parts) for method, parts in predictions.maps.items()}
    arrays |= {
        f"bins:{method}": np.concatenate(parts).sum(axis=0) for method, parts in predictions.bins.items()
    }
    with whole(out / f"{dataset}.npz") as partial_file, partial_file.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    say(f"{next(iter(masks))} n={n}: scored {len(rows)} images of {dataset}")


def _made_from(spec: Mapping[str, Any], head: Path, features: FeatureStore) -> str | None:
    """Digest of all that scores depend on; None where the head is not there."""
    if not head.is_file():
        return None
    made_from = [FORMAT, digest_file(head), spec["method"], spec["readings"], features.attributes]
    return digest_of([*made_from, *([spec["metrics"]] if spec.get("metrics") else [])])


def _kept(out: Path) -> str | None:
    """What scores and masks that are there were made from; None where they are absent or not whole."""
    scores, masks = _with(out, ".csv"), _with(out, ".npz")
    if not (scores.exists() and masks.exists()):
        return None
    try:
        with np.load(masks, allow_pickle=False) as archive:
            made_from, digest = (str(text) for text in archive["made_from"])
    except UNREADABLE:
        return None
    return made_from if digest == digest_file(scores) else None


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)  # a data set's name may have a dot


def read_masks(path: Path) -> tuple[list[str], dict[str, NDArray[np.uint8]]]:
    """Read ids and, by method, masks (N, K, H, W) that a scoring job wrote."""
    again = f"`snakemake --cores all {path}` (with the same --configfile, if any) makes it"
    if not path.exists():
        raise TedmError(f"{path}: no such file; {again}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            shape = tuple(int(s) for s in archive["shape"])
            count = int(np.prod(shape))
            masks = {
                key.removeprefix("mask:"): np.unpackbits(archive[key], count=count).reshape(shape)
                for key in archive.files
                if key.startswith("mask:")
            }
            if not masks:
                raise ValueError("no masks")
            return [str(name) for name in archive["ids"]], masks
    except UNREADABLE as error:
        raise TedmError(f"{path}: damaged ({error}); delete it, then {again} again") from None


def read_bins(path: Path) -> dict[str, measures.Counts]:
    """Read, by method, the sums over all test images of `measures.bins`, (K, BINS, 4).

    Empty where no calibration was asked for.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {
                key.removeprefix("bins:"): np.asarray(archive[key], np.float64)
                for key in archive.files
                if key.startswith("bins:")
            }
    except UNREADABLE as error:
        raise TedmError(f"{path}: damaged ({error}); delete it and run again") from None


def read_uncertainty(path: Path, method: str) -> NDArray[np.float32] | None:
    """Read the uncertainty maps of a method in bits, (N, K, H, W); None where it does not vote.

    Args:
        path: what a scoring job wrote, with the ids and masks that `read_masks` gives.
        method: a head that votes, or a reading of one.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if f"uncertainty:{method}" not in archive.files:
                return None
            levels = archive[f"uncertainty:{method}"].astype(np.float32)
            return np.asarray(levels * np.float32(archive["bits_per_level"]), np.float32)
    except UNREADABLE as error:
        raise TedmError(f"{path}: damaged ({error}); delete it and run again") from None
