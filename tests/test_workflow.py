"""Whole runs of a tiny experiment: what is planned, what survives a kill, what comes out."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

PROJECT = Path(__file__).parents[1]
TINY = yaml.safe_load((PROJECT / "tests" / "tiny.yaml").read_text())

pytestmark = pytest.mark.slow


def command(directory: Path, *arguments: str) -> list[str]:
    return [
        str(Path(sys.executable).with_name("snakemake")),
        *("--snakefile", str(PROJECT / "Snakefile")),
        *("--workflow-profile", str(PROJECT / "profiles" / "default")),
        *("--directory", str(directory)),
        *("--configfile", str(directory / "experiment.yaml")),
        *("--cores", "2"),
        *arguments,
    ]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path}


def snakemake(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(directory, *arguments), capture_output=True, text=True, env=environment(), timeout=600
    )


def write_experiment(directory: Path, change: Callable[[dict[str, Any]], Any] = lambda e: None) -> None:
    experiment = yaml.safe_load(yaml.safe_dump(TINY))
    change(experiment)
    (directory / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    write_experiment(directory)
    run = snakemake(directory, "all")
    assert run.returncode == 0, run.stderr[-5000:]
    return directory


def planned(
    finished: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any] = lambda e: None
) -> Counter[str]:
    """Jobs that Snakemake would run for Table 1 after a change, by rule."""
    directory = tmp_path / "copy"
    shutil.copytree(finished, directory, symlinks=True)  # copy2: keeps modification times
    write_experiment(directory, change)
    run = snakemake(directory, "--dry-run", "results/table1.csv")
    assert run.returncode == 0, run.stdout + run.stderr
    rows = re.findall(r"^(\w+)\s+(\d+)$", run.stdout + run.stderr, flags=re.MULTILINE)
    return Counter({rule: int(count) for rule, count in rows if rule not in ("total", "job")})


def test_a_finished_experiment_plans_nothing(finished: Path, tmp_path: Path) -> None:
    assert planned(finished, tmp_path) == {}


def test_a_new_head_plans_only_its_fits_and_scores(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        e["heads"]["LEDM"] = {"type": "mlp", "combine": "concat", "timesteps": [10, 200], "steps": 5}

    assert planned(finished, tmp_path, change) == {"fit_head": 1, "score_head": 1, "table1": 1}


def test_a_new_ablation_plans_no_fit(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        e["heads"]["TEDM"]["readings"] = {"TEDM t=10": [10]}

    assert planned(finished, tmp_path, change) == {"score_head": 1, "table1": 1}


def test_a_new_training_size_plans_only_its_own_fits(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        e["evaluation"]["train_sizes"].append(3)

    assert planned(finished, tmp_path, change) == {
        "fit_head": 2,
        "score_head": 2,
        "fit_supervised": 1,
        "score_supervised": 1,
        "table1": 1,
    }


def test_a_new_seed_plans_only_its_own_fits(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        e["evaluation"]["seeds"] = [0, 1]

    assert planned(finished, tmp_path, change) == {
        "fit_head": 2,
        "score_head": 2,
        "fit_supervised": 2,
        "score_supervised": 1,
        "table1": 1,
    }


def test_contrastive_baselines_plan_each_pretraining_once(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        network = e["baselines"]["Supervised"]
        brief = {"data": "cxr", "training": {"steps": 2, "batch_size": 2}}
        e["pretraining"] = {
            "global": {"type": "global", "width": 8, "multipliers": [1, 2], **brief},
            "local": {"type": "local", "encoder": "global", **brief},
        }
        e["baselines"]["global_cl"] = {**network, "label": "Global CL", "pretrained": "global"}
        e["baselines"]["local_cl"] = {**network, "label": "Global & Local CL", "pretrained": "local"}

    assert planned(finished, tmp_path, change) == {
        "pretrain": 2,
        "fit_supervised": 4,
        "score_supervised": 2,
        "table1": 1,
    }


def test_the_published_experiment_is_planned_without_its_data(tmp_path: Path) -> None:
    paper = yaml.safe_load((PROJECT / "experiments" / "paper_cxr.yaml").read_text())
    for network in (*paper["backbones"].values(), *paper["pretraining"].values()):
        assert network["training"]["steps"] == 100_000
    assert {b["training"]["steps"] for b in paper["baselines"].values()} == {20_000}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(paper))
    run = snakemake(tmp_path, "--dry-run", "results/paper_cxr/table1.csv")
    assert run.returncode == 0, run.stdout + run.stderr
    found = dict(re.findall(r"^(\w+)\s+(\d+)$", run.stdout + run.stderr, flags=re.MULTILINE))
    expected = {
        "train_backbone": 1,
        "pretrain": 2,
        "fit_supervised": 24,
        "score_supervised": 3,
        "fit_head": 4,
    }
    assert {rule: int(found[rule]) for rule in expected} == expected


def test_a_new_training_size_fits_and_scores_nothing_that_is_there(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        e["evaluation"]["train_sizes"].append(3)

    directory = tmp_path / "copy"
    shutil.copytree(finished, directory, symlinks=True)
    results = directory / "results"
    write_experiment(directory, change)
    wanted = [f"results/scores/{method}/n3/seed0/jsrt.csv" for method in ("TEDM", "Supervised")]
    before = {f: f.read_bytes() for part in ("heads", "scores") for f in (results / part).rglob("n?/*/*.*")}
    run = snakemake(directory, *wanted)
    assert run.returncode == 0, run.stdout + run.stderr
    log = (results / "logs/heads/TEDM.log").read_text()
    assert log.count("fitted before") == 2
    assert log.count(": fitted, in ") == 1
    for method in ("TEDM", "Supervised"):
        log = (results / "logs/scores" / f"{method}.log").read_text()
        assert log.count("before") == 2 * 2
        assert log.count(": scored ") == (2 + 1) * 2
    assert {f: f.read_bytes() for f in before} == before
    again = snakemake(directory, "--dry-run", *wanted)
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize("how", ["diverges", "is killed"])
def test_a_head_whose_fit_fails_after_a_change_is_planned_again(
    finished: Path, tmp_path: Path, how: str
) -> None:
    def change(e: dict[str, Any]) -> None:
        e["heads"]["TEDM"].update({"learning_rate": 1e30} if how == "diverges" else {"steps": 100_000})

    directory = tmp_path / "copy"
    shutil.copytree(finished, directory, symlinks=True)
    heads = {f: f.read_bytes() for f in (directory / "results/heads/TEDM").rglob("head.safetensors")}
    write_experiment(directory, change)
    if how == "diverges":
        assert snakemake(directory, "results/table1.csv").returncode != 0
    else:  # the job alone, as for want of memory: Snakemake takes it for a failure
        run = subprocess.Popen(
            command(directory, "results/table1.csv"),
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not list(directory.rglob("heads/TEDM/*/*/state/*")) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in psutil.Process(run.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[2:3] == ["fit"]:
                    process.kill()
        assert run.wait(60) != 0
    again = snakemake(directory, "--dry-run", "results/table1.csv")
    assert re.search(r"^fit_head +1$", again.stdout + again.stderr, re.MULTILINE), again.stderr
    # Back at the old settings the old heads are what is asked for.
    write_experiment(directory)
    run_back = snakemake(directory, "results/table1.csv")
    assert run_back.returncode == 0, run_back.stderr
    assert {f: f.read_bytes() for f in heads} == heads
    assert (directory / "results/logs/heads/TEDM.log").read_text().count("fitted before") == 2
    again = snakemake(directory, "--dry-run", "results/table1.csv")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_change_of_the_report_plans_the_report_alone(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        e["evaluation"]["level"] = 0.01

    assert planned(finished, tmp_path, change) == {"table1": 1}


def test_a_new_timestep_is_extracted_alone(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        e["heads"]["LEDM"] = {"type": "mlp", "combine": "concat", "timesteps": [10, 50], "steps": 5}

    plan = planned(finished, tmp_path, change)
    assert plan == {"extract_features": 2, "fit_head": 1, "score_head": 1, "table1": 1}


def test_timesteps_extracted_together_are_those_extracted_one_by_one(
    finished: Path, tmp_path: Path
) -> None:
    def together(e: dict[str, Any]) -> None:
        e["features"]["together"] = True

    def one_more(e: dict[str, Any]) -> None:
        together(e)
        e["heads"]["LEDM"] = {"type": "mlp", "combine": "concat", "timesteps": [10, 50], "steps": 5}

    directory = tmp_path / "copy"
    shutil.copytree(finished, directory, symlinks=True)
    features = directory / "results/features/ddpm"
    before = {f.relative_to(features): f.read_bytes() for f in features.rglob("*") if f.is_file()}
    shutil.rmtree(features)
    write_experiment(directory, together)
    run = snakemake(directory, "results/table1.csv")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (run.stdout + run.stderr).count("Rule: extract_features") == 2  # a job for each data set
    after = {f.relative_to(features): f.read_bytes() for f in features.rglob("*") if f.is_file()}
    assert after == before

    write_experiment(directory, one_more)
    kept = {f: f.stat().st_mtime_ns for f in features.rglob("c.*") if f.is_file()}
    run = snakemake(directory, "results/features/ddpm/jsrt.t0050.json")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (features / "jsrt.t0050.json").exists()
    assert kept
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    log = (directory / "results/logs/features/ddpm/jsrt.log").read_text()
    assert log.count("is there already") == 2
    run = snakemake(directory, "results/table1.csv")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (run.stdout + run.stderr).count("Rule: extract_features") == 1
    assert (run.stdout + run.stderr).count("Rule: fit_head") == 1


def with_views(views: int, change: Callable[[dict[str, Any]], Any] = lambda e: None) -> Callable[..., None]:
    """The experiment with a head that learns from so many views."""

    def changed(e: dict[str, Any]) -> None:
        e["features"]["view_subjects"] = 3
        e["heads"]["TEDM-views"] = {**e["heads"]["TEDM"], "views": views}
        change(e)

    return changed


def gamma(e: dict[str, Any]) -> None:
    e["augmentation"] = {"gamma": 0.3}


def more_subjects(e: dict[str, Any]) -> None:
    e["features"]["view_subjects"] = 4


@pytest.fixture(scope="module")
def viewed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment, after the head was added and the same command was run again."""
    directory = tmp_path_factory.mktemp("viewed") / "copy"
    shutil.copytree(finished, directory, symlinks=True)
    write_experiment(directory, with_views(2))
    results = directory / "results"
    parts = ("data", "backbones", "features", "heads", "baselines", "scores")
    before = {f: f.read_bytes() for part in parts for f in (results / part).rglob("*") if f.is_file()}
    run = snakemake(directory, "results/table1.csv")
    assert run.returncode == 0, run.stdout + run.stderr
    rules = Counter(re.findall(r"Rule: (\w+)", run.stdout + run.stderr))
    assert rules == {"extract_views": 2, "fit_head": 1, "score_head": 1, "table1": 1}
    changed = {f.relative_to(results) for f, content in before.items() if f.read_bytes() != content}
    # The records of the two timesteps, which have the shards of the views now.
    assert {str(f) for f in changed} == {f"features/ddpm/jsrt.zarr/t{t:04d}/zarr.json" for t in (10, 200)}
    return directory


