"""Heads of other people's packages: found by entry point, in Table 1, and blamed by name."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tedm.errors import TedmError
from tedm.heads import ArrayFeatures, Head, create, load

PROJECT = Path(__file__).parents[1]
TIMESTEPS = (10, 200)

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tiny-heads"
version = "0.7"

[tool.setuptools]
py-modules = ["tiny_heads"]

[project.entry-points."tedm.heads"]
brightness = "tiny_heads:Brightness"
raising = "tiny_heads:Raising"
lacking = "tiny_heads:Lacking"
forgetful = "tiny_heads:Forgetful"
narrow = "tiny_heads:Narrow"
diverged = "tiny_heads:Diverged"
logits = "tiny_heads:Logits"
listing = "tiny_heads:Listing"
crashing = "tiny_heads:Crashing"
absent = "tiny_heads:NotThere"
broken = "tiny_broken:Head"
"""

MODULE = '''
import numpy as np

from tedm.heads.base import Head


class Brightness(Head):
    """A pixel is foreground where one channel is above a threshold."""

    def __init__(self, settings, timesteps, layers=None, seed=0):
        super().__init__(settings, timesteps, layers, seed)
        self.channel = int(self.settings.get("channel", 0))

    def learn(self, features, masks, rows, val_rows, val_masks, workdir):
        self.threshold = np.array([self.values(features, rows, t).mean() for t in self.timesteps])

    def predict_steps(self, features, rows):
        steps = [
            self.values(features, rows, t)[:, None] > c
            for t, c in zip(self.timesteps, self.threshold, strict=True)
        ]
        return np.stack(steps).astype(np.float32)

    def values(self, features, rows, timestep):
        layer = self.layers[-1]
        z = features.read(rows, timestep, [layer])[layer][:, self.channel].astype(np.float64)
        return z.repeat(self.image_size[0] // z.shape[1], 1).repeat(self.image_size[1] // z.shape[2], 2)

    def state(self):
        return {"threshold": self.threshold}

    def restore(self, state):
        self.threshold = state["threshold"]


class Raising(Brightness):
    def __init__(self, settings, timesteps, layers=None, seed=0):
        raise ValueError("gain must be positive")


class Lacking(Head):
    def learn(self, features, masks, rows, val_rows, val_masks, workdir):
        pass

    def predict_steps(self, features, rows):
        pass


class Forgetful(Brightness):
    def __init__(self, settings, timesteps, layers=None, seed=0):
        self.settings = settings


class Narrow(Brightness):
    def predict_steps(self, features, rows):
        return super().predict_steps(features, rows)[..., :-1]


class Diverged(Brightness):
    def predict_steps(self, features, rows):
        return super().predict_steps(features, rows) * np.nan


class Logits(Brightness):
    def predict_steps(self, features, rows):
        return super().predict_steps(features, rows) * 9 - 4


class Listing(Brightness):
    def state(self):
        return {"threshold": self.threshold.tolist()}


class Crashing(Brightness):
    def learn(self, features, masks, rows, val_rows, val_masks, workdir):
        raise ZeroDivisionError("nothing to learn")
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that a real pip put the package into, without a network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "tiny_heads.py").write_text(MODULE)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    run = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (target / "tiny_broken.py").write_text("raise RuntimeError('needs a licence')")
    return target


@pytest.fixture
def here(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(installed))


def fitted(kind: str, workdir: Path) -> tuple[Head, ArrayFeatures]:
    rng = np.random.default_rng(0)
    arrays = {(t, "up0"): rng.standard_normal((3, 2, 4, 4)).astype(np.float16) for t in TIMESTEPS}
    features, masks = ArrayFeatures(arrays, (8, 8)), rng.integers(0, 2, (3, 1, 8, 8)).astype(np.uint8)
    head = create(kind, {"channel": 1}, TIMESTEPS)
    return head.fit(features, masks, range(3), [], masks[:0], workdir=workdir), features


def test_an_installed_head_is_found_by_its_short_name_and_comes_back_from_its_file(here, tmp_path):
    head, features = fitted("brightness", tmp_path)
    head.save(tmp_path / "head.safetensors")
    again = load(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(again.predict_proba(features, [2]), head.predict_proba(features, [2]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "raising",
            r"cannot be made with the settings \{'channel': 1\} \(ValueError: gain must be positive\)",
        ),
        ("lacking", "Lacking lacks restore, state"),
        ("forgetful", r"Forgetful\.__init__ does not call super\(\)\.__init__"),
        ("absent", "cannot import tiny_heads:NotThere"),
        ("broken", "cannot import tiny_broken:Head .RuntimeError: needs a licence"),
    ],
)
def test_a_head_that_cannot_be_made_is_named_with_its_package(kind, message, here):
    with pytest.raises(TedmError, match=rf"head type {kind} .*tiny-heads 0\.7.*{message}"):
        create(kind, {"channel": 1}, TIMESTEPS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("narrow", r"shape \(2, 1, 1, 8, 7\), expected .* = \(2, 1, 1, 8, 8\)"),
        ("diverged", "probabilities that are not finite"),
        ("logits", r"-4 … 5, expected probabilities in 0 … 1 \(not logits\)"),
    ],
)
def test_a_prediction_that_is_none_is_named_with_its_package(kind, message, here, tmp_path):
    head, features = fitted(kind, tmp_path)
    with pytest.raises(TedmError, match=rf"head {kind} .*tiny-heads 0\.7.*{message}"):
        head.predict_proba(features, [0])


def test_a_state_that_cannot_be_written_is_named_before_a_file_is(here, tmp_path):
    head, _ = fitted("listing", tmp_path)
    with pytest.raises(TedmError, match=r"tiny-heads 0\.7.*state gave threshold as list"):
        head.save(tmp_path / "head.safetensors")
    assert not (tmp_path / "head.safetensors").exists()


def test_a_crash_inside_a_head_keeps_its_traceback_and_says_whose_it_is(here, tmp_path):
    with pytest.raises(ZeroDivisionError) as raised:
        fitted("crashing", tmp_path)
    assert any("tiny-heads 0.7" in note and "in learn" in note for note in raised.value.__notes__)


def experiment(directory: Path, **head: object) -> Path:
    settings = yaml.safe_load((PROJECT / "tests" / "tiny.yaml").read_text())
    settings["baselines"] = {}
    settings["heads"] = {"Bright": {"timesteps": list(TIMESTEPS)} | head}
    (directory / "experiment.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return directory / "experiment.yaml"


def run(installed: Path, directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    scripts = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(installed),
    }
    program, *arguments = command
    return subprocess.run(
        [str(scripts / program), *arguments], cwd=directory, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_head_of_an_installed_package_is_a_row_of_table_1(installed, tmp_path):
    workflow = [
        *("--snakefile", str(PROJECT / "Snakefile"), "--directory", str(tmp_path)),
        *("--workflow-profile", str(PROJECT / "profiles" / "default")),
        *("--configfile", str(tmp_path / "experiment.yaml"), "--cores", "2", "results/table1.csv"),
    ]
    experiment(tmp_path, type="brightness", channel=3, readings={"Bright t=10": [10]})
    done = run(installed, tmp_path, "snakemake", *workflow)
    assert done.returncode == 0, done.stderr[-5000:]
    table = pd.read_csv(tmp_path / "results" / "table1_long.csv")
    assert set(table.method) == {"Bright", "Bright t=10"}
    assert table["mean"].between(0, 100).all()
    assert "Bright" in set(pd.read_csv(tmp_path / "results" / "table1.csv").method)

    experiment(tmp_path, type="raising")
    done = run(installed, tmp_path, "snakemake", *workflow)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "tiny-heads 0.7" in said
    assert "gain must be positive" in said
    assert "Traceback" not in said


def test_a_head_whose_package_is_not_there_stops_before_any_job(installed, tmp_path):
    path = experiment(tmp_path, type="brightness")
    assert "Bright" in run(installed, tmp_path, "tedm", "check", str(path)).stdout
    done = run(tmp_path, tmp_path, "tedm", "check", str(path))
    assert (done.returncode, "no head type brightness" in done.stderr) == (1, True)
