"""Why a ridge head fails in another hospital: how far its logits are shifted there, layer by layer.

    python benchmarks/shift.py experiments/xray64.yaml --heads LR LR-views --n 6 --timestep 1

Needs a finished experiment with one class. For each head and test set: the mean logit of an image's pixels,
and each layer's part of it, less the same of the validation images; the Dice as it is; and with an oracle's
offset, the one added to an image's logits that makes its Dice largest. Where that is high, the ranking of
the pixels is right and only the threshold is wrong. Prints a Markdown table.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tedm import config, heads
from tedm.data.prepared import PreparedSet
from tedm.features.reader import FeatureStore
from tedm.heads.ridge import RidgeHead

OFFSETS = np.arange(-12, 12.01, 0.25)

Array = npt.NDArray[np.float64]


def logits_by_layer(
    head: RidgeHead, store: FeatureStore, rows: list[int], timestep: int
) -> tuple[dict[str, Array], float]:
    """Each layer's part of the logits, (n, H, W), and the bias; by plain interpolation."""
    state = {name: a.astype(np.float64) for name, a in head.classifiers[timestep].items()}
    weight = state["weight"][:, 0] / state["scale"]
    parts, start = {}, 0
    for layer, z in store.read(rows, timestep, head.layers).items():
        columns = slice(start, start + z.shape[1])
        start += z.shape[1]
        centred = torch.from_numpy(z).double() - torch.from_numpy(state["mean"][columns]).view(-1, 1, 1)
        native = torch.einsum("nchw,c->nhw", centred, torch.from_numpy(weight[columns]))
        resized = torch.nn.functional.interpolate(native[:, None], size=head.image_size, mode="bilinear")
        parts[layer] = resized[:, 0].numpy()
    return parts, float(state["bias"].reshape(-1)[0])


def dice(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Array:
    """Of each image, (n,)."""
    both = (predicted & truth).sum((1, 2))
    return np.asarray(2 * both / np.maximum(predicted.sum((1, 2)) + truth.sum((1, 2)), 1), np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--heads", nargs="+", default=["LR"], help="of type ridge, standardised by channel")
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--timestep", type=int, default=1)
    options = parser.parse_args()
    experiment = config.load(options.experiment)
    results, train_on = Path(experiment.results), experiment.evaluation.train_on
    made = False
    for name in options.heads:
        fitted = results / "heads" / name / f"n{options.n}" / f"seed{experiment.evaluation.seeds[0]}"
        head = heads.load(fitted / "head.safetensors")
        assert isinstance(head, RidgeHead)
        features = results / "features" / experiment.backbone_of(name)
        usual: dict[str, float] = {}
        sets = [(train_on, "val"), *((dataset, "test") for dataset in experiment.evaluation.test_on)]
        for dataset, split in sets:
            with PreparedSet(results / "data" / f"{dataset}.h5") as prepared:
                rows = prepared.rows(split)
                truth = prepared.masks(rows)[:, 0].astype(bool)
                grey = float(prepared.images(rows).mean())
            store = FeatureStore.open(features / f"{dataset}.zarr")
            parts, bias = logits_by_layer(head, store, rows, options.timestep)
            total = sum(parts.values(), np.full(truth.shape, bias))
            means = {layer: float(part.mean()) for layer, part in parts.items()}
            usual = usual or means
            with_offset = np.stack([dice(total + offset > 0, truth) for offset in OFFSETS])
            if not made:
                layers = "".join(f" {layer} |" for layer in parts)
                print(f"| head | images | mean grey | shift |{layers} Dice | Dice, oracle's offset |")
                print(f"|---|---|{'--:|' * (len(parts) + 4)}")
                made = True
            shift = sum(means.values()) - sum(usual.values())
            each = "".join(f" {means[layer] - usual[layer]:+.2f} |" for layer in parts)
            label = experiment.datasets[dataset].label
            print(
                f"| {name} | {label}, {split} | {grey:.2f} | {shift:+.2f} |{each}"
                f" {100 * dice(total > 0, truth).mean():.1f} | {100 * with_offset.max(0).mean():.1f} |"
            )


if __name__ == "__main__":
    main()
