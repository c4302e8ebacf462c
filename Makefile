# Coview: embed images once with frozen foundation models, then co-train probes on the cache.

.DEFAULT_GOAL := help
COMMANDS := help setup demo views weights extract train finetune predict export-model sweep verify repair import export push pull status gc test test-all check-gpu bench-cache bench-models bench-extract bench-train bench-methods bench-labels lock clean report compare suggest inspect doctor
.PHONY: $(COMMANDS)
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.ready

NAMES := VIEW VIEWS DATA WEIGHTS CLASSES LABELS VAL TEST RISK METHOD LIVE MODE SEEDS GRID DEVICE GPUS CACHE RUN MODEL IMAGES FROM TO ARGS RUNS N
# Only what stands on the command line counts: a DATA or RUN that happens to be in the shell's environment does not.
given = $(filter command,$(origin $1))
GIVEN := $(filter-out VENV PYTHON3,$(foreach name,$(.VARIABLES),$(if $(call given,$(name)),$(name))))
EXTRA = $(if $(call given,ARGS),$(ARGS))
export GOALS = $(MAKECMDGOALS)
export COMMANDS
# The command line itself knows which names each command takes, and what they mean; values reach it through the environment.
CHECK = $(VENV)/bin/ruff check --quiet . && $(VENV)/bin/ruff format --check --quiet . && $(VENV)/bin/pyrefly check --summary=none
COVIEW = COVIEW_MAKE='$(GIVEN)' $(PYTHON) -m coview.cli

.DEFAULT:
	@COVIEW_MAKE='$(GIVEN)' $(or $(wildcard $(PYTHON)),$${PYTHON3:-python3}) -m coview.cli '$(subst ','\'',$@)'

help:  ## show this help
	@echo "Coview. The two commands:  make demo   make test"; echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | awk -F'\t' '{printf "%-20s %s\n", $$1, $$2}'
	@echo; echo "  names: $(NAMES)"
	@echo "  all settings: $(VENV)/bin/coview extract --help,  $(VENV)/bin/coview train --help; pass them on with ARGS='--batch 256'"

setup: $(STAMP)  ## make .venv with everything in it (done by itself where it is needed)

$(STAMP): requirements.lock pyproject.toml
	@echo "setting up $(VENV): minutes the first time, about 6 GB"
	@bash tools/venv.sh '$(VENV)'
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	@$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(PYTHON) --requirements requirements.lock
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --no-deps --editable .
	@touch $(STAMP)

demo: $(STAMP)  ## the whole pipeline on bundled images: extract two views, train, print a table
	@COVIEW_MAKE='VIEWS DATA' VIEWS=tiny-clip,tiny-dinov2 DATA=digits $(PYTHON) -m coview.cli extract
	@COVIEW_MAKE='VIEWS DATA LABELS VAL SEEDS RUN METHOD' VIEWS=tiny-clip,tiny-dinov2 DATA=digits LABELS=3 VAL=cross SEEDS=0..4 RUN=demo \
		METHOD=supervised,label-propagation,mct,supervised-graph,mct-graph $(PYTHON) -m coview.cli train

views: $(STAMP)  ## list the views: width, size, arithmetic, licence, cached, too alike  [DATA= CACHE=]
	@$(COVIEW) $@ $(EXTRA)

weights: $(STAMP)  ## the authors' checkpoint of a view to safetensors, once:  make weights VIEW=swav  [FROM=checkpoint.pth]
	@$(COVIEW) $@ $(EXTRA)

extract: $(STAMP)  ## embed images:  make extract VIEW=clip DATA=photos/  [VIEWS=clip,dinov2 WEIGHTS= CLASSES= DEVICE= GPUS= CACHE= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

train: $(STAMP)  ## train probes:  make train VIEWS=clip,dinov2 DATA=photos/  [LABELS= VAL= TEST= METHOD= SEEDS= LIVE= MODE= DEVICE= GPUS= CACHE= RUN= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

finetune: $(STAMP)  ## tune a backbone on few labels, as a view of its own:  make finetune VIEW=clip DATA=photos/ LABELS=4  [VIEWS= MODE= VAL= TEST= SEEDS= WEIGHTS= DEVICE= GPUS= CACHE= RUN= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

predict: $(STAMP)  ## label images:  make predict RUN=name  [IMAGES=photos/ TO=labels.csv RISK= METHOD= MODEL=folder WEIGHTS= DEVICE= CACHE= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

export-model: $(STAMP)  ## a trained model as one folder:  make export-model RUN=name TO=folder  [METHOD= CACHE= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

