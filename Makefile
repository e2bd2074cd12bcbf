# make demo    set-up if needed, then the main job on the synthetic city -> output/demo/
# make test    set-up if needed, then the test-suite without the slow tests
# make fuzz    set-up if needed, then bad inputs for the real tools, an hour at most -> output/fuzz/
PYTHON ?= python3
VENV := .venv
PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.fusiondet-is-set-up
INPUTS := requirements.txt requirements-dev.txt constraints.txt setup.py tools/install_detectron2.py

.PHONY: setup demo test test-slow fuzz lint format doctor clean distclean

setup: $(STAMP)

# The stamp is written last: a set-up that was interrupted runs again, one that finished is skipped.
$(STAMP): $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit("fusiondet needs Python 3.10 or later, found " + sys.version) if sys.version_info < (3, 10) else 0'
	@# Debian without python3-venv cannot put pip into a new environment by itself; its pip can.
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || $(PYTHON) -m venv --without-pip --clear $(VENV)
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip
	@echo "set-up: torch, torchvision and the requirements (about 6 GB, some minutes) ..."
	@# One call, so that pip resolves torch, torchvision and the rest together.
	$(PIP_INSTALL) -c constraints.txt -r requirements.txt -r requirements-dev.txt "setuptools>=77"
	$(VENV)/bin/python tools/install_detectron2.py
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	$(VENV)/bin/python tools/doctor.py
	@touch $@

demo: setup
	$(VENV)/bin/python tools/demo.py --out output/demo

# One process per core, up to four; a file's tests stay together, they share what is costly to make.
test: setup
	$(VENV)/bin/python -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist loadfile

test-slow: setup
	$(VENV)/bin/python -m pytest -q -m slow

# One thread each, as with tests; FUZZ="--count 500 --door json" changes what is tried.
fuzz: setup
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(VENV)/bin/python -m tests.fuzz $(FUZZ)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

doctor: setup
	$(VENV)/bin/python tools/doctor.py

clean:
	rm -rf output build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find fusiondet tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
