"""Features in memory, each read once, for all who read the same."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np


class SharedFeatures:
    """A source of features that remembers what was read from another one, up to a number of bytes.

    What is remembered is never given up for something else: everybody here goes through the same images
    again and again, and of those a memory that forgets the oldest would never find one. What does not fit
    is read anew each time. Values are those of the source, to the bit. Several threads may read.

    Args:
        source: a FeatureStore, or whatever else `tedm.heads.base.FeatureSource` describes.
        memory: bytes to remember.

    Attributes:
        bytes: remembered.
        full: whether something did not fit.
    """

    def __init__(self, source: Any, memory: int) -> None:
        self.source, self.memory, self.bytes, self.full = source, memory, 0, False
        self._kept: dict[tuple[int, str, int], dict[int, np.ndarray]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:  # image_size, layer_shapes, timesteps, backbone_digest, …
        if name == "source":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.source, name)

    def read(
        self, rows: Sequence[int], timestep: int, layers: Sequence[str] | None = None, view: int = 0
    ) -> dict[str, np.ndarray]:
        """Features (n, C, h, w) of the images `rows`, per layer, in the stored type: the caller's own."""
        wanted = [int(row) for row in rows]
        if not wanted:
            return dict(self.source.read(wanted, timestep, layers, view))
        names = list(self.source.layer_shapes if layers is None else layers)
        absent = {name: self._absent(wanted, (timestep, name, view)) for name in names}
        fresh: dict[str, np.ndarray] = {}
        for together in {tuple(rows) for rows in absent.values() if rows}:
            some = [name for name, rows in absent.items() if tuple(rows) == together]
            fresh |= self.source.read(list(together), timestep, some, view)
        out = {}
        for name in names:
            key = (timestep, name, view)
            if absent[name] == wanted:
                out[name] = fresh[name]
            else:
                kept = self._kept.get(key, {})
                place = {row: i for i, row in enumerate(absent[name])}
                out[name] = np.stack(
                    [fresh[name][place[row]] if row in place else kept[row] for row in wanted]
                )
            self._keep(key, absent[name], fresh.get(name))
        return out

    def _absent(self, rows: list[int], key: tuple[int, str, int]) -> list[int]:
        kept = self._kept.get(key, {})
        return list(dict.fromkeys(row for row in rows if row not in kept))

    def _keep(self, key: tuple[int, str, int], rows: list[int], values: np.ndarray | None) -> None:
        if values is None:
            return
        with self._lock:
            kept = self._kept.setdefault(key, {})
            for i, row in enumerate(rows):
                if row in kept:
                    continue
                if self.bytes + values[i].nbytes > self.memory:
                    self.full = True
                    return
                kept[row] = values[i].copy()
                self.bytes += values[i].nbytes
