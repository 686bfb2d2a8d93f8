# mmrr: `make demo` runs the sample, `make test` runs the tests, `make check` is what CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-work
WHEEL := .venv-wheel
# Options of pip, such as --no-compile: for environments that are used once.
PIP_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-browser test-framework screenshots test-wheel wheel-test check format docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Create .venv with mmrr (editable) and the development tools

demo: install ## Rank data/sample by words, meaning and sight, and draw a page
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev,ocr,text]'
	$(BIN)/mmrr index data/sample --work $(DEMO)/work --ocr auto
	@echo; echo "One question, by the words and the meaning of the pages' text (the default):"
	$(BIN)/mmrr retrieve "When is the thesis due?" --work $(DEMO)/work --top-k 5
	@echo; echo "47 questions: each way of finding pages, and words and meaning reranked by page images (small models):"
	$(BIN)/mmrr index data/sample --work $(DEMO)/work --ocr auto --embedder reader-embedder
	$(BIN)/mmrr precache --work $(DEMO)/work --scorer-model reader-reranker
	$(BIN)/mmrr rerank --queries data/sample/queries.jsonl --work $(DEMO)/work --channels words=1,meaning=1.25 \
		--candidates 20 --fuse 0.3 --json >/dev/null
	$(BIN)/mmrr eval --by-channel --work $(DEMO)/work --queries data/sample/queries.jsonl \
		--qrels data/sample/qrels.trec --measure Success@1 --measure Success@3 --measure nDCG@5
	$(BIN)/mmrr view graduate-handbook.pdf/0008 --work $(DEMO)/work --output $(DEMO)/page.png

# Stealing work keeps most of a file on one process, so that its expensive fixtures are made once.
PYTEST := -m pytest -n auto --dist worksteal -q -rs
TESTS ?= tests

test: install ## Run the fast tests (CPU, no network, 4 minutes on 2 cores); TESTS=tests/search runs a part
	$(BIN)/python $(PYTEST) $(TESTS)

# A file stays on one process: its fixtures train models for up to a minute.
test-slow: install ## Run the slow tests, which make test leaves out
	$(BIN)/python $(PYTEST) --dist loadfile -m 'slow and not gpu' $(TESTS)

test-browser: install ## Install Playwright in .venv, and run the tests of the web page in the system's Chromium
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,browser]'
	$(BIN)/python -m pytest -q -rs -m browser tests/serve

screenshots: demo ## Draw the screenshots of the web page in docs/images
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[serve,browser]'
	$(BIN)/python -m benchmarks.screenshots $(DEMO)/work

FRAMEWORKS := langchain,llamaindex,haystack,mteb,pyterrier,mcp

test-framework: install ## Install the frameworks that have an adapter (490 MB), and run the tests of the adapters
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev,$(FRAMEWORKS)]'
	$(BIN)/python $(PYTEST) -m framework $(TESTS)

# -m pytest and Python's -c put the current folder first on the path, where mmrr/ hides the installed package, and
# pytest does the same with the folder of tests/. PYTHONSAFEPATH and --import-mode=importlib prevent both.
test-wheel: ## Run the fast tests on the built wheel in an environment without the checkout's package
	rm -rf build $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/pip wheel --quiet --no-deps --wheel-dir $(WHEEL) .
	$(WHEEL)/bin/pip install --quiet --constraint constraints.txt "$$(echo $(WHEEL)/mmrr-*.whl)[dev]"
	MMRR_TEST_INSTALLED=1 PYTHONSAFEPATH=1 $(WHEEL)/bin/python $(PYTEST) --import-mode=importlib $(TESTS)

check: install ## Formatting, lint, types, then the tests: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory test

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## Build the documentation into site/; a dead link is an error
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

wheel-test: ## Build the wheel, install it in an empty environment elsewhere, and run the sample with it
	PYTHON=$(PYTHON) bash tests/wheel.sh

clean: ## Remove the virtual environments, the demo workspace and what was built
	rm -rf $(VENV) $(WHEEL) $(DEMO) build dist site
