"""What all heads share: checks before training, files, the registry; and the scikit-learn adapter."""

import importlib.metadata
import json
import re
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier

from tedm.errors import TedmError
from tedm.heads import ArrayFeatures, Head, create, load

SHAPES = {"up0": (3, 2, 2), "up1": (2, 4, 4)}
TIMESTEPS = (1, 50)
KINDS = {
    "ridge": {},
    "mlp": {"combine": "share", "hidden": [4], "steps": 2},
    "sklearn": {"pixels": 8, "parameters": {"max_iter": 5, "min_samples_leaf": 2}},
}


def draw(n: int = 4, classes: int = 1, seed: int = 0) -> tuple[ArrayFeatures, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {
        (t, k): rng.standard_normal((n, *s)).astype(np.float16)
        for t in TIMESTEPS
        for k, s in SHAPES.items()
    }
    label = rng.integers(0, classes + 1, (n, 4, 4))
    return ArrayFeatures(arrays, (4, 4)), np.stack([label == k for k in range(1, classes + 1)], 1).astype(
        np.uint8
    )


def fit(kind, features, masks, workdir, rows=None, val_rows=(), **changes) -> Head:
    rows = range(len(masks)) if rows is None else rows
    given = {"settings": KINDS.get(kind, {}), "timesteps": TIMESTEPS, "layers": None, "seed": 0} | changes
    head = create(kind, **given)
    return head.fit(features, masks, rows, val_rows, masks[: len(val_rows)], workdir=workdir)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 2])
def test_every_kind_fits_predicts_and_comes_back_from_its_file(kind, classes, tmp_path):
    features, masks = draw(classes=classes)
    head = fit(kind, features, masks, tmp_path)
    p = head.predict_proba(features, [3, 1])
    assert (p.shape, p.dtype) == ((2, classes, 4, 4), np.float32)
    assert (p >= 0).all()
    assert (p.sum(1) <= 1 + 1e-6).all()
    head.save(tmp_path / "head.safetensors", classes=["a", "b"][:classes])
    loaded = load(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(features, [3, 1]), p)
    assert loaded.class_names == ("a", "b")[:classes]
    assert loaded.digest == head.digest


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_one_class_are_learned_as_a_constant_with_a_warning(kind, tmp_path, capsys):
    features, masks = draw()
    fit(kind, features, np.zeros_like(masks), tmp_path).predict_proba(features, [0])
    assert "class 0 is absent from the 4 training images" in capsys.readouterr().err


def broken(what: str):
    features, masks = draw(classes=2)
    rows, changes = [0, 1, 2, 3], {}
    if what == "value":
        masks[2, 0, 1, 1] = 255
    elif what == "type":
        masks = masks.astype(np.float32)
    elif what == "overlap":
        masks[1] = 1
    elif what == "size":
        masks = masks[..., :3]
    elif what == "count":
        rows = [0, 1, 2]
    elif what == "outside":
        rows = [0, 1, 2, 9]
    elif what == "twice":
        rows = [0, 1, 2, 2]
    elif what == "none":
        rows, masks = [], masks[:0]
    elif what == "nan":
        features.arrays[50, "up1"][3, 0, 0, 0] = np.nan
    elif what == "infinite":
        features.arrays[1, "up0"][0, 0, 0, 0] = np.inf
    elif what == "layer":
        changes["layers"] = ["up0", "up7"]
    elif what == "timestep":
        changes["timesteps"] = [1, 999]
    return features, masks, rows, changes


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("value", "training masks: .* row 2 has 255"),
        ("type", "must be uint8 0 or 1.*float32"),
        ("overlap", "row 1: classes overlap"),
        ("size", r"shape \(4, 2, 4, 3\), expected"),
        ("count", r"shape \(4, 2, 4, 4\), expected .*\(3, K, 4, 4\)"),
        ("outside", "row 9 is outside the 4 images"),
        ("twice", "the same row is given twice"),
        ("none", "no images"),
        ("nan", "row 3, timestep 50, layer up1: not finite"),
        ("infinite", "row 0, timestep 1, layer up0: not finite"),
        ("layer", r"no up7 \(kept: up0, up1\)"),
        ("timestep", r"no 999 \(kept: \[1, 50\]\)"),
    ],
)
def test_bad_input_is_named_before_training_starts(what, message, tmp_path, monkeypatch):
    features, masks, rows, changes = broken(what)
    head_class = type(create("ridge", {}, TIMESTEPS))
    monkeypatch.setattr(head_class, "learn", lambda *_: pytest.fail("training started"))
    with pytest.raises(TedmError, match=message):
        fit("ridge", features, masks, tmp_path, rows, **changes)


def test_wrong_settings_are_named():
    with pytest.raises(TedmError, match=r"RidgeSettings\.C: "):
        create("ridge", {"C": -1}, TIMESTEPS)
    with pytest.raises(TedmError, match=r"MLPSettings\.hiden: "):
        create("mlp", {"combine": "share", "hiden": [3]}, TIMESTEPS)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_other_shapes_or_another_backbone_are_refused(kind, tmp_path):
    features, masks = draw()
    features.backbone_digest = "1" * 64
    head = fit(kind, features, masks, tmp_path)
    features.backbone_digest = "2" * 64
    with pytest.raises(TedmError, match="backbone 11111111…, these are of 22222222…"):
        head.predict_proba(features, [0])
    wider = ArrayFeatures(
        {(t, k): np.zeros((1, s[0] + 1, *s[1:]), np.float32) for t in TIMESTEPS for k, s in SHAPES.items()},
        (4, 4),
    )
    with pytest.raises(TedmError, match="trained on layers"):
        head.predict_proba(wider, [0])


# ── registry ──


