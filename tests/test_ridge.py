"""Ridge heads against scikit-learn on the upsampled, standardised pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tedm.config import RidgeSettings
from tedm.errors import TedmError
from tedm.heads import ArrayFeatures, create, load
from tedm.heads import ridge as ridge_module
from tedm.heads.design import Design, PixelDesign

TIMESTEPS = (1, 50)


def draw_features(
    n: int, shapes: dict[str, tuple[int, int, int]], size: tuple[int, int], seed: int, dtype=np.float32
) -> ArrayFeatures:
    """Correlated channels with offsets and scales of their own, as a network's are."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for t in TIMESTEPS:
        for layer, (c, h, w) in shapes.items():
            mixed = np.einsum(
                "ck,nkhw->nchw", rng.standard_normal((c, 4)), rng.standard_normal((n, 4, h, w))
            )
            z = mixed + 0.3 * rng.standard_normal((n, c, h, w)) + 3 * rng.standard_normal((c, 1, 1))
            arrays[t, layer] = (z * rng.uniform(0.1, 10, (c, 1, 1))).astype(dtype)
    return ArrayFeatures(arrays, size)


def upsampled(features: ArrayFeatures, rows, timestep: int, mode: str) -> np.ndarray:
    """What the head never builds: (n, C, H, W) of all layers, float64."""
    extra = {"align_corners": False} if mode == "bilinear" else {}
    layers = features.read(rows, timestep).values()
    resized = [
        F.interpolate(torch.from_numpy(z).double(), features.image_size, mode=mode, **extra) for z in layers
    ]
    return torch.cat(resized, 1).numpy()


