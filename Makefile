# Every target does its own set-up: the virtual environment, torch, and this package with its extras.
#
#   make demo   train, score, translate and draw on the embedded corpus (no network beyond the package index)
#   make test   linter, formatter check, tests
#
# Variables: PYTHON (3.11 or newer), VENV, TORCH (requirement), TORCH_INDEX_URL (where torch alone comes from),
#            DEMO (the demo's run directory), WORKERS (test processes), ARGS (more arguments for pytest or benchmark.py)

PYTHON ?= python3
VENV ?= .venv
# Without an NVIDIA driver the pinned release is enough and small; with one, the newest build for it is wanted.
TORCH ?= $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)
TORCH_INDEX_URL ?=
DEMO ?= runs/demo
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Without these, `accelerate launch` lists its defaults as a warning and gives the process one thread.
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(CORES)
DEMO_SENTENCE := Thursday, March 12, 2026
READY := $(VENV)/.ready
# Test workers share the cores: one thread each, and idle threads sleep.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest

.PHONY: demo test lint format test-faults test-floor bench setup clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, PYTHON=$(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$(TORCH)"
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

demo: $(READY)
	@if test -f $(DEMO)/summary.json; then \
		echo "$(DEMO) holds a finished run, which is scored again; \`make demo DEMO=runs/other\` trains another"; \
	else \
		$(LAUNCH) scripts/train.py scripts/recipes/cldr_en_fr.yaml --output_dir $(DEMO) \
			$$(test -d $(DEMO)/checkpoints && echo --resume_from_checkpoint latest); \
	fi
	$(BIN)/python scripts/evaluate_bleu.py $(DEMO)
	@echo; echo "English in, French out:"
	printf '%s\n' '$(DEMO_SENTENCE)' '3 days ago' '12.5 kilometers per hour' | $(BIN)/python scripts/translate.py $(DEMO)
	$(BIN)/python scripts/plot_attention.py $(DEMO) '$(DEMO_SENTENCE)' --output $(DEMO)/attention.png

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(PYTEST) -n $(WORKERS) --dist loadfile $(ARGS)

test-faults: $(READY)
	$(PYTEST) -m faults $(ARGS)

# The lowest versions that pyproject.toml declares, in an environment of their own.
test-floor:
	test -x $(VENV)-floor/bin/python || $(PYTHON) -m venv $(VENV)-floor
	$(PYTHON) tests/floor.py > $(VENV)-floor/constraints.txt
	$(VENV)-floor/bin/python -m pip install -c $(VENV)-floor/constraints.txt -e '.[dev]'
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)-floor/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

bench: $(READY)
	$(BIN)/python scripts/benchmark.py train $(ARGS)
	$(BIN)/python scripts/benchmark.py decode $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-floor dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
