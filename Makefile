# crystalforge: `make run` does the main job, `make test` checks all of it. Both install what they need first.
PYTHON ?= python3
VENV := .venv
TRITON := .venv-triton
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install run test test-cluster lint format bench images render docs screenshots lock clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed $(TRITON)/.installed  ## make .venv (and the reward server's own) with everything run and test need

run: install  ## data -> pre-train -> PPO against a served reward -> evaluate -> register -> report
	@$(BIN)/crystalforge run --end-with-parent --config params.yaml $(ARGS)

test: install lint  ## static checks, then unit, parity, contract and integration tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 --random-order $(ARGS)

test-cluster: install  ## on the cluster that KUBECONFIG names, in a namespace of its own (ARGS=--kubeflow: engines too)
	@if [ -z "$$KUBECONFIG" ]; then echo "skipped: KUBECONFIG names no cluster"; else $(BIN)/pytest -v tests/cluster $(ARGS); fi

lint: install  ## style, types, import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . || { echo "style: 'make format' mends most of it"; exit 1; }
	@$(BIN)/lint-imports --no-cache >/tmp/crystalforge-imports.$$$$ 2>&1 || { cat /tmp/crystalforge-imports.$$$$; exit 1; }
	@$(BIN)/pyright --level error

format: install  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

bench: install  ## every claim of speed: figures kept by class of machine, and what moved since (ARGS="sampler train")
	@$(BIN)/python benchmarks/_history.py $(ARGS)

images: ## container images: train and rewards (docker, podman or buildah)
	@images/build.sh

render: install  ## compiled pipelines and every overlay, into build/
	@$(BIN)/python -m pipelines.render build

docs: install  ## the documentation as a site that works offline, notebooks executed, into build/site
	@OMP_NUM_THREADS=1 $(BIN)/python docs/site/build.py $(ARGS) && echo build/site/index.html

REPORT ?= runs/latest/evaluate/report.html
screenshots: install  ## pictures of a report (REPORT=...) on a laptop and on a phone, into docs/assets
	@$(BIN)/python -m crystalforge.evaluation.report.pictures $(REPORT) docs/assets

lock:  ## resolve pyproject.toml anew into requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet torch==2.13.0 '.[platform,pipelines,training,potentials,judges,evaluation,sources,mcp,docs,dev]'
	{ head -n 1 requirements.lock; build/lock/bin/pip freeze --all --exclude crystalforge --exclude pip | sed 's/+cpu//'; } > build/lock.txt && mv build/lock.txt requirements.lock

clean:  ## remove environments and builds; runs stay
	rm -rf $(VENV) $(TRITON) build *.egg-info src/*.egg-info

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "installing into $(VENV) (some minutes on first use)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crystalforge needs Python 3.11 or later, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The server's wheel exists for Linux on x86-64 and Arm; elsewhere the reward runs in process and the run says so.
$(TRITON)/.installed: requirements-triton.lock
	@test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	@$(TRITON)/bin/pip install --quiet --disable-pip-version-check -r requirements-triton.lock \
	  || echo "no inference server for this platform: rewards will run in process"
	@touch $@
