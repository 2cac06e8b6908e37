"""Segmentation from a few labels, on cached features of a diffusion model."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tedm.models import Model, Models

__version__ = "0.1.0"


def load(folder: Path | str, device: str = "cpu", *, allow_imports: bool = False) -> "Model":
    """Load a model that `tedm export` wrote; see `tedm.models.load`."""
    from tedm import models  # with torch, which `import tedm` does without

    return models.load(folder, device, allow_imports=allow_imports)


def load_together(
    folders: Iterable[Path | str], device: str = "cpu", *, allow_imports: bool = False
) -> "Models":
    """Load many models that share their backbone; see `tedm.models.load_together`."""
    from tedm import models

    return models.load_together(folders, device, allow_imports=allow_imports)
