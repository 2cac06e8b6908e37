"""The blend head: the network on the upsampled tensor, resume, files, and what jitter is for."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from tedm import config
from tedm.errors import TedmError
from tedm.heads import ArrayFeatures, create, load
from tedm.heads import blend as blend_module
from tedm.heads.blend import Blend, _statistics
from tedm.seeds import seed_of
from tedm.training import Epochs

SHAPES = {"up0": (5, 2, 2), "up1": (3, 4, 4), "up2": (2, 8, 8)}
SIZE, TIMESTEPS = (8, 8), (1, 50, 400)
SETTINGS = {"hidden": [6, 4], "steps": 12, "batch_size": 2, "learning_rate": 0.01, "validate_every": 4}


def draw_features(n: int, seed: int = 0, dtype=np.float16) -> ArrayFeatures:
    rng = np.random.default_rng(seed)
    return ArrayFeatures(
        {
            (t, layer): (rng.standard_normal((n, *shape)) * (1 + t / 100) + i).astype(dtype)
            for i, t in enumerate(TIMESTEPS)
            for layer, shape in SHAPES.items()
        },
        SIZE,
    )


def draw_masks(n: int, classes: int = 1, seed: int = 1) -> np.ndarray:
    label = np.random.default_rng(seed).integers(0, classes + 1, (n, *SIZE))
    return np.stack([label == k for k in range(1, classes + 1)], 1).astype(np.uint8)


def fit(workdir, features, masks, n, val=(), memory=2**30, **settings):
    head = create("blend", SETTINGS | settings, TIMESTEPS, None, seed=3)
    head.memory = memory
    return head.fit(features, masks[:n], range(n), val, masks[list(val)], workdir=workdir)


class Naive(nn.Module):
    """The same network as anybody would write it: resize every feature, then work on the big tensor."""

    def __init__(self, source: Blend, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.tilt = nn.Parameter(source.tilt.detach().double().clone())
        layers = [source.first, *(m for m in source.deeper if isinstance(m, nn.Conv2d))]
        modules: list[nn.Module] = []
        for i, conv in enumerate(layers):
            copy = nn.Conv2d(conv.in_channels, conv.out_channels, 1).double()
            copy.load_state_dict(conv.state_dict())
            modules += [copy]
            if i < len(layers) - 1:
                modules += [nn.ReLU(), nn.BatchNorm2d(conv.out_channels).double()]
        self.classify = nn.Sequential(*modules)

    def forward(self, steps, jitter: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        logs = 10 * self.tilt + jitter
        columns = []
        for i, layer in enumerate(SHAPES):
            share = torch.exp(logs[:, i]) / torch.exp(logs[:, i]).sum(1, keepdim=True)
            total = sum(share[:, s, None, None, None] * z[layer] for s, z in enumerate(steps))
            options = {} if self.mode == "nearest" else {"align_corners": False}
            columns.append(F.interpolate(total, SIZE, mode=self.mode, **options))
        return self.classify(torch.cat(columns, 1) * factors[:, :, None, None])


@pytest.mark.parametrize(("classes", "mode"), [(1, "bilinear"), (2, "bilinear"), (1, "nearest")])
def test_training_follows_the_naive_network_in_float64(classes, mode, tmp_path):
    n = 3
    features, masks = draw_features(n), draw_masks(n, classes)
    head = fit(tmp_path, features, masks, n, resize=mode, jitter=1.5, dropout=0.25)
    initial = blend_module.build(head._network, 3, "blend")
    naive = Naive(initial, mode)
    standardised = []
    for t in TIMESTEPS:
        z = {k: a.astype(np.float64) for k, a in features.read(range(n), t).items()}
        standardised.append(
            {
                k: torch.from_numpy(
                    (a - a.mean((0, 2, 3), keepdims=True)) / a.std((0, 2, 3), keepdims=True)
                )
                for k, a in z.items()
            }
        )
    label = torch.from_numpy((masks * np.arange(1, classes + 1)[:, None, None]).sum(1))
    optimizer, order = torch.optim.Adam(naive.parameters(), lr=0.01), Epochs(n, 2, 3, "blend")
    for step in range(SETTINGS["steps"]):
        images = np.repeat(order.batch(step), 2)
        generator = torch.Generator().manual_seed(seed_of(3, "blend", "jitter", step, 0))
        jitter = 1.5 * torch.randn((4, 3, 3), generator=generator).double()
        factors = (torch.rand((4, 10), generator=generator) >= 0.25).double() / 0.75
        u = naive([{k: z[images] for k, z in step.items()} for step in standardised], jitter, factors)
        y = label[images]
        loss = (
            F.binary_cross_entropy_with_logits(u[:, 0], y.double())
            if classes == 1
            else F.cross_entropy(u, y)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    naive.eval()
    with torch.no_grad():
        u = naive(standardised, torch.zeros(n, 3, 3, dtype=torch.float64), torch.ones(n, 10))
    expected = u.sigmoid() if classes == 1 else u.softmax(1)[:, 1:]
    np.testing.assert_allclose(
        head.predict_steps(features, range(n))[0], expected.numpy(), rtol=0, atol=2e-4
    )
    learned = (10 * naive.tilt.detach()).softmax(1)
    for i, layer in enumerate(SHAPES):
        np.testing.assert_allclose(head.weights[layer], learned[i], rtol=0, atol=1e-4)
        assert head.weights[layer].sum() == pytest.approx(1, abs=1e-6)


def test_statistics_are_those_of_all_native_pixels_and_constant_channels_have_scale_one():
    features = draw_features(4)
    features.arrays[50, "up0"][:, 2] = 7
    mean, scale = _statistics(features, [0, 2, 3], TIMESTEPS, list(SHAPES))
    for s, t in enumerate(TIMESTEPS):
        z = [features.arrays[t, k][[0, 2, 3]].astype(np.float64) for k in SHAPES]
        deviation = np.concatenate([a.std((0, 2, 3)) for a in z])
        np.testing.assert_allclose(mean[s], np.concatenate([a.mean((0, 2, 3)) for a in z]), atol=1e-5)
        np.testing.assert_allclose(scale[s], np.where(deviation > 0, deviation, 1), rtol=1e-5)
    assert scale[1, 2] == 1


def test_weights_turn_to_the_timestep_that_knows(tmp_path):
    features, masks = draw_features(6), draw_masks(6)
    for t in TIMESTEPS:
        features.arrays[t, "up2"][:, :1] += 4 * masks * (t == 50)
    head = fit(tmp_path, features, masks, 4, steps=150)
    assert head.weights["up2"].argmax() == 1
    wrong = (head.predict_proba(features, [4, 5]) > 0.5) != masks[4:]
    assert wrong.mean() < 0.15
    assert not head.voting
    with pytest.raises(TedmError, match="combines its timesteps, so it cannot be read at"):
        head.predict_proba(features, [4], timesteps=[50])


def test_a_killed_training_goes_on_and_gives_the_bits_of_an_undisturbed_one(tmp_path, monkeypatch):
    features, masks = draw_features(5), draw_masks(5)
    undisturbed = fit(tmp_path / "a", features, masks, 4, val=[4]).state()
    loss, calls = blend_module._loss, []

    def killed(logits, labels):
        calls.append(logits.requires_grad)
        if sum(calls) == 7:
            raise KeyboardInterrupt
        return loss(logits, labels)

    monkeypatch.setattr(blend_module, "_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", features, masks, 4, val=[4])
    resumed = fit(tmp_path / "b", features, masks, 4, val=[4]).state()
    assert sum(calls) == 7 + 12 - 4  # it went on from the state at step 4
    for name, array in undisturbed.items():
        np.testing.assert_array_equal(array, resumed[name])


def test_memory_changes_nothing_and_a_file_keeps_everything(tmp_path):
    features, masks = draw_features(5), draw_masks(5, 2)
    roomy = fit(tmp_path / "a", features, masks, 4, val=[4])
    tight = fit(tmp_path / "b", features, masks, 4, val=[4], memory=0)
    for name, array in roomy.state().items():
        np.testing.assert_array_equal(array, tight.state()[name])
    roomy.save(tmp_path / "head.safetensors")
    again = load(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(
        again.predict_proba(features, [4, 0]), roomy.predict_proba(features, [4, 0])
    )
    np.testing.assert_array_equal(again.weights["up1"], roomy.weights["up1"])


@pytest.mark.parametrize(
    "settings", [{"jitter": -1}, {"dropout": 1.0}, {"blends": 0}, {"combine": "share"}]
)
def test_impossible_settings_are_named(settings):
    with pytest.raises(TedmError, match=rf"BlendSettings\.{next(iter(settings))}: "):
        create("blend", settings, TIMESTEPS)


def test_readings_of_a_head_that_blends_are_refused_with_the_configuration():
    tiny = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())
    tiny["heads"] = {"B": {"type": "blend", "timesteps": [10, 200], "readings": {"B t=10": [10]}}}
    with pytest.raises(TedmError, match=r"heads\.B\.readings: a head that blends its timesteps"):
        config.parse(tiny)
