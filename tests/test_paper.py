"""The study's own experiments: what ships is accepted and plans what the study did, without its data."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from test_workflow import PROJECT, command, environment

from tedm import config
from tedm.config import SplitConfig
from tedm.data.splits import assign
from tedm.report import published

EXPERIMENTS = sorted((PROJECT / "experiments").glob("paper_*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_whole_plan_is_listed_before_any_image_is_there(experiment: Path, tmp_path: Path) -> None:
    call = command(tmp_path, "--dry-run", "all")
    call[call.index("--configfile") + 1] = str(experiment)
    run = subprocess.run(call, capture_output=True, text=True, env=environment(), timeout=120)
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    assert "Traceback" not in said
    jobs = Counter(
        {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", said, flags=re.MULTILINE)}
    )
    asked = config.load(experiment)
    assert jobs["prepare_data"] == len(asked.datasets)
    assert jobs["fit_head"] == len(asked.heads)
    assert jobs["train_backbone"] == jobs["report"] == 1
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(("name", "printed"), [("cxr", "JSRT"), ("ukbb", "UKBB"), ("brats", "BraTS")])
def test_training_sizes_are_the_published_ones(name: str, printed: str) -> None:
    cells = published.load()
    asked = config.load(PROJECT / f"experiments/paper_{name}.yaml").evaluation.train_sizes
    assert set(asked) >= set(cells.loc[cells["dataset"] == printed, "n_train"])


def test_participants_of_a_small_labelled_set_are_no_unlabelled_ones() -> None:
    datasets = config.load(PROJECT / "experiments/paper_ukbb_few.yaml").datasets
    names = [str(number) for number in range(1_000_000, 1_042_791)]

    def drawn(split: SplitConfig) -> dict[str, list[str]]:
        chosen: dict[str, list[str]] = {}
        for index, part in assign(split, names, names, 0, Path(), "datasets.x"):
            chosen.setdefault(part, []).append(names[index])
        return chosen

    everybody, labelled = (drawn(datasets[name].split) for name in ("ukbb", "labelled"))
    assert [len(part) for part in labelled.values()] == [12, 100, 500]
    for part, people in labelled.items():
        assert people == everybody[part]
        assert set(everybody["unlabelled"]).isdisjoint(people)
