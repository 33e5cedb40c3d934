# make night   install what is missing, simulate a small survey, process it under MPI, print the scorecard
# make test    lint, format, types, and all tests
SHELL := /bin/bash
RUN ?= runs/demo
SIZE ?= small
PYTHON := .venv/bin/python

.PHONY: night test install lint clean

night: install
	$(PYTHON) -m tools.night --run $(RUN) --size $(SIZE)

test: install lint
	$(PYTHON) -m pytest -n 2 --dist worksteal

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

install: .venv/installed

.venv/installed: tools/install.sh pyproject.toml constraints.txt setup.py $(wildcard zsds_hpc/kernels/*.p[yx][xd])
	bash tools/install.sh

clean:
	rm -rf build zsds_hpc/kernels/*.c zsds_hpc/kernels/*.so .venv/installed
