"""What of an experiment answers to what of the study: its tables, its figures, its claims, its names."""

from collections.abc import Iterator
from typing import Any

from tedm import measures
from tedm.config import VOLUMES, DDPMConfig, Experiment

SMALL = 50  # the largest timestep that the study calls small (Rosnati et al. 2023, 4.1)
SUPERVISED = "Sup. Baseline"
GENERALISING = "Small steps generalise better"
METHODS = ("Global CL", "Global & Local CL", "LEDM", "LEDMe", "TEDM")
DATASETS = {"jsrt": "JSRT", "nih": "NIH", "montgomery": "Montgomery", "ukbb": "UKBB", "brats": "BraTS"}


def tables(e: Experiment) -> dict[str, dict[str, Any]]:
    """The study's tables that this experiment has data for, beside Table 1, which every experiment has.

    And one of its own, `further`: what is scored beyond Dice, precision and recall, where it is asked for.

    Returns:
        By name (table2, …): title, metrics, methods (rows) and datasets (names).
    """
    flat, volumes = _datasets(e)
    everything = e.methods()
    ablation = _ablation(e)
    wanted = {
        "table2": ("Ablation: single steps of shared heads", ["dice"], ablation, flat),
        "table3": ("Dice of volumes", ["dice"], everything, volumes),
        "table5": ("Precision and recall", ["precision", "recall"], everything, flat),
        "table6": ("Precision and recall of volumes", ["precision", "recall"], everything, volumes),
        "further": ("More than Dice", list(e.evaluation.metrics), everything, [*flat, *volumes]),
    }
    return {
        name: {"title": title, "metrics": metrics, "methods": methods, "datasets": datasets}
        for name, (title, metrics, methods, datasets) in wanted.items()
        if metrics and methods and datasets
    }


def figures(e: Experiment) -> dict[str, dict[str, Any]]:
    """The study's figures of scores that this experiment has data for: 2 and 5, curves of single timesteps.

    Returns:
        By name (figure2, …): metrics, steps (pairs of timestep and method), beside (methods drawn with
        them) and datasets (names).
    """
    flat, volumes = _datasets(e)
    ridge = next((steps for kind, steps, _ in _single_steps(e) if kind == "ridge"), {})
    concatenated = [name for name, head in e.heads.items() if head.settings.get("combine") == "concat"]
    beside = [*(_supervised(e) or [e.method_of(name) for name in e.baselines])[:1], *concatenated[:1]]
    wanted = {"figure2": ["dice"], "figure5": ["precision", "recall"]}
    return {
        name: {
            "metrics": metrics,
            "steps": [[t, ridge[t]] for t in sorted(ridge)],
            "beside": beside,
            "datasets": flat or volumes,
        }
        for name, metrics in wanted.items()
        if ridge
    }


def examples(e: Experiment) -> dict[str, str]:
    """Figures of segmentations by training size (3 and 4), each of one test set: name and data set."""
    flat, volumes = _datasets(e)
    return {f"figure3_{d}": d for d in flat} | {f"figure4_{d}": d for d in volumes}


