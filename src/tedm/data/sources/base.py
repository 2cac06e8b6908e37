"""What every source of images offers to whoever reads it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tedm.errors import TedmError

Each = Callable[[Callable[[str], Any], Sequence[str]], Iterable[Any]]  # map, on several threads, in order
Spacing = tuple[float, float, float]  # mm between slices (NaN: not a volume), height and width of a pixel


class Found(NamedTuple):
    """What a look at the headers tells."""

    dtype: np.dtype[Any]  # of the pixels: uint8, or float32 for more than 8 bits
    stamp: str  # another one if a file has changed


@dataclass(frozen=True)
class Picture:
    """One image as its source gives it: a file's, or a slice of a volume.

    Attributes:
        id: of the row that it becomes.
        pixels: (C, H, W), uint8 or float32.
        shares: share of each class in each pixel, 0 … 1, (K, h, w); None: no mask. Where h × w differ from
            H × W both cover the same field.
        spacing_mm: where it is known.
    """

    id: str
    pixels: npt.NDArray[Any]
    shares: npt.NDArray[Any] | None
    spacing_mm: Spacing | None = None


class Source(ABC):
    """Images and masks of one data set, read one unit (image or volume) at a time, from several threads.

    Attributes:
        ids: of the units, sorted.
        subjects: who or what each unit shows.
        columns: what else is known of each unit, for splits by column and stratified draws.
        problems: what is wrong with the source as a whole, one line each; nothing can be read then.
        strays: what is left over, as (id, reason): masks without an image.
        fit: how a picture becomes square.
        volumes: whether a unit has many pictures.
        synthetic: whether the images are drawn, not measured.
        intensity_range: pixels that become 0 and 1; None: as found in the whole set.
        has_masks: whether pictures have masks.
        description: where the images come from, for people.
        licence: terms of use.
        cite: whom to cite.
        population: whose subjects' names can be compared with those of other sources; "": of none.
    """

    ids: Sequence[str] = ()
    subjects: Sequence[str] = ()
    columns: Mapping[str, Sequence[str]] = {}
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    volumes = False
    synthetic = False
    intensity_range: tuple[float, float] | None = None
    has_masks = True
    description = ""
    licence = ""
    cite = ""
    population = ""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.strays: list[tuple[str, str]] = []

    @abstractmethod
    def examine(self, name: str, split: str) -> Found:
        """Look at the headers of a unit; TedmError if something is wrong with it."""

    @abstractmethod
    def read(self, name: str, split: str) -> list[Picture]:
        """Decode a unit; TedmError if something is wrong with it.

        Args:
            name: one of `ids`.
            split: its split; what is unlabelled needs no mask.
        """

    def learn(self, training: Sequence[str], each: Each) -> None:  # noqa: B027 (not abstract)
        """Take from the training units what the preprocessing of all units needs; nothing by default."""

    def identity(self) -> Mapping[str, Any]:
        """What has been learnt: with the settings, all that decides over the pictures beside the files."""
        return {}


def exclusive(shares: npt.NDArray[Any], where: str, classes: Sequence[str]) -> None:
    """Refuse masks in which a pixel has two classes."""
    overlap = int(np.count_nonzero(shares.sum(axis=0, dtype=np.float32) > 1.5))
    if overlap:
        names = [name for k, name in enumerate(classes) if (shares[k] * (shares.sum(0) > 1.5)).any()]
        raise TedmError(
            f"{where}: {overlap} pixels have two classes ({', '.join(names)}); each has one at most"
        )
