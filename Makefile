# make book: environment, a run (of `smoke`, or of `reference` where it is committed: drawn again and compared), the book.
# make test: everything that can be checked, the smoke run of every stage included.
VENV ?= .venv
PYTHON ?= python3
# The profile for a GPU takes every core that there is; what tests the project, or fits a laptop, takes two.
CORES ?= $(if $(filter paper,$@),$(shell nproc 2>/dev/null || sysctl -n hw.ncpu),2)
PROFILE ?= $(if $(wildcard results/reference/*/claims/stamp.json),reference,smoke)
WHEELHOUSE ?= wheelhouse
EXTRAS := book,cluster,course,microscopy,dev
BIN := $(VENV)/bin
BOOK := _build/html/index.html
# With a folder of wheels nothing is asked of a network.
INSTALL := -m pip --disable-pip-version-check install --quiet --constraint requirements.lock \
  $(if $(wildcard $(WHEELHOUSE)/torch-*),--no-index --find-links $(WHEELHOUSE))

.PHONY: book course pdf lab test cluster-test smoke reference paper install wheelhouse audit lock clean

book: $(if $(filter smoke,$(PROFILE)),smoke,install)
	$(BIN)/python -m companion.workflow.book $(PROFILE) --cores $(CORES)
	$(BIN)/jupyter-book build book --config _config.yml --path-output . -W --keep-going --quiet
	@echo "The book is at $(BOOK)"

# The whole book on paper, as Chromium prints it from one page.
CHROMIUM ?= $(firstword $(shell command -v chromium chromium-browser google-chrome))
pdf: book
	test -n "$(CHROMIUM)"  # Debian's package is `chromium`
	$(BIN)/jupyter-book build book --config _config.yml --path-output . --builder custom --custom-builder singlehtml --quiet
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --virtual-time-budget=60000 --no-pdf-header-footer \
	  --print-to-pdf=_build/book.pdf "file://$(CURDIR)/_build/singlehtml/index.html"
	@echo "The book is at _build/book.pdf"

# JupyterLab on the notebooks of this checkout.
lab: install
	test -x $(BIN)/jupyter-lab || $(BIN)/python $(INSTALL) jupyterlab
	$(BIN)/jupyter-lab notebooks

# For a class: a zip for students, notebooks with solutions and slides for the teacher, in _build/course. The book first:
# pages 08 and 09 of the course are of the scores that it draws.
course: book
	$(BIN)/python scripts/course.py --cores $(CORES)

test: book smoke
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 COMPANION_REQUIRE_BOOK=1 $(BIN)/pytest tests -n $(CORES) --dist worksteal

# As root on Debian: the same graph through a Slurm of one node, with a job that outlives its time limit.
cluster-test: install
	apt-get install -y -qq --no-install-recommends munge slurm-client slurmctld slurmd
	$(BIN)/pytest tests/test_cluster.py

smoke reference paper: install
	$(BIN)/companion run $@ --cores $(CORES)

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Python 3.11 to 3.13 is needed; set PYTHON=python3.12"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@

# All that an installation needs, in one folder, what comes as source built into a wheel: carry it to a machine without
# a network beside a checkout.
wheelhouse:
	$(PYTHON) -m pip wheel --wheel-dir $(WHEELHOUSE) --constraint requirements.lock '.[$(EXTRAS)]' 'setuptools>=77'
	rm -f $(WHEELHOUSE)/companion-*.whl  # the checkout itself is installed, editable
	@echo "$(WHEELHOUSE)/ is complete; beside a checkout on another machine, 'make reference' installs from it and runs"

# Known vulnerabilities of the pinned versions (asks a server), and the list of what is installed with its licences.
audit: install
	$(PYTHON) -m venv _build/audit && _build/audit/bin/python -m pip install --quiet pip-audit pip-licenses
	{ grep -v '^|' book/dependencies.md; _build/audit/bin/pip-licenses --python $(BIN)/python --from mixed --format markdown --with-system \
	  --packages $$(sed 's/==.*//' requirements.lock); } > _build/audit/page.md && mv _build/audit/page.md book/dependencies.md
	_build/audit/bin/pip-audit --strict --requirement requirements.lock --no-deps --disable-pip

# Exact pins of what stands in the environment now; used as constraints, never as a list to install.
lock:
	$(BIN)/python -m pip freeze --exclude-editable --exclude companion | grep -viE '^(nvidia|triton|cuda)' > requirements.lock

clean:
	rm -rf _build book/executed runs data