def reliability(e: Experiment) -> dict[str, int] | None:
    """The training size whose calibration is drawn; None where no calibration was asked for."""
    if set(measures.CALIBRATION).isdisjoint(e.evaluation.metrics):
        return None
    sizes = e.evaluation.train_sizes
    return {"n": sizes[len(sizes) // 2]}


def left_out(e: Experiment) -> list[str]:
    """What of the study's tables and figures this experiment cannot show, and why; one sentence each."""
    flat, volumes = _datasets(e)
    reasons = []
    if not flat:
        reasons.append("Tables 2 and 5, Figure 3: no test set of radiographs (JSRT, NIH, Montgomery).")
    elif not _ablation(e):
        reasons.append("Table 2: no head that shares one network between timesteps is read at single ones.")
    if not volumes:
        reasons.append("Tables 3 and 6, Figure 4: no test set of volumes (UK Biobank, BraTS).")
    if not figures(e):
        reasons.append("Figures 2 and 5: no ridge head is read at single timesteps.")
    return reasons


def claims(e: Experiment) -> list[dict[str, Any]]:
    """The study's claims as comparisons between methods of this experiment.

    Returns:
        Each with claim, better and worse (names of methods, whose scores are averaged), how the two are
        called in a sentence, and whether it is about other domains than that of the labels.
    """
    return [
        {
            "claim": claim,
            "better": better,
            "worse": worse,
            "names": [better_name, worse_name],
            "out_of_domain": claim == GENERALISING,
        }
        for claim, better, worse, better_name, worse_name in _claims(e)
    ]


def pipeline(e: Experiment) -> dict[str, Any]:
    """The names and numbers that the drawing of the pipeline shows."""
    trained_on = [e.datasets[b.data].label for b in e.backbones.values() if isinstance(b, DDPMConfig)]
    return {
        "unlabelled": list(dict.fromkeys(trained_on)),
        "train_on": e.datasets[e.evaluation.train_on].label,
        "test_on": [e.datasets[d].label for d in e.evaluation.test_on],
        "backbones": list(e.backbones),
        "heads": list(e.heads),
        "baselines": [e.method_of(name) for name in e.baselines],
        "timesteps": sorted({t for head in e.heads.values() for t in head.timesteps}),
        "train_sizes": e.evaluation.train_sizes,
    }


def published_names(e: Experiment) -> dict[str, dict[str, str]]:
    """Which data sets and methods of this experiment the study has numbers for, and under which name.

    Data sets are known by their source or their name; phantoms are never the study's. Methods are known by
    their names; readings of TEDM at one timestep are the study's Step 1, Step 10 and Step 25.
    """
    datasets = {}
    for name in e.evaluation.test_on:
        if name not in e.synthetic:
            kind = e.datasets[name].source.type
            known = DATASETS.get("nih" if kind == "xlsor" else kind) or DATASETS.get(name.lower())
            if known is not None:
                datasets[name] = known
    names = (e.method_of(name) for name in (*e.heads, *e.baselines))
    methods = {name: name for name in names if name in METHODS}
    methods |= dict.fromkeys(_supervised(e)[:1], SUPERVISED)
    if "TEDM" in e.heads:
        for reading, steps in e.heads["TEDM"].readings.items():
            if len(steps) == 1:
                methods[reading] = f"Step {steps[0]}"
    return {"datasets": datasets, "methods": methods}


def _datasets(e: Experiment) -> tuple[list[str], list[str]]:
    """Test sets of single images, and of volumes."""
    volumes = [d for d in e.evaluation.test_on if isinstance(e.datasets[d].source, VOLUMES)]
    return [d for d in e.evaluation.test_on if d not in volumes], volumes


def _supervised(e: Experiment) -> list[str]:
    """Baselines that learn from labelled images alone, as the tables call them."""
    return [e.method_of(name) for name, baseline in e.baselines.items() if baseline.pretrained is None]


def _single_steps(e: Experiment) -> Iterator[tuple[str, dict[int, str], str]]:
    """Type, readings at one timestep, and name of each head that has some."""
    for name, head in e.heads.items():
        steps = {steps[0]: reading for reading, steps in head.readings.items() if len(steps) == 1}
        if steps:
            yield ("ridge" if head.type == "ridge" else "other"), steps, name


def _ablation(e: Experiment) -> list[str]:
    """Heads that share one network between timesteps, with their readings at one step."""
    rows: list[str] = []
    for kind, steps, name in _single_steps(e):
        if kind != "ridge":
            rows += [name, *(steps[t] for t in sorted(steps))]
    return rows


def _claims(e: Experiment) -> Iterator[tuple[str, list[str], list[str], str, str]]:
    for kind, steps, name in _single_steps(e):
        small = [steps[t] for t in sorted(steps) if t <= SMALL]
        large = [steps[t] for t in sorted(steps) if t > SMALL]
        if kind == "ridge" and small and large:
            yield (
                GENERALISING,
                small,
                large,
                f"the average of {name} at single steps up to {SMALL}",
                f"the average of {name} at single steps above {SMALL}",
            )
    shared = {n: h for n, h in e.heads.items() if h.settings.get("combine") == "share"}
    concatenated = {n: h for n, h in e.heads.items() if h.settings.get("combine") == "concat"}
    for name, head in shared.items():
        for other, its in concatenated.items():
            alike = its.backbone == head.backbone and its.views == head.views
            if alike and set(its.timesteps) == set(head.timesteps):
                yield (
                    "Concatenation hurts",
                    [name],
                    [other],
                    f"{name} (one network for all steps, which vote)",
                    f"{other} (the same steps, concatenated)",
                )
    for _, steps, name in _single_steps(e):
        yield (
            "Voting beats single steps",
            [name],
            [steps[t] for t in sorted(steps)],
            f"{name} (its steps vote)",
            f"{'the average of its single steps' if len(steps) > 1 else 'its single step'}"
            f" (t = {', '.join(map(str, sorted(steps)))})",
        )
    for name in shared:
        for baseline in map(e.method_of, e.baselines):
            rival = "the supervised network" if baseline in _supervised(e) else "contrastive pretraining"
            yield f"Diffusion features beat {rival}", [name], [baseline], name, baseline
