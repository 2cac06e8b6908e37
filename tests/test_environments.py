"""Every environment has the pins of the lock file: conda, containers, the virtual environment."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
ENVS = PROJECT / "envs"
PINS = [line for line in (ENVS / "requirements.lock").read_text().splitlines() if "==" in line]


@pytest.mark.parametrize(
    ("variant", "index"), [("cpu", "https://download.pytorch.org/whl/cpu"), ("cuda", None)]
)
def test_conda_files_have_the_pins_of_the_lock(variant: str, index: str | None) -> None:
    environment = yaml.safe_load((ENVS / f"tedm-{variant}.yaml").read_text())
    *conda, pip = environment["dependencies"]
    options = [line for line in pip["pip"] if line.startswith("-")]
    pins = [line for line in pip["pip"] if not line.startswith("-")]
    assert pins == PINS, "run: python envs/write_conda.py"
    assert options == ([f"--extra-index-url {index}"] if index else [])
    python = next(package for package in conda if package.startswith("python="))
    supported = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert supported == ">=3.11,<3.14"
    assert python in ("python=3.11", "python=3.12", "python=3.13")
    # Snakemake runs it once the environment is made.
    subprocess.run(["sh", "-n", ENVS / f"tedm-{variant}.post-deploy.sh"], check=True)


def test_nothing_in_a_conda_file_depends_on_where_it_lies() -> None:
    for path in ENVS.glob("tedm-*.yaml"):
        assert not re.search(r"^ *- +(-r|--requirement|-e|--editable|\.)", path.read_text(), flags=re.M)


def test_both_container_recipes_install_the_lock_by_one_script() -> None:
    install = (ENVS / "install.sh").read_text()
    assert "--requirement envs/requirements.lock" in install
    subprocess.run(["sh", "-n", ENVS / "install.sh"], check=True)
    docker, apptainer = (ENVS / "Dockerfile").read_text(), (ENVS / "tedm.def").read_text()
    base = re.search(r"^FROM (.+)$", docker, flags=re.M)
    assert base is not None
    assert f"\nFrom: {base[1]}\n" in apptainer
    assert 'RUN envs/install.sh "$TORCH_INDEX"' in docker
    assert "envs/install.sh {{ torch_index }}" in apptainer
    cpu = "https://download.pytorch.org/whl/cpu"
    assert f"ARG TORCH_INDEX={cpu}\n" in docker
    assert f"    torch_index={cpu}\n" in apptainer
    # What they copy is there, and the image gets all that the package is built from.
    copied = [*re.findall(r"^COPY (.+) \S+$", docker, flags=re.M)]
    names = sorted(name.removeprefix("./") for line in copied for name in line.split())
    assert names == sorted(re.findall(r"^    (\S+) /opt/tedm/\1$", apptainer, flags=re.M))
    for name in names:
        assert (PROJECT / name).exists()


def test_every_job_names_its_environment() -> None:
    text = "".join(path.read_text() for path in sorted((PROJECT / "rules").glob("*.smk")))
    rules = re.split(r"^(?:rule|checkpoint) ", text, flags=re.M)[1:]
    for rule in rules:
        assert re.search(r"^    conda:\n        ENVIRONMENT$", rule, flags=re.M), rule[:60]
    assert "\ncontainer: str(IMAGE)\n" in (PROJECT / "Snakefile").read_text()


def test_a_missing_image_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text((PROJECT / "Snakefile").read_text())
    for name in ("rules", "config.yaml"):
        (tmp_path / name).symlink_to(PROJECT / name)
    run = subprocess.run(
        [Path(sys.executable).with_name("snakemake"), "-n", "--sdm", "apptainer", "--cores", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert re.search(
        r"envs/tedm\.sif: there is no such image; make it: +apptainer build", run.stdout + run.stderr
    )
