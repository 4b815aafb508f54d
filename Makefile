# Two commands are enough: `make demo` to see it work, `make test` to check it. Written for GNU make 3.81, which macOS has.

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults bench clean generate batch-generate precompute

# ---- the environment: .venv, made anew when it is incomplete, moved or broken, brought up to date when its two files change
INSTALLED := .venv/.installed
PLACES := /opt/homebrew/bin /usr/local/bin $(wildcard /Library/Frameworks/Python.framework/Versions/*/bin)

ifneq ($(shell .venv/bin/python -c '' 2>/dev/null && cat $(INSTALLED) 2>/dev/null),$(shell pwd -P))
.PHONY: $(INSTALLED)
endif

# The mark is written last, so that an installation broken off is begun again; it names this folder, because a .venv cannot be moved.
$(INSTALLED): pyproject.toml constraints.txt
	@if ! .venv/bin/python -c '' 2>/dev/null || [ "$$(cat $@ 2>/dev/null)" != "$$(pwd -P)" ]; then \
	    python=$$(sh .ci/find_python.sh $(PLACES)) && echo "making .venv with $$python" && "$$python" -m venv --clear .venv; fi
	@rm -f $@
	.venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@pwd -P > $@

help:  ## list these targets
	@echo 'make TARGET [VARIABLE=value ...]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED)  ## make .venv and install diptych in it (PYTHON=/path/to/python3 names a Python)
	@echo 'diptych is installed: .venv/bin/diptych --help'

test: $(INSTALLED)  ## ruff, mypy --strict, import-linter, pytest
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest --numprocesses auto --dist loadfile

# ---- the faults: their short form is in `make test`
faults: $(INSTALLED)  ## the long form of tests/faults, with its tables in docs/reliability.md: over an hour
	rm -f tests/faults/measured.jsonl
	DIPTYCH_FAULTS=long DIPTYCH_TALLY=$(CURDIR)/tests/faults/measured.jsonl .venv/bin/python -m pytest tests/faults
	.venv/bin/python tests/faults/reliability.py

# ---- the benchmarks: figures into benchmarks/measured/, tables into docs/performance.md; contenders in .venv-rivals
MEASURED := benchmarks/measured
bench: $(INSTALLED)  ## measure docs/performance.md again: an hour and a half, with nothing beside it
	test -x .venv-rivals/bin/python || .venv/bin/python -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install --disable-pip-version-check --requirement benchmarks/requirements.txt
	mkdir -p $(MEASURED)
	.venv/bin/python benchmarks/throughput.py --python .venv-rivals/bin/python --output $(MEASURED)/throughput.json
	.venv/bin/python benchmarks/sizes.py --json $(MEASURED)/sizes.json
	.venv/bin/python benchmarks/busy.py --json $(MEASURED)/busy.json
	.venv/bin/python benchmarks/report.py

# ---- the demonstration: examples/photos and examples/pairs.txt, all the way to a table
demo: $(INSTALLED)  ## compare the photographs of examples/photos on this machine, in seconds
	.venv/bin/diptych precompute examples/photos --output demo/embeddings --weights demo
	.venv/bin/diptych batch-generate examples/pairs.txt --embeds demo/embeddings --weights demo --greedy --db results.db
	.venv/bin/diptych results --db results.db
	@echo
	@echo 'A model of 3.4 MB wrote this, which knows brightness, warmth, colour, contrast and sharpness and nothing else'
	@echo '(examples/demo/README.md). What GLM-4.6V-Flash sees in your photographs: README.md, "On your Mac".'
	@echo
	@echo 'To try next:'
	@echo '  .venv/bin/diptych status                                  how far the latest run is'
	@echo '  .venv/bin/diptych results --format csv --output demo.csv  the same as a file'
	@echo '  .venv/bin/diptych results --image coffee.jpg              every comparison with one image'
	@echo '  .venv/bin/diptych generate --a 3 --b 11 --embeds demo/embeddings --weights demo --greedy --prompt "Which image is sharper?"'
	@echo '  .venv/bin/diptych resume                                  puts back what a stopped run has not done'
	@echo '  sqlite3 results.db "select image_a, image_b, text from comparisons limit 5"'

# ---- the ancestor's targets: only what is set is passed on, the rest is diptych's default or its GLM_ variable
quoted = '$(subst ','\'',$(1))'
option = $(if $(2),$(1) $(call quoted,$(2)))
argument = $(if $(1),$(call quoted,$(1)))
PAIR = $(call option,--a,$(A)) $(call option,--b,$(B))
GENERATION = $(call option,--max-tokens,$(TOKENS)) $(call option,--embeds,$(EMBEDS)) $(call option,--weights,$(WEIGHTS))
JOBS = $(call argument,$(PAIRS)) $(call option,--batch-size,$(BATCH))
IMAGES = $(call argument,$(INPUT)) $(call option,--output,$(OUTPUT)) $(call option,--batch-size,$(BATCH))

generate: $(INSTALLED)  ## one pair now: A B TOKENS EMBEDS WEIGHTS
	.venv/bin/diptych generate $(PAIR) $(GENERATION)

batch-generate: $(INSTALLED)  ## many pairs: BATCH TOKENS PAIRS EMBEDS WEIGHTS
	.venv/bin/diptych batch-generate $(JOBS) $(GENERATION)

precompute: $(INSTALLED)  ## embeddings of a folder of images: INPUT OUTPUT BATCH WEIGHTS
	.venv/bin/diptych precompute $(IMAGES) $(call option,--weights,$(WEIGHTS))

clean:  ## remove .venv, caches and the demo's folder; results.db stays
	rm -rf .venv .venv-rivals demo build diptych.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find cli jobs store workers tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
