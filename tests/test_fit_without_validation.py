"""Every kind of head, fitted and scored from a store by the jobs, where no image is kept for validation."""

import numpy as np
import pytest
from tiny_backbone import SIZE, backbone

from tedm import fitting, scoring
from tedm.config import FeaturesConfig
from tedm.data import prepared
from tedm.features.extract import extract
from tedm.files import write_json
from tedm.heads import load

TIMESTEPS = [1, 50]
KINDS = {
    "ridge": {"standardise": "pixel"},
    "mlp": {"combine": "share", "hidden": [4], "steps": 5, "validate_every": 2, "patience": 1},
    "sklearn": {"pixels": 8, "parameters": {"max_iter": 5, "min_samples_leaf": 2}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without_validation")
    rng, names = np.random.default_rng(0), [f"image{i}" for i in range(3)]
    (folder / "data").mkdir()
    prepared.write(
        folder / "data" / "tiny.h5",
        "Tiny",
        list(rng.integers(0, 256, (3, 1, SIZE, SIZE), dtype=np.uint8)),
        list(rng.integers(0, 2, (3, 1, SIZE, SIZE)).astype(np.uint8)),
        names,
        names,
        ["train", "train", "test"],
        ["lungs"],
        intensity_range=(0, 255),
        synthetic=True,
        source="drawn by a test",
        licence="none",
        cite="",
    )
    for t in TIMESTEPS:
        manifest = folder / "features" / f"tiny.t{t:04d}.json"
        data, store = folder / "data" / "tiny.h5", folder / "features" / "tiny.zarr"
        extract(backbone(), data, store, manifest, t, FeaturesConfig(), 0)
    write_json(folder / "digest.json", {"digest": backbone().digest})
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2])
def test_a_head_is_fitted_and_scored_without_validation_images(kind, n, folder, tmp_path):
    spec = {"name": "H", "type": kind, "settings": KINDS[kind], "timesteps": TIMESTEPS, "layers": None}
    spec |= {"n": n, "seed": 0, "experiment_seed": 0}
    head = tmp_path / "head.safetensors"
    store = str(folder / "features" / "tiny.zarr")
    fitting.fit_head(spec, folder / "data" / "tiny.h5", store, folder / "digest.json", head)
    assert load(head).timesteps == (1, 50)
    asked = {"method": "H", "readings": {}, "datasets": ["tiny"], "n": n, "seed": 0}
    scoring.score_head(asked, head, folder / "data", str(folder / "features"), tmp_path / "scores")
    ids, masks = scoring.read_masks(tmp_path / "scores" / "tiny.npz")
    assert (ids, masks["H"].shape) == (["image2"], (1, 1, SIZE, SIZE))
