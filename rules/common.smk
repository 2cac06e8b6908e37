# The experiment's settings, as the rules use them. No rule here, and nothing of torch.

import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from tedm import config as settings
from tedm import requests
from tedm.data.splits import shipped
from tedm.devices import driver_here
from tedm.digests import canonical_json
from tedm.errors import TedmError
from tedm.features.adopt import adopt_planned, recipe_of
from tedm.report import study
from tedm.running import RunLock

try:
    for file in workflow.configfiles:
        settings.read(
            Path(file)
        )  # as written: what Snakemake read has lost a key that is there twice
    EXPERIMENT = settings.parse(
        config, ", ".join(map(str, workflow.configfiles)) or "config"
    )
except TedmError as error:
    raise WorkflowError(str(error)) from None

RESULTS = EXPERIMENT.results
TRAIN_ON = EXPERIMENT.evaluation.train_on
TEST_ON = EXPERIMENT.evaluation.test_on
TRAIN_SIZES = EXPERIMENT.evaluation.train_sizes
SEEDS = EXPERIMENT.evaluation.seeds
# Of every head. Not among the params of its job, which one size or seed less must not run again.
FITS = " ".join(f"{n}/{seed}" for n in sorted(TRAIN_SIZES) for seed in sorted(SEEDS))
# Of every job with `--sdm conda`; docs/containers.md. A path seen from the files of rules.
ENVIRONMENT = f"../envs/tedm-{'cuda' if EXPERIMENT.gpus else 'cpu'}.yaml"
IMAGE = Path(workflow.basedir, "envs", "tedm.sif")  # likewise with `--sdm apptainer`
if (
    DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method
    and not IMAGE.exists()
):
    raise WorkflowError(
        f"{IMAGE}: there is no such image; make it:  apptainer build envs/tedm.sif envs/tedm.def"
        "  (docs/containers.md)"
    )
STARTED = time.time()
RUN_LOCK = RunLock(Path(RESULTS))
# Of one job, where the profile says so: jobs that share a submission take turns at them.
GPUS_ALLOWED = workflow.global_resources.get("gpu").value
if (
    workflow.is_main_process
    and GPUS_ALLOWED is not None
    and GPUS_ALLOWED < EXPERIMENT.gpus
):
    raise WorkflowError(
        f"gpus: {EXPERIMENT.gpus} in the experiment, but a job may have {GPUS_ALLOWED} (resources: gpu, in the"
        f" profile); make it {EXPERIMENT.gpus} there, or run with --resources gpu={EXPERIMENT.gpus}"
    )


# In the jobs of a cluster not again: they run what was planned.
if EXPERIMENT.features.location and workflow.is_main_process:
    for store, timesteps in adopt_planned(EXPERIMENT).items():
        listed = ", ".join(map(str, timesteps))
        print(f"{store}: timesteps {listed} are there already", file=sys.stderr)


