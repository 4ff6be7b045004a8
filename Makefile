# Everything happens in .venv and .cache of this folder; nothing is installed beside them,
# except that `make test` as root on Debian installs Java, Maven and PostgreSQL when they are
# missing.

BIN := .venv/bin
PINNED := pyproject.toml constraints.txt
# Over how many processes the tests go; one for those that a person picks, and may want --pdb for.
WORKERS ?= $(if $(ARGS),0,auto)

.PHONY: help setup run test check pins clean
.DELETE_ON_ERROR:

help:
	@echo "make run     set up, then show learnd at work: a stream, new model versions, a rollback"
	@echo "make test    set up, then run all tests, real servers included (ARGS='-k gate' for some)"
	@echo "               in as many processes as suit the machine (WORKERS=0: in one; so with ARGS)"
	@echo "make check   lint, formatting and types"
	@echo "make setup   only set up, for running and for testing"
	@echo "make pins    bring constraints.txt up to date with pyproject.toml"
	@echo "make clean   remove what these commands made"

run: .venv/ready-to-run
	@$(BIN)/learnd demo $(ARGS)

setup: .venv/ready-to-test

test: .venv/ready-to-test
	@$(BIN)/python -m tests.services.install
	@$(BIN)/pytest -n $(WORKERS) $(ARGS)

check: .venv/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Keeps what is pinned already, adds what is new; delete a line here to let it move.
pins: .venv/bin/uv
	$(BIN)/uv pip compile pyproject.toml --extra train --extra quantized --extra test --extra bench --output-file constraints.txt \
	  --quiet --no-header --no-annotate --no-emit-package setuptools

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis learnd-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready-to-run: .venv/bin/uv $(PINNED)
	@echo "setup: installing learnd and PyTorch (6 GB on disk; some minutes the first time) ..."
	@$(call install,.[train])
	@touch $@

.venv/ready-to-test: .venv/bin/uv $(PINNED)
	@echo "setup: installing learnd, PyTorch, the test and benchmark tools (6 GB on disk; some minutes the first time) ..."
	@$(call install,.[train$(comma)quantized$(comma)test$(comma)bench])
	@touch .venv/ready-to-run $@

comma := ,

# uv does not read pip's configuration, so a package index or a certificate that is set
# there is handed on. It lists a hundred packages: only a terminal gets to see it work.
define install
index="$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}"; \
if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi; \
if [ -n "$$PIP_CERT" ]; then export SSL_CERT_FILE="$${SSL_CERT_FILE:-$$PIP_CERT}"; fi; \
if [ ! -t 2 ]; then quiet=--quiet; fi; \
$(BIN)/uv pip install $$quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '$(1)'
endef

# The versions in constraints.txt are tested on 3.11; a later Python is taken when there is no 3.11.
.venv/bin/uv:
	@new='import sys; sys.exit(sys.version_info < (3, 11))'; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3); do \
	  if "$$python" -c "$$new" >/dev/null 2>&1; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "setup: learnd needs Python 3.11 or later, and there is none on PATH."; \
	  echo "setup: install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it:"; \
	  echo "setup:   make run PYTHON=/path/to/python3.11"; \
	  exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	  echo "setup: $$python has no module venv."; \
	  echo "setup: Debian and Ubuntu keep it in a package of its own: apt-get install python3-venv"; \
	  exit 1; \
	fi; \
	echo "setup: making .venv with $$("$$python" --version)"; \
	"$$python" -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
