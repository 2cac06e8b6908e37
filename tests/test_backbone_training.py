"""Training of the diffusion model: what it validates on, how it reads, what it shows on the way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tedm import config
from tedm.config import DDPMConfig, OptimizerConfig
from tedm.data import prepared
from tedm.diffusion.train import Training, train_backbone
from tedm.errors import TedmError
from tedm.unlabelled import TrainingImages

SETTINGS = DDPMConfig(
    type="ddpm", data="tiny", width=8, multipliers=[1, 2], samples=4, sampling_steps=2, samples_every=2,
    validation=0.4, training=OptimizerConfig(steps=5, batch_size=4, validate_every=5, learning_rate=1e-3),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 16, 16), np.uint8)
    ids = [f"i{i}" for i in range(20)]
    prepared.write(
        path, "Tiny", images, None, ids, ids, ["unlabelled"] * 20, ["lungs"], intensity_range=(0, 255),
        synthetic=True, source="drawn", licence="", cite="",
    )  # fmt: skip
    return path


def test_samples_are_drawn_on_the_schedule_and_at_the_end(data, tmp_path):
    train_backbone(data, SETTINGS, 0, tmp_path)
    drawn = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert drawn == ["step0000002.png", "step0000004.png"]
    for path in (tmp_path / "samples" / drawn[0], tmp_path / "samples.png"):
        assert Image.open(path).size == (2 * (2 * 16 + 2) + 16, 2 * 16 + 2)


def test_looking_at_samples_does_not_change_what_is_learned(data, tmp_path):
    train_backbone(data, SETTINGS, 0, tmp_path / "a")
    train_backbone(data, SETTINGS.model_copy(update={"samples_every": 0}), 0, tmp_path / "b")
    digests = [(tmp_path / name / "digest.json").read_bytes() for name in "ab"]
    assert digests[0] == digests[1]


def test_the_validation_loss_has_always_the_same_images_noise_and_timesteps(data, tmp_path):
    with prepared.PreparedSet(data) as images:
        training = Training(images, SETTINGS, 0, tmp_path, "test", torch.device("cpu"))
        seen = []
        training.network = lambda x, t: seen.append((x.clone(), t.clone())) or torch.zeros_like(x)
        first = training.validation_loss()
        training.loss(3, 0)
        assert training.validation_loss() == first
    once, again = seen[:2], seen[3:]
    assert len(seen) == 5
    for (x, t), (x_, t_) in zip(once, again, strict=True):
        assert torch.equal(x, x_)
        assert torch.equal(t, t_)
    timesteps = torch.cat([t for _, t in once]).sort().values
    assert timesteps.tolist() == [62, 187, 312, 437, 562, 687, 812, 937]  # eight images, evenly spread
    # A network that answers 0 leaves the mean of |noise|: sqrt(2 / pi) for a standard normal.
    assert first == pytest.approx(np.sqrt(2 / np.pi), abs=0.03)


def test_batches_read_ahead_are_those_that_are_asked_for(data):
    rows = [3, 1, 19, 7, 8, 0]
    with prepared.PreparedSet(data) as opened:
        held = TrainingImages(opened, rows, torch.device("cpu"))
        read = TrainingImages(opened, rows, torch.device("cpu"), limit=0)
        steps = [np.array(i) for i in ([0, 5], [2, 2], [4, 1], [0, 5])]
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            if following is not None:
                held.prefetch(following)
                read.prefetch(following)
            batch = read.batch(step)
            assert torch.equal(batch, held.batch(step))
            assert torch.equal(batch, torch.from_numpy(opened.images([rows[i] for i in step])))
        assert not read.ahead


def test_a_file_that_breaks_while_it_is_read_ahead_stops_the_step_that_needs_it(data):
    with prepared.PreparedSet(data) as opened:
        read = TrainingImages(opened, [0, 1], torch.device("cpu"), limit=0)

        def broken(_rows: object) -> None:
            raise TedmError("tiny.h5: damaged")

        opened.images = broken
        read.prefetch(np.array([1]))
        with pytest.raises(TedmError, match="damaged"):
            read.batch(np.array([1]))


def test_a_chain_of_no_steps_and_gpus_without_work_are_refused_before_any_job():
    values = {
        "title": "t",
        "gpus": 4,
        "datasets": {
            "cxr": {
                "label": "C",
                "source": {"type": "phantom", "site": "jsrt", "count": 9},
                "split": {"train": 3, "val": 3, "test": 3},
            }
        },
        "backbones": {"ddpm": {"type": "ddpm", "data": "cxr", "training": {"accumulate": 2}}},
        "heads": {"TEDM": {"type": "mlp", "combine": "share"}},
        "evaluation": {"train_on": "cxr", "test_on": ["cxr"], "train_sizes": [1, 3]},
    }
    with pytest.raises(
        TedmError, match=r"backbones\.ddpm\.training\.accumulate: 2 micro-batches .* 4 GPUs"
    ):
        config.parse(values)
    values["backbones"]["ddpm"] = {"type": "ddpm", "data": "cxr", "diffusion": {"timesteps": 0}}
    with pytest.raises(TedmError, match=r"backbones\.ddpm\.diffusion\.timesteps: .*greater than or equal"):
        config.parse(values)
