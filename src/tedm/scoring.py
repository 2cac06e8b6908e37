"""Predicts with a head or a baseline on test sets: masks, and the scores of every subject."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tedm import evaluation
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.features.reader import FeatureStore
from tedm.files import whole
from tedm.heads import base
from tedm.progress import say, stage

IMAGES_AT_A_TIME = 8

Probabilities = NDArray[np.float32]


def score_head(spec: Mapping[str, Any], head: Path, data: Path, features: str, out: Path) -> None:
    """Score a head, and each reading of it at a subset of its timesteps, on every test set.

    Args:
        spec: method (the head's name), readings (name → timesteps), datasets, n and seed.
        head: the fitted head.
        data: directory of prepared data sets.
        features: directory of the stores of the backbone that the head was fitted on.
        out: directory to write, {dataset}.csv and {dataset}.npz.
    """
    # The head is this workflow's own, and its type was named in the experiment.
    fitted = base.load(head, allow_imports=True)
    readings: dict[str, list[int] | None] = {spec["method"]: None, **spec["readings"]}
    for dataset in spec["datasets"]:
        with PreparedSet(data / f"{dataset}.h5") as prepared:
            store = FeatureStore.open(
                f"{features}/{dataset}.zarr",
                backbone_digest=fitted.backbone_digest,
                data_digest=prepared.digest,
            )

            def predict(rows: list[int], store: FeatureStore = store) -> dict[str, Probabilities]:
                steps = fitted.predict_steps(store, rows)
                return {method: fitted.combine(steps, chosen) for method, chosen in readings.items()}

            _score(spec, dataset, prepared, predict, out)


def score_supervised(spec: Mapping[str, Any], model: Path, data: Path, out: Path) -> None:
    """Score a supervised baseline on every test set; arguments as in score_head."""
    from tedm import supervised

    network = supervised.load(model.parent)
    for dataset in spec["datasets"]:
        with PreparedSet(data / f"{dataset}.h5") as prepared:

            def predict(rows: list[int], prepared: PreparedSet = prepared) -> dict[str, Probabilities]:
                return {spec["method"]: supervised.predict_proba(network, prepared.images(rows))}

            _score(spec, dataset, prepared, predict, out)


def _score(
    spec: Mapping[str, Any],
    dataset: str,
    prepared: PreparedSet,
    predict: Callable[[list[int]], dict[str, Probabilities]],
    out: Path,
) -> None:
    rows = prepared.rows("test")
    if not rows:
        raise TedmError(f"{prepared.label}: evaluation.test_on names it, but its split test is empty")
    masks: dict[str, list[NDArray[np.uint8]]] = {}
    with stage(f"{spec['method']} n={spec['n']} on {dataset}", len(rows), "images") as progress:
        for start in range(0, len(rows), IMAGES_AT_A_TIME):
            batch = rows[start : start + IMAGES_AT_A_TIME]
            for method, probabilities in predict(batch).items():
                masks.setdefault(method, []).append(evaluation.segment(probabilities))
            progress.advance(len(batch))
    truth = prepared.masks(rows)
    subjects = [prepared.subjects[row] for row in rows]
    predicted = {method: np.concatenate(parts) for method, parts in masks.items()}
    tables = []
    for method, mask in predicted.items():
        found = evaluation.scores(mask, truth, subjects, prepared.classes)
        tables.append(
            evaluation.labelled(
                found,
                dataset=dataset,
                method=method,
                n_train=spec["n"],
                seed=spec["seed"],
                synthetic=prepared.synthetic,
            )
        )
    with whole(out / f"{dataset}.npz") as partial, partial.open("wb") as file:
        _write_masks(file, predicted, [prepared.ids[row] for row in rows], prepared.synthetic)
    evaluation.write_scores(out / f"{dataset}.csv", pd.concat(tables))
    say(f"{spec['method']} n={spec['n']}: scored {len(rows)} images of {dataset}")


def _write_masks(
    file: Any, masks: Mapping[str, NDArray[np.uint8]], ids: list[str], synthetic: bool
) -> None:
    shape = next(iter(masks.values())).shape
    packed = {f"mask:{method}": np.packbits(mask) for method, mask in masks.items()}
    about = {"ids": np.array(ids), "shape": np.array(shape), "synthetic": np.array(synthetic)}
    np.savez_compressed(file, allow_pickle=False, **about, **packed)


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
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
    ) as error:
        raise TedmError(f"{path}: damaged ({error}); delete it, then {again} again") from None
