"""MLP heads against the plain network of 1×1 convolutions on the upsampled tensor."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tedm.heads import ArrayFeatures, create, load
from tedm.heads import mlp as mlp_module
from tedm.heads import perceptron as perceptron_module
from tedm.heads.mlp import MLPHead, _Order
from tedm.heads.perceptron import Chunk, Perceptron

SHAPES = {"up0": (5, 2, 2), "up1": (4, 4, 4), "up2": (3, 8, 8)}
TIMESTEPS = (1, 50, 200)
SIZE = (8, 8)


def draw_features(n: int, seed: int = 0, dtype=np.float16) -> ArrayFeatures:
    rng = np.random.default_rng(seed)
    return ArrayFeatures(
        {
            (t, k): (rng.standard_normal((n, *s)) + 1).astype(dtype)
            for t in TIMESTEPS
            for k, s in SHAPES.items()
        },
        SIZE,
    )


def draw_masks(n: int, classes: int, seed: int = 0) -> np.ndarray:
    label = np.random.default_rng(seed).integers(0, classes + 1, (n, *SIZE))
    return np.stack([label == k for k in range(1, classes + 1)], 1).astype(np.uint8)


def naive(network: Perceptron) -> nn.Sequential:
    """The published network: 1×1 convolutions, ReLU, BatchNorm, with the same weights."""
    modules: list[nn.Module] = []
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1).to(weight.dtype)
        conv.weight.data, conv.bias.data = weight.data.clone()[..., None, None], bias.data.clone()
        modules.append(conv)
        if i < len(network.gains):
            norm = nn.BatchNorm2d(len(bias)).to(weight.dtype)
            norm.weight.data, norm.bias.data = network.gains[i].data.clone(), network.shifts[i].data.clone()
            modules += [nn.ReLU(), norm]
    return nn.Sequential(*modules)


def naive_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return F.cross_entropy(logits, labels.long())


def resized(z: torch.Tensor, mode: str) -> torch.Tensor:
    return F.interpolate(z, SIZE, mode=mode, **({"align_corners": False} if mode == "bilinear" else {}))


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 4),
    pieces=st.integers(1, 2),
    slots=st.integers(1, 2),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    outputs=st.sampled_from([1, 3]),
    mode=st.sampled_from(["bilinear", "nearest"]),
    memory=st.sampled_from([0, 2**30]),
    sampled=st.booleans(),
    band_bytes=st.sampled_from([1, 8 * 8 * 3 * 4, 2**21]),  # one row, some rows, all rows
    seed=st.integers(0, 2**31),
)
def test_loss_gradient_and_running_statistics_equal_those_of_the_naive_network(
    images, pieces, slots, hidden, outputs, mode, memory, sampled, band_bytes, seed
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptron_module, "BAND_BYTES", band_bytes)
        check_against_the_naive_network(images, pieces, slots, hidden, outputs, mode, memory, sampled, seed)


def check_against_the_naive_network(images, pieces, slots, hidden, outputs, mode, memory, sampled, seed):
    shapes = {(slot, k): s for slot in range(slots) for k, s in SHAPES.items()}
    network = Perceptron(shapes, SIZE, hidden, outputs, mode).double().draw(seed, "test")
    g = torch.Generator().manual_seed(seed)
    for p in [*network.gains, *network.shifts]:  # away from 1 and 0
        p.data += torch.randn(p.shape, generator=g, dtype=torch.float64)
    z = {
        part: torch.randn(pieces * images, *s, generator=g, dtype=torch.float64)
        for part, s in shapes.items()
    }
    labels = torch.randint(0, max(2, outputs), (pieces * images, 64), generator=g)
    pixels = torch.stack([torch.randperm(64, generator=g)[:20] for _ in labels]) if sampled else None

    x = torch.cat([resized(v, mode) for v in z.values()], 1)
    y = labels
    if pixels is not None:
        x = x.flatten(2).gather(2, pixels.unsqueeze(1).expand(-1, x.shape[1], -1))[..., None]
        y = labels.gather(1, pixels)
    plain = naive(network)
    expected = naive_loss(plain(x).flatten(2), y.reshape(len(y), -1))
    expected.backward()

    chunks = [
        Chunk(
            {k: v[i : i + images] for k, v in z.items()},
            y[i : i + images],
            None if pixels is None else pixels[i : i + images],
        )
        for i in range(0, pieces * images, images)
    ]
    actual = network.loss(chunks, memory)
    actual.backward()

    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(actual, expected, **close)
    convolutions = [m for m in plain if isinstance(m, nn.Conv2d)]
    norms = [m for m in plain if isinstance(m, nn.BatchNorm2d)]
    for i, conv in enumerate(convolutions):
        torch.testing.assert_close(network.weights[i].grad, conv.weight.grad[..., 0, 0], **close)
        torch.testing.assert_close(network.biases[i].grad, conv.bias.grad, **close)
    for i, norm in enumerate(norms):
        torch.testing.assert_close(network.gains[i].grad, norm.weight.grad, **close)
        torch.testing.assert_close(network.shifts[i].grad, norm.bias.grad, **close)
        torch.testing.assert_close(network.get_buffer(f"mean{i}"), norm.running_mean, **close)
        torch.testing.assert_close(network.get_buffer(f"variance{i}"), norm.running_var, **close)

    plain.eval()
    with torch.no_grad():
        logits = torch.cat([network(chunk) for chunk in chunks])
        torch.testing.assert_close(logits, plain(x).flatten(2), **close)
        torch.testing.assert_close(
            network.mean_loss(chunks[0]), naive_loss(logits[:images], y[:images]), **close
        )


def test_float32_statistics_are_exact_where_the_mean_is_large(monkeypatch):
    """Bands make a batch of four, over which a plain float32 norm would lose a digit."""
    shapes = {(0, "up0"): (8, 16, 16), (0, "up1"): (4, 64, 64)}
    network = Perceptron(shapes, (64, 64), [8, 4], 1, "bilinear").draw(0, "test")
    monkeypatch.setattr(perceptron_module, "BAND_BYTES", 16 * 64 * 8 * 4)
    g = torch.Generator().manual_seed(0)
    z = {part: torch.randn(2, *s, generator=g) + 3 for part, s in shapes.items()}
    labels = torch.randint(0, 2, (2, 64 * 64), generator=g)
    single = network.training_pass([Chunk(z, labels)], 2**30)
    double = network.double().training_pass([Chunk({k: v.double() for k, v in z.items()}, labels)], 2**30)
    for actual, expected in zip(single.gradients, double.gradients, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(actual.double() / scale, expected / scale, rtol=0, atol=1e-5)


def fit(workdir, features, masks, n, memory=2**30, **changes) -> MLPHead:
    given = {
        "combine": "share",
        "hidden": [6, 4],
        "steps": 12,
        "batch_size": 2,
        "validate_every": 4,
        "learning_rate": 0.01,
    }
    head = create("mlp", given | changes, TIMESTEPS, None, seed=3)
    head.memory = memory
    val = list(range(n, len(features)))
    return head.fit(features, masks[:n], list(range(n)), val, masks[n:], workdir=workdir)


@pytest.mark.parametrize("combine", ["share", "concat"])
@pytest.mark.parametrize("classes", [1, 2])
def test_training_follows_the_naive_network_on_all_timesteps(combine, classes, tmp_path):
    n = 3
    features, masks = draw_features(n, dtype=np.float32), draw_masks(n, classes)
    head = fit(tmp_path, features, masks, n, combine=combine)
    plain = naive(head._network().draw(3, "mlp", 0))
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    order = _Order(n, 2, (3, "mlp", 0))
    ups = [
        torch.cat(
            [resized(torch.from_numpy(z), "bilinear") for z in features.read(range(n), t).values()], 1
        )
        for t in TIMESTEPS
    ]
    label = torch.from_numpy((masks * np.arange(1, classes + 1)[:, None, None]).sum(1))
    for step in range(12):
        images = order.batch(step)
        # (b step) in the authors' code; the order within a batch changes nothing
        x = torch.cat([u[images] for u in ups], 0 if combine == "share" else 1)
        y = label[images].repeat(len(TIMESTEPS) if combine == "share" else 1, 1, 1)
        optimizer.zero_grad()
        naive_loss(plain(x), y).backward()
        optimizer.step()
    plain.eval()
    with torch.no_grad():
        steps = (
            torch.stack([plain(u) for u in ups]) if combine == "share" else plain(torch.cat(ups, 1))[None]
        )
        expected = steps.sigmoid() if classes == 1 else steps.softmax(2)[:, :, 1:]
    np.testing.assert_allclose(head.predict_steps(features, range(n)), expected.numpy(), rtol=0, atol=2e-4)
    assert head.voting == (combine == "share")


def test_an_epoch_sees_every_image_once_as_a_data_loader_does():
    order = _Order(7, 3, (0, "x"))
    batches = [order.batch(step) for step in range(6)]
    assert [len(b) for b in batches] == [3, 3, 1] * 2
    assert all(sorted(itertools.chain(*epoch)) == list(range(7)) for epoch in (batches[:3], batches[3:]))
    assert batches[:3] != batches[3:]


@pytest.mark.parametrize("pixels", [None, 10])
def test_memory_and_chunks_change_nothing_but_the_speed(pixels, tmp_path, monkeypatch):
    features, masks = draw_features(5), draw_masks(5, 1)
    roomy = fit(tmp_path / "a", features, masks, 4, pixels=pixels)
    monkeypatch.setattr(mlp_module, "ACTIVATION_BYTES_AT_ONCE", {"cpu": 1})
    tight = fit(tmp_path / "b", features, masks, 4, memory=0, pixels=pixels)
    roomy, tight = (head.predict_steps(features, range(5)) for head in (roomy, tight))
    np.testing.assert_allclose(roomy, tight, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_head(tmp_path):
    features, masks = draw_features(4), draw_masks(4, 1)
    a = fit(tmp_path / "a", features, masks, 3).state()
    b = fit(tmp_path / "b", features, masks, 3).state()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name])
    other = create("mlp", {"combine": "share", "hidden": [6, 4], "steps": 1}, TIMESTEPS, None, seed=4)
    other.fit(features, masks[:3], range(3), [3], masks[3:], workdir=tmp_path / "c")
    assert not np.array_equal(a["member0/weights.0"], other.state()["member0/weights.0"])


@pytest.mark.parametrize("pixels", [None, 10])
def test_a_killed_training_goes_on_and_gives_the_bits_of_an_undisturbed_one(pixels, tmp_path, monkeypatch):
    features, masks = draw_features(5), draw_masks(5, 1)
    undisturbed = fit(tmp_path / "a", features, masks, 4, members=2, pixels=pixels).state()
    loss, calls = Perceptron.loss, []

    def killed(self, chunks, memory):
        calls.append(1)
        if len(calls) == 12 + 7:  # in the second member
            raise KeyboardInterrupt
        return loss(self, chunks, memory)

    monkeypatch.setattr(Perceptron, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", features, masks, 4, members=2, pixels=pixels)
    resumed = fit(tmp_path / "b", features, masks, 4, members=2, pixels=pixels).state()
    assert len(calls) < 12 + 7 + 12
    for name, array in undisturbed.items():
        np.testing.assert_array_equal(array, resumed[name])


def test_a_damaged_member_is_trained_again(tmp_path, capsys):
    features, masks = draw_features(4), draw_masks(4, 1)
    undisturbed = fit(tmp_path, features, masks, 3).state()
    (tmp_path / "member0.safetensors").write_bytes(b"")
    for name, array in fit(tmp_path, features, masks, 3).state().items():
        np.testing.assert_array_equal(array, undisturbed[name])
    assert "member0.safetensors" in (err := capsys.readouterr().err)
    assert "made again" in err


@pytest.mark.parametrize("classes", [1, 2])
def test_members_vote_with_one_vote_each_and_a_tie_is_background(classes, tmp_path):
    features, masks = draw_features(4), draw_masks(4, classes)
    head = fit(tmp_path, features, masks, 3, members=2)
    p = head.predict_steps(features, [3])
    assert set(np.unique(p)) <= {0, 0.5, 1}
    single = []
    for network in head.networks:
        alone = create("mlp", head.settings | {"members": 1}, TIMESTEPS, None, seed=3)
        alone.__dict__.update(
            {k: v for k, v in head.__dict__.items() if k not in ("settings", "options", "networks")}
        )
        alone.networks = [network]
        q = alone.predict_steps(features, [3])
        full = np.concatenate([1 - q.sum(2, keepdims=True), q], 2)
        winner = full.argmax(2)
        single.append(np.stack([winner == k for k in range(1, classes + 1)], 2))
    np.testing.assert_array_equal(p, np.mean(single, 0))
    assert len({network.weights[0].sum().item() for network in head.networks}) == 2


def test_the_best_validation_loss_is_kept_and_patience_ends_training(tmp_path, capsys):
    features, masks = draw_features(4), draw_masks(4, 1)  # noise: validation soon gets worse
    fit(tmp_path, features, masks, 3, steps=400, patience=2, learning_rate=0.1)
    line = next(x for x in capsys.readouterr().err.splitlines() if "kept step" in x)
    best, last = int(line.split()[3]), int(line.split()[5].rstrip(","))
    assert last == best + 2 * 4 < 400


@pytest.mark.parametrize("combine", ["share", "concat"])
def test_a_saved_head_predicts_the_same(combine, tmp_path):
    features, masks = draw_features(4), draw_masks(4, 1)
    head = fit(tmp_path, features, masks, 3, combine=combine, members=2)
    head.save(tmp_path / "head.safetensors")
    loaded = load(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(
        loaded.predict_steps(features, range(4)), head.predict_steps(features, range(4))
    )
