"""The finished parts of a data set that is being prepared: what an interrupted job needs not do again."""

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tedm.digests import canonical_json
from tedm.errors import TedmError
from tedm.files import whole

LAYOUT = 1  # of a part; another one makes older parts strangers


@dataclass(frozen=True)
class Part:
    """Some consecutive rows of a data set.

    Attributes:
        ids: one per row.
        units: position of each row's unit (image or volume) among those of the part.
        images: (n, C, H, W).
        masks: (n, K, H, W), 0 or 1; None: the set has none.
        spacing_mm: between slices, height and width of a pixel, (n, 3); NaN where unknown.
        extremes: least and greatest pixel.
        skipped: units that could not be used, as (id, reason).
    """

    ids: list[str]
    units: list[int]
    images: npt.NDArray[Any]
    masks: npt.NDArray[np.uint8] | None
    spacing_mm: npt.NDArray[np.float64]
    extremes: tuple[float, float]
    skipped: list[tuple[str, str]]


class Parts:
    """Parts in a folder, each named by all that decides over its content.

    Args:
        folder: to keep them in.
        identity: settings and whatever else all parts depend on.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = canonical_json({"layout": LAYOUT, **identity})

    def path(self, units: Sequence[Sequence[str]]) -> Path:
        """Where the part of these units is, each given as id, split and the stamp of its files."""
        key = hashlib.sha256(f"{self.identity}{canonical_json([list(u) for u in units])}".encode())
        return self.folder / f"{key.hexdigest()[:32]}.npz"

    def write(self, path: Path, part: Part) -> None:
        """Write a part, whole or not at all."""
        arrays = {"images": part.images, "spacing_mm": part.spacing_mm}
        if part.masks is not None:
            arrays["masks"] = np.packbits(part.masks)
            arrays["mask_shape"] = np.array(part.masks.shape)
        with whole(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                ids=np.array(part.ids, np.str_),
                units=np.array(part.units, np.int64),
                extremes=np.array(part.extremes, np.float64),
                skipped=np.array(part.skipped, np.str_).reshape(-1, 2),
                **arrays,
            )

    def read(self, path: Path) -> Part:
        """Read a part; its checksums are compared."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                masks = None
                if "masks" in archive.files:
                    shape = tuple(int(n) for n in archive["mask_shape"])
                    masks = np.unpackbits(archive["masks"], count=int(np.prod(shape))).reshape(shape)
                low, high = archive["extremes"]
                return Part(
                    [str(name) for name in archive["ids"]],
                    archive["units"].tolist(),
                    archive["images"],
                    masks,
                    archive["spacing_mm"],
                    (float(low), float(high)),
                    [(str(name), str(reason)) for name, reason in archive["skipped"]],
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            path.unlink(missing_ok=True)
            raise TedmError(
                f"{path}: damaged ({error}), and removed. Run the same command again: it makes this part"
                " anew and keeps the others"
            ) from None

    def clear(self) -> None:
        """Remove all parts, also those of other settings."""
        shutil.rmtree(self.folder, ignore_errors=True)
