"""Writes the conda files from requirements.lock, pin by pin: Snakemake copies them away from beside it."""

from pathlib import Path

HERE = Path(__file__).parent
CPU = "https://download.pytorch.org/whl/cpu"
VARIANTS = {
    "tedm-cpu.yaml": ("without CUDA", f"      - --extra-index-url {CPU}\n"),
    "tedm-cuda.yaml": ("with the CUDA libraries that PyPI's torch asks for on Linux", ""),
}
HEAD = """# For `snakemake --sdm conda`, {what}. Written by envs/write_conda.py; docs/containers.md.
channels: [conda-forge, nodefaults]
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def main() -> None:
    """Write one file for each variant."""
    pins = [line for line in (HERE / "requirements.lock").read_text().splitlines() if "==" in line]
    for name, (what, index) in VARIANTS.items():
        listed = "".join(f"      - {pin}\n" for pin in pins)
        (HERE / name).write_text(HEAD.format(what=what) + index + listed)


if __name__ == "__main__":
    main()
