# `make demo` and `make test` set up everything they need in .venv; nothing else has to be installed first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PACKAGES := shared artifacts embed synthesize

.PHONY: demo test test-slow bench bench-quality bench-choices bundle lint format clean

demo: $(VENV)/.installed
	$(RUN) examples/demo.py

test: $(VENV)/.installed
	$(RUN) -m pytest -m "not slow"

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow --timeout 3600

# 20 to 40 minutes on two cores, by the processor; make bench BENCH="--only synth" for one part, BENCH=--full for 1,000,000 records too.
bench: $(VENV)/.installed
	$(RUN) benchmarks/speed/bench.py $(BENCH)

# Many hours: 74 runs. Those in the log are not made again, so it may be stopped and begun again; then the table.
QUALITY := $(RUN) benchmarks/synthesis_quality.py
RUNS := --eps 0.2 1 10 --steps 2160 --methods ours,ours-plain,dp-merf,dp-sgd,real --classifiers cnn \
	--log benchmarks/results.jsonl

bench-quality: $(VENV)/.installed
	$(QUALITY) --data ../shared/data/MNIST $(RUNS)
	$(QUALITY) --data ../shared/data/cifar10.zip $(RUNS)
	$(QUALITY) --table benchmarks/results.jsonl > docs/RESULTS.md
	$(QUALITY) --history benchmarks/results.jsonl > docs/RESULTS_HISTORY.md

# What should be released, and what made of it? Some three minutes for each of 168 runs; it may be stopped and begun again.
CHOICES := $(RUN) benchmarks/release_choices.py --log benchmarks/choices.jsonl --eps 0.2 --steps 350
bench-choices: $(VENV)/.installed
	$(CHOICES) --data ../shared/data/cifar10.zip
	$(CHOICES) --data ../shared/data/MNIST
	$(CHOICES) --table > docs/CHOICES.md

# For a machine like this one, without a network: no environment is needed to make it. PYTHON and INDEX may be given.
bundle:
	$(PYTHON) airgap/make_bundle.py $(if $(INDEX),--index '$(INDEX)')

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p $(VENV)/types/dpmepf  # mypy does not see an editable install whose folders are mapped
	for part in $(PACKAGES); do ln -sfn $(CURDIR)/$$part $(VENV)/types/dpmepf/$$part; done
	MYPYPATH=$(VENV)/types $(VENV)/bin/mypy $(PACKAGES:%=-p dpmepf.%)

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist demo bundle .bundle.*.partial *.egg-info
