"""A linear probe: what a contrastively pretrained network knows of the masks, against untrained networks.

python benchmarks/probe.py --pretraining results/pretraining/global --data results/data/jsrt.h5

A logistic regression of scikit-learn (L2, standardised features) reads the maps of the parts that have
learnt, resized to half the image, from n images of the split train. Of a global stage these are the last
map of every encoder level and the middle; of a local stage those of its decoder levels (--maps all is
both). Its probabilities are resized to the image and scored as mean Dice on the split test. Printed is the
mean over draws of n images, the same for all networks.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from tedm import pretrained
from tedm.data.prepared import PreparedSet
from tedm.training import build
from tedm.unet import UNet


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--pretraining", type=Path, required=True)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--sizes", type=int, nargs="+", default=[1, 3, 12])
    options.add_argument("--draws", type=int, default=10, help="of the labelled images")
    options.add_argument("--penalty", type=float, default=0.01, help="C of scikit-learn")
    options.add_argument("--untrained", type=int, default=5, help="networks to compare with")
    options.add_argument("--maps", choices=["learnt", "all"], default="learnt")
    given = options.parse_args()
    learnt = pretrained.read(given.pretraining)
    levels = len({part.split(".")[1] for part in learnt.parts if part.startswith("decoder.")})
    with PreparedSet(given.data) as data:
        train, test = data.rows("train"), data.rows("test")
        images = {"train": data.images(train), "test": data.images(test)}
        masks = {"train": data.masks(train), "test": data.masks(test)}
    random = np.random.default_rng(0)
    draws = {
        n: [random.choice(len(train), n, replace=False) for _ in range(given.draws)] for n in given.sizes
    }
    trained = _network(learnt, 0)
    pretrained.start_from(trained, learnt, "the probe")
    networks = {f"untrained, seed {seed}": _network(learnt, seed) for seed in range(given.untrained)}
    print("| network |" + "".join(f" n = {n} |" for n in given.sizes))
    print("|---|" + "--:|" * len(given.sizes))
    scores = {}
    for name, network in {**networks, given.pretraining.name: trained}.items():
        read = {part: maps(network, x, levels, given.maps == "all") for part, x in images.items()}
        scores[name] = np.array(
            [[dice(read, masks, chosen, given.penalty) for chosen in draws[n]] for n in given.sizes]
        )
        print(f"| {name} |" + "".join(f" {score:.1f} |" for score in scores[name].mean(1)), flush=True)
    untrained = np.mean([scores[name] for name in networks], axis=0)
    gain = scores[given.pretraining.name] - untrained
    for n, gains in zip(given.sizes, gain, strict=True):
        better = f"better in {(gains > 0).sum()} of {gains.size} draws"
        print(f"n = {n}: {gains.mean():+.1f} over the mean of the untrained, {better}")


def _network(learnt: pretrained.Pretrained, seed: int) -> UNet:
    shape = learnt.architecture
    return build(
        lambda: UNet(shape.width, shape.multipliers, shape.channels, time_conditioned=False), seed
    ).eval()


@torch.no_grad()
def maps(network: UNet, images: np.ndarray, levels: int, everything: bool) -> Tensor:
    """What is read of images (N, C, H, W): (N, D, H / 2, W / 2)."""
    x = torch.from_numpy(images)
    found = list(network.decode(x, levels=levels).values())
    if everything or not levels:
        middle, skips = network._encode(x, None)
        found += [*skips[2::2], middle]  # after each level's attention
    size = [side // 2 for side in images.shape[2:]]
    return torch.cat([F.interpolate(m, size, mode="bilinear", antialias=True) for m in found], 1)


def dice(
    read: dict[str, Tensor], masks: dict[str, np.ndarray], chosen: npt.NDArray[np.int64], penalty: float
) -> float:
    """Mean Dice in percent on the test images, after learning from the chosen training images."""
    seen, tested, truth = read["train"][chosen], read["test"], masks["test"].astype(bool)
    small = F.interpolate(torch.from_numpy(masks["train"][chosen]).float(), seen.shape[2:], mode="area")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=200))
    probe.fit(_cells(seen), (small > 0.5).flatten().numpy())
    p = torch.from_numpy(probe.predict_proba(_cells(tested))[:, 1]).view(-1, 1, *tested.shape[2:])
    predicted = (F.interpolate(p, truth.shape[2:], mode="bilinear") > 0.5).numpy()
    shared = (predicted & truth).sum((1, 2, 3))
    return float(100 * np.mean(2 * shared / (predicted.sum((1, 2, 3)) + truth.sum((1, 2, 3)))))


def _cells(read: Tensor) -> np.ndarray:
    return read.permute(0, 2, 3, 1).flatten(0, 2).numpy()


if __name__ == "__main__":
    main()
