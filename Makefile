# `make demo` and `make test` set everything up by themselves, in .venv inside this clone.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-avx2 test-long lint zoo crosscheck clean

help:
	@echo "make demo       everything on the embedded data set: data, CapFilt, stages 1 and 2, evaluation, report"
	@echo "make test       all tests, the fast ones first"
	@echo "make test-fast  the fast tests only"
	@echo "make test-avx2  those that multiply most, as a CPU with AVX2 alone runs them"
	@echo "make test-long  what takes minutes each: random kills, lost machines, other numbers of ranks"
	@echo "make lint       ruff and mypy"
	@echo "make zoo        train the small frozen models again, from nothing"
	@echo "make crosscheck  CHECKPOINT=RUN DATA=DIR: answers beside Hugging Face's classes, scores beside lmms-eval's"
	@echo "make clean      remove runs/ (not .venv)"

setup: $(READY)

$(READY): requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or later, or run: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; run: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Setting up .venv: about 6 GB of packages, once"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt \
		|| { echo "error: the packages of requirements.txt could not be installed; see pip's message above"; exit 1; }
	@touch $@

demo: $(READY)
	@$(RUN) jobs/tinyworld.py --out runs/demo

test: $(READY)
	@$(RUN) -m pytest -q -m "not slow"
	@$(RUN) -m pytest -q -m "slow and not long"

test-long: $(READY)
	@$(RUN) -m pytest -q -m long

AVX2_ONLY := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

test-avx2: $(READY)
	@$(AVX2_ONLY) $(RUN) -m pytest -q -m "not slow" tests/modeling tests/jobs/training/test_training.py \
		tests/jobs/benchmarks/test_train.py tests/jobs/test_predict.py tests/jobs/models/test_matrix.py

test-fast: $(READY)
	@$(RUN) -m pytest -q -m "not slow"

lint: $(READY)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy pipeline modeling cluster evaluation jobs

zoo: $(READY)
	@$(RUN) jobs/zoo.py

# lmms-eval in an environment of its own, which sees the packages of .venv and changes none of them.
# It uses a private part of filelock that version 4 does not have.
CROSSCHECK := .crosscheck
LMMS       := lmms-eval==0.7.3 "filelock<4"
CHECKPOINT ?= runs/demo/train/t5
DATA       ?= runs/demo/data/eval

$(CROSSCHECK)/.ready: $(READY)
	@echo "Setting up $(CROSSCHECK): about 1 GB of packages, once"
	@$(RUN) -m venv --clear $(CROSSCHECK)
	@$(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(CROSSCHECK)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	@$(CROSSCHECK)/bin/python -m pip install --quiet --disable-pip-version-check $(LMMS)
	@touch $@

crosscheck: $(CROSSCHECK)/.ready
	@$(RUN) -m tests.crosscheck --checkpoint $(CHECKPOINT) --data $(DATA) --lmms $(CROSSCHECK)/bin/python

clean:
	rm -rf runs
