"""Ridge-penalised logistic regression on cached features, solved without building image-size features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tedm.config import RidgeSettings
from tedm.heads.base import FeatureSource, Head, checked, kept_arrays, labels_of, save_arrays
from tedm.heads.design import EPS, Design, PixelDesign
from tedm.progress import say, stage
from tedm.seeds import generator

SAMPLES_PER_UNKNOWN = 3  # pixels behind the preconditioner
UNIFORM_SHARE = 0.1  # of them drawn without regard to their curvature
LARGEST_CG = 200  # products with the Hessian per Newton step


class RidgeHead(Head):
    """One logistic regression per timestep on standardised, resized features; the timesteps vote (eq. 9).

    It minimises what scikit-learn's LogisticRegression(C=…) minimises, C Σ loss + ½ ‖w‖², with an
    unpenalised intercept: the binary loss for two classes, softmax for more. A class that the training
    masks lack gets probability 0.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        timesteps: Sequence[int],
        layers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(settings, timesteps, layers, seed)
        self.options = checked(RidgeSettings, settings)
        self.classifiers: dict[int, dict[str, np.ndarray]] = {}

    def learn(
        self,
        features: FeatureSource,
        masks: np.ndarray,
        rows: Sequence[int],
        val_rows: Sequence[int],  # noqa: ARG002
        val_masks: np.ndarray,  # noqa: ARG002
        workdir: Path,
    ) -> None:
        """Solve for each timestep; one that was finished before a kill is not solved again."""
        labels = torch.from_numpy(np.searchsorted(self._learned, labels_of(masks)).astype(np.uint8))
        if len(self._learned) == 1:
            return
        with stage(f"{self.label}, {len(rows)} images", len(self.timesteps), "timesteps") as progress:
            for timestep in self.timesteps:
                kept = workdir / f"t{timestep:04d}.safetensors"
                state = kept_arrays(kept, self.digest)
                if state is None:
                    state = self._solve(features, rows, timestep, labels)
                    save_arrays(kept, state, {"digest": self.digest})
                self.classifiers[timestep] = state
                progress.advance()

    def _solve(
        self, features: FeatureSource, rows: Sequence[int], timestep: int, labels: Tensor
    ) -> dict[str, np.ndarray]:
        kind = Design if self.options.standardise == "channel" else PixelDesign
        design = kind(
            features, rows, timestep, self.layers, self.options.resize, self.memory, device=self.device
        )
        logits = 1 if len(self._learned) == 2 else len(self._learned)
        solution = solve(design, labels, logits, self.options, self.seed)
        if not solution.converged:
            say(
                f"warning: ridge, timestep {timestep}: stopped after {solution.iterations} iterations,"
                f" gradient at {solution.gradient:.1e} of its start; raise max_iterations or tolerance, or"
                " lower C"
            )
        weight, bias = solution.weights[:-1], solution.weights[-1]
        state = {"scale": design.scale.float()}
        if self.options.standardise == "channel":
            state["mean"] = design.mean.float()
        else:  # the mean's part of the logits is one image, a thousandth of the mean itself
            bias = bias.view(-1, 1, 1) - torch.einsum(
                "ck,chw->khw", weight, (design.mean.double() / design.scale.double())
            )
        state |= {"weight": weight.float(), "bias": bias.float()}
        return {name: tensor.cpu().numpy() for name, tensor in state.items()}

    def predict_steps(self, features: FeatureSource, rows: Sequence[int]) -> np.ndarray:
        """See Head."""
        self.check_readable(features)
        out = np.zeros((len(self.timesteps), len(rows), self.class_count, *self.image_size), np.float32)
        if len(self._learned) == 1:
            out[:, :, [k - 1 for k in self._learned if k]] = 1
            return out
        for s, timestep in enumerate(self.timesteps):
            design, weight, bias = self._predictor(features, rows, timestep)

            def write(images: slice, product: Tensor | None, s: int = s, bias: Tensor = bias) -> None:
                assert product is not None
                p = _probabilities(product + bias).cpu().numpy()
                for i, k in enumerate(self._learned[1:] if p.shape[1] == 1 else self._learned):
                    if k:
                        out[s, images, k - 1] = p[:, i]
                if p.shape[1] == 1 and self._learned[0]:
                    out[s, images, self._learned[0] - 1] = 1 - p[:, 0]

            design.sweep(weight, write)
        return out

    def _predictor(
        self, features: FeatureSource, rows: Sequence[int], timestep: int
    ) -> tuple[Design, Tensor, Tensor]:
        state = {k: torch.from_numpy(a).to(self.device) for k, a in self.classifiers[timestep].items()}
        pixel = self.options.standardise == "pixel"
        # Per pixel, the mean is in the bias image already.
        mean = torch.zeros(()).expand_as(state["scale"]) if pixel else state["mean"]
        design = (PixelDesign if pixel else Design)(
            features,
            rows,
            timestep,
            self.layers,
            self.options.resize,
            0,
            (mean, state["scale"]),
            device=self.device,
        )
        bias = state["bias"]
        return design, state["weight"], bias if pixel else bias.view(-1, 1, 1)

    def state(self) -> dict[str, np.ndarray]:
        """See Head."""
        return {f"t{t:04d}/{name}": a for t, part in self.classifiers.items() for name, a in part.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See Head."""
        names = ("weight", "bias", "scale") + (("mean",) if self.options.standardise == "channel" else ())
        if len(self._learned) > 1:
            self.classifiers = {
                t: {name: state[f"t{t:04d}/{name}"] for name in names} for t in self.timesteps
            }

    @property
    def _learned(self) -> list[int]:
        """Labels that occurred in training, 0 for background."""
        return [k for k, there in enumerate(self.present) if there]


# ── the solver ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Solution:
    """The minimum of the penalised loss.

    Attributes:
        weights: of the standardised columns, the intercept last, float64 (channels + 1, K).
        loss: Σ loss + ‖w‖² / 2C.
        gradient: norm of its gradient, relative to that at zero weights.
        iterations: Newton steps.
        sweeps: passes over the features.
        converged: whether the gradient is as small as asked for, or as rounding allows.
    """

    weights: Tensor
    loss: float
    gradient: float
    iterations: int
    sweeps: int
    converged: bool


def solve(design: Design, labels: Tensor, logits: int, options: RidgeSettings, seed: int) -> Solution:
    """Minimise Σ loss + ‖w‖² / 2C by Newton steps, each solved by preconditioned conjugate gradients.

    A product with the Hessian is one pass over native features. The preconditioner is the Hessian of a
    few pixels per unknown, drawn in proportion to their curvature; it brings the condition number from
    about 1e5 to about 5, whatever the number of images.

    Args:
        design: X.
        labels: uint8 (n, H, W), 0 … number of classes - 1.
        logits: 1 for two classes, else the number of classes.
        options: C, tolerance, max_iterations.
        seed: of the preconditioner's pixels; it moves the result within the tolerance only.
    """
    problem = _Problem(design, labels, logits, 1 / options.C)
    weights = torch.zeros(design.channels + 1, logits, dtype=torch.float64, device=design.device)
    loss = problem.loss(weights, 0.0)
    start: float | None = None
    relative = 1.0
    for iteration in range(options.max_iterations):
        gradient = problem.gradient(weights)
        norm = float(gradient.norm())
        start = start or norm
        relative = norm / start if start else 0.0
        if relative <= options.tolerance:
            return Solution(weights, loss, relative, iteration, problem.sweeps, True)
        inverse = problem.preconditioner(generator(seed, "ridge", "preconditioner", iteration))
        forcing = min(0.1, relative**0.5)
        step = _conjugate_gradients(problem.hessian_times, inverse, gradient, forcing)
        slope = float((step * gradient).sum())
        taken = problem.line_search(weights, step, loss, slope)
        if taken is None:  # no smaller loss within float32: this is the minimum that the arithmetic sees
            return Solution(weights, loss, relative, iteration, problem.sweeps, relative <= 1e-3)
        weights, loss = taken
    return Solution(weights, loss, relative, options.max_iterations, problem.sweeps, False)


class _Problem:
    """The penalised loss around the current weights: value, gradient, products with the Hessian."""

    def __init__(self, design: Design, labels: Tensor, logits: int, penalty: float) -> None:
        self.design, self.labels, self.penalty = design, labels.to(design.device), penalty
        shape = (len(design), logits, *design.size)
        self.logits = torch.zeros(shape, dtype=design.dtype, device=design.device)  # X w at these weights
        self.change = torch.zeros_like(self.logits)  # X p along the step
        self.sweeps = 0

    def loss(self, weights: Tensor, step: float) -> float:
        total = 0.5 * self.penalty * float(weights[:-1].square().sum())
        for images in self.design.blocks:
            u = self.logits[images] + step * self.change[images] if step else self.logits[images]
            total += float(self._losses(u, self.labels[images]).sum(dtype=torch.float64))
        return total

    def gradient(self, weights: Tensor) -> Tensor:
        def residual(images: slice, _: Tensor | None) -> Tensor:
            r = _probabilities(self.logits[images])
            if r.shape[1] == 1:
                return r - self.labels[images].unsqueeze(1)
            return r.scatter_add_(
                1,
                self.labels[images].long().unsqueeze(1),
                torch.full((), -1.0, dtype=r.dtype, device=r.device).expand_as(r[:, :1]),
            )

        return self._sweep(None, residual) + self._penalised(weights)

    def hessian_times(self, direction: Tensor) -> Tensor:
        def curvature(images: slice, du: Tensor | None) -> Tensor:
            assert du is not None
            p = _probabilities(self.logits[images])
            if p.shape[1] == 1:
                return du.mul_(p.sub_(p.square()))
            pdu = p * du
            return pdu.sub_(p.mul_(pdu.sum(1, keepdim=True)))

        return self._sweep(direction, curvature) + self._penalised(direction)

    def preconditioner(self, rng: np.random.Generator) -> "_Inverse":
        """Inverse of the Hessian's diagonal blocks on sampled pixels."""
        p = _probabilities(self.logits)
        curvature = p.sub_(p.square())  # p (1 - p), (n, K, H, W)
        density = curvature.sum(1).flatten().double()
        count = min(SAMPLES_PER_UNKNOWN * (self.design.channels + 1), len(density))
        total = density.sum().clamp(min=EPS)  # 0 where every probability is 0 or 1 in float32
        density = (1 - UNIFORM_SHARE) * density / total + UNIFORM_SHARE / len(density)
        # Systematic sampling: equally spaced on the cumulative density, so spread over images and places.
        positions = (torch.arange(count, dtype=torch.float64, device=density.device) + rng.random()) / count
        pixels = torch.searchsorted(density.cumsum(0), positions).clamp_(max=len(density) - 1)
        columns = self.design.channels + 1
        x = torch.ones(count, columns, dtype=torch.float64, device=density.device)
        x[:, :-1] = self.design.sample(pixels)
        weight = curvature.movedim(1, -1).flatten(0, 2)[pixels].double() / (
            count * density[pixels]
        ).unsqueeze(1)
        penalty = torch.full((columns,), self.penalty, dtype=torch.float64, device=x.device)
        penalty[-1] *= 1e-6  # the intercept is free; this keeps the factor finite
        factors = []
        for k in range(weight.shape[1]):
            root = weight[:, k : k + 1].sqrt()  # in place for the last one: x is as large as the factor
            scaled = x.mul_(root) if k == weight.shape[1] - 1 else x * root
            gram = scaled.T @ scaled
            gram.diagonal().add_(penalty)
            factors.append(_cholesky(gram))
        self.sweeps += 1
        return _Inverse(factors)

    def line_search(
        self, weights: Tensor, step: Tensor, loss: float, slope: float
    ) -> tuple[Tensor, float] | None:
        """Halve the step until the loss falls enough (Armijo); logits are linear, so no pass is needed."""

        def remember(images: slice, du: Tensor | None) -> None:
            assert du is not None
            self.change[images] = du

        self._sweep(step, remember)
        length = 1.0
        while length > 1e-4:
            moved = weights + length * step
            value = self.loss(moved, length)
            if value <= loss + 1e-4 * length * slope:
                self.logits += length * self.change
                return moved, value
            length /= 2
        return None

    def _sweep(self, direction: Tensor | None, function: Any) -> Tensor:
        """X̃ᵀ function(X̃ direction), where X̃ has a column of ones for the intercept."""
        intercept = torch.zeros(self.logits.shape[1], dtype=torch.float64, device=self.design.device)

        def with_intercept(images: slice, product: Tensor | None) -> Tensor | None:
            if product is not None and direction is not None:
                product += direction[-1].to(product.dtype).view(-1, 1, 1)
            r: Tensor | None = function(images, product)
            if r is not None:
                intercept.add_(r.sum((0, 2, 3), dtype=torch.float64))
            return r

        total = self.design.sweep(None if direction is None else direction[:-1], with_intercept)
        self.sweeps += 1
        return intercept if total is None else torch.cat((total, intercept.unsqueeze(0)))

    def _penalised(self, weights: Tensor) -> Tensor:
        out = self.penalty * weights
        out[-1] = 0
        return out

    @staticmethod
    def _losses(u: Tensor, labels: Tensor) -> Tensor:
        if u.shape[1] == 1:
            return torch.nn.functional.softplus(u) - u * labels.unsqueeze(1)
        return torch.logsumexp(u, 1) - u.gather(1, labels.long().unsqueeze(1)).squeeze(1)


class _Inverse:
    """One Cholesky factor per logit; with more than one, the result keeps to weights that sum to zero.

    Adding the same weights to all classes changes no probability, the penalty puts their sum at zero, and
    the Hessian stays in that space; so must its preconditioner.
    """

    def __init__(self, factors: list[Tensor]) -> None:
        self.factors = factors

    def __call__(self, gradient: Tensor) -> Tensor:
        columns = [torch.cholesky_solve(gradient[:, k : k + 1], f) for k, f in enumerate(self.factors)]
        out = torch.cat(columns, 1)
        return out - out.mean(1, keepdim=True) if len(columns) > 1 else out


def _cholesky(matrix: Tensor) -> Tensor:
    """Factor of a matrix that is positive definite but for rounding; its diagonal is raised if need be."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    largest = float(matrix.diagonal().max())
    jitter = EPS * largest
    while failed and jitter < largest:
        jitter *= 10
        raised = matrix + jitter * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        factor, failed = torch.linalg.cholesky_ex(raised)
    return torch.as_tensor(factor)


def _conjugate_gradients(times: Any, inverse: _Inverse, gradient: Tensor, forcing: float) -> Tensor:
    """Solve H step = -gradient until the preconditioned residual has fallen to `forcing` of its start."""
    step = torch.zeros_like(gradient)
    residual = -gradient
    z = inverse(residual)
    direction = z.clone()
    rz = float((residual * z).sum())
    goal = forcing**2 * rz
    for _ in range(LARGEST_CG):
        product = times(direction)
        curvature = float((direction * product).sum())
        if curvature <= 0:  # rounding: the loss is convex
            break
        length = rz / curvature
        step += length * direction
        residual -= length * product
        z = inverse(residual)
        rz, before = float((residual * z).sum()), rz
        if rz <= goal:
            break
        direction = z + (rz / before) * direction
    return step if bool(step.any()) else inverse(-gradient)


def _probabilities(u: Tensor) -> Tensor:
    """Of logits (n, K, H, W)."""
    return u.sigmoid() if u.shape[1] == 1 else u.softmax(1)
