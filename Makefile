# Every target a fresh machine needs goes through `install`, which is quick when nothing changed.
# The first of these that was built with profile-guided optimisation, as distributions' are: it serves a
# quarter more than one built without. PYTHON=... has the last word.
PICK   := import sys, sysconfig, venv, ensurepip; \
	built = sysconfig.get_config_var("CONFIG_ARGS") or ""; \
	sys.exit(sys.version_info < (3, 11) or not (sys.prefix == "/usr" or "--enable-optimizations" in built))
PYTHON ?= $(shell for each in python3 /usr/bin/python3; do \
	$$each -c '$(PICK)' 2>/dev/null && { echo $$each; exit; }; done; echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ENGINE ?=

.PHONY: up test install lint types imports tests lock clean help

help:            ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

up: install      ## serve: API, a demo model, a key to try (ENGINE=http://host:port fronts that engine)
	@exec $(BIN)/tokenfactory up $(if $(ENGINE),--engine $(ENGINE))

install: $(STAMP) ## build .venv from the locked set

$(STAMP): requirements.lock requirements-uv.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@$(BIN)/python -m compileall -q gateway routing quotas
	@touch $(STAMP)

test: lint types imports tests ## everything CI runs

lint: install    ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install   ## mypy --strict
	@$(BIN)/mypy

imports: install ## the floors of the house
	@$(BIN)/lint-imports

# In the order of folders: the flows, which wait most, begin first, and no long file is left for the end.
tests: install   ## all tests, on both cores
	@$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lock:            ## renew requirements.lock from pyproject.toml
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra embedded --extra otel --extra tokenizers --group test --universal --generate-hashes --no-emit-index-url --no-annotate --no-header -o requirements.lock

clean:           ## remove what the build made
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
