# One command each: `make demo` (first run), `make test` (everything), `make check` (fast). Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/demo

.PHONY: demo test check quick format lock clean
.DEFAULT_GOAL := demo

# torch first and pinned: any other order may pull gigabytes of CUDA packages that a machine without a GPU cannot use.
# DALI and Triton are optional: where they cannot be installed, set-up goes on, and their tests are skipped and say why.
$(STAMP): setup.py requirements/constraints.txt requirements/no-deps.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements/constraints.txt)"
	$(BIN)/python -m pip install --quiet --quiet --constraint requirements/constraints.txt --editable '.[eval,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/no-deps.txt \
		|| echo "DALI and Triton could not be installed; the tests that need them will be skipped"
	touch $@

# Tests start many processes at once; the demo may use every core.
test check: export OMP_NUM_THREADS ?= 1
test check: export TOKENIZERS_PARALLELISM ?= false

demo: $(STAMP)
	$(BIN)/megacode demo --out $(OUT) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -q --durations=15 $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP)
	{ grep '^#' requirements/constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
		| grep -v -x -F -f requirements/no-deps.txt | sed 's/+cpu$$//'; } > requirements/new.txt
	mv requirements/new.txt requirements/constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
