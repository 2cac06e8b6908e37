"""The supervised baseline."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tedm import supervised
from tedm.config import AugmentationConfig, OptimizerConfig, SupervisedConfig
from tedm.data import prepared
from tedm.errors import TedmError

SETTINGS = SupervisedConfig(
    width=8, multipliers=[1, 2],
    training=OptimizerConfig(steps=60, batch_size=4, learning_rate=3e-3, validate_every=10, save_every=10),
)  # fmt: skip


def write_data(path: Path, classes: int = 1, count: int = 12, val: int = 3, size: int = 16) -> Path:
    """Bright discs on dark noise; the mask is the disc, its class by brightness."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    images, masks = [], []
    for i in range(count):
        centre, kind = random.uniform(size / 4, 3 * size / 4, 2), i % classes
        disc = np.hypot(rows - centre[0], columns - centre[1]) < size / 4
        grey = 40 * random.random((size, size)) + disc * (120 + 90 * kind)
        images.append(grey.astype(np.uint8)[None])
        masks.append(np.stack([disc & (kind == k) for k in range(classes)]).astype(np.uint8))
    ids = [f"i{i}" for i in range(count)]
    splits = ["train"] * (count - val) + ["val"] * val
    prepared.write(
        path, "Discs", images, masks, ids, ids, splits, [f"class{k}" for k in range(classes)],
        intensity_range=(0, 255), synthetic=True, source="drawn", licence="", cite="",
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "discs.h5")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_rate_that_diverges_leaves_the_others_and_is_told(data, tmp_path):
    rates = SETTINGS.model_copy(update={"learning_rates": [1e20, 3e-3]})
    supervised.fit(data, 4, 0, rates, tmp_path / "two")
    tried = json.loads((tmp_path / "two" / "config.json").read_text())["training"]["tried"]
    assert tried[0] == {"learning_rate": 1e20, "best_step": None, "validation_loss": None}
    supervised.fit(data, 4, 0, SETTINGS, tmp_path / "one")
    weights = [tmp_path / name / "model.safetensors" for name in ("two", "one")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    hopeless = SETTINGS.model_copy(update={"learning_rates": [1e20, 1e19]})
    with pytest.raises(TedmError, match=r"with any of learning_rates 1e\+20, 1e\+19; add a lower one"):
        supervised.fit(data, 4, 0, hopeless, tmp_path / "none")


def test_it_learns_to_find_discs(data, tmp_path):
    supervised.fit(data, 9, 0, SETTINGS.model_copy(update={"augment": False}), tmp_path)
    baseline = supervised.load(tmp_path)
    with prepared.PreparedSet(data) as opened:
        rows = opened.rows("val")
        images, masks = opened.images(rows), opened.masks(rows)
    probabilities = supervised.predict_proba(baseline, images)
    assert probabilities.shape == masks.shape
    assert probabilities.dtype == np.float32
    assert dice(probabilities > 0.5, masks.astype(bool)) > 0.9
    assert not (tmp_path / "state").exists()
    with (tmp_path / "losses.csv").open() as file:
        validations = [float(r["validation"]) for r in csv.DictReader(file) if r["validation"]]
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["training"]["validation_loss"] == min(validations)
    p = np.clip(probabilities.astype(float), 1e-7, 1 - 1e-7)
    entropy = -np.where(masks == 1, np.log(p), np.log(1 - p)).mean()
    assert entropy == pytest.approx(min(validations), rel=1e-4)


def test_classes_that_exclude_each_other_share_one_softmax(tmp_path):
    file = write_data(tmp_path / "d.h5", classes=2)
    supervised.fit(file, 9, 0, SETTINGS.model_copy(update={"augment": False}), tmp_path / "b")
    with prepared.PreparedSet(file) as opened:
        images, masks = opened.images(opened.rows("val")), opened.masks(opened.rows("val"))
    p = supervised.predict_proba(supervised.load(tmp_path / "b"), images).astype(float)
    assert p.shape == masks.shape
    background = 1 - p.sum(1)
    assert background.min() >= -1e-6
    chosen = np.concatenate([background[:, None], p], 1).argmax(1)
    truth = (masks * np.array([1, 2])[:, None, None]).sum(1)
    assert (chosen == truth).mean() > 0.9
    likelihood = np.take_along_axis(np.concatenate([background[:, None], p], 1), truth[:, None], 1)
    loss = json.loads((tmp_path / "b/config.json").read_text())["training"]["validation_loss"]
    assert -np.log(likelihood).mean() == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("n", [1, 9])
def test_it_is_reproducible_and_depends_on_the_seed(data, tmp_path, n):
    short = SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update={"steps": 4})})
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        supervised.fit(data, n, seed, short, tmp_path / name)
        digests.append((tmp_path / name / "digest.json").read_text())
    assert digests[0] == digests[1] != digests[2]


def test_augmentation_is_recorded_and_decides_the_weights(data, tmp_path):
    brief = SETTINGS.training.model_copy(update={"steps": 4})
    default = AugmentationConfig()
    files, recorded = [], []
    for own in (True, default, "study", False, AugmentationConfig(gamma=0)):
        out = tmp_path / str(len(files))
        supervised.fit(data, 4, 0, SETTINGS.model_copy(update={"training": brief, "augment": own}), out)
        files.append((out / "model.safetensors").read_bytes())
        recorded.append(json.loads((out / "config.json").read_text())["training"]["augment"])
    assert recorded == [
        default.model_dump(),
        default.model_dump(),
        "study",
        False,
        {**default.model_dump(), "gamma": 0},
    ]
    assert files[0] == files[1]
    assert len(set(files)) == 4


def test_without_validation_images_the_last_weights_are_kept(tmp_path):
    file = write_data(tmp_path / "d.h5", val=0)
    short = SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update={"steps": 4})})
    supervised.fit(file, 2, 0, short, tmp_path / "b")
    assert json.loads((tmp_path / "b/config.json").read_text())["training"]["best_step"] is None


@pytest.mark.parametrize("n", [0, 10])
def test_more_images_than_there_are_is_an_error(data, tmp_path, n):
    with pytest.raises(TedmError, match=rf"asks for {n} training images, but the split train has 9"):
        supervised.fit(data, n, 0, SETTINGS, tmp_path)


def test_all_slices_of_the_first_n_volumes_are_learnt_from(data, tmp_path, monkeypatch):
    with prepared.PreparedSet(data) as opened:
        images, masks = opened.images(range(12)) * 255, opened.masks(range(12))
    subjects = [f"v{i // 3}" for i in range(12)]
    prepared.write(
        tmp_path / "v.h5", "Volumes", images.astype(np.uint8), masks, list("abcdefghijkl"), subjects,
        ["train"] * 9 + ["val"] * 3, ["class0"], intensity_range=(0, 255), synthetic=True,
        source="", licence="", cite="",
    )  # fmt: skip
    seen = []
    epochs = supervised.Epochs
    monkeypatch.setattr(
        supervised, "Epochs", lambda count, *rest: (seen.append(count), epochs(count, *rest))[1]
    )
    brief = SETTINGS.training.model_copy(update={"steps": 2})
    supervised.fit(tmp_path / "v.h5", 2, 0, SETTINGS.model_copy(update={"training": brief}), tmp_path / "b")
    assert seen == [6]


def test_images_of_another_size_are_refused(data, tmp_path):
    short = SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update={"steps": 0})})
    supervised.fit(data, 2, 0, short, tmp_path)
    with pytest.raises(TedmError, match=r"trained on \(N, 1, 16, 16\)"):
        supervised.predict_proba(supervised.load(tmp_path), np.zeros((1, 1, 32, 32), np.float32))
