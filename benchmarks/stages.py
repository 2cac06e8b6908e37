"""Measures the demo: each stage, the whole, a second call and a new head; prints one Markdown table.

python benchmarks/stages.py [--configfile config.yaml] [--cores 2]
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

PROJECT = Path(__file__).parents[1]
NEW_HEAD = {
    "type": "mlp",
    "combine": "share",
    "timesteps": [1, 10, 25],
    "steps": 150,
    "learning_rate": 1e-3,
    "validate_every": 25,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--configfile", type=Path, default=PROJECT / "config.yaml")
    options.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--out", type=Path)
    options.add_argument("--directory", type=Path, help="empty, to run in and to keep")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = given.directory or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        report = measure(directory, given.configfile, given.cores)
    print(report)
    if given.out:
        given.out.write_text(report)


def measure(directory: Path, configfile: Path, cores: int) -> str:
    experiment = yaml.safe_load(configfile.read_text())
    rows = []
    rows.append(("everything, from nothing", *run(directory, experiment, cores)))
    stages = stage_table(directory / experiment.get("results", "results"))
    rows.append(("the same call again", *run(directory, experiment, cores)))
    experiment["heads"]["New"] = NEW_HEAD
    rows.append(("one more head, all training sizes", *run(directory, experiment, cores)))
    lines = [
        f"Measured by `python benchmarks/stages.py` on {cores} cores of {processor()}, Python"
        f" {platform.python_version()}.",
        "",
        "| `snakemake --cores all results/table1.csv` | wall time | CPU time"
        " | peak memory, all processes |",
        "|---|--:|--:|--:|",
        *(
            f"| {what} | {wall:.0f} s | {cpu:.0f} s | {peak / 1e9:.2f} GB |"
            for what, wall, cpu, peak in rows
        ),
        "",
        "| rule | jobs | wall time, sum | longest job | peak memory of a job |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {row.Index} | {row.jobs} | {row.wall:.0f} s | {row.longest:.0f} s | {row.memory:.0f} MB |"
            for row in stages.itertuples()
        ),
    ]
    return "\n".join(lines) + "\n"


def run(directory: Path, experiment: dict[str, Any], cores: int) -> tuple[float, float, float]:
    """Run the experiment's table; wall seconds, CPU seconds, largest memory of all processes in bytes."""
    configfile = directory / "experiment.yaml"
    configfile.write_text(yaml.safe_dump(experiment, sort_keys=False))
    table = f"{experiment.get('results', 'results')}/table1.csv"
    command = [
        *(str(Path(sys.executable).with_name("snakemake")), "--cores", str(cores), table),
        *("--snakefile", str(PROJECT / "Snakefile"), "--directory", str(directory)),
        *("--workflow-profile", str(PROJECT / "profiles" / "default")),
        *("--configfile", str(configfile)),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start, spent = time.monotonic(), cpu_of_children()
    with (
        subprocess.Popen(command, env={**os.environ, "PATH": path}) as process,
        watched(process.pid) as peak,
    ):
        if process.wait():
            raise SystemExit(f"{' '.join(command)}: failed")
    return time.monotonic() - start, cpu_of_children() - spent, peak[0]


def cpu_of_children() -> float:
    """CPU seconds of all that ran below this process; Snakemake's figures miss the last part of a job."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def watched(pid: int) -> Iterator[list[float]]:
    """The largest memory of a process and all its descendants, sampled; shared pages count once each.

    Sampled seldom: whoever is looked at has to wait.
    """
    peak, over = [0.0], threading.Event()

    def sample() -> None:
        while not over.wait(2.0):
            total = 0
            try:
                root = psutil.Process(pid)
                for process in [root, *root.children(recursive=True)]:
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def stage_table(results: Path) -> pd.DataFrame:
    """Sums over the benchmark files that Snakemake wrote, by the first folder, in the chain's order."""
    rules = {
        "data": "prepare_data",
        "backbones": "train_backbone",
        "pretraining": "pretrain",
        "features": "extract_features",
        "heads": "fit_head",
        "baselines": "fit_supervised",
        "scores": "score_head, score_supervised",
    }
    jobs = pd.concat(
        pd.read_csv(file, sep="\t").assign(rule=rule)
        for folder, rule in rules.items()
        for file in sorted((results / "benchmarks" / folder).rglob("*.tsv"))
    )
    jobs["max_rss"] = pd.to_numeric(jobs["max_rss"], errors="coerce")  # NA: too short to be sampled
    return jobs.groupby("rule", sort=False).agg(
        jobs=("s", "size"), wall=("s", "sum"), longest=("s", "max"), memory=("max_rss", "max")
    )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
