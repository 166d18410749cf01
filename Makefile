# Two commands: `make run` and `make test`. Both make the environment first, and cost little the second time.
# Runs with GNU make 3.81, bash 3.2 and the tools of macOS, too; .SHELLFLAGS is ignored there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3 || echo python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
LOCKED := $(VENV)/.locked
# What the environment was made from. A hash, since git and the export change the time of a file that stays the same.
STAMP = $(shell cat requirements.lock pyproject.toml | cksum)
FREE_GB := 6
WORKERS ?= 2
PYTEST := pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

.PHONY: help env install data run test test-all smoke lab docs walk bench record params lock

help: ## this list
	@echo "prodml: raw, messy tables in; a pruned, quantized PyTorch model out"; echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

env: $(LOCKED) ## the environment .venv, from the committed lock

$(LOCKED): requirements.lock pyproject.toml
	@if [ "$$(cat $@ 2>/dev/null)" = "$(STAMP)" ] && [ -x $(BIN)/python ]; then touch $@; else $(MAKE) --no-print-directory install; fi

install: ## the environment anew, also if nothing changed
	@command -v git >/dev/null || { echo "git is missing: install it (apt-get install git) and call make again."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { echo "Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is none of them. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@[ -d $(VENV) ] || $(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free / 1e9; sys.exit(f"{free:.1f} GB are free here, $(FREE_GB) are needed: make room and call make again." if free < $(FREE_GB) else 0)'
	@echo "Installing the locked environment into $(VENV) (a few minutes the first time) ..."
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@# The lock holds hashes; torch stays outside it, since its wheel differs by machine (CPU or CUDA).
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# Where an environment forbids bytecode, every process would compile every import anew.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@echo "$(STAMP)" > $(LOCKED)

data: env ## the raw tables in data/, checked by DVC
	@prodml data fetch

run: data ## the main job: dvc repro on the full data, then the table of results
	@dvc repro
	@prodml results --next

test: env ## the tests, two files at a time (CI=true adds the slow ones)
	@prodml data fetch
	@$(PYTEST) $(if $(CI),--durations=40 -m "not long",-m "not slow and not long")

test-all: env ## all tests, the longest too, which CI leaves out
	@prodml data fetch
	@$(PYTEST)

smoke: data ## the whole pipeline on a sample, in build/smoke (a sample's model may well break a gate: that is no failure)
	@prodml trial build/smoke run=smoke || [ $$? -eq 3 ]

lab: data ## JupyterLab on the project; a notebook of nbs/ is saved without outputs, as git holds it
	@jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/nbs --FileContentsManager.pre_save_hook=prodml.core.lab.save_source $(if $(filter 0,$(shell id -u)),--allow-root)

docs: env ## the documentation site in _docs/, from the notebooks as the pipeline executed them
	@python -m prodml.core.site
	@echo "Open _docs/index.html"

walk: data ## every command of README.md, typed by a newcomer in a fresh clone, with the full run
	@WALK_FULL=1 pytest -s tests/test_walk.py

bench: data ## the measurements that the documentation quotes, into build/bench (WRITE=1: into bench/results, to be committed)
	@for script in bench/*.py; do echo "== $$script"; python $$script $(if $(WRITE),--write); done

record: data ## the times that this machine measured, into metrics/, to be committed
	@prodml results --record

params: env ## params.yaml from conf/
	@prodml params

lock: env ## requirements.lock anew from pyproject.toml; pins that still fit stay (UPGRADE=1 takes the newest)
	@$(if $(UPGRADE),rm -f requirements.lock.new,cp requirements.lock requirements.lock.new)
	@uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes --no-header --quiet \
		--no-emit-package torch --no-emit-package prodml --output-file requirements.lock.new >/dev/null
	@awk '/^[a-z]/ { drop = ($$0 ~ /^(nvidia-|cuda-|triton==)/ && $$0 !~ /^nvidia-ml-py/) } !drop { print }' requirements.lock.new > requirements.lock.part
	@mv requirements.lock.part requirements.lock && rm requirements.lock.new
