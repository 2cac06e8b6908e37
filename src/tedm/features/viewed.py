"""A feature store whose views are further rows, and their masks: what a head with views learns from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError
from tedm.features.reader import FeatureStore
from tedm.features.views import masks


class ViewedFeatures:
    """Features of images as they are (rows 0 … N-1) and, behind them, of their views as rows of their own.

    A head sees no difference: a view is one more image with one more mask.

    Args:
        store: that has the views.
        count: of views, 1 … count of each image in `store.view_rows`; 0: images as they are alone.
    """

    def __init__(self, store: FeatureStore, count: int) -> None:
        self.store, self.count = store, count
        self.pairs = [(row, view) for view in range(1, count + 1) for row in store.view_rows]

    def __len__(self) -> int:
        return len(self.store) + len(self.pairs)

    def __getattr__(self, name: str) -> Any:  # image_size, layer_shapes, timesteps, backbone_digest, …
        if name == "store":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.store, name)

    def rows_of(self, images: Sequence[int]) -> list[int]:
        """Rows of some images, as they are first, then of the views that they have."""
        chosen = set(images)
        views = [len(self.store) + i for i, (row, _) in enumerate(self.pairs) if row in chosen]
        return [*images, *views]

    def why_absent(self, timestep: int, layer: str) -> str | None:
        """Why an array cannot be read, of the images as they are or of a view; None where all can be."""
        reasons = (self.store.why_absent(timestep, layer, view) for view in range(self.count + 1))
        return next((reason for reason in reasons if reason is not None), None)

    def read(
        self, rows: Sequence[int], timestep: int, layers: Sequence[str] | None = None, view: int = 0
    ) -> dict[str, npt.NDArray[Any]]:
        """Features (n, C, h, w) of some rows, per layer, in the stored type; `view` is 0 here."""
        if view:
            raise TedmError(f"view {view}: views are rows here; read the store itself for one of them")
        wanted = np.asarray(rows, np.int64).reshape(-1)
        images, views = self._apart(wanted)
        out: dict[str, npt.NDArray[Any]] = {}
        for number in np.unique(views).tolist() if len(wanted) else [0]:
            here = np.flatnonzero(views == number)
            for layer, values in self.store.read(images[here].tolist(), timestep, layers, number).items():
                if layer not in out:
                    out[layer] = np.empty((len(wanted), *values.shape[1:]), values.dtype)
                out[layer][here] = values
        return out

    def masks(self, prepared: PreparedSet, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Masks (n, K, H, W) of some rows: those of views follow their geometry.

        Args:
            prepared: the data set that the store was made from.
            rows: as in `read`.
        """
        wanted = np.asarray(rows, np.int64).reshape(-1)
        images, views = self._apart(wanted)
        out = prepared.masks(images)
        for number in np.unique(views[views > 0]).tolist():
            here = np.flatnonzero(views == number)
            ids = [self.store.ids[row] for row in images[here]]
            assert self.store.recipe is not None
            out[here] = masks(out[here], ids, number, self.store.recipe, self.store.noise_seed)
        return out

    def _apart(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Image and view of each row."""
        own = len(self.store)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise TedmError(f"rows {rows.min()} … {rows.max()} are not in 0 … {len(self) - 1}")
        pairs = [(int(row), 0) if row < own else self.pairs[row - own] for row in rows]
        table = np.array(pairs, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]
