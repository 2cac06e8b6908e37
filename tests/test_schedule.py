"""Schedule, objective and sampling against definitions in float64 NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tedm.config import DiffusionConfig
from tedm.diffusion import objective, sample
from tedm.diffusion.schedule import Schedule
from tedm.errors import TedmError

KINDS = st.sampled_from(["cosine", "linear"])
OBJECTIVES = st.sampled_from(["noise", "image", "velocity"])


def betas(timesteps: int, kind: str) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17 and the clipping below it; Ho et al. 2020, 4, stretched to T."""
    if kind == "linear":
        values = [
            (1e-4 + (2e-2 - 1e-4) * t / max(1, timesteps - 1)) * 1000 / timesteps for t in range(timesteps)
        ]
        return np.minimum(values, 0.999)

    def alpha_bar(t: int) -> float:
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = [1 - alpha_bar(t + 1) / alpha_bar(t) for t in range(timesteps)]
    return np.clip(steps, 0, 0.999)


@given(timesteps=st.integers(2, 2000), kind=KINDS)
def test_betas_and_their_products_follow_the_published_formulas(timesteps, kind):
    schedule = Schedule(timesteps, kind)
    beta = betas(timesteps, kind)
    np.testing.assert_allclose(schedule.beta.numpy(), beta, rtol=1e-3, atol=1e-6)
    alpha_bar = np.cumprod(1 - beta)
    np.testing.assert_allclose(schedule.signal.numpy(), np.sqrt(alpha_bar), rtol=0, atol=2e-5)
    np.testing.assert_allclose(schedule.noise.numpy(), np.sqrt(1 - alpha_bar), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_chain_of_the_study_is_within_float32_of_its_definition(kind):
    schedule, alpha_bar = Schedule(1000, kind), np.cumprod(1 - betas(1000, kind))
    np.testing.assert_allclose(schedule.signal.numpy(), np.sqrt(alpha_bar), rtol=0, atol=1e-6)
    np.testing.assert_allclose(schedule.noise.numpy(), np.sqrt(1 - alpha_bar), rtol=0, atol=5e-6)
    assert schedule.beta.max() <= 0.999


@given(timesteps=st.integers(2, 1000), kind=KINDS)
def test_the_image_fades_from_step_to_step(timesteps, kind):
    schedule = Schedule(timesteps, kind)
    assert (schedule.signal.diff() <= 0).all()
    assert (schedule.noise.diff() >= 0).all()
    assert torch.isfinite(schedule.snr).all()


@given(seed=st.integers(0, 2**31), t=st.integers(0, 999))
def test_diffused_images_follow_the_closed_form_of_every_single_step(seed, t):
    """Of x_s = sqrt(1 - beta_s) x_(s-1) + sqrt(beta_s) e_s, mean and variance are carried along."""
    random = np.random.default_rng(seed)
    x0, noise = random.standard_normal((2, 2, 1, 3, 3))
    mean, variance = x0, 0.0
    for beta in betas(1000, "cosine")[: t + 1]:
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    steps = torch.tensor([t, t])
    x0, noise_ = torch.from_numpy(x0).float(), torch.from_numpy(noise).float()
    x_t = Schedule(1000, "cosine").diffuse(x0, steps, noise_)
    np.testing.assert_allclose(x_t.numpy(), mean + math.sqrt(variance) * noise, atol=5e-5)


def test_every_image_of_a_batch_has_its_own_timestep():
    schedule = Schedule(100, "cosine")
    x0, noise = torch.randn(2, 3, 2, 4, 4)
    together = schedule.diffuse(x0, torch.tensor([0, 50, 99]), noise)
    for i, t in enumerate([0, 50, 99]):
        alone = schedule.diffuse(x0[i : i + 1], torch.tensor([t]), noise[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


@given(kind=OBJECTIVES, t=st.integers(0, 998), seed=st.integers(0, 2**31))
def test_a_perfect_prediction_gives_back_image_and_noise(kind, t, seed):
    schedule = Schedule(1000, "cosine")
    x0, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    steps = torch.full((3,), t)
    x_t = schedule.diffuse(x0, steps, noise)
    wanted = objective.target(kind, schedule, x0, steps, noise)
    image, drawn = objective.image_and_noise(kind, schedule, x_t, steps, wanted)
    # What float32 can know: the image is seen through x_t at `signal`, the noise at `noise`.
    slack = 2e-6 * max(1, float(x0.abs().max()), float(noise.abs().max()))
    torch.testing.assert_close(image, x0, rtol=0, atol=slack / float(schedule.signal[t]) + slack)
    torch.testing.assert_close(drawn, noise, rtol=0, atol=slack / float(schedule.noise[t]) + slack)


@given(kind=OBJECTIVES, t=st.integers(1, 990), seed=st.integers(0, 2**31))
def test_predicted_image_and_noise_mix_to_the_noisy_image(kind, t, seed):
    schedule = Schedule(1000, "cosine")
    x_t, prediction = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    steps = torch.full((2,), t)
    image, noise = objective.image_and_noise(kind, schedule, x_t, steps, prediction)
    torch.testing.assert_close(schedule.diffuse(image, steps, noise), x_t, rtol=1e-4, atol=1e-4)


def test_the_velocity_is_the_derivative_along_the_circle_of_image_and_noise():
    """With signal = cos φ and noise = sin φ, v = dx/dφ (Salimans & Ho 2022, appendix D)."""
    schedule = Schedule(1000, "cosine")
    x0, noise = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64)
    for t in (10, 300, 900):
        phi = math.atan2(float(schedule.noise[t]), float(schedule.signal[t]))
        step = 1e-5
        ahead, behind = (math.cos(p) * x0 + math.sin(p) * noise for p in (phi + step, phi - step))
        v = objective.target("velocity", schedule, x0, torch.tensor([t]), noise)
        torch.testing.assert_close(v, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


@given(gamma=st.floats(0.1, 2), k=st.floats(0.1, 10))
def test_p2_weights_follow_their_definition(gamma, k):
    weights = objective.p2_weights(Schedule(1000, "cosine"), gamma, k).numpy()
    alpha_bar = np.cumprod(1 - betas(1000, "cosine"))
    expected = (k + alpha_bar / (1 - alpha_bar)) ** -gamma
    np.testing.assert_allclose(weights, expected, rtol=4e-3)
    np.testing.assert_allclose(weights[20:], expected[20:], rtol=2e-4)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_loss_is_the_weighted_mean_error_of_each_image(loss):
    random = np.random.default_rng(0)
    prediction, wanted = random.standard_normal((2, 3, 2, 4, 4))
    weights, t = random.random(10), np.array([0, 3, 9])
    error = np.abs(prediction - wanted) if loss == "l1" else (prediction - wanted) ** 2
    expected = error.mean((1, 2, 3))
    arguments = [torch.from_numpy(a).float() for a in (prediction, wanted)]
    steps, settings = torch.from_numpy(t), DiffusionConfig(loss=loss)
    plain = objective.per_image_loss(*arguments, steps, settings, None)
    np.testing.assert_allclose(plain.numpy(), expected, rtol=1e-5)
    weighted = objective.per_image_loss(*arguments, steps, settings, torch.from_numpy(weights))
    np.testing.assert_allclose(weighted.numpy(), expected * weights[t], rtol=1e-5)


# ── sampling ────────────────────────────────────────────────────────────────────────────────────


class Knowing:
    """A network that knows the data: every pixel is normal with this mean and deviation."""

    def __init__(self, schedule: Schedule, mean: float, deviation: float) -> None:
        self.schedule, self.mean, self.variance = schedule, mean, deviation**2

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b = float(self.schedule.signal[t[0]]), float(self.schedule.noise[t[0]])
        return b * (x_t - a * self.mean) / (a * a * self.variance + b * b)  # E[noise | x_t]


WIDE = (-100.0, 100.0)  # no clamping


@pytest.mark.parametrize("way", ["ddim", "ddpm"])
def test_a_perfect_network_draws_from_the_distribution_of_the_data(way):
    schedule = Schedule(200, "cosine")
    network = Knowing(schedule, 0.3, 0.5)
    start = sample.start(4, (1, 64, 64), 0)
    if way == "ddim":
        moments = list(sample.ddim(network, schedule, "noise", start, 200, WIDE))
    else:
        moments = list(sample.ddpm(network, schedule, "noise", start, 0, WIDE))
    drawn = moments[-1].following
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.03)
    last = 199 if way == "ddpm" else max(t for t in range(200) if schedule.signal[t] >= 0.05)
    assert [m.timestep for m in moments] == list(range(last, -1, -1))


def test_one_ancestral_step_has_the_mean_and_variance_of_the_posterior():
    """Ho et al. 2020, eq. 7, from Bayes' rule on two Gaussians."""
    schedule = Schedule(50, "linear")
    t, x0 = 20, 0.4
    x_t = torch.full((1, 1, 300, 300), 0.7)
    moments = sample.ddpm(lambda x, _: torch.full_like(x, x0), schedule, "image", x_t, 3, WIDE)
    for moment in moments:
        if moment.timestep == t:
            break
    beta = betas(50, "linear")
    before = np.prod(1 - beta[:t])
    x = moment.x_t.double()
    precision = 1 / (1 - before) + (1 - beta[t]) / beta[t]
    mean = (math.sqrt(before) * x0 / (1 - before) + math.sqrt(1 - beta[t]) * x / beta[t]) / precision
    normalised = (moment.following - mean) * math.sqrt(precision)
    assert float(normalised.mean()) == pytest.approx(0, abs=0.02)
    assert float(normalised.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 7, 48])
def test_ddim_visits_so_many_timesteps_from_the_last_with_a_signal_to_the_first(steps):
    schedule = Schedule(50, "cosine")
    moments = list(sample.ddim(lambda x, t: x, schedule, "noise", sample.start(1, (1, 4, 4), 0), steps))
    visited = [m.timestep for m in moments]
    assert len(visited) == steps
    assert visited == sorted(set(visited), reverse=True)
    assert visited[0] == 47  # sqrt(alpha_bar) is 0.03 at 48
    assert visited[-1] == (0 if steps > 1 else 47)
    assert all(m.x0.abs().max() <= 1 for m in moments)


def test_an_image_is_the_same_however_many_are_drawn():
    network, schedule = Knowing(Schedule(20, "cosine"), 0, 0.5), Schedule(20, "cosine")
    few, many = (sample.start(n, (1, 8, 8), 7) for n in (2, 5))
    assert torch.equal(few, many[:2])
    draws = [list(sample.ddpm(network, schedule, "noise", x, 7))[-1].following for x in (few, many)]
    torch.testing.assert_close(draws[0], draws[1][:2])


@pytest.mark.parametrize("timesteps", [0, 1])
def test_a_chain_of_no_steps_is_refused(timesteps):
    with pytest.raises(TedmError, match=rf"diffusion\.timesteps: {timesteps} steps are no chain"):
        Schedule(timesteps, "cosine")


def test_more_sampling_steps_than_timesteps_are_refused():
    with pytest.raises(TedmError, match=r"sampling_steps: 51 is outside 1 … 50"):
        list(sample.ddim(lambda x, t: x, Schedule(50, "cosine"), "noise", torch.zeros(1, 1, 2, 2), 51))


@given(n=st.integers(1, 9), columns=st.integers(1, 4), channels=st.sampled_from([1, 2, 3]))
def test_a_grid_holds_every_image_once(n, columns, channels):
    images = np.random.default_rng(n).integers(0, 250, (n, channels, 5, 6)).astype(np.float32) / 255
    sheet = sample.grid(images, columns)
    for i in range(n):
        top, left = i // columns * (5 + sample.GAP), i % columns * (6 + sample.GAP)
        cell = sheet[top : top + 5, left : left + 6] / 255
        shown = np.moveaxis(images[i], 0, 2) if channels == 3 else images[i, 0]
        np.testing.assert_allclose(cell, shown, atol=1e-6)
    assert (sheet == sample.PAPER).any() or n == 1
