# make book: environment, the reference run drawn again (a smoke run where there is none), book.
# make test: everything that can be checked, the smoke run of every stage included.
VENV ?= .venv
PYTHON ?= python3
# The profiles for a GPU take every core that there is; what tests the project, or fits a laptop, takes two.
CORES ?= $(if $(filter course paper,$@),$(shell nproc 2>/dev/null || sysctl -n hw.ncpu),2)
PROFILE ?= $(if $(wildcard results/reference/*/*/manifest.json),reference,smoke)
WHEELHOUSE ?= wheelhouse
EXTRAS := book,cluster,dev
BIN := $(VENV)/bin
BOOK := _build/html/index.html
# With a folder of wheels nothing is asked of a network.
PIP := -m pip --disable-pip-version-check $(if $(wildcard $(WHEELHOUSE)/torch-*),--no-index --find-links $(WHEELHOUSE))

.PHONY: book test cluster-test reference smoke mini course paper install wheelhouse audit lock clean

book: $(PROFILE)
	$(BIN)/python -m companion.book $(PROFILE) --cores $(CORES)
	$(BIN)/jupyter-book build book --config _config.yml --path-output . -W --keep-going --quiet
	@echo "The book is at $(BOOK)"

test: book smoke
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	COMPANION_REQUIRE_BOOK=1 $(BIN)/pytest tests -n $(CORES)
	rm -rf _build/notebooks && cp -r runs _build/notebooks
	COMPANION_RUNS=$(CURDIR)/_build/notebooks $(BIN)/pytest --nbval-lax --nbval-current-env -p no:cacheprovider notebooks \
		--ignore-glob='*/1[456]_*'  # studies train anew each time, and the smoke run has just done that

# As root on Debian: the same graph through a Slurm of one node, with a job that outlives its time limit.
cluster-test: install
	apt-get install -y -qq --no-install-recommends munge slurm-client slurmctld slurmd
	$(BIN)/pytest tests/test_cluster.py

smoke mini course paper: install
	$(BIN)/companion run $@ --cores $(CORES)

reference: install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=python3.12"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install --quiet --constraint requirements.lock --editable '.[$(EXTRAS)]'
	@touch $@

# All that an installation needs, in one folder, what comes as source built into a wheel: carry it to a machine without
# a network beside a checkout.
wheelhouse:
	$(PYTHON) -m pip wheel --wheel-dir $(WHEELHOUSE) --constraint requirements.lock '.[$(EXTRAS)]' 'setuptools>=77'
	rm -f $(WHEELHOUSE)/companion-*.whl  # the checkout itself is installed, editable
	@echo "$(WHEELHOUSE)/ is complete; beside a checkout on another machine, 'make course' installs from it and runs"

# Known vulnerabilities of the pinned versions (asks a server), and the list of what is installed with its licences.
audit: install
	$(BIN)/python -m companion.dependencies > book/dependencies.md
	$(PYTHON) -m venv _build/audit && _build/audit/bin/python -m pip install --quiet pip-audit
	_build/audit/bin/pip-audit --strict --requirement requirements.lock --no-deps --disable-pip

# Exact pins of what stands in the environment now; used as constraints, never as a list to install.
lock:
	$(BIN)/python -m pip freeze --exclude-editable --exclude companion | grep -viE '^(nvidia|triton|cuda)' > requirements.lock

clean:
	rm -rf _build book/executed figures runs data
