"""How long Snakemake plans the whole study and a run with nothing to do, and what a cluster gets to do.

    python benchmarks/planning.py

The study's experiment with all its methods, eight training sizes and three seeds, in a temporary directory:
once with nothing made, once with every file there (empty ones). Prints a Markdown table of medians.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

from tedm import config

PROJECT = Path(__file__).parents[1]
SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", type=Path, default=PROJECT / "experiments" / "paper_cxr.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_experiment(arguments.experiment, directory, arguments.seeds)
        plan = snakemake(directory, "--dry-run", "all")
        jobs = jobs_of(plan)
        rows = [("planning everything", measure(directory, arguments.repeats, "--dry-run", "all"))]
        print(f"{sum(jobs.values())} jobs, {submissions(jobs)} submissions by profiles/slurm\n")
        finish(directory)
        if "Nothing to be done" not in snakemake(directory, "all"):
            sys.exit("the finished state is not finished")
        rows.append(("a run with nothing to do", measure(directory, arguments.repeats, "all")))
    print("| | seconds | slowest | of a core |\n|---|--:|--:|--:|")
    for what, (wall, cpu) in rows:
        print(
            f"| {what} | {statistics.median(wall):.1f} | {max(wall):.1f} | {statistics.median(cpu):.1f} |"
        )


def write_experiment(source: Path, directory: Path, seeds: int) -> None:
    """The experiment with so many seeds, whose split files are found from anywhere."""
    experiment = yaml.safe_load(source.read_text(encoding="utf-8"))
    experiment["results"] = "results"
    experiment["evaluation"]["seeds"] = list(range(seeds))
    (directory / "experiment.yaml").write_text(
        yaml.safe_dump(experiment, sort_keys=False), encoding="utf-8"
    )


def snakemake(directory: Path, *arguments: str, profile: str = "default") -> str:
    """What Snakemake says."""
    run = subprocess.run(
        [
            *(SNAKEMAKE, "--snakefile", str(PROJECT / "Snakefile"), "--directory", str(directory)),
            *("--workflow-profile", str(PROJECT / "profiles" / profile), "--cores", "8"),
            *arguments,
            *("--configfile", str(directory / "experiment.yaml")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        sys.exit(run.stdout + run.stderr)
    return run.stdout + run.stderr


def measure(directory: Path, repeats: int, *arguments: str) -> tuple[list[float], list[float]]:
    """Seconds of each call, and those of one core that it took: what a busy machine leaves alone."""
    wall, cpu = [], []
    for _ in range(repeats):
        began, before = time.perf_counter(), os.times()
        snakemake(directory, *arguments)
        wall.append(time.perf_counter() - began)
        after = os.times()
        cpu.append(sum(after[2:4]) - sum(before[2:4]))
    return wall, cpu


def jobs_of(said: str) -> Counter[str]:
    """Jobs of a dry run, by rule."""
    rows = dict(re.findall(r"^(\w+)\s+(\d+)$", said, flags=re.MULTILINE))
    return Counter({rule: int(n) for rule, n in rows.items() if rule not in ("total", "job", "all")})


def submissions(jobs: Counter[str]) -> int:
    """Submissions that the profile for SLURM makes of them."""
    profile = yaml.safe_load((PROJECT / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
    alone = sum(n for rule, n in jobs.items() if rule not in profile["groups"])
    together = 0
    for group in set(profile["groups"].values()):
        # Each job of a group's first rule is a part of its own; the report hangs together.
        members = [jobs[rule] for rule, name in profile["groups"].items() if name == group and jobs[rule]]
        parts = 1 if group == "report" else max(members, default=0)
        together += -(-parts // profile["group-components"].get(group, 1))
    return alone + together


def finish(directory: Path) -> None:
    """Make every file of the experiment, empty, and let Snakemake take them for its own."""
    listed = snakemake(directory, "--summary", "all")
    rows = [line.split("\t")[0] for line in listed.splitlines() if line.startswith("results/")]
    for name in rows:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"splits": {"test": 100}}) if "/data/" in name else "", encoding="utf-8")
    for path in (directory / name for name in rows):
        os.utime(path, (path.parent.stat().st_atime, 1.6e9))
    snakemake(directory, "--touch", "all")


if __name__ == "__main__":
    config.load(PROJECT / "config.yaml")  # so that nothing is measured while bytecode is written
    main()
