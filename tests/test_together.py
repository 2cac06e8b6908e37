"""Heads that are fitted and scored together are, to the byte, those that were alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_backbone import SIZE, backbone

from tedm import fitting, parallel, scoring
from tedm.config import FeaturesConfig
from tedm.data import prepared
from tedm.errors import TedmError
from tedm.features.extract import extract
from tedm.files import write_json
from tedm.heads import base

STEPS = (10, 50)
FITS = [[1, 0], [3, 0], [3, 1]]
HEADS = {
    "TEDM": {
        "type": "mlp",
        "settings": {"combine": "share", "steps": 12, "hidden": [6], "validate_every": 3},
    },
    "LEDM": {
        "type": "mlp",
        "settings": {"combine": "concat", "steps": 6, "hidden": [6], "members": 2, "pixels": 40},
    },
    "LR": {"type": "ridge", "settings": {}},
}


class Place:
    """A prepared set and its features; and how heads are fitted on them."""

    def __init__(self, root):
        self.root, self.features = root, root / "features"
        self.data, self.digest = root / "data" / "tiny.h5", root / "digest.json"
        rng = np.random.default_rng(0)
        masks = np.zeros((9, 1, SIZE, SIZE), np.uint8)
        masks[:, :, 3:12, 2:9] = 1
        names = [f"image{i}" for i in range(9)]
        pixels = (rng.integers(0, 128, masks.shape) + 90 * masks).astype(np.uint8)
        prepared.write(
            self.data,
            "Tiny",
            list(pixels),
            list(masks),
            names,
            names,
            ["train"] * 4 + ["val"] * 2 + ["test"] * 3,
            ["lungs"],
            intensity_range=(0, 255),
            synthetic=True,
            source="drawn by a test",
            licence="none",
            cite="",
        )
        for t in STEPS:
            manifest = self.features / f"tiny.t{t:04d}.json"
            extract(backbone(), self.data, self.features / "tiny.zarr", manifest, t, FeaturesConfig(), 0)
        write_json(self.digest, {"digest": backbone().digest})

    def spec(self, name, fits):
        given = {"timesteps": list(STEPS), "layers": None, "experiment_seed": 7, "name": name}
        return given | HEADS[name] | {"fits": fits}

    def fit(self, name, out, fits=FITS, threads=1, **changes):
        spec = self.spec(name, fits) | changes
        store = str(self.features / "tiny.zarr")
        fitting.fit_heads(spec, self.data, store, self.digest, out, threads)

    def fit_alone(self, name, out, n, seed):
        spec = self.spec(name, []) | {"n": n, "seed": seed}
        fitting.fit_head(spec, self.data, str(self.features / "tiny.zarr"), self.digest, out)

    def score(self, name, heads, out, fits=FITS, threads=1, **more):
        spec = {"method": name, "readings": {f"{name} t=10": [10]}, "datasets": ["tiny"], "fits": fits}
        if name == "LEDM":
            spec["readings"] = {}
        scoring.score_heads(spec | more, heads, self.data.parent, str(self.features), out, threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


def files(directory, ending=""):
    found = (p for p in sorted(directory.rglob(f"*{ending}")) if p.is_file() and ".lock" not in p.name)
    return {str(p.relative_to(directory)): p.read_bytes() for p in found}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("threads", [1, 2])
def test_together_as_alone(place, tmp_path, monkeypatch, name, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    place.fit(name, tmp_path / "heads", threads=threads)
    place.score(name, tmp_path / "heads", tmp_path / "scores", threads=threads)
    assert len(files(tmp_path / "heads")) == len(FITS)
    for n, seed in FITS:
        alone = tmp_path / "alone" / f"{n} {seed}" / "head.safetensors"
        place.fit_alone(name, alone, n, seed)
        where = f"n{n}/seed{seed}"
        assert (tmp_path / "heads" / where / "head.safetensors").read_bytes() == alone.read_bytes()
        place.score(name, tmp_path / "heads", tmp_path / "scored alone", fits=[[n, seed]])
        of_run = files(tmp_path / "scored alone" / where)
        assert set(of_run) == {"tiny.csv", "tiny.npz"}
        assert of_run == files(tmp_path / "scores" / where)


def test_little_memory_changes_no_byte(place, tmp_path, monkeypatch):
    place.fit("TEDM", tmp_path / "much")
    monkeypatch.setattr(fitting, "MEMORY", 30_000)
    place.fit("TEDM", tmp_path / "little")
    assert files(tmp_path / "little") == files(tmp_path / "much")


def test_features_are_read_once_for_all(place, tmp_path, monkeypatch):
    read = []
    original = fitting.FeatureStore.read

    def counted(self, rows, timestep, layers=None, view=0):
        read.extend((timestep, int(row)) for row in rows)
        return original(self, rows, timestep, layers, view)

    monkeypatch.setattr(fitting.FeatureStore, "read", counted)
    place.fit("TEDM", tmp_path / "heads")
    assert sorted(read) == sorted({(t, row) for t in STEPS for row in (0, 1, 2, 4, 5)})
    read.clear()
    place.score("TEDM", tmp_path / "heads", tmp_path / "scores")
    assert sorted(read) == sorted({(t, row) for t in STEPS for row in (6, 7, 8)})


def test_what_is_there_stays_and_a_new_size_is_fitted_alone(place, tmp_path, capfd):
    heads, scores = tmp_path / "heads", tmp_path / "scores"
    place.fit("TEDM", heads, fits=FITS[:1])
    place.score("TEDM", heads, scores, fits=FITS[:1])
    before = files(tmp_path)
    capfd.readouterr()
    place.fit("TEDM", heads)
    place.score("TEDM", heads, scores)
    said = capfd.readouterr().err
    assert "n=1: fitted before" in said
    assert "n=1: scored on tiny before" in said
    assert said.count(": fitted, in ") == 2
    assert before.items() <= files(tmp_path).items()


@pytest.mark.parametrize(
    "change",
    [{"settings": HEADS["TEDM"]["settings"] | {"steps": 13}}, {"timesteps": [10]}, {"experiment_seed": 8}],
    ids=["settings", "timesteps", "seed"],
)
def test_a_head_that_another_fit_made_is_replaced(place, tmp_path, change):
    place.fit("TEDM", tmp_path / "heads", fits=FITS[:1])
    before = files(tmp_path / "heads")
    place.fit("TEDM", tmp_path / "heads", fits=FITS[:1], **change)
    assert files(tmp_path / "heads") != before


def test_scores_of_another_head_or_reading_or_with_a_changed_number_are_made_again(place, tmp_path):
    heads, scores = tmp_path / "heads", tmp_path / "scores"
    place.fit("TEDM", heads, fits=FITS[:1])
    place.score("TEDM", heads, scores, fits=FITS[:1])
    made = files(scores)
    csv = next(scores.rglob("*.csv"))
    csv.write_text(csv.read_text().replace("dice", "Dice"))
    place.score("TEDM", heads, scores, fits=FITS[:1])
    assert files(scores) == made
    place.fit("TEDM", heads, fits=FITS[:1], experiment_seed=8)
    place.score("TEDM", heads, scores, fits=FITS[:1])
    assert files(scores) != made


@pytest.mark.parametrize("threads", [1, 2])
def test_a_head_that_fails_does_not_lose_the_others(place, tmp_path, capfd, monkeypatch, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    kind, heads = base.head_class("mlp"), tmp_path / "heads"
    learn = kind.learn

    def fails(self, features, masks, rows, *others):
        if len(rows) == 1:
            raise TedmError("one image is too few")
        learn(self, features, masks, rows, *others)

    monkeypatch.setattr(kind, "learn", fails)
    with pytest.raises(TedmError, match=r"not fitted: TEDM, n=1, seed 0 \(.* other 2 are kept"):
        place.fit("TEDM", heads, threads=threads)
    assert "one image is too few" in capfd.readouterr().err
    made = {name: content for name, content in files(heads).items() if "state" not in name}
    assert len(made) == 2
    for name in made:  # as Snakemake does after a failed job
        (heads / name).unlink()

    def fits_one(self, features, masks, rows, *others):
        assert len(rows) == 1, "this one is learned twice"
        learn(self, features, masks, rows, *others)

    monkeypatch.setattr(kind, "learn", fits_one)
    place.fit("TEDM", heads)
    assert made.items() < files(heads).items()


def test_a_size_beyond_the_split_is_named_before_anything_is_fitted(place, tmp_path):
    with pytest.raises(TedmError, match="asks for 9 training images, but the split train has 4"):
        place.fit("TEDM", tmp_path / "heads", fits=[*FITS, [9, 0]])
    assert not files(tmp_path / "heads")


def test_a_damaged_head_does_not_lose_the_scores_of_the_others(place, tmp_path, capfd):
    heads, scores = tmp_path / "heads", tmp_path / "scores"
    place.fit("LR", heads)
    (heads / "n1/seed0/head.safetensors").write_bytes(b"no head")
    with pytest.raises(TedmError, match="not scored: LR on tiny"):
        place.score("LR", heads, scores)
    assert "LR, n=1, seed 0:" in capfd.readouterr().err
    assert {name.split("/tiny")[0] for name in files(scores)} == {"n3/seed0", "n3/seed1"}


def test_a_killed_job_goes_on_and_ends_in_the_same_bytes(place, tmp_path):
    many = {"settings": HEADS["TEDM"]["settings"] | {"steps": 60, "validate_every": 10}}
    spec = place.spec("TEDM", FITS) | many
    command = [
        *(str(Path(sys.executable).with_name("tedm")), "fit"),
        *("--spec", json.dumps(spec), "--data", str(place.data)),
        *("--store", str(place.features / "tiny.zarr"), "--digest", str(place.digest)),
        *("--fits", "1/0 3/0 3/1", "--out", str(tmp_path / "killed"), "--threads", "2"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "killed").rglob("member0")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()[1]
    assert said.count(": fitted, in ") < len(FITS), said
    assert process.returncode == -signal.SIGKILL, said
    place.fit("TEDM", tmp_path / "killed", **many)
    place.fit("TEDM", tmp_path / "whole", **many)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_votes_have_an_uncertainty_and_heads_that_do_not_vote_have_none(place, tmp_path):
    for name in HEADS:
        place.fit(name, tmp_path / name, fits=FITS[:1])
        place.score(name, tmp_path / name, tmp_path / "scores" / name, fits=FITS[:1])
        out = tmp_path / "scores" / name / "n1/seed0"
        rows = pd.read_csv(out / "tiny.csv")
        rows = rows[rows["metric"] == "uncertainty"]
        found = scoring.read_uncertainty(out / "tiny.npz", name)
        if name == "LEDM":
            assert rows.empty
            assert found is None
            continue
        assert set(rows["method"]) == {name}  # one timestep by itself has nobody to disagree with
        assert rows["subject"].tolist() == ["image6", "image7", "image8"]
        assert rows["value"].between(0, 1).all()
        assert scoring.read_uncertainty(out / "tiny.npz", f"{name} t=10") is None
        head = base.load(tmp_path / name / "n1/seed0/head.safetensors")
        store = fitting.FeatureStore.open(place.features / "tiny.zarr")
        p = head.predict_steps(store, [6, 7, 8]).astype(np.float64)
        p = np.clip(p, 1e-12, 1 - 1e-12)
        h = lambda q: -(q * np.log2(q) + (1 - q) * np.log2(1 - q))  # noqa: E731
        np.testing.assert_allclose(found, h(p.mean(0)) - h(p).mean(0), atol=0.5 / 255 + 1e-6)


def test_further_measures_are_scored_once_they_are_asked_for(place, tmp_path, capfd):
    heads, out, fits = tmp_path / "heads", tmp_path / "scores", FITS[:1]
    place.fit("TEDM", heads, fits=fits)
    place.score("TEDM", heads, out, fits=fits)
    before = pd.read_csv(out / "n1/seed0/tiny.csv")
    assert scoring.read_bins(out / "n1/seed0/tiny.npz") == {}
    metrics = ["brier", "ece", "iou", "volume_similarity"]
    place.score("TEDM", heads, out, fits=fits, metrics=metrics)
    rows = pd.read_csv(out / "n1/seed0/tiny.csv")
    assert set(rows["metric"]) - set(before["metric"]) == set(metrics)
    assert rows[rows["metric"].isin(before["metric"])].reset_index(drop=True).equals(before)
    place.score("TEDM", heads, out, fits=fits, metrics=metrics)
    assert "scored on tiny before" in capfd.readouterr().err
    p = base.load(heads / "n1/seed0/head.safetensors").predict_proba(
        fitting.FeatureStore.open(place.features / "tiny.zarr"), [6, 7, 8]
    )
    with prepared.PreparedSet(place.data) as data:
        y = data.masks([6, 7, 8])
    of_head = rows[rows["method"] == "TEDM"].set_index(["metric", "subject"])["value"]
    expected = ((p.astype(np.float64) - y) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(of_head["brier"], expected, rtol=1e-6)
    dice, iou = of_head["dice"].to_numpy(), of_head["iou"].to_numpy()
    np.testing.assert_allclose(iou, dice / (2 - dice), rtol=1e-12)
    bins = scoring.read_bins(out / "n1/seed0/tiny.npz")["TEDM"]
    assert bins.shape == (1, 15, 4)
    assert bins[..., 0].sum() == y.size
    assert bins[..., 2].sum() == y.sum()


# ── tasks in processes ──


@pytest.mark.parametrize("at_once", [1, 2])
def test_tasks_fail_alone_and_are_named_in_order(tmp_path, capfd, monkeypatch, at_once):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))

    def task(name):
        if name == "b":
            raise TedmError("b is wrong")
        if name == "c":
            raise RuntimeError("a mistake of ours")
        (tmp_path / name).write_text(name)

    tasks = {name: (lambda name=name: task(name)) for name in "abcde"}
    assert parallel.side_by_side(tasks, at_once) == ["b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "d", "e"]
    said = capfd.readouterr().err
    assert "error: b: b is wrong" in said
    assert "RuntimeError: a mistake of ours" in said


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_a_task_whose_process_dies_is_named(capfd, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    tasks = {"fine": lambda: None, "dies": lambda: os.kill(os.getpid(), signal.SIGKILL)}
    assert parallel.side_by_side(tasks, 2) == ["dies"]
    assert "dies: killed by signal 9, out of memory?" in capfd.readouterr().err
