# Every target sets up what it needs: only Python (3.10 or newer) and make are taken for granted.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VENV2 ?= .venv-nncf2
READY2 := $(VENV2)/.ready
VENV_COVERAGE ?= .venv-coverage
READY_COVERAGE := $(VENV_COVERAGE)/.ready
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# one thread for each of two workers: two threads of one process that wait for each other are slower than one
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
PYTEST2 := OMP_NUM_THREADS=1 $(VENV2)/bin/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: help setup demo test test-nncf2 test-matrix coverage lint benchmarks clean

help:
	@echo "make demo        compress a small network with NNCF, compare it in OpenVINO (about 5 minutes after set-up)"
	@echo "make test        lint, type-check and test everything (about 15 minutes after set-up)"
	@echo "make test-nncf2  test with NNCF 2, in an environment of its own (a part of make test)"
	@echo "make test-matrix test with several NNCF 2 and 3, and write the README's support matrix (about 25 GB)"
	@echo "make coverage    compress some 180 networks of other libraries and check each, row by row (hours, 7 GB)"
	@echo "make benchmarks  all benchmarks, tables on the screen and JSON in benchmark-output/"
	@echo "make clean       remove the environment and everything made here"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): PyTorch, NNCF, OpenVINO and this package (about 3 minutes, 7 GB)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable ".[nncf,export,examples,dev]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py $(ARGS)

test: lint
	$(PYTEST) $(ARGS)
	$(MAKE) test-nncf2 ARGS=

$(READY2): pyproject.toml constraints-nncf2.txt
	@echo "Setting up $(VENV2): PyTorch, NNCF 2 and this package (about 2 minutes)"
	test -x $(VENV2)/bin/python || $(PYTHON) -m venv $(VENV2)
	$(VENV2)/bin/python $(PIP_INSTALL) --constraint constraints-nncf2.txt --editable ".[nncf,tests]"
	@touch $(READY2)

test-nncf2: $(READY2)
	$(PYTEST2) tests/nncf2 tests/hooks tests/plugin integration --ignore tests/hooks/test_guide.py $(ARGS)

test-matrix:
	$(PYTHON) tests/support_matrix.py $(ARGS)

$(READY_COVERAGE): pyproject.toml constraints-coverage.txt
	@echo "Setting up $(VENV_COVERAGE): PyTorch, OpenVINO, libraries of networks and this package (about 4 minutes)"
	test -x $(VENV_COVERAGE)/bin/python || $(PYTHON) -m venv $(VENV_COVERAGE)
	$(VENV_COVERAGE)/bin/python $(PIP_INSTALL) --constraint constraints-coverage.txt --editable ".[coverage]"
	@touch $(READY_COVERAGE)

coverage: $(READY_COVERAGE)
	OMP_NUM_THREADS=1 $(VENV_COVERAGE)/bin/python tests/coverage/run.py \
		--json tests/coverage/coverage.json --markdown tests/coverage/COVERAGE.md $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmarks: $(READY)
	mkdir -p benchmark-output
	$(BIN)/python examples/benchmarks/solvers.py --json benchmark-output/solvers.json
	$(BIN)/python examples/benchmarks/batching.py --json benchmark-output/batching.json
	$(BIN)/python examples/benchmarks/accuracy.py --json benchmark-output/accuracy.json
	$(BIN)/python examples/benchmarks/ablations.py --model resnet20 --json benchmark-output/ablations.json
	$(BIN)/python examples/benchmarks/latency.py --json benchmark-output/latency.json
	$(BIN)/python examples/benchmarks/calibration.py --json benchmark-output/calibration.json
	$(BIN)/python examples/benchmarks/import_time.py --json benchmark-output/import_time.json
	$(BIN)/python examples/benchmarks/restore.py --json benchmark-output/restore.json

clean:
	rm -rf $(VENV) $(VENV2) $(VENV_COVERAGE) .venv-matrix demo-output benchmark-output
