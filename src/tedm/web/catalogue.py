"""Which models the page offers: exported folders, or all of a finished experiment."""

from collections.abc import Sequence
from pathlib import Path

from tedm.backbones import Backbone
from tedm.config import Experiment
from tedm.errors import TedmError
from tedm.models import Model, Models
from tedm.models.export import describe
from tedm.models.model import assemble
from tedm.progress import say

FIRST_CHOICE = "TEDM"  # the study's own method


def finished(experiment: Experiment, device: str) -> Models:
    """Every head and baseline of an experiment, at every training size, of the first seed.

    Readings of a head (one of its timesteps alone) are left out: the page shows each timestep anyway.

    Raises:
        TedmError: none was fitted yet.
    """
    results, seed = Path(experiment.results), experiment.evaluation.seeds[0]
    shared: dict[str, Backbone] = {}
    models: list[Model] = []
    missing: list[str] = []
    for name in (*experiment.baselines, *experiment.heads):
        method = experiment.method_of(name)
        for n in experiment.evaluation.train_sizes:
            try:
                _, said, parts = describe(experiment, results, method, n, seed)
                # Its types were named in the experiment.
                models.append(assemble(said, parts, device, shared, allow_imports=True))
            except TedmError as error:
                missing.append(str(error))
    if not models:
        raise TedmError(f"no model to show: {missing[0] if missing else 'the experiment has no methods'}")
    if missing:
        say(f"{len(missing)} models are left out, the first because of {missing[0]}")
    return Models(models)


def first_choice(models: Models) -> tuple[list[str], list[int]]:
    """Methods and training sizes that are chosen when the page opens."""
    methods, sizes = methods_of(models), sizes_of(models)
    method = FIRST_CHOICE if FIRST_CHOICE in methods else methods[-1]
    fitted = [model.n for model in models.values() if model.method == method]
    # A dozen labels is what the study is about; else the most there are.
    return [method], [12 if 12 in fitted else max(fitted)] if sizes else []


def methods_of(models: Models) -> list[str]:
    """Names of the methods, in order."""
    return list(dict.fromkeys(model.method for model in models.values()))


def sizes_of(models: Models) -> list[int]:
    """Training sizes, ascending."""
    return sorted({model.n for model in models.values()})


def chosen(models: Models, methods: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Names of the models of some methods and training sizes."""
    return [name for name, model in models.items() if model.method in methods and model.n in sizes]