class Prior(Head):
    """The share of training pixels of each class, everywhere."""

    def learn(self, features, masks, rows, val_rows, val_masks, workdir):
        self.share = masks.mean((0, 2, 3), dtype=np.float64)

    def predict_steps(self, features, rows):
        shape = (len(self.timesteps), len(rows), self.class_count, *self.image_size)
        return np.broadcast_to(self.share[:, None, None], shape).astype(np.float32)

    def state(self):
        return {"share": self.share}

    def restore(self, state):
        self.share = state["share"]


def test_a_head_of_a_third_party_is_named_by_dotted_path_and_its_file_imports_nothing_unasked(
    tmp_path, monkeypatch
):
    features, masks = draw()
    kind = f"{__name__}:Prior"
    head = fit(kind, features, masks, tmp_path)
    head.save(tmp_path / "prior.safetensors")
    with pytest.raises(TedmError, match=re.escape(f"needs {kind}") + ".*allow_imports"):
        load(tmp_path / "prior.safetensors")
    loaded = load(tmp_path / "prior.safetensors", allow_imports=True)
    np.testing.assert_array_equal(loaded.predict_proba(features, [0]), head.predict_proba(features, [0]))


def test_an_entry_point_registers_a_head(tmp_path, monkeypatch):
    points = importlib.metadata.EntryPoints(
        [importlib.metadata.EntryPoint("prior", f"{__name__}:Prior", "tedm.heads")]
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points.select(group=group))
    features, masks = draw()
    fit("prior", features, masks, tmp_path).save(tmp_path / "head.safetensors")
    assert isinstance(load(tmp_path / "head.safetensors"), Prior)


@pytest.mark.parametrize("kind", ["ridg", "no.such.module:Head", "pathlib:Path", f"{__name__}:Missing"])
def test_a_kind_that_is_no_head_is_an_error_that_names_it(kind):
    with pytest.raises(TedmError, match=re.escape(kind)):
        create(kind, {}, TIMESTEPS)


# ── files ──


@pytest.fixture
def saved(tmp_path):
    features, masks = draw()
    path = tmp_path / "head.safetensors"
    fit("ridge", features, masks, tmp_path).save(path)
    return path


def test_a_file_that_is_cut_off_foreign_or_missing_is_named(saved, tmp_path):
    with pytest.raises(TedmError, match=r"nothing\.safetensors: no such file"):
        load(tmp_path / "nothing.safetensors")
    content = saved.read_bytes()
    for cut in (0, 5, 100, len(content) - 1):
        saved.write_bytes(content[:cut])
        with pytest.raises(TedmError, match=r"head\.safetensors: not a safetensors file, or cut off"):
            load(saved)
    safetensors.numpy.save_file({"x": np.zeros(1)}, saved)
    with pytest.raises(TedmError, match="not a head of this version"):
        load(saved)


def test_a_file_without_its_arrays_is_named(saved):
    with safetensors.safe_open(saved, "numpy") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file({"x": np.zeros(1)}, saved, metadata)
    with pytest.raises(TedmError, match=r"head\.safetensors: incomplete or damaged"):
        load(saved)


def test_the_header_is_json_that_anything_can_read(saved):
    with safetensors.safe_open(saved, "numpy") as file:
        about = json.loads(file.metadata()["head"])
    assert about["type"] == "ridge"
    assert about["timesteps"] == [1, 50]
    assert about["layer_shapes"] == {"up0": [3, 2, 2], "up1": [2, 4, 4]}


def test_loading_imports_no_estimator_from_outside_scikit_learn(tmp_path, monkeypatch):
    (tmp_path / "evil_estimator.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    features, masks = draw()
    path = tmp_path / "head.safetensors"
    fit("sklearn", features, masks, tmp_path).save(path)
    state = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    about = json.loads(metadata["head"])
    about["settings"]["estimator"] = "evil_estimator.Classifier"
    safetensors.numpy.save_file(state, path, metadata | {"head": json.dumps(about)})
    with pytest.raises(TedmError, match=r"needs evil_estimator\.Classifier"):
        load(path)
    assert "evil_estimator" not in sys.modules


# ── scikit-learn ──


@pytest.mark.parametrize("combine", ["share", "concat"])
def test_the_adapter_equals_the_estimator_on_upsampled_pixels(combine, tmp_path):
    features, masks = draw()
    settings = KINDS["sklearn"] | {"combine": combine, "pixels": 16}
    head = fit("sklearn", features, masks, tmp_path, settings=settings)

    def up(row, timesteps):
        z = [torch.from_numpy(a).float() for t in timesteps for a in features.read([row], t).values()]
        x = torch.cat([F.interpolate(a, (4, 4), mode="bilinear", align_corners=False) for a in z], 1)
        return x[0].flatten(1).T.half().float().numpy()

    groups = [[1], [50]] if combine == "share" else [[1, 50]]
    # All 16 pixels of each image are drawn; the order decides nothing in gradient boosting but rounding.
    x = np.concatenate([up(row, g) for row in range(4) for g in groups])
    y = np.concatenate([masks[row, 0].ravel() for row in range(4) for _ in groups])
    truth = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=2, random_state=0).fit(x, y)
    expected = [
        [truth.predict_proba(up(row, g))[:, 1].reshape(1, 4, 4) for row in range(4)] for g in groups
    ]
    np.testing.assert_allclose(head.predict_steps(features, range(4)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "estimator", ["sklearn.no.Such", "sklearn.linear_model.LinearRegression", "pathlib.Path", "x"]
)
def test_an_estimator_that_is_no_classifier_is_named(estimator, tmp_path):
    features, masks = draw()
    with pytest.raises(TedmError, match=re.escape(estimator)):
        fit("sklearn", features, masks, tmp_path, settings={"estimator": estimator})
