# Every target does its own set-up: the virtual environment, torch, and this package with its extras.
#
#   make demo   train, score, translate and draw on the embedded corpus (no network beyond the package index);
#               `make demo TASK=captioning` describes drawn pictures, `TASK=classification` reads documents,
#               `TASK=handwriting` writes by hand, `TASK=text` writes what it has read about
#   make test   linter, formatter check, tests; `make test-all` adds the long ones
#
# Variables: PYTHON (3.11 or newer), VENV, TORCH (requirement), TORCH_INDEX_URL (where torch alone comes from),
#            TASK and DEMO (the demo's task and run directory), WORKERS (test processes), ARGS (more arguments for pytest or benchmark.py)

PYTHON ?= python3
VENV ?= .venv
# Without an NVIDIA driver the release that was tested is enough and small; with one, the newest build for it is wanted.
TESTED_TORCH := torch==2.13.0
TORCH ?= $(if $(shell command -v nvidia-smi),torch,$(TESTED_TORCH))
TORCH_INDEX_URL ?=
TASK ?= translation
DEMO ?= runs/$(patsubst translation,demo,$(TASK))
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Without these, `accelerate launch` lists its defaults as a warning and gives the process one thread.
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(CORES)
DEMO_SENTENCE := Thursday, March 12, 2026
DEMO_PICTURE := shapes/test/0/33
DEMO_WORD := writing
RECIPE_OF_translation := cldr_en_fr
RECIPE_OF_captioning := shapes_captions
RECIPE_OF_classification := documents
RECIPE_OF_handwriting := hershey_handwriting
RECIPE_OF_text := graves2013_text

# What a demo shows in the end, by its task.
define SHOW_translation
@echo; echo "English in, French out:"
printf '%s\n' '$(DEMO_SENTENCE)' '3 days ago' '12.5 kilometers per hour' | $(BIN)/python scripts/translate.py $(DEMO)
$(BIN)/python scripts/plot_attention.py $(DEMO) '$(DEMO_SENTENCE)' --words --output_file $(DEMO)/attention.png
endef

define SHOW_captioning
@echo; echo "A picture in, its caption out:"
$(BIN)/python -c "from hf_rnn_seq2seq.data import shapes; shapes.draw('$(DEMO_PICTURE)').save('$(DEMO)/picture.png')"
$(BIN)/python scripts/caption.py $(DEMO) $(DEMO)/picture.png --output_file $(DEMO)/attention.png
endef

define SHOW_classification
@echo; echo "A document in, its class out:"
$(BIN)/python scripts/classify.py $(DEMO) '3 days ago\nGermany and Peru\nvendredi 13 mars 2026\n5 kilometers\n12 Kilometer' \
	--output_file $(DEMO)/words.html
endef

define SHOW_handwriting
@echo; echo "A word in, its strokes out: $(DEMO)/hand.svg, window.png, density.png"
$(BIN)/python scripts/write.py $(DEMO) '$(DEMO_WORD)' --output_file $(DEMO)/hand.svg --window $(DEMO)/window.png --density $(DEMO)/density.png
endef

define SHOW_text
@echo; echo "A text, and the bits of each character:"
$(BIN)/python scripts/plot_surprise.py $(DEMO) 'The value of the argument is an integer.' --output_file $(DEMO)/surprise.html
endef
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-demo
LOCK := .ci/requirements.lock
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
# Test workers share the cores: one thread each, and idle threads sleep.
TEST_ENVIRONMENT := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
PYTEST := $(TEST_ENVIRONMENT) $(BIN)/python -m pytest

CHECK_PYTHON := $(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, PYTHON=$(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'

.PHONY: demo test lint format test-all test-faults test-latest test-floor lock bench setup clean

setup: $(READY)

# torch comes first and alone, so that it decides which of its builds and which CUDA packages this machine gets. The lock
# is complete: nothing is left to be resolved, and what was tested is what is installed.
$(READY): pyproject.toml $(LOCK)
	@$(CHECK_PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install --no-deps -r $(LOCK)
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

# Renews the lock: the newest versions that pyproject.toml allows beside the tested torch, whose CUDA packages are left out.
lock:
	test -x $(VENV)-lock/bin/python || $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --upgrade uv
	echo '$(TESTED_TORCH)' | $(VENV)-lock/bin/uv pip compile --universal --python-version 3.11 --extra dev \
		--strip-extras --no-annotate --no-header --no-emit-index-url --output-file $(VENV)-lock/requirements.txt \
		--upgrade --quiet pyproject.toml -
	{ echo '# What was tested with $(TESTED_TORCH), for Python 3.11 to 3.14. Made by `make lock`; torch is installed first.'; \
		grep -vE '^(torch|triton|(nvidia|cuda)-[a-z0-9-]+)==' $(VENV)-lock/requirements.txt; } > $(VENV)-lock/lock.txt
	mv $(VENV)-lock/lock.txt $(LOCK)

# What the demo needs and no tools of developers: the lock is a list of constraints here.
$(DEMO_READY): pyproject.toml $(LOCK)
	@$(CHECK_PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install -c $(LOCK) hatchling
	$(BIN)/python -m pip install -c $(LOCK) --no-build-isolation -e '.[train,plot,images]'
	@touch $@

demo: $(if $(RECIPE_OF_$(TASK)),,$(error TASK=$(TASK): must be translation, captioning, classification, handwriting or text)) $(if $(wildcard $(READY)),$(READY),$(DEMO_READY))
	@if test -f $(DEMO)/summary.json; then \
		echo "$(DEMO) holds a finished run, which is scored again; \`make demo DEMO=runs/other\` trains another"; \
	else \
		$(LAUNCH) scripts/train.py scripts/recipes/$(RECIPE_OF_$(TASK)).yaml --output_dir $(DEMO) \
			$$(test -d $(DEMO)/checkpoints && echo --resume_from_checkpoint latest); \
	fi
	$(BIN)/python scripts/evaluate_bleu.py $(DEMO)
	$(SHOW_$(TASK))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(PYTEST) -n $(WORKERS) --dist loadfile $(ARGS)

test-all: lint
	$(PYTEST) -m 'not faults' --hypothesis-profile many -n $(WORKERS) --dist loadfile $(ARGS)

test-faults: $(READY)
	$(PYTEST) -m faults $(ARGS)

# The newest release of everything that pyproject.toml allows, in an environment of their own.
test-latest:
	test -x $(VENV)-latest/bin/python || $(PYTHON) -m venv $(VENV)-latest
	$(VENV)-latest/bin/python -m pip install --upgrade $(TORCH_INDEX) torch
	$(VENV)-latest/bin/python -m pip install --upgrade --upgrade-strategy eager -e '.[dev]'
	$(TEST_ENVIRONMENT) $(VENV)-latest/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# The lowest versions that pyproject.toml declares, in an environment of their own.
test-floor:
	test -x $(VENV)-floor/bin/python || $(PYTHON) -m venv $(VENV)-floor
	$(PYTHON) tests/helpers/floor.py > $(VENV)-floor/constraints.txt
	$(VENV)-floor/bin/python -m pip install $(TORCH_INDEX) "$$(grep '^torch==' $(VENV)-floor/constraints.txt)"
	$(VENV)-floor/bin/python -m pip install -c $(VENV)-floor/constraints.txt -e '.[dev]'
	$(TEST_ENVIRONMENT) $(VENV)-floor/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

bench: $(READY)
	$(BIN)/python scripts/benchmark.py train $(ARGS)
	$(BIN)/python scripts/benchmark.py decode $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-latest $(VENV)-floor $(VENV)-lock dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
