"""What all heads share: checks before training, files, the registry; and the scikit-learn adapter."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier
from tiny_backbone import SIZE, backbone, data_set

from tedm import fitting, scoring
from tedm.config import FeaturesConfig
from tedm.data import prepared
from tedm.errors import TedmError
from tedm.features.extract import extract
from tedm.features.reader import FeatureStore
from tedm.files import read_json, write_json
from tedm.heads import ArrayFeatures, Head, create, load
from tedm.heads.base import load_arrays, save_arrays

SHAPES = {"up0": (3, 2, 2), "up1": (2, 4, 4)}
TIMESTEPS = (1, 50)
KINDS = {
    "ridge": {},
    "mlp": {"combine": "share", "hidden": [4], "steps": 2},
    "sklearn": {"pixels": 8, "parameters": {"max_iter": 5, "min_samples_leaf": 2}},
    "blend": {"hidden": [4], "steps": 2},
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


AGAIN = "fit it again: delete it and run the same command"


def test_a_file_that_is_cut_off_foreign_or_missing_is_named(saved, tmp_path):
    with pytest.raises(TedmError, match=r"nothing\.safetensors: no such file"):
        load(tmp_path / "nothing.safetensors")
    content = saved.read_bytes()
    for cut in (0, 5, 100, len(content) - 1):
        saved.write_bytes(content[:cut])
        with pytest.raises(TedmError, match=rf"head\.safetensors: damaged.*{AGAIN}"):
            load(saved)
    safetensors.numpy.save_file({"x": np.zeros(1)}, saved)
    with pytest.raises(TedmError, match=rf"head\.safetensors: .*{AGAIN}"):
        load(saved)
    save_arrays(saved, {"x": np.zeros(1)}, {"format": "another"})
    with pytest.raises(TedmError, match="not a head of this version"):
        load(saved)


def test_a_file_without_its_arrays_is_named(saved):
    save_arrays(saved, {"x": np.zeros(1)}, load_arrays(saved)[1])
    with pytest.raises(TedmError, match=rf"head\.safetensors: damaged.*{AGAIN}"):
        load(saved)


@pytest.mark.parametrize("key", ["type", "settings", "layer_shapes", "present", "seed"])
@pytest.mark.parametrize("change", ["missing", "another type"])
def test_a_header_that_lacks_something_is_named(key, change, saved):
    arrays, about = load_arrays(saved)
    if change == "missing":
        del about[key]
    else:
        about[key] = None
    save_arrays(saved, arrays, about)
    with pytest.raises(TedmError, match=rf"head\.safetensors: damaged.*{AGAIN}"):
        load(saved)


def test_a_header_that_is_no_json_is_named(saved):
    safetensors.numpy.save_file({"x": np.zeros(1)}, saved, {"tedm": '{"format": '})
    with pytest.raises(TedmError, match=rf"head\.safetensors: damaged.*{AGAIN}"):
        load(saved)


def test_no_byte_of_a_head_can_change_unseen(saved):
    content = saved.read_bytes()
    for place in range(0, len(content), 13):
        flipped = bytearray(content)
        flipped[place] ^= 1
        saved.write_bytes(flipped)
        with pytest.raises(TedmError, match=rf"head\.safetensors: .*{AGAIN}"):
            load(saved)


def test_a_head_is_a_file_like_any_other(saved):
    plain = saved.with_name("plain")
    plain.touch()
    assert saved.stat().st_mode == plain.stat().st_mode


def test_the_same_head_is_the_same_bytes_in_every_process(tmp_path):
    code = """
