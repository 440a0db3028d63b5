# One command each: `make demo` (first run), `make test` (everything), `make check` (fast). Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= runs/demo
# Processes that run tests side by side. Many tests wait for SLURM, signals and ranks: with two, two cores idle by a third;
# with four they are busy.
WORKERS ?= 4
# A worker that dies is a failure; xdist would start another one and then wait for ever.
PYTEST = $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --max-worker-restart 0 --dist loadscope --no-loadscope-reorder

.PHONY: demo setup test check format lock clean
.DEFAULT_GOAL := demo

# Both releases of Megatron-core that megacode supports; tests/releases runs with the one that is not installed.
MCORE := $(VENV)/megatron-core
RELEASES := $(shell sed -n 's/^megatron-core==\([0-9.]*\).*/\1/p' requirements/constraints.txt)

# TORCH: the requirement or wheel to install (TORCH=torch-2.13.0+cpu.whl); absent, the pinned version.
# TORCH_INDEX: the package index to take torch from; absent, pip's own. TORCH_INDEX=URL make test
PINNED_TORCH := $(shell grep '^torch==' requirements/constraints.txt)
TORCH ?=
TORCH_INDEX ?=

# torch comes first: any other order may pull gigabytes of CUDA packages that a machine without a GPU cannot use.
# An index that offers only CUDA builds is refused before it downloads them, unless TORCH says what to take.
# The other packages keep the torch that is there, whichever it is; its own dependencies come with them.
# DALI and Triton are for tests without a GPU: a CUDA build of torch brings its own Triton. Where they cannot be
# installed, set-up continues, and their tests are skipped and say why.
$(STAMP): setup.py requirements/constraints.txt requirements/no-deps.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(TORCH),,$(BIN)/python tools/torch_build.py '$(PINNED_TORCH)' $(if $(TORCH_INDEX),--index '$(TORCH_INDEX)'))
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--no-deps --index-url '$(TORCH_INDEX)') \
		'$(or $(TORCH),$(PINNED_TORCH))'
	{ grep -v '^torch==' requirements/constraints.txt; $(BIN)/python -m pip list --format freeze | grep '^torch=='; } \
		> $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --quiet --constraint $(VENV)/constraints.txt --editable '.[eval,dev]'
	if $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then \
		$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/no-deps.txt \
		|| echo "DALI and Triton could not be installed; the tests that need them will be skipped"; fi
	touch $@

# pip refuses the release that declares another Python, though its code does not need it.
$(MCORE)/.installed: $(STAMP)
	for release in $(RELEASES); do $(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python --upgrade \
		--target $(MCORE)/$$release megatron-core==$$release || exit 1; done
	touch $@

# Where nothing keeps Python's bytecode, every process that a test starts compiles megacode anew, for a second of CPU.
unexport PYTHONDONTWRITEBYTECODE

# Tests start many processes at once; the demo may use every core.
test check: export OMP_NUM_THREADS ?= 1
test check: export TOKENIZERS_PARALLELISM ?= false

demo: $(STAMP)
	$(BIN)/megacode demo --out $(OUT) $(ARGS)

# All that `make test` needs, without the tests.
setup: $(STAMP) $(MCORE)/.installed

test: export MEGATRON_CORE_RELEASES := $(CURDIR)/$(MCORE)
test: setup
	$(PYTEST) --durations=15 $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow" $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP)
	{ grep -E '^(#|megatron-core==)' requirements/constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
		| grep -v '^megatron-core==' | grep -v -x -F -f requirements/no-deps.txt | sed 's/+cpu$$//'; } > requirements/new.txt
	mv requirements/new.txt requirements/constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
