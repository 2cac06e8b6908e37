# Everything a newcomer types. Needs Python 3.11-3.13 with pip, and make.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo web test lint format lock clean

demo: $(INSTALLED) ## The study's Table 1 on synthetic data, by the real chain
	snakemake --cores all results/table1.csv
	@echo "Table 1: results/table1.md (.csv, .tex)"

web: demo ## The demo's models on a web page of this computer (docs/web_page.md)
	tedm demo

test: $(INSTALLED) ## Every test, the slow ones included
	pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED) ## Style, types and the workflow's own checks
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile rules
	snakemake --lint

format: $(INSTALLED)
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

$(INSTALLED): envs/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "error: tedm needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		"say which one to use: make demo PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement envs/requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# A newer torch than the tests run on would come as gigabytes of CUDA, by way of timm's torchvision.
TORCH := 2.13.0

lock: ## Pin the newest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet pip-tools
	echo "torch==$(TORCH)" > .venv-lock/torch.txt
	.venv-lock/bin/pip-compile --quiet --upgrade --strip-extras --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --allow-unsafe \
		--extra dev --extra cluster --extra tensorboard --extra s3 --extra dicom --extra parquet \
		--extra diffusers --extra timm --extra metrics --extra web --extra dicomseg --extra build --constraint .venv-lock/torch.txt --output-file envs/requirements.lock pyproject.toml
	sed -i.orig "s/+cpu//" envs/requirements.lock && rm envs/requirements.lock.orig
	rm -r .venv-lock
	$(PYTHON) envs/write_conda.py

clean: ## Remove the environment; results stay
	rm -rf $(VENV)