def pixels(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def draw_masks(features: ArrayFeatures, classes: int, seed: int) -> np.ndarray:
    """Masks that the features can explain in part."""
    rng = np.random.default_rng(seed)
    x = pixels(upsampled(features, range(len(features)), TIMESTEPS[0], "bilinear"))
    x = (x - x.mean(0)) / x.std(0)
    score = x @ rng.standard_normal((x.shape[1], classes + 1)) + 2 * rng.standard_normal(
        (len(x), classes + 1)
    )
    label = score.argmax(1).reshape(len(features), *features.image_size)
    return np.stack([label == k for k in range(1, classes + 1)], 1).astype(np.uint8)


def penalised_loss(x, label, weight, bias, C):
    """scikit-learn's objective times 1 / C, in float64; weight (K, channels), K = 1 for two classes."""
    u = x @ weight.T + bias
    if len(weight) == 1:
        losses = np.logaddexp(0, u[:, 0]) - label * u[:, 0]
    else:
        losses = np.logaddexp.reduce(u, 1) - u[np.arange(len(u)), label]
    return losses.sum() + 0.5 / C * (weight**2).sum()


SHAPES = {"up0": (5, 2, 2), "up1": (4, 4, 4), "up2": (3, 8, 8)}


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("standardise", ["channel", "pixel"])
def test_ridge_reaches_the_optimum_of_scikit_learn(mode, classes, standardise, tmp_path):
    features = draw_features(6, SHAPES, (8, 8), seed=classes)
    masks = draw_masks(features, classes, seed=7)
    rows, C = range(6), 0.1
    head = create("ridge", {"C": C, "resize": mode, "standardise": standardise}, TIMESTEPS, None, seed=0)
    head.fit(features, masks, rows, [], masks[:0], workdir=tmp_path)
    predicted = head.predict_steps(features, rows)
    label = (masks * np.arange(1, classes + 1)[:, None, None]).sum(1).ravel()
    for s, timestep in enumerate(TIMESTEPS):
        x = upsampled(features, rows, timestep, mode)
        if standardise == "channel":
            x = StandardScaler().fit_transform(pixels(x))
        else:
            x = pixels((x - x.mean(0)) / x.std(0))
        truth = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(x, label)
        p = truth.predict_proba(x)[:, 1:].reshape(6, 8, 8, classes)
        np.testing.assert_allclose(np.moveaxis(predicted[s], 1, -1), p, rtol=0, atol=1e-3)
        solution = solve_again(
            features, rows, timestep, mode, standardise, label.reshape(6, 8, 8), classes, C
        )
        ours = penalised_loss(x, label, solution.weights[:-1].T.numpy(), solution.weights[-1].numpy(), C)
        theirs = penalised_loss(x, label, truth.coef_, truth.intercept_, C)
        assert ours <= theirs * (1 + 1e-6)
        assert solution.loss == pytest.approx(ours, rel=1e-6)


def solve_again(features, rows, timestep, mode, standardise, label, classes, C):
    kind = Design if standardise == "channel" else PixelDesign
    design = kind(features, rows, timestep, tuple(features.layer_shapes), mode, 2**30)
    labels = torch.from_numpy(label.astype(np.uint8))
    return ridge_module.solve(design, labels, 1 if classes == 1 else classes + 1, RidgeSettings(C=C), 0)


shapes = st.dictionaries(
    st.sampled_from(["up0", "up1", "up2"]),
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    min_size=1,
)


@settings(max_examples=40, deadline=None)
@given(
    shapes=shapes,
    size=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    n=st.integers(2, 4),
    mode=st.sampled_from(["bilinear", "nearest"]),
    standardise=st.sampled_from(["channel", "pixel"]),
    memory=st.sampled_from([0, 2**30]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 2**31),
)
@example({"up0": (2, 3, 3)}, (5, 5), 3, "bilinear", "channel", 2**30, np.float64, 0)
def test_the_operator_equals_the_matrix_of_standardised_upsampled_pixels(
    shapes, size, n, mode, standardise, memory, dtype, seed
):
    features = draw_features(n, shapes, size, seed, dtype)
    x = upsampled(features, range(n), 50, mode)
    axes = (0, 2, 3) if standardise == "channel" else 0
    mean, std = x.mean(axes, keepdims=True), x.std(axes, keepdims=True)
    std = np.where(std <= 1e-10 * np.abs(mean), 1, std)
    x = pixels((x - mean) / std)
    kind = Design if standardise == "channel" else PixelDesign
    design = kind(features, range(n), 50, tuple(shapes), mode, memory, dtype=torch.float64)
    rng = np.random.default_rng(seed)
    weights, r = rng.standard_normal((x.shape[1], 2)), rng.standard_normal((n, 2, *size))
    seen = {}

    def function(images, product):
        seen.update(zip(range(images.start, images.stop), product, strict=True))
        return torch.from_numpy(r[images])

    back = design.sweep(torch.from_numpy(weights), function)
    forward = torch.stack([seen[i] for i in range(n)]).numpy()
    np.testing.assert_allclose(pixels(forward), x @ weights, rtol=0, atol=1e-7)
    np.testing.assert_allclose(back.numpy(), x.T @ pixels(r), rtol=0, atol=1e-6)
    some = torch.from_numpy(np.sort(rng.integers(0, len(x), 5)))
    np.testing.assert_allclose(design.sample(some).numpy(), x[some.numpy()], rtol=0, atol=1e-7)


@pytest.mark.parametrize("C", [1e4, 1e8])
@pytest.mark.parametrize("classes", [1, 3])
def test_a_penalty_that_hardly_counts_is_solved_too(C, classes, tmp_path):
    wide = {"up0": (40, 2, 2), "up1": (30, 4, 4)}  # more unknowns than pixels
    features = draw_features(1, wide, (8, 8), seed=1)
    masks = draw_masks(features, classes, seed=1)
    head = create("ridge", {"C": C}, TIMESTEPS, None, seed=0)
    head.fit(features, masks, [0], [], masks[:0], workdir=tmp_path)
    label = (masks * np.arange(1, classes + 1)[:, None, None]).sum(1).ravel()
    x = StandardScaler().fit_transform(pixels(upsampled(features, [0], TIMESTEPS[0], "bilinear")))
    truth = LogisticRegression(C=C, tol=1e-8, max_iter=100_000).fit(x, label)
    ours = head.predict_steps(features, [0])[0, 0]
    theirs = truth.predict_proba(x)[:, 1:].T.reshape(ours.shape)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02)


def test_where_features_are_kept_does_not_change_a_single_bit(tmp_path):
    features = draw_features(5, SHAPES, (8, 8), seed=3)
    masks = draw_masks(features, 1, seed=3)
    states = []
    for memory in (0, 5 * 300 * 4, 2**30):
        head = create("ridge", {}, TIMESTEPS, None, seed=0)
        head.memory = memory
        states.append(
            head.fit(features, masks, range(5), [], masks[:0], workdir=tmp_path / str(memory)).state()
        )
    for other in states[1:]:
        for name, array in states[0].items():
            np.testing.assert_array_equal(array, other[name])


