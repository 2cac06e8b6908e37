"""Resizing as a linear map: two small matrices, their transposes, and values at single pixels."""

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["bilinear", "nearest"]


def taps(source: int, target: int, mode: Mode) -> tuple[Tensor, Tensor]:
    """Which source positions every target position reads, and with which weight.

    The coordinates are those of `torch.nn.functional.interpolate` with align_corners=False: pixel
    centres lie at half-integers, and what would lie outside repeats the border.

    Returns:
        Positions (target, 2), int64, and weights (target, 2), float64; each row of weights sums to 1.
    """
    i = torch.arange(target)
    if mode == "nearest":
        first = i * source // target
        return torch.stack((first, first), 1), torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(
            target, 1
        )
    position = ((i.double() + 0.5) * (source / target) - 0.5).clamp(min=0)
    first = position.floor().long().clamp(max=source - 1)
    second = (first + 1).clamp(max=source - 1)
    share = position - first
    return torch.stack((first, second), 1), torch.stack((1 - share, share), 1)


def matrix(source: int, target: int, mode: Mode) -> Tensor:
    """The map from `source` to `target` positions along one axis, (target, source), float64."""
    positions, weights = taps(source, target, mode)
    return torch.zeros(target, source, dtype=torch.float64).scatter_add_(1, positions, weights)


class Resize:
    """The linear map from (…, h, w) to (…, H, W), x ↦ A x Bᵀ with a small matrix for each axis.

    Rows of A and B sum to 1, so the map commutes with adding a constant, and, being linear in x alone,
    with any mix of channels: that is why heads run at native resolution and resize what is left.

    Args:
        source: (h, w) of the layer.
        target: (H, W) of the image.
        mode: as in torch.nn.functional.interpolate(align_corners=False).
        dtype: of the arguments.
        device: of the arguments.
    """

    def __init__(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        mode: Mode,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.target, self.mode = source, target, mode
        self.dtype, self.device = dtype, torch.device(device)
        self.identity = self.source == self.target

    @cached_property
    def rows(self) -> Tensor:
        """A, (H, h)."""
        return matrix(self.source[0], self.target[0], self.mode).to(self.device, self.dtype)

    @cached_property
    def columns(self) -> Tensor:
        """B, (W, w)."""
        return matrix(self.source[1], self.target[1], self.mode).to(self.device, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Resize (…, h, w) to (…, H, W)."""
        return x if self.identity else self.rows @ (x @ self.columns.mT)

    def adjoint(self, y: Tensor) -> Tensor:
        """Bring (…, H, W) back to (…, h, w): the transpose, ⟨R x, y⟩ = ⟨x, Rᵀ y⟩."""
        return y if self.identity else (self.rows.mT @ y) @ self.columns

    def gather(self, x: Tensor, pixels: Tensor) -> Tensor:
        """Resize, but keep a few pixels only, and compute no others.

        Args:
            x: (C, h, w).
            pixels: positions in the flattened (H, W), (P,), int64.

        Returns:
            (C, P).
        """
        x = x.flatten(1)
        if self.identity:
            return x.index_select(1, pixels)
        width = self.source[1]
        rows, row_weights = self._row_taps
        columns, column_weights = self._column_taps
        at_row, at_column = pixels // self.target[1], pixels % self.target[1]
        total = torch.zeros(len(x), len(pixels), dtype=x.dtype, device=x.device)
        for a in range(1 if self.mode == "nearest" else 2):
            for b in range(1 if self.mode == "nearest" else 2):
                weight = row_weights[at_row, a] * column_weights[at_column, b]
                total += x.index_select(1, rows[at_row, a] * width + columns[at_column, b]) * weight
        return total

    @cached_property
    def _row_taps(self) -> tuple[Tensor, Tensor]:
        positions, weights = taps(self.source[0], self.target[0], self.mode)
        return positions.to(self.device), weights.to(self.device, self.dtype)

    @cached_property
    def _column_taps(self) -> tuple[Tensor, Tensor]:
        positions, weights = taps(self.source[1], self.target[1], self.mode)
        return positions.to(self.device), weights.to(self.device, self.dtype)
