"""A baseline of all training sizes is scored by one job: each network as by itself, what is there stays."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from tedm import checkpoint, parallel, scoring, supervised
from tedm.data import prepared
from tedm.errors import TedmError
from tedm.unet import UNet

FITS = [[1, 0], [2, 0], [2, 7]]
SETS = {"near": 5, "far": 11}


def draw(path, count):
    """A test set of random images with random masks; every third image has an empty one."""
    rng = np.random.default_rng(count)
    masks = (rng.random((count, 1, 16, 16)) < 0.4).astype(np.uint8)
    masks[::3] = 0
    names = [f"image{i}" for i in range(count)]
    prepared.write(
        path, "Drawn", list(rng.integers(0, 255, (count, 1, 16, 16), dtype=np.uint8)), list(masks),
        names, names, ["test"] * count, ["disc"],
        intensity_range=(0, 255), synthetic=True, source="drawn by a test", licence="none", cite="",
    )  # fmt: skip


def write_network(directory, seed):
    torch.manual_seed(seed)
    network = UNet(8, (1, 2), 1, 1, time_conditioned=False)
    torch.nn.init.normal_(network.head.weight)  # it begins as zero, and so would all predictions
    checkpoint.write(directory, network, checkpoint.describe(network, (1, 16, 16), (0, 1), None, {}, {}))


@pytest.fixture
def place(tmp_path):
    for name, count in SETS.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        draw(tmp_path / "data" / f"{name}.h5", count)
    for i, (n, seed) in enumerate(FITS):
        write_network(tmp_path / "net" / f"n{n}" / f"seed{seed}", i)
    return tmp_path


def score(place, out="scores", fits=FITS, threads=1, **more):
    spec = {"method": "Net", "datasets": list(SETS), "fits": fits, **more}
    scoring.score_supervised(spec, place / "net", place / "data", place / out, threads)


def files(directory):
    found = (p for p in sorted(directory.rglob("*")) if p.is_file() and ".lock" not in p.name)
    return {str(p.relative_to(directory)): p.read_bytes() for p in found}


def test_masks_and_dice_are_those_of_each_network(place):
    score(place)
    for n, seed in FITS:
        network = supervised.load(place / "net" / f"n{n}" / f"seed{seed}")
        for name in SETS:
            with prepared.PreparedSet(place / "data" / f"{name}.h5") as data:
                images, truth = data.images(data.rows("test")), data.masks(data.rows("test"))
            predicted = supervised.predict_proba(network, images) > 0.5
            assert 0 < predicted.mean() < 1
            ids, masks = scoring.read_masks(place / f"scores/n{n}/seed{seed}/{name}.npz")
            assert ids == [f"image{i}" for i in range(SETS[name])]
            np.testing.assert_array_equal(masks["Net"], predicted)
            rows = pd.read_csv(place / f"scores/n{n}/seed{seed}/{name}.csv")
            assert set(rows["n_train"]) == {n}
            assert set(rows["seed"]) == {seed}
            for image, (mask, wanted) in enumerate(zip(predicted, truth, strict=True)):
                of_image = rows[rows["subject"] == f"image{image}"]
                value = of_image.loc[of_image["metric"] == "dice", "value"].item()
                both, size = (mask & (wanted > 0)).sum(), wanted.sum()
                dice = 2 * both / (mask.sum() + size) if size else np.nan  # nothing to find: no Dice
                assert value == pytest.approx(dice, nan_ok=True)


def test_side_by_side_and_alone_give_the_same_bytes(place, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    score(place)
    score(place, "beside", threads=2)
    for fit in FITS:
        score(place, "alone", fits=[fit])
    assert files(place / "scores") == files(place / "beside") == files(place / "alone")
    assert len(files(place / "scores")) == 2 * len(SETS) * len(FITS)


def test_on_a_gpu_no_process_is_forked(place, monkeypatch):
    load = supervised.load
    monkeypatch.setattr(supervised, "load", lambda directory, device: load(directory, "cpu"))
    monkeypatch.setattr(parallel, "_forked", lambda *_: pytest.fail("forked"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    spec = {"method": "Net", "datasets": list(SETS), "fits": FITS}
    scoring.score_supervised(spec, place / "net", place / "data", place / "scores", 2, "cuda")
    assert len(files(place / "scores")) == 2 * len(SETS) * len(FITS)


def test_only_what_changed_is_scored_again(place, capfd):
    score(place, fits=FITS[:2])
    before = files(place / "scores")
    capfd.readouterr()
    score(place)
    said = capfd.readouterr().err
    assert said.count("before") == 2 * len(SETS)
    assert said.count(": scored ") == (2 + 1) * len(SETS)
    assert before.items() <= files(place / "scores").items()

    first = dict(files(place / "scores"))
    write_network(place / "net/n2/seed0", 99)
    score(place)
    assert capfd.readouterr().err.count("before") == 2 * len(SETS)
    after = files(place / "scores")
    changed = {name for name in after if after[name] != first[name]}
    assert {name.rsplit("/", 1)[0] for name in changed} == {"n2/seed0"}
    score(place, "anew")
    assert files(place / "anew") == after

    draw(place / "data" / "far.h5", 12)
    score(place)
    assert capfd.readouterr().err.count("before") == len(FITS)
    score(place, metrics=["iou"])
    assert capfd.readouterr().err.count("before") == 0
    assert "iou" in set(pd.read_csv(place / "scores/n1/seed0/far.csv")["metric"])


def test_damaged_scores_are_written_anew(place):
    score(place)
    whole = files(place / "scores")
    (place / "scores/n1/seed0/near.csv").write_text("subject\n")
    (place / "scores/n2/seed7/far.npz").write_bytes(b"PK")
    score(place)
    assert files(place / "scores") == whole


def test_a_network_that_cannot_be_read_is_named_and_the_others_are_scored(place, capfd):
    score(place, "whole")
    weights = place / "net/n2/seed0/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(TedmError, match="not scored: Net on near; Net on far"):
        score(place)
    assert f"Net, n=2, seed 0: {weights}" in capfd.readouterr().err
    there = files(place / "scores")
    assert there == {name: of for name, of in files(place / "whole").items() if "n2/seed0" not in name}


def test_a_set_without_test_images_is_named(place, capfd):
    with prepared.PreparedSet(place / "data" / "far.h5") as data:
        images, masks = data.images([0, 1]), data.masks([0, 1])
    prepared.write(
        place / "data" / "far.h5", "Far", list((images * 255).astype(np.uint8)), list(masks),
        ["a", "b"], ["a", "b"], ["train", "val"], ["disc"],
        intensity_range=(0, 255), synthetic=True, source="drawn by a test", licence="none", cite="",
    )  # fmt: skip
    with pytest.raises(TedmError, match="not scored: Net on far"):
        score(place)
    assert "its split test is empty" in capfd.readouterr().err
    assert {name.rsplit("/")[-1] for name in files(place / "scores")} == {"near.csv", "near.npz"}


def test_scores_say_what_they_were_made_from(place):
    score(place, fits=FITS[:1])
    with np.load(place / "scores/n1/seed0/near.npz") as stored:
        made_from, _ = stored["made_from"]
    assert len(made_from) == 64
    digest = json.loads((place / "net/n1/seed0/digest.json").read_text())["digest"]
    assert made_from != digest
