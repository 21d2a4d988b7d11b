# Two commands: `make retrain` runs the main job on real data, `make test` runs all tests. Both install what they need.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= manifests/configs/digits.yaml
KILLS ?= 200
TRIALS ?= 500
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help install retrain test lint format bench chaos compile images docs clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/installed: setup.cfg constraints.txt
	@echo "Installing into .venv, once; a few minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

.venv/installed-test: .venv/installed
	@echo "Installing what tests and checks need"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

install: .venv/installed ## Install into .venv

retrain: .venv/installed ## Retrain on real data: validate, canary, train, evaluate, decide, promote
	@$(BIN)/convergate retrain $(CONFIG)

# Coverage is measured in the processes that the rooms' tests start, too; the whole runs of tests/e2e are not traced.
# The tests of a file share their servers.
test: .venv/installed-test ## Run all tests, with line coverage
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --fail-under=90

# mypy does not follow the absolute imports of an editable install; a link with the package's name does.
lint: .venv/installed-test ## Style, types, and the floors between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .venv/src && ln -sfn ../.. .venv/src/convergate
	MYPYPATH=.venv/src $(BIN)/mypy -p convergate
	$(BIN)/lint-imports

format: .venv/installed-test ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed-test ## Run the benchmarks: schedule, loop and checkpoints beside their peers, five real runs, start-up time
	$(BIN)/python tests/bench/bench_schedule.py
	$(BIN)/python tests/bench/bench_loop.py
	$(BIN)/python tests/bench/bench_checkpoint.py
	$(BIN)/python tests/bench/bench_retrain.py

chaos: .venv/installed-test ## Kill real runs KILLS times, and put checkpoints through TRIALS faults, drawn from SEED
	$(BIN)/python tests/chaos/trials.py --trials $(TRIALS) --seed $(SEED)
	$(BIN)/python tests/chaos/chaos.py --kills $(KILLS) --seed $(SEED)

compile: .venv/installed ## Write every pipeline as KFP IR YAML into out/
	$(BIN)/convergate compile -o out

images: ## Build the steps' images on BASE=…, with torch's build from EXTRA_INDEX_URL=…; needs docker alone
	@$(PYTHON) manifests/images/build.py $(if $(BASE),--base $(BASE)) $(if $(EXTRA_INDEX_URL),--extra-index-url $(EXTRA_INDEX_URL))

docs: .venv/installed ## Write what is generated: READMEs of components, S3 policies, run configs as ConfigMaps
	$(BIN)/python docs/generate.py
	$(BIN)/python manifests/generate.py
	$(BIN)/convergate compile --argo -o manifests/argo

clean: ## Remove what was installed and made; runs under .convergate stay
	rm -rf .venv build out .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
