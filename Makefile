# `make demo` and `make test` do all of their own set-up; `make` lists what there is.
#
# PYTHON  interpreter that the virtual environment is made from (>= 3.10)
# TORCH   the torch that is installed into it, as pip names it
# ARGS    more arguments for the trainer (make demo), pytest (make test) or the benchmarks (make bench, make claims)

PYTHON ?= python3
TORCH  ?= torch==2.13.0
ARGS   ?=

# The CUDA kernels take minutes for every GPU there is, and the tests compile what they run themselves: SAGD_CUDA=1
# builds them into the library, too (and SAGD_CUDA= wherever there is an nvcc, as pip does).
export SAGD_CUDA ?= 0

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Each stamp says that one stage of the set-up was done, and is older than the files that ask for it again.
MADE      := $(VENV)/made
TOOLS     := $(VENV)/tools-$(TORCH)
INSTALLED := $(VENV)/installed
PEERS     := $(VENV)/peers

.DEFAULT_GOAL := help
.PHONY: help demo test slow bench claims lint build clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: $(INSTALLED) build ## train a small diffusion model with shaped noise, into runs/demo
	@echo "==> Training; results go to runs/demo"
	@$(BIN)/python -m sagd_kernels.train --output runs/demo --overwrite $(ARGS)

test: $(INSTALLED) build ## run the tests, except those that are slow
	@echo "==> Running the tests"
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

slow: $(INSTALLED) build ## run the slow tests
	@echo "==> Running the slow tests (half an hour)"
	@$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(PEERS) build ## measure against other libraries; results go to benchmarks/results
	@echo "==> Measuring (about 5 minutes; keep the machine otherwise idle)"
	@$(BIN)/python -m benchmarks $(ARGS)
	@$(BIN)/python -m benchmarks --plot $(ARGS)

claims: $(INSTALLED) build ## test what is claimed for shaped noise, into runs/claims; two hours or more
	@$(BIN)/python -m benchmarks.claims $(ARGS)

lint: $(INSTALLED) ## check style and formatting
	@echo "==> Checking style"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

build: $(TOOLS) ## compile what changed in csrc
	@echo "==> Building the native library"
	@$(BIN)/python setup.py --quiet build_ext --inplace

clean: ## remove what was built
	@rm -rf build dist sagd_kernels.egg-info sagd_kernels/_C.so sagd_kernels/_build.json
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove the virtual environment too
	@rm -rf $(VENV)

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: Python >= 3.10 is needed and '$(PYTHON)' is not; name one with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' has no venv or ensurepip module (on Debian or Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "==> Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# pip from 21.3 on can install this kind of project in editable mode; the rest is what pyproject.toml builds with.
$(TOOLS): $(MADE)
	@echo "==> Installing $(TORCH) and the build tools (a few hundred MB to fetch the first time)"
	@$(PIP) install "pip>=21.3" "setuptools>=77" "ninja>=1.11.1" "$(TORCH)"
	@rm -f $(VENV)/tools-* && touch "$@"

# The library is built first, so that its compiler's messages are seen: pip would hide them.
$(INSTALLED): $(TOOLS) pyproject.toml setup.py | build
	@echo "==> Installing sagd_kernels in editable mode, with what training and tests need"
	@$(PIP) install --no-build-isolation -e ".[dev]" "$(TORCH)"
	@touch $@

$(PEERS): $(INSTALLED)
	@echo "==> Installing the libraries to measure against"
	@$(PIP) install --no-build-isolation -e ".[bench]" "$(TORCH)"
	@touch $@
