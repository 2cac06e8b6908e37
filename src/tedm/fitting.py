"""Fits a head: labelled images from the prepared set, their features from the store."""

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.features.reader import FeatureStore
from tedm.features.shared import SharedFeatures
from tedm.features.viewed import ViewedFeatures
from tedm.files import only_one, read_json, whole
from tedm.heads import base
from tedm.parallel import side_by_side
from tedm.progress import say
from tedm.seeds import seed_of

MEMORY = 2**30  # bytes of features that all fits of a job share, and as many that they keep for themselves


def fit_heads(
    spec: Mapping[str, Any], data: Path, store: str, digest: Path, out: Path, threads: int = 1
) -> None:
    """Fit one head for every training size and seed, on features that are read once.

    The first n images of a small training size are those of a larger one, too. Each head is the one that
    `fit_head` gives. One that is there already, from the same features, masks and settings, stays. Where
    one cannot be fitted, the others are; a later call finds them in the resumable state.

    Args:
        spec: as in fit_head, but with `fits`, pairs of n and seed, instead of the one n and seed.
        data: as in fit_head.
        store: as in fit_head.
        digest: as in fit_head.
        out: directory to write: n{n}/seed{seed}/head.safetensors.
        threads: heads fitted at once.

    Raises:
        TedmError: after all fits, naming those that failed.
    """
    # Large ones first: the others fill the gaps.
    fits = sorted(((n, seed) for n, seed in spec["fits"]), key=lambda fit: (-fit[0], fit[1]))
    # Held by the forked processes, too: where this one is killed, the next one waits for them.
    with only_one(out, f"the heads {spec['name']}"), PreparedSet(data) as prepared:
        viewed = _open(spec, store, digest, prepared)
        features = SharedFeatures(viewed, MEMORY)
        inputs = _Inputs(prepared, viewed, features, digest, fits[0][0], MEMORY // threads)
        # A mistake in the settings is said before anything is read.
        base.create(spec["type"], spec["settings"], spec["timesteps"], spec["layers"]).check_settings()
        _read_once(features, [*prepared.rows("val"), *inputs.rows(fits[0][0])], spec)
        heads = {(n, seed): out / f"n{n}" / f"seed{seed}" / "head.safetensors" for n, seed in fits}
        tasks = {
            f"{spec['name']}, n={n}, seed {seed}": partial(
                _fit, {**spec, "n": n, "seed": seed}, inputs, head
            )
            for (n, seed), head in heads.items()
        }
        failed = side_by_side(tasks, threads)
        if failed:
            raise TedmError(
                f"not fitted: {'; '.join(failed)} (what went wrong is said above)."
                f" The other {len(tasks) - len(failed)} are kept, and not fitted again"
            )
        for head in heads.values():
            _forget(head)


def fit_head(spec: Mapping[str, Any], data: Path, store: str, digest: Path, out: Path) -> None:
    """Fit one head on the first n labelled images and write it as one safetensors file.

    Args:
        spec: name, type, settings, timesteps, layers (None: all that the store keeps), n, seed and
            experiment_seed; views (absent: 0) and the digest of their recipe.
        data: prepared data set with the splits train and val.
        store: features of that data set.
        digest: digest.json of the backbone; features of another one are refused.
        out: head to write; resumable state lies beside it until then.
    """
    with PreparedSet(data) as prepared:
        features = _open(spec, store, digest, prepared)
        _fit(spec, _Inputs(prepared, features, features, digest, spec["n"], MEMORY), out)
    _forget(out)


class _Inputs:
    """What the fits of a job have in common, in memory: an open HDF5 file does not survive a fork."""

    def __init__(
        self,
        prepared: PreparedSet,
        viewed: ViewedFeatures,
        features: base.FeatureSource,
        digest: Path,
        largest: int,
        memory: int,
    ) -> None:
        self.prepared, self.viewed, self.features, self.memory = prepared, viewed, features, memory
        self.backbone_digest: str = read_json(digest)["digest"]
        rows = self.rows(largest)
        self._masks = dict(zip(rows, viewed.masks(prepared, rows), strict=True))
        self.val_masks = prepared.masks(prepared.rows("val"))

    def rows(self, n: int) -> list[int]:
        """Rows of the features of the first n subjects, views included."""
        return self.viewed.rows_of(self.prepared.training_rows(n))

    def masks(self, rows: Sequence[int]) -> np.ndarray:
        """Masks of these rows."""
        return np.stack([self._masks[row] for row in rows])


def _open(spec: Mapping[str, Any], store: str, digest: Path, prepared: PreparedSet) -> ViewedFeatures:
    features = FeatureStore.open(
        store,
        backbone_digest=read_json(digest)["digest"],
        data_digest=prepared.digest,
        recipe=spec.get("recipe"),
    )
    return ViewedFeatures(features, spec.get("views", 0))


def _read_once(features: SharedFeatures, rows: Sequence[int], spec: Mapping[str, Any]) -> None:
    """Read what all fits will read, before they part."""
    try:
        for row in rows:
            for timestep in spec["timesteps"]:
                features.read([row], timestep, spec["layers"])
            if features.full:
                break
    except TedmError:
        return  # damaged or absent; a fit that needs it says so


def _fit(spec: Mapping[str, Any], inputs: _Inputs, out: Path) -> None:
    prepared = inputs.prepared
    rows, val_rows = inputs.rows(spec["n"]), prepared.rows("val")
    head = base.create(
        spec["type"],
        spec["settings"],
        timesteps=spec["timesteps"],
        layers=spec["layers"] or list(inputs.features.layer_shapes),
        seed=seed_of(spec["experiment_seed"], "head", spec["name"], spec["n"], spec["seed"]),
    )
    head.label, head.memory = spec["name"], inputs.memory
    masks = inputs.masks(rows)
    head.examine(inputs.features, masks, rows, val_rows, inputs.val_masks)
    asked = (head.digest, inputs.backbone_digest, tuple(prepared.classes))
    if _kept(out) == asked:
        os.utime(out)  # Snakemake would take one that is older than its input for stale
        say(f"{head.label}, n={spec['n']}: fitted before, in {out}")
        return
    state = _state(out)
    finished = state / out.name
    if _kept(finished) != asked:
        with head.answering("learn"):
            head.learn(inputs.features, masks, rows, val_rows, inputs.val_masks, state)
        head.save(finished, classes=prepared.classes, backbone_digest=inputs.backbone_digest)
    # Snakemake deletes what a failed job wrote, also the heads that were fitted: they stay in the state.
    with whole(out) as partial_file:
        shutil.copyfile(finished, partial_file)
    say(f"{head.label}, n={spec['n']}: fitted, in {out}")


def _kept(path: Path) -> tuple[str, str, tuple[str, ...]] | None:
    """What a head was made from: digest, backbone and classes; None where there is none to be read."""
    try:
        _, about = base.load_arrays(path)
        if about["format"] != base.FORMAT:
            return None
        return about["digest"], about["backbone_digest"], tuple(about["class_names"])
    except (TedmError, KeyError, TypeError):
        return None


def _state(head: Path) -> Path:
    return head.parent / "state"


def _forget(head: Path) -> None:
    """Remove the state: a later fit, by other code, would take this one's results for its own."""
    if _state(head).exists():
        shutil.rmtree(_state(head))
