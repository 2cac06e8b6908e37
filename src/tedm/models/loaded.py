"""What a loaded model consists of."""

from tedm import supervised
from tedm.backbones import Backbone
from tedm.heads import base
from tedm.models.folder import Description, Preprocessing


class Loaded:
    """A backbone and a head, or a network that sees images, with all that is known of them.

    Attributes:
        name: "TEDM n=12".
        description: what model.json says.
        classes: names of the K classes.
        timesteps: that vote or are joined; () for a network that sees images.
        voting: whether each timestep predicts by itself.
        preprocessing: from an image to what the network sees.
        backbone: whose features the head reads; models that were loaded together share it.
        head: on these features.
        network: that sees images.
        device: where it computes.
    """

    def __init__(
        self,
        description: Description,
        backbone: Backbone | None,
        head: base.Head | None,
        network: supervised.Baseline | None,
        device: str,
    ) -> None:
        self.description, self.name = description, description.name
        self.backbone, self.head, self.network, self.device = backbone, head, network, device
        self.classes = tuple(description.classes)
        self.timesteps = tuple(description.timesteps)
        self.preprocessing: Preprocessing = description.preprocessing
        self.voting = head is not None and head.voting

    @property
    def method(self) -> str:
        """Name of the head, the reading or the baseline."""
        return self.description.method

    @property
    def n(self) -> int:
        """Images that it learned from with their masks."""
        return self.description.n

    @property
    def seed(self) -> int:
        """As in evaluation.seeds."""
        return self.description.seed

    @property
    def synthetic(self) -> bool:
        """Whether it learned from drawn images."""
        return self.description.synthetic
