"""Profiles: they name rules that exist, agree with each other, and understand their schedulers."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
CLUSTERS = ("slurm", "generic", "kubernetes")
RULES = {
    name
    for file in PROJECT.glob("rules/*.smk")
    for name in re.findall(r"^rule (\w+):", file.read_text(), re.M)
}


def load(profile: str) -> dict[str, Any]:
    return dict(yaml.safe_load((PROJECT / "profiles" / profile / "config.yaml").read_text()))


@pytest.mark.parametrize("profile", CLUSTERS)
def test_a_profile_groups_rules_that_exist(profile: str) -> None:
    settings = load(profile)
    assert settings["groups"].keys() <= RULES
    assert settings["group-components"].keys() <= set(settings["groups"].values())
    assert settings["groups"]["extract_views"] == settings["groups"]["extract_features"]


def test_cluster_profiles_agree_but_for_how_jobs_are_submitted() -> None:
    common = (
        "groups",
        "group-components",
        "retries",
        "resources",
        "set-resource-scopes",
        "nolock",
        "rerun-incomplete",
    )
    first, *others = (load(profile) for profile in CLUSTERS)
    for other in others:
        assert {key: other[key] for key in common} == {key: first[key] for key in common}


def dry_run(folder: Path, profile: str, gpus: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    experiment = yaml.safe_load((PROJECT / "tests" / "slurm" / "experiment.yaml").read_text())
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment | {"gpus": gpus}))
    return subprocess.run(
        [
            *(str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(PROJECT / "Snakefile")),
            *("--workflow-profile", str(PROJECT / "profiles" / profile), "--directory", str(folder)),
            *("--cores", "8", "--dry-run", "--configfile", str(folder / "experiment.yaml"), *arguments),
        ],
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", CLUSTERS)
def test_snakemake_and_its_plugin_understand_the_profile(tmp_path: Path, profile: str) -> None:
    plugin = "slurm" if profile == "slurm" else "cluster_generic"
    pytest.importorskip(f"snakemake_executor_plugin_{plugin}")
    run = dry_run(tmp_path, profile, gpus=1)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "train_backbone" in run.stdout + run.stderr


@pytest.mark.slow
def test_more_gpus_than_the_profile_gives_a_job_are_refused_before_anything_runs(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm")
    run = dry_run(tmp_path, "slurm", gpus=2)
    assert run.returncode != 0
    assert "gpus: 2 in the experiment, but a job may have 1" in run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "half"), [(1, 1), (2, 1), (8, 4), (64, 8)])
def test_trainings_that_wait_for_no_other_share_the_cores(tmp_path: Path, cores: int, half: int) -> None:
    run = dry_run(tmp_path, "default", 0, "--cores", str(cores), "--quiet", "host")
    assert run.returncode == 0, run.stdout + run.stderr
    threads = {
        rule: int(given[1]) if (given := re.search(r"^    threads: (\d+)$", text, re.M)) else 1
        for rule, text in re.findall(r"^rule (\w+):\n((?:    .*\n)+)", run.stdout + run.stderr, re.M)
    }
    assert threads["train_backbone"] == threads["pretrain"] == half
    assert threads["fit_supervised"] == 1


def answer(folder: Path, program: str, script: str) -> None:
    """A program of a scheduler that answers as the real one does."""
    path = folder / program
    path.write_text(f"#!/usr/bin/env bash\necho {program} \"$@\" >> '{folder}/asked'\n{script}\n")
    path.chmod(0o755)


def ask(folder: Path, profile: str, *arguments: str) -> str:
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        [str(PROJECT / "profiles" / profile / "jobs.sh"), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=True,
    )
    return run.stdout.strip()


SUBMITTED = [
    ("lsf", "bsub", "echo 'Job <4711> is submitted to queue <normal>.'", "-M 8000 -W 90 -gpu num=1"),
    ("sge", "qsub", "echo 4711", "h_vmem=2000M,h_rt=5400 -l gpu=1"),
    ("pbs", "qsub", "echo 4711", "select=1:ncpus=4:mem=8000mb:ngpus=1 -l walltime=01:30:00"),
    ("slurm", "sbatch", "echo 4711", "--cpus-per-task=4 --mem=8000 --time=90 --gpus=1"),
]


@pytest.mark.parametrize(("scheduler", "program", "script", "asked"), SUBMITTED)
def test_jobs_are_submitted_with_what_they_need(
    tmp_path: Path, scheduler: str, program: str, script: str, asked: str
) -> None:
    answer(tmp_path, program, script)
    assert ask(tmp_path, "generic", scheduler, "submit", "4", "8000", "90", "1", "job.sh") == "4711"
    assert asked in (tmp_path / "asked").read_text()
    ask(tmp_path, "generic", scheduler, "submit", "4", "8000", "90", "0", "job.sh")
    assert "gpu" not in (tmp_path / "asked").read_text().splitlines()[-1]


STATES = [
    ("lsf", "bjobs", "echo PEND", "running"),
    ("lsf", "bjobs", "echo RUN", "running"),
    ("lsf", "bjobs", "echo DONE", "success"),
    ("lsf", "bjobs", "echo EXIT", "failed"),
    ("lsf", "bjobs", "exit 255", "failed"),
    ("pbs", "qstat", "echo '    job_state = Q'", "running"),
    ("pbs", "qstat", "echo '    job_state = F'; echo '    Exit_status = 0'", "success"),
    ("pbs", "qstat", "echo '    job_state = F'; echo '    Exit_status = 271'", "failed"),
    ("pbs", "qstat", "echo '    job_state = C'; echo '    exit_status = 0'", "success"),
    ("pbs", "qstat", "exit 153", "failed"),
    ("slurm", "squeue", "echo RUNNING", "running"),
    ("slurm", "squeue", "echo COMPLETED", "success"),
    ("slurm", "squeue", "echo OUT_OF_MEMORY", "failed"),
]


@pytest.mark.parametrize(("scheduler", "program", "script", "state"), STATES)
def test_states_of_jobs_are_understood(
    tmp_path: Path, scheduler: str, program: str, script: str, state: str
) -> None:
    answer(tmp_path, program, script)
    assert ask(tmp_path, "generic", scheduler, "status", "4711") == state


@pytest.mark.parametrize(
    ("qstat", "qacct", "state"),
    [
        ("exit 0", "exit 1", "running"),
        ("exit 1", "printf 'failed       0\\nexit_status  0\\n'", "success"),
        ("exit 1", "printf 'failed       0\\nexit_status  1\\n'", "failed"),
        ("exit 1", "printf 'failed       100\\nexit_status  137\\n'", "failed"),
        ("exit 1", "exit 1", "running"),  # its account is not written yet
    ],
)
def test_states_of_jobs_of_sge_are_understood(tmp_path: Path, qstat: str, qacct: str, state: str) -> None:
    answer(tmp_path, "qstat", qstat)
    answer(tmp_path, "qacct", qacct)
    assert ask(tmp_path, "generic", "sge", "status", "4711") == state


def test_a_job_of_kubernetes_has_what_it_needs_as_request_and_limit(tmp_path: Path) -> None:
    answer(tmp_path, "kubectl", "cat > body.yaml; echo job.batch/tedm-x7k2p")
    assert ask(tmp_path, "kubernetes", "submit", "4", "8000", "90", "2", "job.sh") == "tedm-x7k2p"
    body = yaml.safe_load((tmp_path / "body.yaml").read_text())
    container = body["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["bash", "job.sh"]
    assert container["workingDir"] == str(tmp_path)
    assert container["resources"]["requests"] == {"cpu": 4, "memory": "8000M"}
    assert container["resources"]["limits"] == {"cpu": 4, "memory": "8000M", "nvidia.com/gpu": 2}
    assert body["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 5400
    assert "activeDeadlineSeconds" not in body["spec"]  # there the time in the queue would count, too
    ask(tmp_path, "kubernetes", "submit", "4", "8000", "90", "0", "job.sh")
    body = yaml.safe_load((tmp_path / "body.yaml").read_text())
    assert "nvidia.com/gpu" not in body["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("exit 0", "running"),
        ("echo 'SuccessCriteriaMet Complete'", "success"),
        ("echo 'FailureTarget Failed'", "failed"),
        ("exit 1", "failed"),
    ],
)
def test_states_of_jobs_of_kubernetes_are_understood(tmp_path: Path, script: str, state: str) -> None:
    answer(tmp_path, "kubectl", script)
    assert ask(tmp_path, "kubernetes", "status", "tedm-x7k2p") == state
