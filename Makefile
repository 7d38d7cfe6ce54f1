# make book: environment, smoke run on the phantom, book.  make test: everything that can be checked.
VENV ?= .venv
PYTHON ?= python3
CORES ?= 2
PROFILE ?= smoke
BIN := $(VENV)/bin
BOOK := _build/html/index.html

.PHONY: book test cluster-test smoke mini course paper install figures lock clean

book: $(PROFILE)
	$(BIN)/python -m companion.book $(PROFILE)
	$(BIN)/jupyter-book build book --config _config.yml --path-output . -W --keep-going --quiet
	@echo "The book is at $(BOOK)"

test: book
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	COMPANION_REQUIRE_BOOK=1 $(BIN)/pytest tests -n $(CORES)
	$(BIN)/pytest --nbval-lax --nbval-current-env -p no:cacheprovider notebooks

# As root on Debian: the same graph through a Slurm of one node, with a job that outlives its time limit.
cluster-test: install
	apt-get install -y -qq --no-install-recommends munge slurm-client slurmctld slurmd
	$(BIN)/pytest tests/test_cluster.py

smoke mini course paper: install
	$(BIN)/companion run $@ --cores $(CORES)

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=python3.12"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[book,cluster,dev]'
	@touch $@

# Exact pins of what stands in the environment now; used as constraints, never as a list to install.
lock:
	$(BIN)/python -m pip freeze --exclude-editable --exclude companion | grep -viE '^(nvidia|triton|cuda)' > requirements.lock

clean:
	rm -rf _build book/executed figures runs data
