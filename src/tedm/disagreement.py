"""How much a head's timesteps disagree about a segmentation: per pixel, and per subject and class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import entr

from tedm import evaluation

METRIC = "uncertainty"
LEVELS = 255  # of a map as it is kept: one is 1/255 bit


def information(steps: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Mutual information between a pixel's label and the timestep that predicts it, in bits.

    I = h(mean of p_s) - mean of h(p_s), with the binary entropy h, for each class by itself: 0 where all
    steps say the same, however sure they are, and 1 where half of them are sure of the class and half are
    sure that it is not there. Also known as BALD (Houlsby et al. 2011) and Jensen-Shannon divergence.

    Args:
        steps: probabilities of each timestep, (S, N, K, H, W).

    Returns:
        (N, K, H, W), in [0, 1].
    """
    p = np.clip(steps.astype(np.float64), 0, 1)  # which rounding may have left
    of_mean, mean_of = _entropy(p.mean(axis=0)), _entropy(p).mean(axis=0)
    return np.asarray(np.clip(of_mean - mean_of, 0, 1), np.float32)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((entr(p) + entr(1 - p)) / np.log(2))


def overlaps(steps: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Pixels that each pair of timesteps' own segmentations have in common.

    Args:
        steps: probabilities of each timestep, (S, N, K, H, W).

    Returns:
        (N, K, S, S); the diagonal has the sizes of the segmentations.
    """
    masks = np.stack([evaluation.segment(p) for p in steps])
    pixels = masks.reshape(*masks.shape[:3], -1).transpose(1, 2, 0, 3).astype(np.float32)  # exact to 2^24
    return np.asarray(np.rint(pixels @ pixels.swapaxes(2, 3)), np.int64)


def scores(common: NDArray[np.int64], subjects: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    """One minus the mean Dice between the segmentations of two timesteps, over all pairs of them.

    Roy et al. (2019, Bayesian QuickNAT) take it between Monte Carlo samples of a network. It needs no
    truth, it is a fraction like the Dice that it is to foretell, and it does not grow with the object.
    Two segmentations without a pixel agree: that all timesteps miss a class does not show.

    Args:
        common: of each image, as `overlaps` gives it, (N, K, S, S); images of a subject are pooled.
        subjects: to whom each image belongs, (N,).
        classes: names, (K,).

    Returns:
        Columns subject, class, metric (uncertainty) and value, in [0, 1]; subjects in order of appearance.
    """
    owner, names = pd.factorize(np.asarray(subjects, dtype=object))
    pooled = np.zeros((len(names), *common.shape[1:]), np.int64)
    np.add.at(pooled, owner, common)
    sizes = pooled.diagonal(axis1=2, axis2=3)
    both = sizes[..., :, None] + sizes[..., None, :]
    dice = np.where(both > 0, 2 * pooled / np.maximum(both, 1), 1.0)
    pairs = np.triu_indices(common.shape[2], 1)
    return pd.DataFrame(
        {
            "subject": np.repeat([str(name) for name in names], len(classes)),
            "class": np.tile(list(classes), len(names)),
            "metric": METRIC,
            "value": (1 - dice[..., pairs[0], pairs[1]].mean(axis=-1)).ravel(),
        }
    )
