# Two commands are all a newcomer needs: `make demo` and `make test` (root, Debian 12, package registries only).
PYTHON ?= /usr/bin/python3
VENV := .venv
SHELL := /bin/bash
.DELETE_ON_ERROR:

.PHONY: help demo test unit fuzz power native vm-test venv bench lint format simulate clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

-include mk/image.mk

## make venv      .venv with the product and all that tests need
venv: $(VENV)/.stamp
$(VENV)/.stamp: pyproject.toml bin/compile bin/magbay-changer.c | host-packages
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@bin/compile $(VENV)/bin/magbay-changer
	@$(VENV)/bin/python -m compileall -q appliance
	@touch $@

## make unit      the unit suite (under a minute)
unit: venv
	$(VENV)/bin/python -m pytest tests/unit -n 2

## make fuzz      the volume reader, guided by coverage (SECONDS=600); a failing input is kept below build/fuzz
fuzz: venv
	$(VENV)/bin/python -m tests.fuzz.engine $(or $(SECONDS),600)

## make power     power cuts and faults of the disk on the recorded calls of the engine (STATES=100000)
power: venv
	MAGBAY_POWER_STATES=$(or $(STATES),10080) $(VENV)/bin/python -m pytest tests/power -n 2 -o timeout=0

## make native    a real Bacula on loopback with our changer (a minute)
native: venv
	$(VENV)/bin/python -m pytest tests/native -n 2

## make vm-test   the scenarios in the virtual machine
vm-test: venv image
	$(VENV)/bin/python -m pytest tests/vm -m vm -n 2 --dist loadfile

## make test      everything; ends with one line of counts
test: venv
	$(VENV)/bin/python tests/run.py

## make demo      the whole story on the booted image
demo: venv image
	$(VENV)/bin/python -m tests.vm.demo

## make bench     measurements, side by side with the named peers
bench: venv image
	$(VENV)/bin/python bench/run.py

## make simulate  all agents on the simulated machine, without root
simulate: venv
	$(VENV)/bin/magbay --simulate

## make lint      types and style
lint: venv
	$(VENV)/bin/mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check appliance tests

format: venv
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format appliance tests

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