sweep: $(STAMP)  ## rank a grid of settings on validation:  make sweep VIEWS=clip,dinov2 DATA=photos/ GRID='lr=1e-4,3e-4 temperature=0.5,1'
	@$(COVIEW) $@ $(EXTRA)

report: $(STAMP)  ## the page of a run, one file that opens offline:  make report RUN=demo  [CACHE= DEVICE= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

compare: $(STAMP)  ## runs side by side, paired over their seeds:  make compare RUNS=a,b,c  [TO=runs/compare.html]
	@$(COVIEW) $@ $(EXTRA)

suggest: $(STAMP)  ## what to label:  make suggest VIEWS=clip,dinov2 DATA=photos/  the first images,  make suggest RUN=name  the next ones  [N=24 TO=next.csv CACHE= DEVICE= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

status: $(STAMP)  ## what the cache holds, and how far running extractions are  [CACHE=]
	@$(COVIEW) $@ $(EXTRA)

verify: $(STAMP)  ## read every byte of the cache and compare:  make verify  [VIEW= DATA= CACHE= ARGS='--recompute 4']
	@$(COVIEW) $@ $(EXTRA)

repair: $(STAMP)  ## compute again what is damaged, and only that:  make repair VIEW=clip  [DATA= CACHE= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

import: $(STAMP)  ## embeddings from elsewhere:  make import VIEW=mine FROM=x.npz|x.npy|x.h5|zarr-folder/  [DATA=photos/ CACHE= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

export: $(STAMP)  ## embeddings to elsewhere:  make export VIEW=clip TO=clip.h5|.npz|.parquet  [DATA= CACHE= ARGS=]
	@$(COVIEW) $@ $(EXTRA)

push: $(STAMP)  ## a finished view into an object store:  make push VIEW=clip DATA=photos/ TO=s3://bucket/views  [CACHE= ARGS=--labels]
	@$(COVIEW) $@ $(EXTRA)

pull: $(STAMP)  ## finished views from an object store:  make pull FROM=s3://bucket/views  [VIEW= DATA= CACHE=]
	@$(COVIEW) $@ $(EXTRA)

gc: $(STAMP)  ## remove what no finished view needs, after asking  [CACHE=]
	@$(COVIEW) $@ $(EXTRA)

inspect: $(STAMP)  ## before training: leaks, dead dimensions, kNN, are these views worth co-training?  make inspect VIEWS=clip,dinov2 DATA=photos/  [LABELS= TO=]
	@$(COVIEW) $@ $(EXTRA)

doctor: $(STAMP)  ## versions, devices, backends, disk, limits: what is wrong with this machine, and what mends it  [CACHE=]
	@$(COVIEW) $@ $(EXTRA)

test: $(STAMP)  ## lint, format, types and tests, in minutes
	@$(CHECK) && $(PYTHON) -m pytest -m "not many" -q -n 2 --dist worksteal $(EXTRA)

test-all: $(STAMP)  ## everything, with many trials of the fault injection
	@$(CHECK) && $(PYTHON) -m pytest -q -n 2 --dist worksteal $(EXTRA)

check-gpu: $(STAMP)  ## the checks that need a CUDA GPU, in one call
	@$(PYTHON) tools/check_gpu.py

bench-cache: $(STAMP)  ## reading speed of the cache against other readers and the machine's limits, in minutes
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --editable '.[bench]' && $(PYTHON) bench/bench_cache.py $(EXTRA)

bench-models: $(STAMP)  ## backbones at real size, random weights: images/s and memory  [ARGS='--views clip,mae']
	@$(PYTHON) bench/bench_models.py $(EXTRA)

bench-extract: $(STAMP)  ## make extract beside its limits and other loops, in minutes  [ARGS='--views tiny-clip,mine.toml']
	@$(PYTHON) bench/bench_extract.py $(EXTRA)

bench-train: $(STAMP)  ## speed of a training step against its matrix products, the original and live backbones, in minutes
	@$(PYTHON) bench/bench_train.py $(EXTRA)

bench-methods: $(STAMP)  ## every method on four small tasks with few labels, about an hour
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --editable '.[tools]' && $(PYTHON) bench/bench_methods.py $(EXTRA)

bench-labels: $(STAMP)  ## which images to label: rules compared in whole loops on four small tasks, in minutes
	@$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --editable '.[tools]' && $(PYTHON) bench/bench_labels.py $(EXTRA)

lock: $(STAMP)  ## renew requirements.lock from pyproject.toml
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --extra dev --extra notebook --extra tensorboard --extra wandb pyproject.toml -o requirements.lock

clean:  ## remove .venv and caches of tools; embeddings and runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
