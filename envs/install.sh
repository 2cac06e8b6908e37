#!/bin/sh
# What both container recipes run, as root in a bare Debian: the pins of requirements.lock, then tedm itself.
#
#   envs/install.sh TORCH_INDEX     (from the project's root)
set -eu
apt-get update
apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv
rm -rf /var/lib/apt/lists/*
python3 -m venv /opt/venv
/opt/venv/bin/pip install --no-cache-dir --extra-index-url "$1" --requirement envs/requirements.lock
/opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .
