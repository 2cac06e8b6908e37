"""The command line: help without torch, one message for a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

EXTRACT = [
    *("extract", "--spec", '{"features": {}, "seed": 0}'),
    *("--backbone", "b", "--data", "d.h5", "--store", "s.zarr"),
]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def tedm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from tedm.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
    )


def test_help_and_import_load_no_torch() -> None:
    code = (
        "import sys, tedm, tedm.cli\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(tedm.cli.app, ['--help']).exit_code == 0\n"
        "assert not {'torch', 'zarr', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    assert python(code).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "absent.yaml"], "error: absent.yaml: no such configuration file"),
        (["train", "--spec", "{", "--data", "a.h5", "--out", "b"], "error: --spec: not valid JSON"),
        (
            ["prepare", "--spec", "[]", "--data", "a.h5", "--summary", "b"],
            "error: --spec: expected a JSON object",
        ),
        (
            [*EXTRACT, "--manifest", "m.t{timestep}.json", "--timesteps", "1 x"],
            "error: --timesteps: expected whole numbers such as 1 10 25, got '1 x'",
        ),
        (
            [*EXTRACT, "--manifest", "m.json", "--timesteps", "1 10"],
            "error: --manifest: m.json is one file for 2 timesteps; have {timestep} in its name",
        ),
        (
            [*EXTRACT, "--manifest", "m.t{timestep}.json", "--timesteps", " "],
            "error: --timesteps: expected whole numbers such as 1 10 25, got ' '",
        ),
    ],
)
def test_a_mistake_ends_in_one_message_and_status_1(arguments: list[str], message: str) -> None:
    run = tedm(*arguments)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_check_says_what_views_take() -> None:
    """The demo: 12 images, 8 views, 8 timesteps; 1.875 values per pixel and channel in float16."""
    said = tedm("check", str(Path(__file__).parents[1] / "config.yaml")).stdout
    assert "views of 12 training images: 768 forward passes of ddpm, about 47.2 MB" in said
    assert pytest.approx(47.2e6, rel=1e-3) == 768 * 1.875 * 16 * 32**2 * 2
