"""Adam (Kingma & Ba 2015), with the bits of torch.optim but not its start, two seconds of imports."""

from collections.abc import Iterable

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults, and the paper's


class Adam:
    """Moves parameters along their gradients; the same bits as `torch.optim.Adam(…, fused=True)`.

    Args:
        parameters: all on one device and of one floating type.

    Attributes:
        state: of each parameter that has had a gradient: `step` (how many, a float32 scalar), `exp_avg` and
            `exp_avg_sq` (running means of the gradient and of its square, like the parameter).
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter that has a gradient.

        Args:
            learning_rate: of this step.
        """
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        if not moved:
            return
        for parameter in moved:
            if parameter not in self.state:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        steps, means, squares = (
            [self.state[parameter][name] for parameter in moved]
            for name in ("step", "exp_avg", "exp_avg_sq")
        )
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            moved,
            [parameter.grad for parameter in moved if parameter.grad is not None],
            means,
            squares,
            [],
            steps,
            lr=learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )
