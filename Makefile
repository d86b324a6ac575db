# `make demo` and `make test` set up everything they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WEB := export/web/node_modules

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Everything that a lock names, compared with its hash. First what packages
# without a wheel, and this one, are built with: pip takes no hashes for
# isolated builds before 25.3. It can hash no editable package, so that one
# comes last, alone.
INSTALL = $(BIN)/python -m pip install --quiet --no-build-isolation
define install_locked
$(INSTALL) --require-hashes --requirement requirements-build.lock
$(INSTALL) --require-hashes --requirement $(1)
$(INSTALL) --no-deps --editable .
endef
LOCK = $(BIN)/uv pip compile --universal --python-version 3.11 --upgrade \
  --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-slow test-lowest test-next peers mediapipe web web-modules serving serve batch arm fuzz bench bench-all study fashion docs lint audit golden lock clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/demo.installed  ## Train on digits, evaluate, export to 3 formats
	$(BIN)/keras-resnext train --dataset digits --workdir runs/demo
	$(BIN)/keras-resnext evaluate runs/demo --at-least 0.97
	$(BIN)/keras-resnext export runs/demo --overwrite

test: lint  ## Lint, import contract and quick tests, 6 minutes at most
	$(BIN)/python -m pytest

test-all: peers mediapipe serving batch  ## The rest: processes, all networks, other libraries
	$(BIN)/python -m pytest -m "integration and not slow"

test-slow: peers mediapipe serving batch .arm/ready  ## What takes longest: kills, long lives, workers, gigabytes; 2 hours
	$(BIN)/python -m pytest -m slow

# Old libraries warn of new ones below them: warnings are no errors there.
test-lowest: $(VENV)/dev.installed  ## Quick tests on the lowest versions that setup.cfg allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-lowest
	$(BIN)/uv pip install --quiet --python $(VENV)-lowest/bin/python \
	  --resolution lowest-direct --editable '.[dev]'
	$(VENV)-lowest/bin/python -m pytest -o filterwarnings=default

test-next: $(VENV)/dev.installed  ## Quick tests on pre-releases of TensorFlow and Keras' nightly
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-next
	$(BIN)/uv pip install --quiet --python $(VENV)-next/bin/python \
	  --upgrade --editable '.[dev]' 'tensorflow>=2.22.0rc0'
	$(BIN)/uv pip uninstall --quiet --python $(VENV)-next/bin/python keras
	$(BIN)/uv pip install --quiet --python $(VENV)-next/bin/python \
	  --prerelease allow --reinstall-package keras-nightly \
	  keras-nightly
	$(VENV)-next/bin/python -m pytest -o filterwarnings=default

peers: $(VENV)/peers.installed  ## Add torch, timm and others to compare with

mediapipe: $(VENV)-mediapipe/installed  ## Add MediaPipe, which opens our files

web: $(VENV)/demo.installed $(WEB)/installed  ## Serve export/web, with the demo's model unless it has one
	test -f export/web/model/model.json || $(BIN)/python export/web/add_model.py
	$(BIN)/python export/web/serve.py

web-modules: $(WEB)/installed  ## Add what export/web and its tests need from npm

serving: $(VENV)-serving/installed  ## Add KServe's server, which serves our files

serve: $(VENV)-serving/installed runs/serving/model.onnx  ## Serve Fashion-MNIST's network over REST and gRPC
	$(VENV)-serving/bin/python export/serving/serve.py --model runs/serving/model.onnx

batch: $(VENV)-batch/installed  ## Add Ray, which classifies millions of pictures

arm: .arm/ready fashion  ## Run the TFLite files on ARM in qemu, and compare; 10 minutes
	$(BIN)/python export/mobile/arm.py

fuzz: $(VENV)/peers.installed  ## Give all readers changed files, an hour
	$(BIN)/python -m tests.fuzz --minutes 60

bench: $(VENV)/peers.installed  ## Time this package and its peers, 15 minutes
	$(BIN)/python -m benchmarks compare

bench-all: $(VENV)/peers.installed  ## Time everything, in more rounds, 90 minutes
	$(BIN)/python -m benchmarks compare --all
	$(BIN)/python -m benchmarks growth
	$(BIN)/python -m benchmarks loading
	$(BIN)/python -m benchmarks exporting

study: $(VENV)/demo.installed  ## The paper's tables in small, on Fashion-MNIST; days
	$(BIN)/python -m benchmarks study --folder runs/study

