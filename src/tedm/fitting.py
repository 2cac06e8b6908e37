"""Fits a head: labelled images from the prepared set, their features from the store."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tedm.data.prepared import PreparedSet
from tedm.features.reader import FeatureStore
from tedm.files import read_json
from tedm.heads import base
from tedm.progress import say
from tedm.seeds import seed_of


def fit_head(spec: Mapping[str, Any], data: Path, store: str, digest: Path, out: Path) -> None:
    """Fit one head on the first n labelled images and write it as one safetensors file.

    Args:
        spec: name, type, settings, timesteps, layers (None: all that the store keeps), n, seed and
            experiment_seed.
        data: prepared data set with the splits train and val.
        store: features of that data set.
        digest: digest.json of the backbone; features of another one are refused.
        out: head to write; resumable state lies beside it until then.
    """
    state = out.parent / "state"
    with PreparedSet(data) as prepared:
        backbone = read_json(digest)["digest"]
        features = FeatureStore.open(store, backbone_digest=backbone, data_digest=prepared.digest)
        rows, val_rows = prepared.training_rows(spec["n"]), prepared.rows("val")
        head = base.create(
            spec["type"],
            spec["settings"],
            timesteps=spec["timesteps"],
            layers=spec["layers"] or list(features.layer_shapes),
            seed=seed_of(spec["experiment_seed"], "head", spec["name"], spec["n"], spec["seed"]),
        )
        head.label = spec["name"]
        head.fit(
            features,
            prepared.masks(rows),
            rows,
            val_rows,
            prepared.masks(val_rows),
            workdir=state,
        )
        head.save(out, classes=prepared.classes, backbone_digest=backbone)
    if state.exists():  # else a later fit, by other code, would take this one's results for its own
        shutil.rmtree(state)
    say(f"{head.label}, n={len(rows)}: fitted, in {out}")