def side_by_side(most, jobs):
    """Cores of a job beside which others can run, on the same machine: half of all, where there are such others. Two
    jobs on one core each do more than one after the other on two."""
    cores = (
        workflow.resource_settings.cores
    )  # None where nothing is run, as with --lint
    shared = (
        jobs > 1
        and cores is not None
        and not EXPERIMENT.gpus  # which jobs take turns at
        and workflow.local_exec  # a cluster's jobs have their cores to themselves, …
        and workflow.is_main_process  # … also in what starts them there
    )
    return min(most, max(1, cores // 2)) if shared else most


# Trainings of the experiment that wait for no other, roughly: one for each diffusion model, one for each chain of
# pretraining and baselines.
TRAININGS = sum(b.type == "ddpm" for b in EXPERIMENT.backbones.values()) + len(
    {baseline.pretrained for baseline in EXPERIMENT.baselines.values()}
)


def begun(directory):
    """What the last job in a directory wrote when it began, or, once it had ended well, what stood there before.

    To a job that fails Snakemake gives back its old outputs (`update`), and then takes them for what was asked for.
    As a parameter (of wildcards alone: no others are compared) this makes the next run see that they are not.
    """
    mark = Path(directory, ".begun")
    return mark.read_text().strip() if mark.exists() else ""


def one_of(names):
    """Regular expression of a wildcard that stands for one of these names."""
    return "|".join(names) or "(?!)"


def of_type(kind):
    """Regular expression for the backbones of one type."""
    return one_of(name for name, b in EXPERIMENT.backbones.items() if b.type == kind)


def directory_of(path, levels=1):
    """The directory so many levels above a file."""
    return str(Path(path).parents[levels - 1])


def manifests_of(head, datasets):
    """The manifests that say that all features a head reads are there."""
    backbone = EXPERIMENT.backbone_of(head)
    return [
        f"{RESULTS}/features/{backbone}/{dataset}.t{timestep:04d}.json"
        for dataset in datasets
        for timestep in sorted(EXPERIMENT.heads[head].timesteps)
    ]


def view_manifests_of(head):
    """The manifests that say that all views a head learns from are there."""
    views = EXPERIMENT.heads[head].views
    return [
        manifest.replace(".json", f".views{views}.json")
        for manifest in (manifests_of(head, [TRAIN_ON]) if views else [])
    ]


def data_of(datasets):
    """Prepared data sets; their summaries are the tracked inputs, since they hold the digests."""
    return [f"{RESULTS}/data/{dataset}.h5" for dataset in datasets]


# Of a job that extracts all of them; else each has a job of its own, and its number in the names of files.
TOGETHER = EXPERIMENT.timesteps_together()
EXTRACTED = "" if TOGETHER else ".t{timestep}"


def split_file(dataset):
    """The CSV that splits a data set, where it is the user's own."""
    file = EXPERIMENT.datasets[dataset].split.file
    return (
        []
        if file is None or file in shipped()
        else [str(Path(EXPERIMENT.data_root, file))]
    )


def prepare_spec(dataset):
    return {
        "name": dataset,
        "dataset": EXPERIMENT.datasets[dataset].model_dump(),
        "image": EXPERIMENT.image.model_dump(),
        "data_root": EXPERIMENT.data_root,
        "seed": EXPERIMENT.seed,
    }


def backbone_spec(backbone):
    return {
        "name": backbone,
        "backbone": EXPERIMENT.backbones[backbone].model_dump(),
        "seed": EXPERIMENT.seed,
    }


def pretrained_path(backbone):
    """The file or folder of a network that was trained elsewhere."""
    return str(Path(EXPERIMENT.data_root, EXPERIMENT.backbones[backbone].path))


def pretrained_files(backbone):
    """The same as files, since the time of a folder says nothing of what is in it."""
    path = Path(pretrained_path(backbone))
    if not path.is_dir():
        return str(path)
    return sorted(str(file) for file in path.rglob("*") if file.is_file())


def import_spec(backbone):
    chosen = EXPERIMENT.backbones[backbone]
    return {
        "type": chosen.type,
        "settings": canonical_json(chosen.model_dump(exclude={"type", "path"})),
        "size": EXPERIMENT.image.size,
        "channels": EXPERIMENT.image.channels,
    }


def store_for(manifest, dataset):
    """Where to keep features: beside their manifest, or in a place of many stores (ending in /)."""
    location = EXPERIMENT.features.location
    return (
        f"{location.rstrip('/')}/"
        if location
        else f"{directory_of(manifest)}/{dataset}.zarr"
    )


def extract_spec(w):
    return {
        "features": EXPERIMENT.features.model_dump(
            exclude={"location", "together", "view_subjects"}
        ),
        **({} if TOGETHER else {"timestep": int(w.timestep)}),
        "seed": EXPERIMENT.seed,
    }


def views_spec(w):
    return {**extract_spec(w), "recipe": recipe_of(EXPERIMENT).stated}


def fit_spec(head):
    chosen = EXPERIMENT.heads[head]
    # Absent where there are none: such heads are what they were before there were views.
    views = {"views": chosen.views, "recipe": recipe_of(EXPERIMENT).digest}
    return {
        **(views if chosen.views else {}),
        "name": head,
        "type": chosen.type,
        "settings": chosen.settings,
        "timesteps": sorted(chosen.timesteps),
        "layers": chosen.layers or EXPERIMENT.features.layers,
        "experiment_seed": EXPERIMENT.seed,
    }


def pretraining_spec(pretraining):
    chosen = EXPERIMENT.pretraining[pretraining]
    return {
        "name": pretraining,
        "pretraining": {
            **chosen.model_dump(),
            "augment": ranges_of(chosen.data, chosen.augment),
        },
        "seed": EXPERIMENT.seed,
    }


def digest_of_pretraining(name):
    """The file that says that a pretraining is complete; none where there is no name."""
    return [] if name is None else f"{RESULTS}/pretraining/{name}/digest.json"


def encoder_digest(pretraining):
    """The global stage that a local one starts from."""
    return digest_of_pretraining(
        getattr(EXPERIMENT.pretraining[pretraining], "encoder", None)
    )


def pretrained_digest(baseline):
    """The pretraining that a baseline starts from."""
    return digest_of_pretraining(EXPERIMENT.baselines[baseline].pretrained)


def ranges_of(dataset, own):
    """How a stage changes training images of a data set, as JSON."""
    ranges = EXPERIMENT.augmentation_of(dataset, own)
    return ranges.model_dump() if hasattr(ranges, "model_dump") else ranges or False


def supervised_spec(baseline, n, seed):
    chosen = EXPERIMENT.baselines[baseline]
    return {
        "name": baseline,
        "supervised": {
            **chosen.model_dump(exclude={"label"}),
            "augment": ranges_of(TRAIN_ON, chosen.augment),
        },
        "n": int(n),
        "seed": int(seed),
        "experiment_seed": EXPERIMENT.seed,
    }


def asked_metrics():
    """Measures beyond Dice; absent from the settings of a job where there are none."""
    metrics = sorted(EXPERIMENT.evaluation.metrics)
    return {"metrics": metrics} if metrics else {}


def score_spec(head):
    return {
        "method": head,
        "readings": EXPERIMENT.heads[head].readings,
        "datasets": TEST_ON,
        **asked_metrics(),
    }


def score_supervised_spec(baseline):
    return {
        "method": EXPERIMENT.method_of(baseline),
        "datasets": TEST_ON,
        **asked_metrics(),
    }


def cost_spec():
    """What is counted: one fitted head of each kind is enough, since all sizes and seeds cost the same."""
    return {
        "baselines": list(EXPERIMENT.baselines),
        "heads": {head: EXPERIMENT.backbone_of(head) for head in EXPERIMENT.heads},
        "n": max(TRAIN_SIZES),
        "seed": SEEDS[0],
    }


def cost_inputs():
    """One fitted head or baseline of each kind, and their backbones."""
    fitted = f"n{max(TRAIN_SIZES)}/seed{SEEDS[0]}"
    return [
        *(
            f"{RESULTS}/baselines/{b}/{fitted}/digest.json"
            for b in EXPERIMENT.baselines
        ),
        *(f"{RESULTS}/heads/{h}/{fitted}/head.safetensors" for h in EXPERIMENT.heads),
        *(
            f"{RESULTS}/backbones/{backbone}/digest.json"
            for backbone in sorted({*map(EXPERIMENT.backbone_of, EXPERIMENT.heads)})
        ),
    ]


def table4_spec():
    methods = [
        {
            "name": EXPERIMENT.method_of(name),
            "source": name,
            "backbone": None,
            "timesteps": [],
        }
        for name in EXPERIMENT.baselines
    ]
    for name, head in EXPERIMENT.heads.items():
        backbone = EXPERIMENT.backbone_of(name)
        for method, steps in {name: head.timesteps, **head.readings}.items():
            methods.append(
                {
                    "name": method,
                    "source": name,
                    "backbone": backbone,
                    "timesteps": sorted(steps),
                }
            )
    return {"methods": methods}


def labels_of(datasets):
    """Names and labels, as pairs: JSON sorts the keys of a mapping, and the order of a table is the user's."""
    return [[name, EXPERIMENT.datasets[name].label] for name in datasets]


def source_labels():
    """Names in tables, where they are not those of directories; absent where there are none."""
    names = {b: EXPERIMENT.method_of(b) for b in EXPERIMENT.baselines}
    labels = {name: label for name, label in names.items() if name != label}
    return {"labels": labels} if labels else {}


def report_spec():
    return {
        "title": EXPERIMENT.title,
        "synthetic": EXPERIMENT.synthetic,
        "methods": EXPERIMENT.methods(),
        "datasets": labels_of(TEST_ON),
        "sources": [*EXPERIMENT.baselines, *EXPERIMENT.heads],
        **source_labels(),
        "train_sizes": TRAIN_SIZES,
        "seeds": SEEDS,
        "level": EXPERIMENT.evaluation.level,
    }


def study_tables_spec():
    return {
        **report_spec(),
        "tables": study.tables(EXPERIMENT),
        "claims": study.claims(EXPERIMENT),
        "published": study.published_names(EXPERIMENT),
        "train_on": TRAIN_ON,
        "seed": EXPERIMENT.seed,
    }


def study_figures_spec():
    return {
        **report_spec(),
        "figures": study.figures(EXPERIMENT),
        "examples": study.examples(EXPERIMENT),
        "reliability": study.reliability(EXPERIMENT),
        "pipeline": study.pipeline(EXPERIMENT),
    }


def page_spec():
    return {
        **report_spec(),
        "tables": study.tables(EXPERIMENT),
        "left_out": study.left_out(EXPERIMENT),
        "figures": [
            "figure1",
            "learning_curves",
            *study.figures(EXPERIMENT),
            "segmentations",
            *study.examples(EXPERIMENT),
            *(["reliability"] if study.reliability(EXPERIMENT) else []),
            *(["uncertainty"] if EXPERIMENT.heads else []),
        ],
        "train_on": TRAIN_ON,
        "config": EXPERIMENT.model_dump(mode="json"),
    }


def study_figure_names():
    drawn = ["reliability"] if study.reliability(EXPERIMENT) else []
    return ["figure1", *study.figures(EXPERIMENT), *study.examples(EXPERIMENT), *drawn]


def score_files(methods=(*EXPERIMENT.baselines, *EXPERIMENT.heads)):
    """Every score file of some heads and baselines."""
    return [
        f"{RESULTS}/scores/{method}/n{n}/seed{seed}/{dataset}.csv"
        for method in methods
        for n in TRAIN_SIZES
        for seed in SEEDS
        for dataset in TEST_ON
    ]


def mask_files(n, seed):
    """The masks that every head and baseline predicted, for one training size and seed."""
    return [
        f"{RESULTS}/scores/{method}/n{n}/seed{seed}/{dataset}.npz"
        for dataset in TEST_ON
        for method in [*EXPERIMENT.baselines, *EXPERIMENT.heads]
    ]


def figure_size():
    """The training size that the example figure shows: a few labels, which is what the method is for."""
    return TRAIN_SIZES[len(TRAIN_SIZES) // 2]


def segmentations_spec():
    return {
        "synthetic": EXPERIMENT.synthetic,
        "sources": [*EXPERIMENT.baselines, *EXPERIMENT.heads],
        **source_labels(),
        "datasets": labels_of(TEST_ON),
        "n": figure_size(),
        "seed": SEEDS[0],
    }


def uncertainty_spec():
    heads = EXPERIMENT.heads
    one_for_all_steps = (
        name for name, head in heads.items() if head.settings.get("combine") == "share"
    )
    return {
        "synthetic": EXPERIMENT.synthetic,
        "sources": list(heads),
        "readings": {name: list(head.readings) for name, head in heads.items()},
        "datasets": labels_of(TEST_ON),
        "train_sizes": TRAIN_SIZES,
        "seeds": SEEDS,
        "shown": next(one_for_all_steps, None),
        "n": figure_size(),
        "seed": SEEDS[0],
    }


def begin_run():
    """Refuse to run beside another run: Snakemake would delete outputs under its feet."""
    try:
        RUN_LOCK.acquire()
    except OSError as error:
        raise WorkflowError(
            f"{RESULTS}: cannot be used for results ({error.strerror})"
        ) from None
    except TedmError as error:
        raise WorkflowError(str(error)) from None
    if EXPERIMENT.gpus and workflow.local_exec and not driver_here():
        print(
            f"gpus: {EXPERIMENT.gpus} in the experiment, but this machine has none: computing on the CPU",
            file=sys.stderr,
        )


def end_run():
    """Let the next run begin at once, from wherever it is started."""
    RUN_LOCK.release()


def announce_results():
    """Show the table at the end of a run that made it, and say where it is."""
    table = Path(RESULTS, "table1.md")
    if table.exists() and table.stat().st_mtime > STARTED:
        print(
            f"\n{table.read_text()}\nTable 1: {table.with_suffix('.csv')} (.md, .tex)",
            file=sys.stderr,
        )