fashion: $(VENV)/demo.installed  ## Fashion-MNIST for TFDS, from Debian's package
	$(BIN)/python -m benchmarks fashion

docs: peers fashion  ## The site, build/site; executes notebooks that changed
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -b html . build/site
	@echo "The site is build/site/index.html."

lint: $(VENV)/dev.installed  ## Formatting, lint, import contract and licences only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m tests.audit --quiet

audit: $(VENV)/dev.installed  ## List the licences of all that is installed
	$(BIN)/python -m tests.audit

golden: $(VENV)/dev.installed  ## Rewrite tests/golden after an intended change
	$(BIN)/python -m tests.regenerate_golden

lock: $(VENV)/dev.installed  ## Resolve setup.cfg's ranges into the locks, with hashes
	$(LOCK) setup.cfg --extra dev --output-file requirements.lock
	$(LOCK) setup.cfg --extra train --extra export \
	  --constraint requirements.lock --output-file requirements-demo.lock
	echo setuptools | $(LOCK) - \
	  --constraint requirements.lock --output-file requirements-build.lock
	$(LOCK) export/serving/requirements.in \
	  --output-file export/serving/requirements.lock
	$(LOCK) export/batch/requirements.in \
	  --output-file export/batch/requirements.lock

clean:  ## Remove .venv and caches; runs/ stays
	rm -rf $(VENV) $(VENV)-mediapipe $(VENV)-serving $(VENV)-batch \
	  $(VENV)-lowest $(VENV)-next $(WEB) .arm build \
	  *.egg-info .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "PYTHON: expected Python 3.11 or newer;" \
	    "got $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@# Without ensurepip, venv fails after it has made the interpreter.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/demo.installed: setup.cfg pyproject.toml requirements-build.lock requirements-demo.lock | $(BIN)/python
	$(call install_locked,requirements-demo.lock)
	@touch $@

$(VENV)/dev.installed: setup.cfg pyproject.toml requirements-build.lock requirements.lock | $(BIN)/python
	$(call install_locked,requirements.lock)
	@touch $@ $(VENV)/demo.installed

$(VENV)-mediapipe/installed: | $(BIN)/python
	$(BIN)/python -m venv $(VENV)-mediapipe
	$(VENV)-mediapipe/bin/python -m pip install --quiet mediapipe==1.2.2
	@touch $@

$(WEB)/installed: export/web/package.json export/web/package-lock.json
	@command -v npm >/dev/null || { \
	  echo "npm: expected on the PATH, of Node.js 20 or newer."; exit 1; }
	cd export/web && npm ci --silent
	@touch $@

# This package comes alone: what it needs here is in the kit's lock. Few of the
# modules are imported, and compiled when they are.
SERVING = $(VENV)-serving/bin/python -m pip install --quiet --no-compile
$(VENV)-serving/installed: requirements-build.lock export/serving/requirements.lock | $(BIN)/python
	$(BIN)/python -m venv $(VENV)-serving
	$(SERVING) --require-hashes --requirement requirements-build.lock
	$(SERVING) --require-hashes --requirement export/serving/requirements.lock
	$(SERVING) --no-build-isolation --no-deps --editable .
	@touch $@

runs/serving/model.onnx: | $(VENV)/demo.installed
	$(BIN)/keras-resnext export resnext29_8x4d_f64 --weights fashion_mnist \
	  --format onnx --output runs/serving

$(VENV)-batch/installed: export/batch/requirements.lock | $(BIN)/python
	$(BIN)/python -m venv $(VENV)-batch
	$(VENV)-batch/bin/python -m pip install --quiet --no-compile \
	  --require-hashes --requirement export/batch/requirements.lock
	@touch $@

# Debian alone has the packages; elsewhere the tests that need them are skipped.
.arm/ready: requirements.lock | $(VENV)/dev.installed
	rm -f $@
	-$(BIN)/python export/mobile/arm.py --prepare

# Without hashes: torch is another file for a CPU, for each CUDA and for each
# index. What they share with the lock keeps its version.
$(VENV)/peers.installed: $(VENV)/dev.installed
	sed -E '/^ +--hash/d; s/ \\$$//' requirements.lock > $(VENV)/constraints.txt
	$(INSTALL) --constraint $(VENV)/constraints.txt --editable '.[dev,peers]'
	@touch $@
