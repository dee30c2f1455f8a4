PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check format crash-matrix bench base docs notebooks constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install the pinned versions

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "fl_privacy needs Python 3.11: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs,tracking,mlflow,serve]'
	touch $(STAMP)

demo: $(STAMP)  ## three owners, one scientist, one private training run; leaves runs/demo
	$(BIN)/python domains/demo.py --out runs/demo

test: $(STAMP)  ## all tests but the slow ones, in random order, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)  ## the slow tests only
	$(BIN)/python -m pytest -m slow

check: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

crash-matrix: $(STAMP)  ## kill a guard and fill its disk at every durable step (many minutes); one line a point
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.durability

bench: $(STAMP)  ## the secure sum against CKKS: bytes, time, exactness
	$(BIN)/python benchmarks/secure_sum.py --quick

base: $(STAMP)  ## train the public base model anew that the demo starts from
	$(BIN)/python domains/public/pretrain.py

docs: $(STAMP)  ## the documents as a site, runs/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: $(STAMP)  ## run all notebooks against real datasites and store their outputs
	$(BIN)/python notebooks/run.py

constraints: $(STAMP)  ## write the installed versions to constraints.txt
	{ echo '# Every version that was tested together; `make install` installs exactly these. Made by `make constraints`.'; \
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' | sort -f; } > constraints.txt

clean:  ## remove what runs leave behind, not .venv
	rm -rf runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis
