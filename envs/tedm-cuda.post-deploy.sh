#!/bin/sh
# tedm itself, into the environment that Snakemake has just made. It runs in the working directory.
set -eu
if [ ! -f pyproject.toml ] || [ ! -d src/tedm ]; then
    echo "error: --sdm conda installs tedm from its checkout: run snakemake there, once with --sdm conda" \
        "--conda-create-envs-only and the same --conda-prefix" >&2
    exit 1
fi
python -m pip install --no-deps --no-build-isolation --editable .
