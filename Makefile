# make demo: the whole pipeline on drawn images.  make test: lint, types, tests; its last lines say what was skipped, and
# why.  Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-lowest install nightly

.venv/.installed: requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -r requirements-dev.txt
	touch $@

install: .venv/.installed

demo: install
	$(BIN)/python DEMO_ours.py --method dazle
	$(BIN)/python DEMO_ours.py --page

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

# the tests with the lowest versions that requirements.txt and the extras allow, in an environment of its own
LOWEST := .venv-lowest/bin
test-lowest:
	test -x $(LOWEST)/python || $(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e . -r requirements-dev.txt
	$(LOWEST)/python -m pytest -n 2

# longer: the slow benchmarks, 30 kills of extraction and training each
nightly: install
	SLOW=1 $(BIN)/python -m pytest tests/test_benchmarks.py
	KILLS=30 $(BIN)/python -m pytest tests/test_extraction.py tests/test_training.py -k "kill"