def test_a_head_with_views_is_a_method_of_the_table_and_plans_nothing_again(
    viewed: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(viewed / "results" / "table1_long.csv")
    assert set(table.method) == {"Supervised", "LR", "LR t=10", "TEDM", "TEDM-views"}
    own = table[table.method == "TEDM-views"]["mean"].to_numpy()
    assert (own != table[table.method == "TEDM"]["mean"].to_numpy()).any()
    assert planned(viewed, tmp_path, with_views(2)) == {}


@pytest.mark.parametrize(
    ("change", "plan"),
    [
        (with_views(4), {"extract_views": 2, "fit_head": 1, "score_head": 1, "table1": 1}),
        (with_views(0), {"fit_head": 1, "score_head": 1, "table1": 1}),
        (with_views(2, more_subjects), {"extract_views": 2, "fit_head": 1, "score_head": 1, "table1": 1}),
        # The baseline augments its images, too.
        (
            with_views(2, gamma),
            {
                "extract_views": 2,
                "fit_head": 1,
                "score_head": 1,
                "fit_supervised": 2,
                "score_supervised": 1,
                "table1": 1,
            },
        ),
    ],
    ids=["more views", "no views", "more subjects", "other ranges"],
)
def test_a_change_of_views_plans_what_reads_them(
    viewed: Path, tmp_path: Path, change: Callable[..., None], plan: dict[str, int]
) -> None:
    assert planned(viewed, tmp_path, change) == plan


def test_ranges_are_nothing_to_heads_without_views(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        gamma(e)
        more_subjects(e)

    assert planned(finished, tmp_path, change) == {"fit_supervised": 2, "score_supervised": 1, "table1": 1}


def test_more_views_are_computed_beside_those_that_are_there(viewed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(viewed, directory, symlinks=True)
    write_experiment(directory, with_views(4))
    features = directory / "results/features/ddpm"
    kept = {f: f.stat().st_mtime_ns for f in features.rglob("c.*") if f.is_file()}
    heads = [
        f for name in ("LR", "TEDM") for f in (directory / "results/heads" / name).rglob("*.safetensors")
    ]
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in heads}
    run = snakemake(directory, "results/heads/TEDM-views/n1/seed0/head.safetensors")
    assert run.returncode == 0, run.stdout + run.stderr
    assert kept
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    views = {f.parent.parent.name[:5] for f in features.rglob("t0010/view*/*/c.*")}
    assert views == {"view1", "view2", "view3", "view4"}
    assert {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in heads} == before
    log = (directory / "results/logs/features/ddpm/jsrt.t0010.views4.log").read_text()
    assert "12/12 images" in log  # of which six were there
    # Back at two, those are found.
    write_experiment(directory, with_views(2))
    run = snakemake(directory, "--dry-run", "results/heads/TEDM-views/n1/seed0/head.safetensors")
    assert not re.search(r"^extract_views ", run.stdout + run.stderr, flags=re.MULTILINE)


def test_views_extracted_together_are_those_extracted_one_by_one(viewed: Path, tmp_path: Path) -> None:
    def together(e: dict[str, Any]) -> None:
        e["features"]["together"] = True

    directory = tmp_path / "copy"
    shutil.copytree(viewed, directory, symlinks=True)
    features = directory / "results/features/ddpm"
    before = {f.relative_to(features): f.read_bytes() for f in features.rglob("*") if f.is_file()}
    shutil.rmtree(features)
    write_experiment(directory, with_views(2, together))
    run = snakemake(directory, "results/heads/TEDM-views/n1/seed0/head.safetensors")
    assert run.returncode == 0, run.stdout + run.stderr
    rules = Counter(re.findall(r"Rule: (\w+)", run.stdout + run.stderr))
    assert (rules["extract_features"], rules["extract_views"]) == (1, 1)
    after = {f.relative_to(features): f.read_bytes() for f in features.rglob("*") if f.is_file()}
    assert after == {name: content for name, content in before.items() if "nih" not in str(name)}


def test_comments_and_order_in_the_config_plan_nothing(finished: Path, tmp_path: Path) -> None:
    def change(e: dict[str, Any]) -> None:
        e["backbones"]["ddpm"] = dict(reversed(e["backbones"]["ddpm"].items()))
        e["title"] = TINY["title"]

    assert planned(finished, tmp_path, change) == {}


def test_new_modification_times_plan_nothing(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "clone"
    shutil.copytree(PROJECT, directory, ignore=shutil.ignore_patterns(".*", "results"))
    shutil.copytree(finished / "results", directory / "results")
    shutil.copytree(finished / ".snakemake", directory / ".snakemake")
    write_experiment(directory)
    for path in directory.rglob("*"):
        if "results" not in path.parts:
            path.touch()
    run = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("snakemake")), "--cores", "1"),
            *("--configfile", "experiment.yaml", "--dry-run", "results/table1.csv"),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert "Nothing to be done" in run.stdout + run.stderr, run.stdout + run.stderr


def test_table_has_every_method_data_set_and_size(finished: Path) -> None:
    table = pd.read_csv(finished / "results" / "table1_long.csv")
    assert set(table.method) == {"Supervised", "LR", "LR t=10", "TEDM"}
    assert set(table.dataset) == {"jsrt", "nih"}
    assert set(table.n_train) == {1, 4}
    assert len(table) == 4 * 2 * 2
    assert table["mean"].between(0, 100).all()
    assert set(pd.read_csv(finished / "results" / "table1.csv").data) == {"synthetic"}


def test_the_report_is_one_page_that_knows_what_the_run_took(finished: Path) -> None:
    text = (finished / "results" / "report.html").read_text(encoding="utf-8")
    for words in ("train backbones", "extract features", "fit heads", "Table 4: cost", "Tables 3 and 6"):
        assert words in text
    digest = (finished / "results" / "backbones" / "ddpm" / "digest.json").read_text().split('"')[3]
    assert digest in text


STAGES = {  # what shows that the stage has begun
    "prepare": "results/logs/data/jsrt.log",
    "train": "results/backbones/ddpm/state",
    "extract": "results/features/ddpm/jsrt.zarr",
    "fit": "results/heads/TEDM",
    "supervise": "results/logs/baselines/Supervised",
    "score": "results/scores",
}


def test_killed_in_every_stage_the_same_command_ends_in_the_same_table(
    finished: Path, tmp_path: Path
) -> None:
    write_experiment(tmp_path)
    moments = random.Random(0)
    for sign in STAGES.values():
        process = subprocess.Popen(
            command(tmp_path, "results/table1.csv"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        while not (tmp_path / sign).exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
    run = snakemake(tmp_path, "results/table1.csv")
    assert run.returncode == 0, run.stderr[-5000:]
    for name in ("table1.csv", "table1.md", "table1.tex", "table1_long.csv", "table1_p_values.csv"):
        expected = (finished / "results" / name).read_bytes()
        assert (tmp_path / "results" / name).read_bytes() == expected, name
    assert "going on from step" in (tmp_path / "results/logs/backbones/ddpm.log").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e["backbones"]["ddpm"].update(widht=8),
            "backbones.ddpm.widht: unknown key, did you mean width?",
        ),
        (
            lambda e: e["heads"]["TEDM"].update(timesteps=[10, 1200]),
            "heads.TEDM.timesteps[1]: 1200 is outside 0 … 999",
        ),
        (
            lambda e: e["evaluation"].update(test_on=["jsrt", "nhi"]),
            "evaluation.test_on[1]: no data set nhi",
        ),
    ],
)
def test_a_wrong_config_stops_before_any_job_and_names_the_key(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    write_experiment(tmp_path, change)
    run = snakemake(tmp_path, "results/table1.csv")
    assert run.returncode != 0
    assert message in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert not (tmp_path / "results").exists()


def test_a_key_that_is_there_twice_stops_the_run_and_is_named_with_its_line(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    path = tmp_path / "experiment.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "seed: 4"]))
    run = snakemake(tmp_path, "--dry-run", "results/table1.csv")
    assert run.returncode != 0
    assert f"line {len(lines) + 1}: the key seed is there a second time" in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