import sys
from pathlib import Path
import numpy as np
from tedm.heads import ArrayFeatures, create
shapes = {"b": (2, 4, 4), "a": (3, 2, 2)}
rng = np.random.default_rng(0)
arrays = {(t, k): rng.standard_normal((4, *s), np.float32) for t in (1, 2) for k, s in shapes.items()}
masks = (np.arange(64).reshape(4, 1, 4, 4) % 3 == 0).astype(np.uint8)
head = create("ridge", {"standardise": "channel", "C": 0.1}, [1, 2], ["b", "a"], 0)
features, state = ArrayFeatures(arrays, (4, 4)), Path(sys.argv[1] + ".state")
head.fit(features, masks, range(4), [], masks[:0], workdir=state)
head.save(Path(sys.argv[1]), classes=["lungs"], backbone_digest="abc")
"""
    written = []
    for seed in ("1", "2"):
        file = tmp_path / f"{seed}.safetensors"
        subprocess.run(
            [sys.executable, "-c", code, str(file)],
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        written.append(file.read_bytes())
    assert written[0] == written[1]


def test_the_header_is_json_that_anything_can_read(saved):
    with safetensors.safe_open(saved, "numpy") as file:
        about = json.loads(file.metadata()["tedm"])
    assert about["type"] == "ridge"
    assert about["timesteps"] == [1, 50]
    assert about["layer_shapes"] == {"up0": [3, 2, 2], "up1": [2, 4, 4]}
    assert about["synthetic"] is None


def test_loading_imports_no_estimator_from_outside_scikit_learn(tmp_path, monkeypatch):
    (tmp_path / "evil_estimator.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    features, masks = draw()
    path = tmp_path / "head.safetensors"
    fit("sklearn", features, masks, tmp_path).save(path)
    state, about = load_arrays(path)
    about["settings"]["estimator"] = "evil_estimator.Classifier"
    save_arrays(path, state, about)
    with pytest.raises(TedmError, match=r"needs evil_estimator\.Classifier"):
        load(path)
    assert "evil_estimator" not in sys.modules


# ── features on disk ──


@pytest.fixture
def store(tmp_path):
    data = data_set(tmp_path / "tiny.h5", images=4)
    for timestep in TIMESTEPS:
        extract(
            backbone(),
            data,
            tmp_path / "tiny.zarr",
            tmp_path / f"t{timestep}.json",
            timestep,
            FeaturesConfig(),
            0,
        )
    return tmp_path / "tiny.zarr"


def draw_masks(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (n, 1, SIZE, SIZE)).astype(np.uint8)


def change_group(store, change) -> None:
    file = store / "t0050" / "zarr.json"
    metadata = read_json(file)
    change(metadata["attributes"]["shards"])
    write_json(file, metadata)


def test_a_head_says_why_features_are_not_there_and_what_makes_them(store, tmp_path):
    again = r"(.|\n)*snakemake --cores all --forcerun extract_features"
    features = FeatureStore.open(store)
    head = fit("ridge", features, draw_masks(), tmp_path / "state")
    with pytest.raises(TedmError, match=f"no t0999/up0 .*timesteps: t0001, t0050{again}"):
        fit("ridge", features, draw_masks(), tmp_path, timesteps=[1, 999])
    with pytest.raises(TedmError, match=f"no t0001/up7 .*layers: up0, up1{again}"):
        fit("ridge", features, draw_masks(), tmp_path, layers=["up0", "up7"])
    change_group(store, lambda shards: shards.update({"t0050/up0": [None]}))
    features = FeatureStore.open(store)
    for layers in (["up0"], None):
        with pytest.raises(TedmError, match=f"t0050/up0 is not complete: 0 of 1 shards{again}"):
            fit("ridge", features, draw_masks(), tmp_path, layers=layers)
    with pytest.raises(TedmError, match="t0050/up0 is not complete"):
        head.predict_proba(features, [0])
    with pytest.raises(TedmError, match=f"no such feature store{again}"):
        FeatureStore.open(tmp_path / "gone.zarr")


def test_a_stale_timestep_is_called_stale(store, tmp_path):
    data = tmp_path / "tiny.h5"
    extract(backbone(seed=1), data, store, tmp_path / "t1.json", 1, FeaturesConfig(), 0)
    with pytest.raises(TedmError, match=r"t0050/up0 is stale: its backbone_digest"):
        fit("ridge", FeatureStore.open(store), draw_masks(), tmp_path)


def test_a_head_knows_whether_it_learned_from_synthetic_images(store, tmp_path):
    path = tmp_path / "head.safetensors"
    fit("ridge", FeatureStore.open(store), draw_masks(), tmp_path).save(path)
    assert load(path).synthetic is True


@pytest.mark.parametrize("synthetic", [True, False])
def test_a_fitted_and_scored_head_leaves_no_state_and_says_what_the_data_are(synthetic, tmp_path):
    rng, data = np.random.default_rng(0), tmp_path / "data" / "tiny.h5"
    data.parent.mkdir()
    names = [f"image{i}" for i in range(4)]
    prepared.write(
        data,
        "Tiny",
        list(rng.integers(0, 256, (4, 1, SIZE, SIZE), dtype=np.uint8)),
        list(draw_masks()),
        names,
        names,
        ["train", "train", "val", "test"],
        ["lungs"],
        intensity_range=(0, 255),
        synthetic=synthetic,
        source="drawn by a test",
        licence="none",
        cite="",
    )
    features = tmp_path / "features"
    extract(backbone(), data, features / "tiny.zarr", features / "tiny.t0050.json", 50, FeaturesConfig(), 0)
    digest = tmp_path / "digest.json"
    write_json(digest, {"digest": backbone().digest})
    spec = {
        "name": "Ridge",
        "type": "ridge",
        "settings": {},
        "timesteps": [50],
        "layers": None,
        "n": 2,
        "seed": 0,
        "experiment_seed": 0,
    }
    head = tmp_path / "head" / "head.safetensors"
    fitting.fit_head(spec, data, str(features / "tiny.zarr"), digest, head)
    assert [path.name for path in head.parent.iterdir()] == ["head.safetensors"]
    assert load(head).synthetic is synthetic

    asked = {"method": "Ridge", "readings": {}, "datasets": ["tiny"], "n": 2, "seed": 0}
    scoring.score_head(asked, head, data.parent, str(features), tmp_path / "scores")
    file = tmp_path / "scores" / "tiny.npz"
    with np.load(file) as archive:
        assert bool(archive["synthetic"]) is synthetic
    ids, masks = scoring.read_masks(file)
    assert (ids, masks["Ridge"].shape) == (["image3"], (1, 1, SIZE, SIZE))

    content = file.read_bytes()
    for place in range(0, len(content), 5):
        flipped = bytearray(content)
        flipped[place] ^= 255
        file.write_bytes(flipped)
        try:
            found = scoring.read_masks(file)
        except TedmError:
            continue
        assert found[0] == ids  # a byte of a date, say
        np.testing.assert_array_equal(found[1]["Ridge"], masks["Ridge"])
    for damaged in (b"", content[:40], content[:-5], b"no archive"):
        file.write_bytes(damaged)
        with pytest.raises(TedmError, match=r"tiny\.npz: damaged.*snakemake --cores all .*tiny\.npz"):
            scoring.read_masks(file)
    np.savez(file.open("wb"), ids=np.array(["a"]))
    with pytest.raises(TedmError, match=r"tiny\.npz: damaged"):
        scoring.read_masks(file)


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


@pytest.mark.parametrize(
    ("estimator", "parameters", "message"),
    [
        (
            "sklearn.linear_model.LogisticRegression",
            {"CC": 1},
            "LogisticRegression has no parameter CC.*max_iter",
        ),
        ("sklearn.linear_model.LogisticRegression", {"C": "large"}, "'C' parameter of LogisticRegression"),
        ("sklearn.ensemble.HistGradientBoostingClassifier", {"max_iter": 0}, "'max_iter' parameter"),
        ("sklearn.ensemble.VotingClassifier", {}, "VotingClassifier cannot be made .*estimators"),
        (
            "sklearn.linear_model.SGDClassifier",
            {"loss": "hinge"},
            "gives no probabilities.*change its parameters",
        ),
        ("sklearn.svm.LinearSVC", {}, "gives no probabilities"),
        ("broken_estimator.Classifier", {}, "cannot import broken_estimator.*RuntimeError: no licence"),
    ],
)
def test_an_estimator_that_cannot_work_is_named_before_features_are_read(
    estimator, parameters, message, tmp_path, monkeypatch
):
    (tmp_path / "broken_estimator.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    features, masks = draw()
    monkeypatch.setattr(features, "read", lambda *_, **__: pytest.fail("features were read"))
    settings = {"estimator": estimator, "parameters": parameters}
    with pytest.raises(TedmError, match=message):
        fit("sklearn", features, masks, tmp_path, settings=settings)


def test_an_estimator_that_fails_on_the_pixels_is_named(tmp_path):
    features, masks = draw()
    settings = {
        "estimator": "sklearn.neighbors.KNeighborsClassifier",
        "parameters": {"n_neighbors": 1000},
        "pixels": 4,
    }
    head = fit("sklearn", features, masks, tmp_path, settings=settings)
    with pytest.raises(TedmError, match=r"KNeighborsClassifier.*cannot predict.*n_neighbors"):
        head.predict_proba(features, [0])
