"""Predicts with a head or a baseline on test sets: masks, and the scores of every subject."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tedm import archive, disagreement, evaluation, measures
from tedm.data.prepared import PreparedSet
from tedm.digests import digest_file, digest_of
from tedm.errors import TedmError
from tedm.features.reader import FeatureStore
from tedm.features.shared import SharedFeatures
from tedm.files import whole
from tedm.heads import base
from tedm.parallel import Task, side_by_side
from tedm.progress import say, stage

if TYPE_CHECKING:
    import torch

FORMAT = 2  # of a scoring job's files; another one is scored again
IMAGES_AT_A_TIME = 8  # a multiple of 8: the bits of their masks fill bytes
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
    _all_scored(tasks, threads)


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


def score_supervised(
    spec: Mapping[str, Any],
    baselines: Path,
    data: Path,
    out: Path,
    threads: int = 1,
    device: "torch.device | str" = "cpu",
) -> None:
    """Score a supervised baseline of all training sizes and seeds on every test set.

    Scores that are there already, of the same network on the same images, stay. Where one network cannot
    be scored, the others are.

    Args:
        spec: as in score_heads, without readings.
        baselines: directory of the trained networks: n{n}/seed{seed}/.
        data: as in score_head.
        out: as in score_heads.
        threads: test sets at once; on a GPU always one.
        device: that predicts.

    Raises:
        TedmError: after all, naming the test sets where something failed.
    """
    import torch  # here, once for all processes that are forked

    place = {(n, seed): f"n{n}/seed{seed}" for n, seed in spec["fits"]}
    tasks = {
        f"{spec['method']} on {dataset}": partial(
            _score_networks,
            spec,
            dataset,
            {fit: baselines / where for fit, where in place.items()},
            data / f"{dataset}.h5",
            {fit: out / where for fit, where in place.items()},
            device,
        )
        for dataset in spec["datasets"]
    }
    # What is on a GPU does not survive a fork.
    _all_scored(tasks, threads if torch.device(device).type == "cpu" else 1)


def _all_scored(tasks: Mapping[str, Task], threads: int) -> None:
    failed = side_by_side(tasks, threads)
    if failed:
        raise TedmError(f"not scored: {'; '.join(failed)} (what went wrong is said above)")


class _Predictions:
    """What one head or baseline made of a test set, by method and batch by batch.

    Kept in memory are sums over the images of each subject, and where surfaces are measured the masks of
    subjects that are not complete yet. Masks and maps of all images lie on the disk.

    Args:
        prepared: the test set.
        metrics: measures beyond Dice.
        out: folder with room for masks and maps.
    """

    def __init__(self, prepared: PreparedSet, metrics: Sequence[str], out: Path) -> None:
        self.rows, self.classes, self.metrics = prepared.rows("test"), prepared.classes, metrics
        self.place = {row: i for i, row in enumerate(self.rows)}
        subjects = np.array([prepared.subjects[row] for row in self.rows], dtype=object)
        self.owner, names = pd.factorize(subjects)
        self.subjects, self.images = [str(name) for name in names], np.bincount(self.owner)
        known = None if prepared.spacings_mm is None else prepared.spacings_mm[self.rows]
        self.spacings_mm = measures.usable_spacings(known, self.subjects)
        self.spool = archive.Spool(out)
        self.methods: list[str] = []
        self.pixels: dict[str, NDArray[np.int64]] = {}  # see evaluation.counts, (subjects, K, 3)
        self.bins: dict[str, measures.Counts] = {}  # (subjects, K, BINS, 4)
        self.all_bins: dict[str, measures.Counts] = {}  # (K, BINS, 4)
        self.overlaps: dict[str, NDArray[np.int64]] = {}  # (subjects, K, S, S)
        self.incomplete: dict[tuple[str, int], list[tuple[int, Masks, Masks]]] = {}
        self.measured: dict[tuple[str, int], pd.DataFrame] = {}

    def close(self) -> None:
        """Remove what lies on the disk."""
        self.spool.close()

    def add(
        self,
        method: str,
        rows: Sequence[int],
        probabilities: Probabilities,
        truth: Masks,
        steps: Probabilities | None = None,
    ) -> None:
        """Take in a batch and its truth, (n, K, H, W), and the votes behind it, (S, n, K, H, W), if any."""
        if method not in self.methods:
            self.methods.append(method)
        places = [self.place[row] for row in rows]
        owner, masks = self.owner[places], evaluation.segment(probabilities)
        self.spool.append(f"mask:{method}", np.packbits(masks))
        self._pool(self.pixels, method, owner, evaluation.counts(masks, truth))
        if self.metrics:
            self._measure(method, places, masks, truth)
        if not set(measures.CALIBRATION).isdisjoint(self.metrics):
            counts = measures.bins(probabilities, truth)
            self._pool(self.bins, method, owner, counts)
            total = self.all_bins.setdefault(method, np.zeros(counts.shape[1:]))
            for of_image in counts:  # one by one, as the sum over all images
                total += of_image
        if steps is None or len(steps) < 2:
            return
        bits = np.rint(disagreement.information(steps) * disagreement.LEVELS).astype(np.uint8)
        self.spool.append(f"uncertainty:{method}", bits)
        self._pool(self.overlaps, method, owner, disagreement.overlaps(steps))

    def scores(self, method: str) -> list[pd.DataFrame]:
        """Tables of subject, class, metric and value, once all images are there."""
        found = [evaluation.from_counts(self.pixels[method], self.subjects, self.classes)]
        if method in self.overlaps:
            found.append(disagreement.scores(self.overlaps[method], self.subjects, self.classes))
        if self.metrics:
            found.append(pd.concat([self.measured[method, s] for s in range(len(self.subjects))]))
        if method in self.bins:
            found.append(measures.of_bins(self.bins[method], self.subjects, self.classes, self.metrics))
        return found

    def arrays(self, shape: tuple[int, ...]) -> dict[str, NDArray[Any] | archive.Growing]:
        """Masks as bits, maps and sums of bins of all methods; `shape` is that of the masks."""
        bits, arrays = int(np.prod(shape)), dict[str, NDArray[Any] | archive.Growing]()
        for method in self.methods:
            name = f"mask:{method}"
            arrays[name] = archive.Growing(self.spool, name, (-(-bits // 8),))
        for method in self.overlaps:
            name = f"uncertainty:{method}"
            arrays[name] = archive.Growing(self.spool, name, shape)
        return arrays | {f"bins:{method}": sums for method, sums in self.all_bins.items()}

    def _pool(
        self, pooled: dict[str, NDArray[Any]], method: str, owner: NDArray[Any], values: NDArray[Any]
    ) -> None:
        if method not in pooled:
            pooled[method] = np.zeros((len(self.subjects), *values.shape[1:]), values.dtype)
        np.add.at(pooled[method], owner, values)

    def _measure(self, method: str, places: Sequence[int], masks: Masks, truth: Masks) -> None:
        """Measure the subjects whose last image this batch has."""
        for i, place in enumerate(places):
            subject = int(self.owner[place])
            images = self.incomplete.setdefault((method, subject), [])
            images.append((place, masks[i], truth[i]))
            if len(images) < self.images[subject]:
                continue
            del self.incomplete[method, subject]
            spacing = None if self.spacings_mm is None else self.spacings_mm[[p for p, _, _ in images]]
            self.measured[method, subject] = measures.of_masks(
                np.stack([mask for _, mask, _ in images]),
                np.stack([mask for _, _, mask in images]),
                [self.subjects[subject]] * len(images),
                self.classes,
                self.metrics,
                spacing,
            )


def _score_heads(
    spec: Mapping[str, Any],
    dataset: str,
    heads: Mapping[Fit, Path],
    data: Path,
    features: str,
    out: Mapping[Fit, Path],
) -> None:
    """Score some heads on one test set."""
    with PreparedSet(data) as prepared, contextlib.ExitStack() as spools:
        failures: dict[Fit, TedmError] = {}
        asked: dict[Fit, tuple[base.Head, str]] = {}
        predictions: dict[Fit, _Predictions] = {}
        store = FeatureStore.open(features, data_digest=prepared.digest)
        for fit, path in heads.items():
            made_from = _made_from(spec, path, store)
            if made_from is not None and _stays(spec, dataset, fit, out[fit], made_from):
                continue
            try:
                # The heads are this workflow's own, and their type was named in the experiment.
                head = base.load(path, allow_imports=True)
                FeatureStore.open(features, backbone_digest=head.backbone_digest)
            except TedmError as error:
                failures[fit] = error
                continue
            asked[fit] = (head, made_from or "")
            made = _Predictions(prepared, spec.get("metrics", ()), out[fit])
            predictions[fit] = spools.enter_context(contextlib.closing(made))
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
    _report(spec, failures)


def _score_networks(
    spec: Mapping[str, Any],
    dataset: str,
    networks: Mapping[Fit, Path],
    data: Path,
    out: Mapping[Fit, Path],
    device: "torch.device | str",
) -> None:
    """Score some networks on one test set, one after the other, so that one is in memory."""
    from tedm import supervised

    failures: dict[Fit, TedmError] = {}
    with PreparedSet(data) as prepared:
        for fit, directory in networks.items():
            try:
                network = supervised.load(directory, device)
                made_from = digest_of(
                    [FORMAT, network.digest, spec["method"], prepared.digest, *_metrics(spec)]
                )
                if _stays(spec, dataset, fit, out[fit], made_from):
                    continue
                predictions = _Predictions(prepared, spec.get("metrics", ()), out[fit])
                with contextlib.closing(predictions):
                    for rows in _batches(prepared, f"{spec['method']} n={fit[0]} on {dataset}"):
                        probabilities = supervised.predict_proba(network, prepared.images(rows))
                        predictions.add(spec["method"], rows, probabilities, prepared.masks(rows))
                    _write(predictions, prepared, dataset, fit, out[fit], made_from)
            except TedmError as error:
                failures[fit] = error
    _report(spec, failures)


def _report(spec: Mapping[str, Any], failures: Mapping[Fit, TedmError]) -> None:
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
        predictions.add(method, rows, head.combine(steps, timesteps), truth, votes)


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
    predictions: _Predictions, prepared: PreparedSet, dataset: str, fit: Fit, out: Path, made_from: str
) -> None:
    rows, (n, seed) = predictions.rows, fit
    height, width = prepared.image_shape[1:]
    shape = (len(rows), len(prepared.classes), height, width)
    tables = [
        evaluation.labelled(
            found, dataset=dataset, method=method, n_train=n, seed=seed, synthetic=prepared.synthetic
        )
        for method in predictions.methods
        for found in predictions.scores(method)
    ]
    scores = out / f"{dataset}.csv"
    evaluation.write_scores(scores, pd.concat(tables))
    arrays: dict[str, NDArray[Any] | archive.Growing] = {
        "ids": np.array([prepared.ids[row] for row in rows]),
        "shape": np.array(shape),
        "synthetic": np.array(prepared.synthetic),
        "made_from": np.array([made_from, digest_file(scores)]),
        "bits_per_level": np.array(1 / disagreement.LEVELS),
    }
    with whole(out / f"{dataset}.npz") as partial_file, partial_file.open("wb") as file:
        archive.write(file, arrays | predictions.arrays(shape))
    say(f"{predictions.methods[0]} n={n}: scored {len(rows)} images of {dataset}")


def _made_from(spec: Mapping[str, Any], head: Path, features: FeatureStore) -> str | None:
    """Digest of all that scores depend on; None where the head is not there."""
    if not head.is_file():
        return None
    made_from = [FORMAT, digest_file(head), spec["method"], spec["readings"], features.attributes]
    return digest_of([*made_from, *_metrics(spec)])


def _metrics(spec: Mapping[str, Any]) -> list[Any]:
    """What a digest has of the measures beyond Dice: nothing where there are none."""
    return [spec["metrics"]] if spec.get("metrics") else []


def _stays(spec: Mapping[str, Any], dataset: str, fit: Fit, out: Path, made_from: str) -> bool:
    """Whether scores of the same are there; if so, they are made no older than what they were made from."""
    if _kept(out / dataset) != made_from:
        return False
    for suffix in (".csv", ".npz"):
        os.utime(_with(out / dataset, suffix))
    say(f"{spec['method']} n={fit[0]}: scored on {dataset} before")
    return True


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


def read_masks(
    path: Path, methods: Collection[str] | None = None, ids: Sequence[str] | None = None
) -> tuple[list[str], dict[str, Masks]]:
    """Read ids and, by method, masks (N, K, H, W) that a scoring job wrote.

    Args:
        path: the file (.npz).
        methods: only these; None: all.
        ids: only these images, in this order: no others get into memory; None: all.

    Raises:
        TedmError: missing, damaged, or without one of the images or methods.
    """
    again = f"`snakemake --cores all {path}` (with the same --configfile, if any) makes it"
    if not path.exists():
        raise TedmError(f"{path}: no such file; {again}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            shape = tuple(int(s) for s in stored["shape"])
            there = [str(name) for name in stored["ids"]]
            names = [key.removeprefix("mask:") for key in stored.files if key.startswith("mask:")]
            if not names:
                raise ValueError("no masks")
            chosen = [name for name in names if methods is None or name in methods]
            places = range(shape[0]) if ids is None else _places(path, there, ids)
            if ids is None:
                masks = {
                    name: np.unpackbits(stored[f"mask:{name}"], count=int(np.prod(shape))).reshape(shape)
                    for name in chosen
                }
                return there, masks
        return list(ids), {name: _some_masks(path, name, shape, places) for name in chosen}
    except UNREADABLE as error:
        raise TedmError(f"{path}: damaged ({error}); delete it, then {again} again") from None


def _places(path: Path, there: Sequence[str], ids: Sequence[str]) -> list[int]:
    place = {name: i for i, name in enumerate(there)}
    missing = [name for name in ids if name not in place]
    if missing:
        raise TedmError(f"{path}: has no image {', '.join(missing)}; delete it and run again")
    return [place[name] for name in ids]


def _some_masks(path: Path, method: str, shape: tuple[int, ...], places: Sequence[int]) -> Masks:
    bits, rows = int(np.prod(shape[1:])), sorted(set(places))
    starts = [row * bits // 8 for row in rows]
    spans = archive.read_spans(path, f"mask:{method}", starts, bits // 8 + 2)
    by_row = {
        row: np.unpackbits(span)[row * bits % 8 :][:bits].reshape(shape[1:])
        for row, span in zip(rows, spans, strict=True)
    }
    return np.stack([by_row[row] for row in places])


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


def read_uncertainty(
    path: Path, method: str, ids: Sequence[str] | None = None
) -> NDArray[np.float32] | None:
    """Read the uncertainty maps of a method in bits, (N, K, H, W); None where it does not vote.

    Args:
        path: what a scoring job wrote, with the ids and masks that `read_masks` gives.
        method: a head that votes, or a reading of one.
        ids: only these images, in this order: no others get into memory; None: all.
    """
    name = f"uncertainty:{method}"
    try:
        with np.load(path, allow_pickle=False) as stored:
            if name not in stored.files:
                return None
            shape, unit = tuple(int(s) for s in stored["shape"]), np.float32(stored["bits_per_level"])
            if ids is None:
                return np.asarray(stored[name].astype(np.float32) * unit, np.float32)
            places = _places(path, [str(text) for text in stored["ids"]], ids)
        size, rows = int(np.prod(shape[1:])), sorted(set(places))
        spans = archive.read_spans(path, name, [row * size for row in rows], size)
        by_row = {row: span.reshape(shape[1:]) for row, span in zip(rows, spans, strict=True)}
        return np.stack([by_row[row] for row in places]).astype(np.float32) * unit
    except UNREADABLE as error:
        raise TedmError(f"{path}: damaged ({error}); delete it and run again") from None
