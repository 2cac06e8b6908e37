"""Images that visitors gave, in memory: so many bytes and minutes at most, and no file."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tedm.models.images import Picture
from tedm.web import limits


@dataclass(frozen=True, eq=False)
class Given:
    """An image to segment.

    Attributes:
        name: as shown to its owner, and of the files that are downloaded.
        picture: its pixels.
        truth: masks of 0 and 1, (K, H, W), where known.
        origin: where it comes from, one sentence.
        since: seconds, of `time.monotonic`.
    """

    name: str
    picture: Picture
    truth: NDArray[np.uint8] | None = None
    origin: str = ""
    since: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.picture.pixels.nbytes)


class Pictures:
    """Images by a key that nobody can guess; the one unused for longest gives way.

    Args:
        most: bytes of all images.
        kept: seconds of each.
        clock: seconds now.
    """

    def __init__(
        self,
        most: int = limits.HELD_PICTURES,
        kept: float = limits.KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._kept, self._clock = most, kept, clock
        self._lock = threading.Lock()
        self._given: OrderedDict[str, Given] = OrderedDict()

    def keep(self, given: Given) -> str:
        """Keep an image; its key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._given[key] = given
            self._tidy()
        return key

    def get(self, key: str) -> Given | None:
        """The image of a key; None where it had to give way, or was kept long enough."""
        with self._lock:
            self._tidy()
            if key in self._given:
                self._given.move_to_end(key)
            return self._given.get(key)

    def forget(self, key: str) -> None:
        """Its owner has gone or has given another one."""
        with self._lock:
            self._given.pop(key, None)

    def _tidy(self) -> None:
        now = self._clock()
        for key in [k for k, given in self._given.items() if now - given.since > self._kept]:
            del self._given[key]
        while len(self._given) > 1 and sum(given.size for given in self._given.values()) > self._most:
            self._given.popitem(last=False)
