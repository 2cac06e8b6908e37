"""Models to hand on: a folder with all that segments new images, loaded alone or many at once."""

from tedm.models.model import Model, load
from tedm.models.segmentation import Segmentation
from tedm.models.together import Models, load_together

__all__ = ["Model", "Models", "Segmentation", "load", "load_together"]
