"""What a job asks a scheduler for: memory and time, from the experiment.

Fitted to peaks and times of the demo, of experiments/xray64.yaml and of the study's UNet on AMD EPYC cores
(docs/benchmarks.md). Too little costs one attempt, since a job that is killed goes on where it was: what is
asked for is the estimate and a margin, and each attempt asks for more. No GPU has been measured.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tedm.config import VOLUMES, DDPMConfig, Experiment, GlobalCLConfig, OptimizerConfig, PhantomSource

PARAMETERS = 36.2e6  # of the study's UNet: width 64, multipliers 1, 2, 4, 8
STUDY_SECONDS = 2.24  # of one core: forward and backward pass of one image of 128 × 128 through it
FORWARD = 0.29  # the share of the forward pass
CORES_OF_GPU = 50  # cautious
SLOWER = 3.0  # how much slower a cluster's cores may be
LONGEST = 24 * 60  # minutes; most clusters allow no more, and each attempt goes on where the last one ended
PYTHON = 350  # MB of an interpreter with torch
SNAKEMAKE = 250  # MB of the two that start a job on a cluster and watch it
DATA_IN_MEMORY = 2e9  # bytes of images that training keeps at most
FEATURES_IN_MEMORY = 2 * 2**30  # bytes of features that the fits of a job keep at most
VALUES_PER_PIXEL = 1.875  # of all decoder layers, for each channel of the first level
PERCEPTRON_SECONDS = 0.03  # of one core: a head learns from one timestep of an image of the study's
CLOSED_SECONDS = 100  # of one core: a head without steps, for each timestep, at the study's size
VIEWS_KEPT = (
    0.9  # activations of both views of an image in a contrastive stage, of those of the whole network
)
VIEWS_SECONDS = 0.7  # likewise, the time of a step
SLICES = 100  # of a volume, in training
IMAGES_AT_ONCE = 16  # that a head or baseline predicts


@dataclass(frozen=True)
class Request:
    """What a job needs by estimate.

    Args:
        bytes: of memory at its peak.
        seconds: that it takes.
    """

    bytes: float
    seconds: float

    def mem_mb(self, attempt: int) -> int:
        """MB for the attempt 1, 2, …: a quarter more than the estimate, as often as it was tried."""
        return math.ceil((PYTHON + SNAKEMAKE + 1.25 * self.bytes / 1e6) / 100) * 100 * attempt

    def runtime(self, attempt: int) -> int:
        """Minutes for the attempt 1, 2, …: ten and thrice the estimate, as often as it was tried."""
        return min(LONGEST, math.ceil((10 + SLOWER * self.seconds / 60) / 5) * 5 * attempt)


def images_in(experiment: Experiment, dataset: str) -> int:
    """Images of a data set.

    Raises:
        FileNotFoundError: not known before it is prepared; Snakemake asks again then.
    """
    source = experiment.datasets[dataset].source
    if isinstance(source, PhantomSource):
        return source.count
    summary = Path(experiment.results, "data", f"{dataset}.json").read_text(encoding="utf-8")
    return int(sum(json.loads(summary)["splits"].values()))


def prepare(experiment: Experiment, dataset: str, threads: int) -> Request:
    """For preparing a data set with so many threads, each with large images in memory."""
    try:
        seconds = 0.2 * images_in(experiment, dataset) / threads
    except FileNotFoundError:
        seconds = 2400
    return Request(600e6 + 300e6 * threads, seconds)


def train(experiment: Experiment, backbone: str, threads: int, gpus: int) -> Request:
    """For training a diffusion model, in as many processes as there are GPUs."""
    model = experiment.backbones[backbone]
    if not isinstance(model, DDPMConfig):
        raise ValueError(f"{backbone} is not trained")
    parameters = _parameters(model.width, model.multipliers)
    image = _pixels(experiment) * experiment.image.channels * 4
    in_memory = min(DATA_IN_MEMORY, image * images_in(experiment, model.data))
    return Request(
        _in_processes(
            gpus, 28 * parameters + in_memory + _activations(experiment, model.width, model.training)
        ),
        _training_seconds(experiment, model.width, model.training, threads, gpus),
    )


def pretrain(experiment: Experiment, pretraining: str, threads: int, gpus: int) -> Request:
    """For a contrastive stage, in as many processes as there are GPUs."""
    model = experiment.pretraining[pretraining]
    network = experiment.encoder_of(pretraining)
    parameters = _parameters(network.width, network.multipliers)
    middle = (
        network.width * network.multipliers[-1] * _pixels(experiment) / 4 ** (len(network.multipliers) - 1)
    )
    if isinstance(model, GlobalCLConfig):
        parameters += middle * model.hidden  # the projection
    image = _pixels(experiment) * experiment.image.channels * 4
    in_memory = min(DATA_IN_MEMORY, image * images_in(experiment, model.data))
    kept = VIEWS_KEPT * _activations(experiment, network.width, model.training)
    return Request(
        _in_processes(gpus, 28 * parameters + in_memory + kept),
        VIEWS_SECONDS * _training_seconds(experiment, network.width, model.training, threads, gpus),
    )


def supervise(experiment: Experiment, baseline: str, threads: int, gpus: int) -> Request:
    """For training one supervised baseline, and for its predictions on validation images."""
    model = experiment.baselines[baseline]
    parameters = _parameters(model.width, model.multipliers)
    predicted = IMAGES_AT_ONCE * _forward_bytes(experiment, model.width)
    return Request(
        28 * parameters + predicted + _activations(experiment, model.width, model.training),
        _training_seconds(experiment, model.width, model.training, threads, min(1, gpus))
        * len(model.learning_rates or (None,)),
    )


def score_supervised(experiment: Experiment, baseline: str, threads: int, gpus: int) -> Request:
    """For scoring a baseline of all training sizes and seeds on every test set, so many sets at once."""
    model, asked = experiment.baselines[baseline], experiment.evaluation
    images = sum(images_in(experiment, dataset) for dataset in asked.test_on)
    fits = len(asked.train_sizes) * len(asked.seeds)
    network = 4 * _parameters(model.width, model.multipliers)
    return Request(
        threads * (network + IMAGES_AT_ONCE * _forward_bytes(experiment, model.width)),
        fits * images * _forward_seconds(experiment, model.width) / _speed(threads, min(1, gpus)),
    )


def extract(experiment: Experiment, backbone: str, dataset: str, threads: int, gpus: int) -> Request:
    """For extracting one timestep of a data set, or all together, in one process for each GPU."""
    return _extract(experiment, backbone, images_in(experiment, dataset), threads, gpus)


def extract_views(experiment: Experiment, backbone: str, views: int, threads: int, gpus: int) -> Request:
    """Likewise, so many views of the first training subjects."""
    return _extract(experiment, backbone, views * images_with_views(experiment), threads, gpus)


def images_with_views(experiment: Experiment) -> int:
    """Images of the training set that have views, at most; of volumes, with a usual number of slices."""
    dataset = experiment.datasets[experiment.evaluation.train_on]
    subjects, train = experiment.features.view_subjects, dataset.split.train
    if isinstance(train, int) and train:
        subjects = min(subjects, train)
    return subjects * (SLICES if isinstance(dataset.source, VOLUMES) else 1)


def views_taken(experiment: Experiment) -> dict[str, tuple[int, float]]:
    """What the views of an experiment take: forward passes and bytes in the store, by backbone."""
    read: dict[str, set[tuple[int, int]]] = {}
    for name, head in experiment.heads.items():
        views = range(1, head.views + 1)
        read.setdefault(experiment.backbone_of(name), set()).update(
            (timestep, view) for timestep in head.timesteps for view in views
        )
    images = images_with_views(experiment)
    return {
        backbone: (images * len(pairs), images * len(pairs) * feature_bytes(experiment, backbone))
        for backbone, pairs in read.items()
        if pairs
    }


def _extract(experiment: Experiment, backbone: str, images: int, threads: int, gpus: int) -> Request:
    width, features = _width(experiment, backbone), experiment.features
    model = experiment.backbones[backbone]
    parameters = _parameters(width, model.multipliers if isinstance(model, DDPMConfig) else (1, 2, 4, 8))
    shard = features.images_per_shard * feature_bytes(experiment, backbone)
    passes = images * (len(experiment.timesteps_together()) or 1)
    return Request(
        _in_processes(
            gpus, 4 * parameters + features.batch_size * _forward_bytes(experiment, width) + 2 * shard
        ),
        passes * _forward_seconds(experiment, width) / _speed(threads, gpus),
    )


def fit(experiment: Experiment, head: str, threads: int) -> Request:
    """For fitting a head for all training sizes and seeds, so many at once."""
    chosen, asked = experiment.heads[head], experiment.evaluation
    features = feature_bytes(experiment, experiment.backbone_of(head)) * len(chosen.timesteps)
    images = images_in(experiment, asked.train_on)
    if chosen.views:
        images += chosen.views * images_with_views(experiment)
    kept = min(FEATURES_IN_MEMORY, images * features)
    fits = len(asked.train_sizes) * len(asked.seeds)
    size = _pixels(experiment) / 128**2 * len(chosen.timesteps)
    seconds = CLOSED_SECONDS * size * (1 + chosen.views)  # of one fit
    if "steps" in chosen.settings:
        width = _width(experiment, experiment.backbone_of(head)) / 64
        seen = chosen.settings["steps"] * chosen.settings.get("batch_size", IMAGES_AT_ONCE)
        seconds = seen * PERCEPTRON_SECONDS * size * width
    # Each works on a batch as float32.
    return Request(
        500e6 + kept + threads * (500e6 + 2 * IMAGES_AT_ONCE * features),
        math.ceil(fits / threads) * seconds,
    )


def score(experiment: Experiment, head: str, threads: int) -> Request:
    """For scoring a head of all training sizes and seeds on every test set, so many sets at once."""
    chosen, asked = experiment.heads[head], experiment.evaluation
    features = feature_bytes(experiment, experiment.backbone_of(head)) * len(chosen.timesteps)
    images = sum(images_in(experiment, dataset) for dataset in asked.test_on)
    fits = len(asked.train_sizes) * len(asked.seeds)
    seconds = 0.02 * len(chosen.timesteps) * _pixels(experiment) / 128**2  # of an image
    return Request(
        300e6 + threads * (1000e6 + 2 * IMAGES_AT_ONCE * features), fits * images * seconds / threads
    )


def _in_processes(gpus: int, each: float) -> float:
    """Bytes where each GPU has a process: what each keeps, its interpreter, and that of torchrun."""
    return max(1, gpus) * each + (gpus * PYTHON * 1e6 if gpus > 1 else 0)


def _pixels(experiment: Experiment) -> int:
    return experiment.image.size**2


def _width(experiment: Experiment, backbone: str) -> int:
    """Channels of a backbone's first level; of a foreign one, those of the study's."""
    model = experiment.backbones[backbone]
    return model.width if isinstance(model, DDPMConfig) else 64


def _parameters(width: int, multipliers: Sequence[int]) -> float:
    return PARAMETERS * (width / 64) * (width / 64) * sum(m * m for m in multipliers) / 85


def feature_bytes(experiment: Experiment, backbone: str) -> float:
    """Of one image at one timestep, as it is stored."""
    size = 2 if experiment.features.dtype == "float16" else 4
    return VALUES_PER_PIXEL * _width(experiment, backbone) * _pixels(experiment) * size


def _forward_bytes(experiment: Experiment, width: int) -> float:
    """Of the activations of one image; attention has 128 channels whatever the width."""
    return _pixels(experiment) * (3700 + 40 * width)


def _activations(experiment: Experiment, width: int, training: OptimizerConfig) -> float:
    """Bytes that are kept for the backward pass of a micro-batch."""
    images = training.batch_size / training.accumulate
    return images * _pixels(experiment) * (11_100 + 273 * width)


def _image_seconds(experiment: Experiment, width: int) -> float:
    return STUDY_SECONDS * _pixels(experiment) / 128**2 * math.pow(width / 64, 1.5)


def _forward_seconds(experiment: Experiment, width: int) -> float:
    return FORWARD * _image_seconds(experiment, width)


def _training_seconds(
    experiment: Experiment, width: int, training: OptimizerConfig, threads: int, gpus: int
) -> float:
    images = training.steps * training.batch_size
    return images * _image_seconds(experiment, width) / _speed(threads, gpus)


def _speed(threads: int, gpus: int) -> float:
    """In cores."""
    return max(1, threads) if gpus == 0 else CORES_OF_GPU * gpus
