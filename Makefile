# `make` alone lists what there is. Nothing but make and Python >= 3.11 with venv is needed beforehand.

PYTHON ?= python3
STUDY ?=

# The active conda environment (but not its base), else a virtual environment in .venv. Targets are relative: the path
# of the repository may have a space, of which make knows nothing.
ifneq ($(and $(CONDA_PREFIX),$(filter-out base,$(CONDA_DEFAULT_ENV))),)
ENV := $(CONDA_PREFIX)
BIN := $(ENV)/bin
else
ENV := .venv
BIN := $(CURDIR)/.venv/bin
endif
STAMP := $(ENV)/.mmtlib-installed

# Stages call `python` and `pytest` by name: they must be this environment's.
export PATH := $(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.PHONY: help install lint test faults notebooks reproduce bench lab html clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## set up .venv, or the active conda environment

$(ENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11; name a newer one: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(ENV)

$(STAMP): pyproject.toml | $(ENV)/bin/python
	$(ENV)/bin/python -m pip install -e '.[test]'
	@touch $@

lint: $(STAMP) ## check style (ruff) and that imports go one way (import-linter)
	ruff check
	ruff format --check
	lint-imports

# Files of tests go to JOBS processes of one thread each: more threads for tiny tensors only get in each other's way.
# Notebooks share the files of the study smoke: what is missing is made first, 1 and 2 write what the others read.
JOBS ?= 2
test: export OMP_NUM_THREADS ?= 1
test: lint ## style, unit tests, a smoke run of the whole pipeline, the notebooks against their outputs
	pytest -n $(JOBS) --durations=20 tests
	python -c 'from study.notebook import begin; begin("report", "params/smoke.yaml")'
	pytest --nbval notebooks/01_* notebooks/02_*
	pytest --nbval -n $(JOBS) notebooks/08_* $(filter-out notebooks/01_% notebooks/02_% notebooks/08_%,$(wildcard notebooks/*.ipynb))

faults: $(STAMP) ## damage 12,000 media files, kill the work 60 times, fill the disk 30 times; a part of it is in test
	FUZZ=1000 KILLS=60 FULL=30 pytest -n $(JOBS) --durations=3 $(addprefix tests/data/test_,fuzz.py kills.py full_disk.py)

notebooks: $(STAMP) ## re-execute notebooks/ in place, at their defaults
	python -m study.run notebooks

PIPELINE = $(if $(STUDY),build/$(STUDY)/dvc.yaml,dvc.yaml)
FEATURES = $(if $(STUDY),build/$(STUDY)/dvc.yaml:features,features)
PARAMS = $(if $(STUDY),params/$(STUDY).yaml,params.yaml)

reproduce: $(STAMP) ## run a study (dvc repro): the quick one of params.yaml, or STUDY=NAME of params/NAME.yaml
	$(if $(STUDY),python -m study.run compose $(STUDY))
	dvc repro $(FEATURES)
	python -m mmtlib train --params $(PARAMS)
	dvc repro $(PIPELINE)

bench: $(STAMP) ## measure speed and memory beside the peers
	dvc repro bench/dvc.yaml

lab: $(STAMP) ## open the notebooks in JupyterLab
	jupyter lab

html: $(STAMP) ## the executed notebooks as HTML, in reports/html/
	jupyter nbconvert --to html --output-dir reports/html reports/*/notebooks/*.ipynb

clean: ## remove caches and the smoke workspace; data, models and results stay
	rm -rf build .pytest_cache .ruff_cache .hypothesis
	find mmtlib study freedoom_sounds tests -name __pycache__ -type d -prune -exec rm -rf {} +
