# Each target sets up what it needs: Python 3.11 or newer and make are enough. The second time nothing is installed.

PYTHON ?= $(firstword $(shell command -v python3.11 python3 python))
VENV   := .venv
BIN    := $(VENV)/bin
CODE   := sfumato tests $(wildcard benchmarks recipes/*.py hatch_build.py)
# Threads inside one operation would fight with the test processes, and a sum's order, hence its bits, hangs on them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: install demo test test-all test-cuda lint bench wheel clean

install: $(VENV)/installed-dev

# A stamp is written last: an interrupted installation is taken up again. Bytecode is left to the first import, since
# most modules of the dependencies are never imported.
$(VENV)/installed-core: EXTRAS :=
$(VENV)/installed-dev: EXTRAS := [dev]
$(VENV)/installed-bench: EXTRAS := [bench]
$(VENV)/installed-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is Python {v}; 3.11 or newer is needed: make PYTHON=/path/to/it")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt -e '.$(EXTRAS)'
	@touch $@

demo: $(VENV)/installed-core
	$(BIN)/sfumato "a slice of pizza" --seed 0 --count 8 --grid -o out/demo.png

test: install
	$(PYTEST)

test-all: install
	$(PYTEST) -m 'slow or not slow'

# What only a GPU shows; the other targets do not look at one.
test-cuda: install
	SFUMATO_TEST_CUDA=1 $(BIN)/python -m pytest tests/cuda -m 'slow or not slow'

lint: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks

# With the native kernels compiled, for the PyTorch of constraints.txt; plain `pip wheel .` leaves them to first use.
wheel: install
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation -w dist .
	@ls dist

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
