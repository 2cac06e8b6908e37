# The workflow's front door: which experiment, which files it makes, and the rules that make them.
#
#   snakemake --cores 8 results/table1.csv                                      the embedded demo (config.yaml)
#   snakemake --cores 8 --configfile experiments/xray64.yaml                    another experiment

from snakemake.utils import min_version

min_version("9.27")


# An experiment is one whole file: another one replaces config.yaml instead of being merged into it.
if not workflow.config_settings.configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"


container: str(IMAGE)


pathvars:
    results=EXPERIMENT.results,
    logs=f"{EXPERIMENT.results}/logs",
    benchmarks=f"{EXPERIMENT.results}/benchmarks",


wildcard_constraints:
    dataset="|".join(EXPERIMENT.datasets),
    backbone="|".join(EXPERIMENT.backbones),
    pretraining=one_of(EXPERIMENT.pretraining),
    head=one_of(EXPERIMENT.heads),
    baseline=one_of(EXPERIMENT.baselines),
    timestep=r"\d+",
    views=r"[1-9]\d*",
    n=r"\d+",
    seed=r"\d+",


rule all:
    """Everything that the experiment reports."""
    default_target: True
    input:
        "<results>/table1.csv",
        "<results>/table4.csv",
        "<results>/figures/learning_curves.png",
        "<results>/figures/segmentations.png",
        ["<results>/uncertainty.csv"] if EXPERIMENT.heads else [],
        "<results>/report.html",


include: "rules/data.smk"
include: "rules/backbones.smk"
include: "rules/pretraining.smk"
include: "rules/features.smk"
include: "rules/heads.smk"
include: "rules/evaluation.smk"
include: "rules/report.smk"


onstart:
    begin_run()


onsuccess:
    announce_results()
    end_run()


onerror:
    end_run()
