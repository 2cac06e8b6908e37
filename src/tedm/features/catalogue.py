"""The stores of a place that many share: who made what, and when."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tedm.errors import TedmError
from tedm.features import store as layout
from tedm.features.store import Location


@dataclass(frozen=True)
class Contribution:
    """What one user made of one store."""

    store: str  # path below the place: ddpm-3f2a…/jsrt-77c1….zarr
    dataset: str
    images: int
    timesteps: list[int]  # that are complete
    unfinished: list[int]
    bytes: int  # on the disk
    made_by: str  # owner of the newest file of each timestep; "" where the place knows none
    made_at: datetime | None  # the last of it
    note: str  # why nothing is known of it


def has_stores(place: Path | str) -> bool:
    """Whether this is a place of stores, such as `features.location` or results/features, and no store."""
    location = layout.located(place)
    return location.document() is None and next(_stores(location), None) is not None


def contributions(place: Path | str) -> list[Contribution]:
    """Who made what in a place of stores; reads metadata, and the sizes and owners of files."""
    location = Location(place)
    return [part for name in _stores(location) for part in _contributions(location, name)]


def _stores(location: Location) -> Iterator[str]:
    for backbone in location.children():
        for name in location.children(backbone):
            if name.endswith(".zarr"):
                yield f"{backbone}/{name}"


def _contributions(place: Location, name: str) -> list[Contribution]:
    store = Location(f"{str(place).rstrip('/')}/{name}")
    try:
        with store.place.explained():
            root = layout.read_root(store)
            steps = [(t, *_made(store, t)) for t in layout.list_timesteps(store)]
    except TedmError as error:
        note = str(error).partition("\n")[0].removeprefix(f"{store}: ")
        return [Contribution(name, "", 0, [], [], 0, "", None, note)]
    parts = []
    for maker in sorted({owner for _, owner, *_ in steps}):
        own = [step for step in steps if step[1] == maker]
        parts.append(
            Contribution(
                store=name,
                dataset=str(root.attributes.get("dataset", "")),
                images=len(root.ids),
                timesteps=[t for t, _, _, complete, _ in own if complete],
                unfinished=[t for t, _, _, complete, _ in own if not complete],
                bytes=sum(count for *_, count in own),
                made_by=maker,
                made_at=max(when for _, _, when, *_ in own),
                note="",
            )
        )
    return parts


def _made(store: Location, timestep: int) -> tuple[str, datetime, bool, int]:
    """A timestep's owner and date, whether it is complete, and its bytes."""
    group = f"t{timestep:04d}"
    owner, when = store.made(group) or ("", datetime.fromtimestamp(0, UTC))
    complete = bool((store.attributes(group) or {}).get("complete"))
    return owner, when, complete, sum(store.sizes(group).values())
