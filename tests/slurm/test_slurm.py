"""An experiment on a real SLURM, where jobs and submitter are killed; it ends in the bytes of a local run.

tests/slurm/start.sh makes such a SLURM of one node. The whole demo instead of the smallest experiment:

    TEDM_SLURM_EXPERIMENT=config.yaml pytest tests/slurm
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
PROFILES = PROJECT / "profiles"
EXPERIMENT = PROJECT / os.environ.get("TEDM_SLURM_EXPERIMENT", "tests/slurm/experiment.yaml")
PATIENCE = 1800 if "TEDM_SLURM_EXPERIMENT" in os.environ else 600  # seconds for what has to come
CORES = 2
TABLE = "results/table1.csv"


def unusable() -> str | None:
    """Why there is no SLURM to test on."""
    if shutil.which("sinfo") is None:
        return "no SLURM here (tests/slurm/start.sh makes one, as root)"
    try:
        asked = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return "SLURM does not answer sinfo"
    if asked.returncode != 0 or not re.search("^(idle|mixed|allocated)$", asked.stdout, re.MULTILINE):
        return f"SLURM has no node that works: {(asked.stdout + asked.stderr).strip()}"
    return None


REASON = unusable()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT / "src")}


def command(directory: Path, profile: Path, *arguments: str, target: str = TABLE) -> list[str]:
    return [
        *(str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(PROJECT / "Snakefile")),
        *("--workflow-profile", str(profile), "--directory", str(directory)),
        *("--configfile", str(directory / "experiment.yaml"), "--cores", str(CORES), target, *arguments),
    ]


def submitting(directory: Path, gpus: int, *arguments: str) -> list[str]:
    """What a user types, but asking SLURM more often, and for preparing data less memory than it takes."""
    return command(
        directory,
        PROFILES / "slurm",
        *("--latency-wait", "5", "--resources", f"gpu={gpus}"),
        *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"),
        *("--set-threads", "prepare_data=1"),
        *("--set-resources", "prepare_data:mem_mb=60 * 40 ** (attempt - 1)"),
        *arguments,
    )


def write_experiment(directory: Path, gpus: int | None) -> int:
    experiment: dict[str, Any] = yaml.safe_load(EXPERIMENT.read_text())
    experiment["gpus"] = max(1, experiment.get("gpus", 0)) if gpus is None else gpus
    (directory / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return int(experiment["gpus"])


def jobs_of(directory: Path) -> dict[str, str]:
    """What SLURM's jobs of a run are for, by their number."""
    listed = subprocess.run(
        ["squeue", "-h", "-t", "pending,running", "-o", "%i|%Z|%k"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    rows = (line.split("|", 2) for line in listed.stdout.splitlines())
    return {number: comment for number, workdir, comment in rows if Path(workdir) == directory}


def wait_for(what: str, condition: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{what} did not come:\n{log.read_text()[-5000:]}")
        time.sleep(0.1)
    return found


@dataclass
class Story:
    """What happened to one experiment on the cluster."""

    directory: Path
    local: Path
    refused: subprocess.CompletedProcess[str] | None = None
    finished: dict[Path, int] = field(
        default_factory=dict
    )  # times of what was there when the submitter died
    before: str = ""  # what the submitter said until it was killed …
    after: str = ""  # … and the one after it


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    local, directory = tmp_path_factory.mktemp("local"), tmp_path_factory.mktemp("cluster")
    gpus = write_experiment(directory, None)
    write_experiment(local, 0)
    # As many threads as each of the cluster's processes has.
    threads = ("--set-threads", f"train_backbone={max(1, CORES // gpus)}")
    with (local / "log").open("w") as log:
        here = subprocess.Popen(
            command(local, PROFILES / "default", *threads), stdout=log, stderr=log, env=environment()
        )
    try:
        yield run_on_cluster(Story(directory, local), gpus)
        assert here.wait(PATIENCE) == 0, (local / "log").read_text()[-5000:]
    finally:
        here.kill()
        left = jobs_of(directory)
        if left:
            subprocess.run(["scancel", *left], check=False, timeout=30)


def run_on_cluster(story: Story, gpus: int) -> Story:
    directory, results = story.directory, story.directory / "results"
    log = directory / "log"
    arguments = submitting(directory, gpus)
    with log.open("wb") as file:
        submitter = subprocess.Popen(arguments, stdout=file, stderr=file, env=environment())
    try:
        state = results / "backbones" / "ddpm" / "state"
        wait_for("training", lambda: any(state.glob("*.safetensors")), submitter, log)
        training = next(number for number, what in jobs_of(directory).items() if "train_backbone" in what)
        subprocess.run(["scancel", training], check=True, timeout=30)
        story.refused = subprocess.run(
            arguments, capture_output=True, text=True, env=environment(), timeout=60
        )
        wait_for("extraction", lambda: any((results / "features").glob("*/*.json")), submitter, log)
    finally:
        submitter.send_signal(signal.SIGKILL)
        submitter.wait()
    story.before = log.read_text()
    done = [*results.glob("data/*.json"), results / "backbones/ddpm/digest.json"]
    story.finished = {path: path.stat().st_mtime_ns for path in done}
    again = subprocess.run(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        timeout=PATIENCE,
    )
    story.after = again.stdout
    assert again.returncode == 0, story.after[-5000:]
    return story


def test_a_job_out_of_memory_is_submitted_again_with_more(story: Story) -> None:
    first = story.before.index("Trying to restart job")
    assert "rule_prepare_data" in story.before[:first]
    assert "rule_train_backbone" not in story.before[:first]
    assert (story.directory / "results/data/jsrt.json").exists()


def test_a_job_cancelled_is_submitted_again_and_goes_on_where_it_was(story: Story) -> None:
    log = (story.directory / "results/logs/backbones/ddpm.log").read_text()
    step = re.search(r"going on from step (\d+)", log)
    assert step is not None, log
    assert int(step[1]) > 0
    assert len(re.findall(r"has been submitted with .*/rule_train_backbone/ddpm/", story.before)) == 2


def test_a_second_submitter_is_refused_and_told_of_the_first(story: Story) -> None:
    assert story.refused is not None
    assert story.refused.returncode != 0
    said = story.refused.stdout + story.refused.stderr
    assert "another snakemake is running on these results" in said
    assert "Traceback" not in said


def test_after_the_submitter_was_killed_nothing_finished_is_done_again(story: Story) -> None:
    assert len(story.finished) >= 2 + 1
    assert {path: path.stat().st_mtime_ns for path in story.finished} == story.finished
    assert "rule_train_backbone" not in story.after
    assert "rule_prepare_data" not in story.after


def test_gpus_that_cannot_be_used_are_named_and_the_job_computes_all_the_same(story: Story) -> None:
    log = (story.directory / "results/logs/backbones/ddpm.log").read_text()
    assert "a GPU was asked for and given, but torch" in log
    assert "computing on the CPU" in log


def test_the_table_is_that_of_a_local_run_byte_for_byte(story: Story) -> None:
    local = story.local / "log"
    deadline = time.monotonic() + PATIENCE
    while "100%" not in local.read_text() and time.monotonic() < deadline:
        time.sleep(0.5)
    for name in ("table1.csv", "table1.md", "table1.tex", "table1_long.csv"):
        expected = (story.local / "results" / name).read_bytes()
        assert (story.directory / "results" / name).read_bytes() == expected, name


def test_the_store_is_whole_and_holds_what_a_local_run_stores(story: Story) -> None:
    stores = sorted((story.directory / "results" / "features").glob("*/*.zarr"))
    assert stores
    for store in stores:
        tedm = str(Path(sys.executable).with_name("tedm"))
        checked = subprocess.run(
            [tedm, "store", "verify", str(store)], capture_output=True, text=True, env=environment()
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        other = story.local / store.relative_to(story.directory)
        shards = [p for p in store.rglob("*") if p.is_file() and p.name.startswith("c.")]
        assert shards
        for shard in shards:
            assert shard.read_bytes() == (other / shard.relative_to(store)).read_bytes(), shard


def test_the_generic_profile_submits_watches_and_ends_by_its_own_commands(
    story: Story, tmp_path: Path
) -> None:
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    profile = tmp_path / "generic"
    shutil.copytree(PROFILES / "generic", profile)
    config = (profile / "config.yaml").read_text()
    # What a user edits, and a path that holds from elsewhere.
    config = config.replace("profiles/generic/jobs.sh lsf", f"{profile}/jobs.sh slurm").replace(
        "bkill", "scancel"
    )
    (profile / "config.yaml").write_text(config)
    write_experiment(tmp_path, 0)
    often = ("--seconds-between-status-checks", "1", "--latency-wait", "5")
    arguments = command(tmp_path, profile, *often, target="results/data/jsrt.json")
    run = subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    assert run.returncode == 0, run.stderr[-5000:]
    assert re.search(r"Submitted job \d+ with external jobid '\d+'", run.stdout + run.stderr)
    made, local = (folder / "results/data/jsrt.json" for folder in (tmp_path, story.local))
    assert made.read_bytes() == local.read_bytes()