def test_a_killed_fit_goes_on_and_gives_what_an_undisturbed_one_gives(tmp_path, monkeypatch):
    features = draw_features(4, SHAPES, (8, 8), seed=4)
    masks = draw_masks(features, 1, seed=4)

    def fit(workdir):
        return create("ridge", {}, TIMESTEPS, None, 0).fit(
            features, masks, range(4), [], masks[:0], workdir=workdir
        )

    undisturbed = fit(tmp_path / "a").state()
    solve, calls = ridge_module.solve, []

    def killed_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve(*args)

    monkeypatch.setattr(ridge_module, "solve", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b")
    resumed = fit(tmp_path / "b").state()
    assert len(calls) == 3  # two before, of which one finished; one after
    for name, array in undisturbed.items():
        np.testing.assert_array_equal(array, resumed[name])


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_damaged_timestep_is_solved_again(kept, tmp_path, capsys):
    features = draw_features(4, SHAPES, (8, 8), seed=4)
    masks = draw_masks(features, 1, seed=4)

    def fit():
        return create("ridge", {}, TIMESTEPS, None, 0).fit(
            features, masks, range(4), [], masks[:0], workdir=tmp_path
        )

    undisturbed = fit().state()
    file = tmp_path / "t0050.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    for name, array in fit().state().items():
        np.testing.assert_array_equal(array, undisturbed[name])
    assert "t0050.safetensors" in (err := capsys.readouterr().err)
    assert "made again" in err


def test_a_finished_timestep_of_other_data_is_solved_again(tmp_path):
    features = draw_features(4, SHAPES, (8, 8), seed=5)
    masks = draw_masks(features, 1, seed=5)
    first = create("ridge", {}, TIMESTEPS, None, 0).fit(
        features, masks, range(4), [], masks[:0], workdir=tmp_path
    )
    other = create("ridge", {}, TIMESTEPS, None, 0).fit(
        features, 1 - masks, range(4), [], masks[:0], workdir=tmp_path
    )
    p, q = first.predict_proba(features, range(4)), other.predict_proba(features, range(4))
    np.testing.assert_allclose(p, 1 - q, rtol=0, atol=1e-3)


def test_the_vote_is_the_mean_over_the_chosen_timesteps(tmp_path):
    features = draw_features(4, SHAPES, (8, 8), seed=6)
    masks = draw_masks(features, 1, seed=6)
    head = create("ridge", {}, TIMESTEPS, None, 0).fit(
        features, masks, range(4), [], masks[:0], workdir=tmp_path
    )
    steps = head.predict_steps(features, [2, 0])
    assert steps.shape == (2, 2, 1, 8, 8)
    np.testing.assert_allclose(head.predict_proba(features, [2, 0]), steps.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(head.predict_proba(features, [2, 0], [50]), steps[1])
    with pytest.raises(TedmError, match="cannot be read at"):
        head.predict_proba(features, [0], [3])


@pytest.mark.parametrize("standardise", ["channel", "pixel"])
def test_a_saved_head_predicts_the_same(standardise, tmp_path):
    features = draw_features(4, SHAPES, (8, 8), seed=8)
    masks = draw_masks(features, 2, seed=8)
    head = create("ridge", {"standardise": standardise}, TIMESTEPS, None, 0)
    head.fit(features, masks, range(4), [], masks[:0], workdir=tmp_path)
    head.save(tmp_path / "head.safetensors", classes=["heart", "lungs"], backbone_digest="abc")
    loaded = load(tmp_path / "head.safetensors")
    assert (loaded.class_names, loaded.backbone_digest) == (("heart", "lungs"), "abc")
    np.testing.assert_array_equal(
        loaded.predict_steps(features, range(4)), head.predict_steps(features, range(4))
    )


def test_a_class_that_training_lacks_has_probability_zero(tmp_path, capsys):
    features = draw_features(4, SHAPES, (8, 8), seed=9)
    masks = draw_masks(features, 3, seed=9)
    masks[:, 1] = 0
    head = create("ridge", {}, TIMESTEPS, None, 0).fit(
        features, masks, range(4), [], masks[:0], workdir=tmp_path
    )
    assert "class 1 is absent" in capsys.readouterr().err
    p = head.predict_proba(features, range(4))
    assert (p[:, 1] == 0).all()
    assert (p[:, [0, 2]] > 0).all()


@pytest.mark.parametrize("value", [0, 1])
def test_masks_of_one_class_only_give_a_constant_head(value, tmp_path):
    features = draw_features(2, SHAPES, (8, 8), seed=9)
    masks = np.full((2, 1, 8, 8), value, np.uint8)
    head = create("ridge", {}, TIMESTEPS, None, 0).fit(
        features, masks, range(2), [], masks[:0], workdir=tmp_path
    )
    assert (head.predict_proba(features, range(2)) == value).all()


def test_two_of_three_classes_present_give_complementary_probabilities(tmp_path):
    features = draw_features(4, SHAPES, (8, 8), seed=10)
    first = draw_masks(features, 1, seed=10)
    masks = np.concatenate([first, 1 - first], 1)  # no background
    head = create("ridge", {}, TIMESTEPS, None, 0).fit(
        features, masks, range(4), [], masks[:0], workdir=tmp_path
    )
    np.testing.assert_allclose(head.predict_proba(features, range(4)).sum(1), 1, atol=1e-6)
