"""NT-Xent, the contrastive loss of both pretrainings."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float, negatives: Tensor | None = None) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, eq. 1; Chaitanya et al. 2020, eq. 3).

    Of all 2N embeddings, each must be most similar to that of the other view of its own item; the loss is
    the mean over the 2N. It is computed in float32, whatever the precision of the embeddings.

    Args:
        first: embeddings of the items in one view, (…, N, D); leading dimensions are sets of their own.
        second: in the other view.
        temperature: τ > 0, by which cosine similarities are divided.
        negatives: which items are contrasted, (…, N, N), symmetric; absent: all pairs of different ones.

    Returns:
        A scalar; 0 where nothing is contrasted.
    """
    count = first.shape[-2]
    own = torch.eye(count, dtype=torch.bool, device=first.device)
    other = ~own if negatives is None else negatives & ~own
    with torch.autocast(first.device.type, enabled=False):
        z = F.normalize(torch.cat((first, second), dim=-2).float(), dim=-1)
        logits = z @ z.mT / temperature
        across = other | own  # the other views of the same items, too
        compared = torch.cat((torch.cat((other, across), -1), torch.cat((across, other), -1)), -2)
        # logsumexp takes the largest logit out first, so that exp(1/τ) never overflows.
        total = logits.masked_fill(~compared, -torch.inf).logsumexp(dim=-1)
        positive = torch.diagonal(logits, offset=count, dim1=-2, dim2=-1)
        return (total - torch.cat((positive, positive), dim=-1)).mean()
