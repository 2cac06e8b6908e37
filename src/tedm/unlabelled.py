"""Images that a network learns from without labels: which of them, and their batches, read ahead."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tedm import seeds
from tedm.data.prepared import PreparedSet
from tedm.errors import TedmError

LARGEST_IN_MEMORY = 2_000_000_000  # bytes
ROWS_AT_ONCE = 256


def split_rows(data: PreparedSet, share: float, most: int, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on, and rows kept for the validation loss; slices of a subject stay together.

    The rows are those of the split `unlabelled`, or of `train` where nothing is unlabelled.

    Args:
        data: an open prepared set.
        share: of the images that is kept.
        most: images that are kept at most.
        seed: of the choice.

    Returns:
        Both in stored order.

    Raises:
        TedmError: fewer than two subjects.
    """
    rows = data.rows("unlabelled") or data.rows("train")
    by_subject: dict[str, list[int]] = {}
    for row in rows:
        by_subject.setdefault(data.subjects[row], []).append(row)
    if len(by_subject) < 2:
        raise TedmError(
            f"{data.label}: {len(rows)} images of {len(by_subject)} subjects in its split unlabelled (or"
            " train); learning from them needs at least 2 subjects, one of them to validate"
        )
    wanted = min(max(1, round(share * len(rows))), most)
    names = list(by_subject)
    kept: list[int] = []
    for i in seeds.generator(seed, "validation images").permutation(len(names))[:-1]:
        if kept and len(kept) + len(by_subject[names[i]]) > wanted:
            break
        kept += by_subject[names[i]]
    validation = set(kept)
    return [row for row in rows if row not in validation], sorted(validation)


class TrainingImages:
    """Images of some rows of a prepared set, float32 in [0, 1] when asked for.

    8-bit images stay 8-bit in memory, on the device that trains: ChestX-ray14 at 128×128 takes 1.5 GB.

    Args:
        data: an open prepared set; it must stay open.
        rows: of the set, in the order in which `batch` counts them.
        device: of the batches.
        limit: bytes that may be held; sets beyond it are read batch by batch.
    """

    def __init__(
        self, data: PreparedSet, rows: Sequence[int], device: torch.device, limit: int = LARGEST_IN_MEMORY
    ) -> None:
        self.data, self.rows, self.device = data, list(rows), device
        self.held: Tensor | None = None
        self.reader: ThreadPoolExecutor | None = None
        self.ahead: dict[bytes, Future[Tensor]] = {}
        pixels = int(np.prod(data.image_shape))
        eight_bit = _as_bytes(data.images(self.rows[:1])) is not None
        if len(self.rows) * pixels * (1 if eight_bit else 4) <= limit:
            self.held = self._read(eight_bit).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def prefetch(self, indices: npt.NDArray[np.int64]) -> None:
        """Start to read a batch that will be asked for soon, while the network computes."""
        if self.held is None:
            self.reader = self.reader or ThreadPoolExecutor(1, "images")
            self.ahead[indices.tobytes()] = self.reader.submit(self._stored, indices)

    def batch(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Images at these positions of `rows`, (n, C, H, W), channels-last."""
        if self.held is None:
            read = self.ahead.pop(indices.tobytes(), None)
            images = self._there(self._stored(indices) if read is None else read.result())
        else:
            images = self.held[self._there(self._pinned(torch.from_numpy(indices)))]
            if images.dtype == torch.uint8:
                images = images.float().div_(255)
        return images.contiguous(memory_format=torch.channels_last)

    def _stored(self, indices: npt.NDArray[np.int64]) -> Tensor:
        return self._pinned(torch.from_numpy(self.data.images([self.rows[i] for i in indices])))

    def _pinned(self, values: Tensor) -> Tensor:
        """Values where a GPU can fetch them by itself, without the host waiting for it."""
        return values.pin_memory() if self.device.type == "cuda" else values

    def _there(self, values: Tensor) -> Tensor:
        return values.to(self.device, non_blocking=True)

    def _read(self, eight_bit: bool) -> Tensor:
        shape = (len(self.rows), *self.data.image_shape)
        held = np.empty(shape, np.uint8 if eight_bit else np.float32)
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            block = self.data.images(self.rows[start : start + ROWS_AT_ONCE])
            as_bytes = _as_bytes(block) if eight_bit else block
            if as_bytes is None:
                return self._read(eight_bit=False)
            held[start : start + ROWS_AT_ONCE] = as_bytes
        return torch.from_numpy(held)


def _as_bytes(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8] | None:
    """The images as bytes, if that loses nothing."""
    as_bytes = np.rint(images * 255).astype(np.uint8)
    return as_bytes if np.array_equal(as_bytes.astype(np.float32) / np.float32(255), images) else None
