"""A PyTorch data set over a feature store."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from tedm.features.reader import FeatureStore


class FeatureDataset(Dataset[dict[str, torch.Tensor]]):
    """Image by image, the features at some timesteps: `{"t0050/up2": (C, h, w), …}`.

    A DataLoader gets whole batches in one read per layer. Workers open the store themselves.

    Args:
        store: opened for reading.
        rows: images of the data set; None: all, or all with views.
        timesteps: None: all.
        layers: None: all.
        view: as in `FeatureStore.read`; rows must have it.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: Sequence[int] | None = None,
        timesteps: Sequence[int] | None = None,
        layers: Sequence[str] | None = None,
        view: int = 0,
    ) -> None:
        self.store = store
        everything = store.view_rows if view else range(len(store))
        self.rows = list(everything if rows is None else rows)
        self.timesteps = tuple(store.timesteps if timesteps is None else timesteps)
        self.layers = tuple(store.layer_shapes if layers is None else layers)
        self.view = view
        for timestep in self.timesteps if view else ():
            store.read([], timestep, self.layers, view)  # says what is absent

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        rows = [self.rows[index] for index in indices]
        batch: list[dict[str, torch.Tensor]] = [{} for _ in rows]
        for timestep in self.timesteps:
            for layer, values in self.store.read(rows, timestep, self.layers, self.view).items():
                for item, value in zip(batch, torch.from_numpy(values), strict=True):
                    item[f"t{timestep:04d}/{layer}"] = value
        return batch
