"""Many models, loaded once, that share every pass of a backbone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tedm.backbones import Backbone
from tedm.errors import TedmError
from tedm.models.model import Model, load_sharing
from tedm.models.segmentation import Segmentation
from tedm.models.segmenting import segment


class Models(Mapping[str, Model]):
    """Models by name, in the order in which they were given.

    Backbones of one digest are in memory once, and run once per image and timestep, however many heads
    read them. Nothing changes while they segment, so that several threads may.

    Args:
        models: loaded on one device.

    Raises:
        TedmError: two have the same name.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._models: dict[str, Model] = {}
        for model in models:
            if model.name in self._models:
                raise TedmError(f"two models are called {model.name}; leave one out, or export one anew")
            self._models[model.name] = model

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def segment(
        self,
        image: Any,
        *,
        names: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        keep_largest: int | None = None,
        fill_holes: bool = False,
    ) -> Any:
        """Segment an image, or a list of images, with all models or some of them.

        Args:
            image: as in `Model.segment`, as all other arguments but one.
            names: of the models that are asked; only the timesteps that they read are computed. None: all.
            ids: see there.
            keep_largest: see there.
            fill_holes: see there.

        Returns:
            Segmentations by the model's name; of a list of images a list of these.

        Raises:
            TedmError: an unknown name, or what `Model.segment` raises.
        """
        unknown = [name for name in names or () if name not in self._models]
        if unknown:
            raise TedmError(f"no model {unknown[0]} (models: {', '.join(self._models)})")
        asked = [self._models[name] for name in (self._models if names is None else dict.fromkeys(names))]
        many = image if isinstance(image, list) else [image]
        found: list[dict[str, Segmentation]] = segment(asked, many, ids, keep_largest, fill_holes)
        return found if isinstance(image, list) else found[0]


def load_together(
    folders: Iterable[Path | str], device: str = "cpu", *, allow_imports: bool = False
) -> Models:
    """Load model folders, each backbone once; arguments and errors as in `tedm.load`."""
    shared: dict[str, Backbone] = {}
    return Models(
        load_sharing(Path(folder), device, shared, allow_imports=allow_imports) for folder in folders
    )
