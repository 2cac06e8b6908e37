"""What jobs ask a scheduler for, against what they were measured to take and what has to grow with what."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tedm import config, requests
from tedm.config import Experiment

PROJECT = Path(__file__).parents[1]


def load(name: str, **changes: Any) -> Experiment:
    raw = yaml.safe_load((PROJECT / name).read_text())
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = raw
        for key in keys:
            place = place[key]
        place[last] = value
    return config.parse(raw, name)


DEMO = load("config.yaml")


@pytest.mark.parametrize(
    ("request_", "megabytes", "seconds"),  # as the workflow's benchmarks/ measured them, on two cores
    [
        (requests.prepare(DEMO, "cxr", 2), 102, 26),
        (requests.train(DEMO, "ddpm", 1, 0), 554, 170),
        (requests.extract(load("config.yaml", features__together=False), "ddpm", "jsrt", 1, 0), 392, 4),
        (requests.extract(DEMO, "ddpm", "jsrt", 1, 0), 418, 14),
        (requests.fit(DEMO, "TEDM", 1), 380, 63),
        (requests.pretrain(DEMO, "global", 1, 0), 657, 86),
        (requests.pretrain(DEMO, "local", 1, 0), 455, 39),
        (requests.supervise(DEMO, "Supervised", 1, 0), 385, 31),
        (requests.supervise(DEMO, "local_cl", 1, 0), 395, 31),
        (requests.score(DEMO, "Blend", 1), 421, 5),
        (requests.score_supervised(DEMO, "Supervised", 1, 0), 418, 10),
    ],
)
def test_a_first_attempt_asks_for_more_than_was_measured_but_not_for_ten_times_as_much(
    request_: requests.Request, megabytes: float, seconds: float
) -> None:
    assert megabytes < request_.mem_mb(1) < 5 * megabytes + 3000
    assert seconds < 60 * request_.runtime(1) < 10 * seconds + 20 * 60


def test_a_head_of_the_study_asks_for_the_hours_it_takes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "jsrt.json").write_text('{"splits": {"train": 197, "val": 25, "test": 25}}')
    experiment = load("experiments/paper_cxr.yaml", results=str(tmp_path))
    # 20,000 steps of 4 images; 16 take 3.69 core-seconds (docs/scale.md); all eight sizes at once.
    assert requests.fit(experiment, "TEDM", 8).seconds == pytest.approx(20_000 * 3.69 / 4, rel=0.1)
    assert requests.fit(experiment, "LR", 8).runtime(1) < 120


def test_training_at_64_pixels_asks_for_what_it_took(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cxr.json").write_text('{"splits": {"unlabelled": 10000}}')
    asked = requests.train(load("experiments/xray64.yaml", results=str(tmp_path)), "ddpm", 1, 0)
    assert 1360 < asked.mem_mb(1) < 3000
    assert 2386 < 60 * asked.runtime(1) < 4 * 2386


def test_each_attempt_asks_for_more_and_never_for_longer_than_a_day() -> None:
    asked = requests.Request(bytes=4e9, seconds=5 * 3600)
    assert [asked.mem_mb(attempt) for attempt in (1, 2, 3)] == [5600, 11200, 16800]
    assert [asked.runtime(attempt) for attempt in (1, 2)] == [910, 1440]


@pytest.mark.parametrize(
    "change",
    [
        {"image__size": 80},
        {"backbones__ddpm__width": 32},
        {"backbones__ddpm__training__batch_size": 64},
    ],
)
def test_larger_images_networks_and_batches_ask_for_more_to_train(change: dict[str, Any]) -> None:
    small, large = (
        requests.train(DEMO, "ddpm", 2, 0),
        requests.train(load("config.yaml", **change), "ddpm", 2, 0),
    )
    assert large.bytes > 1.2 * small.bytes
    assert large.seconds > 1.2 * small.seconds


def test_more_images_timesteps_sizes_and_seeds_take_longer() -> None:
    many = load(
        "config.yaml",
        datasets__jsrt__source__count=980,
        evaluation__seeds=[0, 1, 2],
        heads__TEDM__timesteps=list(range(0, 160, 10)),
        heads__TEDM__readings={},
    )
    assert requests.extract(many, "ddpm", "jsrt", 1, 0).seconds == pytest.approx(
        # ten times the images, 23 timesteps instead of 10, in one job
        10 * 2.3 * requests.extract(DEMO, "ddpm", "jsrt", 1, 0).seconds
    )
    assert requests.fit(many, "TEDM", 5).seconds == pytest.approx(6 * requests.fit(DEMO, "TEDM", 5).seconds)
    assert requests.fit(many, "TEDM", 2).bytes > requests.fit(DEMO, "TEDM", 2).bytes
    assert requests.score(many, "TEDM", 3).seconds > 6 * requests.score(DEMO, "TEDM", 3).seconds
    of_baseline = [requests.score_supervised(e, "Supervised", 1, 0).seconds for e in (DEMO, many)]
    assert of_baseline[1] > 3 * of_baseline[0]


def test_views_ask_for_their_passes_and_a_head_that_learns_from_them_for_more() -> None:
    few, many, all_of_them = (
        load("config.yaml", features__view_subjects=subjects, heads__LR__views=8)
        for subjects in (7, 14, 10_000)
    )
    asked = [requests.extract_views(e, "ddpm", 8, 1, 0) for e in (few, many, all_of_them)]
    assert asked[1].seconds == pytest.approx(2 * asked[0].seconds)
    # No more than there are training images, 48 of 98.
    everything = requests.extract(DEMO, "ddpm", "jsrt", 1, 0).seconds
    assert asked[2].seconds == pytest.approx(8 * everything * 48 / 98)
    assert requests.extract_views(few, "ddpm", 4, 1, 0).seconds == pytest.approx(asked[0].seconds / 2)
    assert asked[0].bytes == requests.extract(DEMO, "ddpm", "jsrt", 1, 0).bytes
    plain, seeing = requests.fit(DEMO, "LR", 1), requests.fit(many, "LR", 1)
    assert seeing.bytes > plain.bytes
    assert seeing.seconds > plain.seconds


def test_gpus_take_less_time_and_each_process_its_own_memory() -> None:
    one, two = requests.train(DEMO, "ddpm", 8, 1), requests.train(DEMO, "ddpm", 8, 2)
    assert two.seconds == one.seconds / 2 < requests.train(DEMO, "ddpm", 8, 0).seconds
    # Each its own data and interpreter, and torchrun's.
    assert two.bytes == 2 * one.bytes + 2 * requests.PYTHON * 1e6


def test_where_images_are_not_yet_counted_snakemake_is_told_to_ask_again(tmp_path: Path) -> None:
    experiment = load("experiments/paper_cxr.yaml", results=str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        requests.extract(experiment, "ddpm", "jsrt", 1, 1)
    # It recognises an input that is missing by its name.
    assert caught.value.filename == str(tmp_path / "data" / "jsrt.json")
    assert requests.prepare(experiment, "jsrt", 4).runtime(1) > 60
