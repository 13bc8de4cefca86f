# Everything lives in .venv: nothing else on the machine changes.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint requirements.lock

.PHONY: demo test test-slow test-vllm lint docs bench bench-vllm lock clean

demo: .venv/.demo ## the default run: install, then three rounds on the embedded model
	.venv/bin/selfimprove run

test: .venv/.dev ## the whole fast suite, on up to four cores
	.venv/bin/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: .venv/.dev ## checks that take minutes or download from the package index
	.venv/bin/pytest -m slow

test-vllm: .venv-vllm/.done ## the vLLM engine, for real, on this machine's CPU: 5 GB of packages
	.venv-vllm/bin/pytest -m vllm

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/.docs ## the pages as a site, in site/
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

bench: .venv/.dev ## the runner against its parts called by hand
	.venv/bin/python scripts/bench.py

bench-vllm: .venv-vllm/.done ## the same with vLLM's own figures
	.venv-vllm/bin/python scripts/bench.py

.venv/.demo: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "selfimprove needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

.venv/.dev: .venv/.demo
	$(PIP) --editable '.[dev,gguf]'
	@touch $@

.venv/.docs: .venv/.demo
	$(PIP) --editable '.[docs]'
	@touch $@

.venv-vllm/.done: pyproject.toml requirements-vllm.lock
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r requirements-vllm.lock --editable .
	@touch $@

lock: ## resolve anew into requirements.lock: what pip installs on this machine, without local version tags
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/pip --disable-pip-version-check install --quiet --editable '.[dev,gguf]'
	.lock/bin/pip freeze --exclude-editable | sed 's/+.*//' > requirements.lock
	rm -rf .lock

clean:
	rm -rf .venv .venv-vllm build site dist *.egg-info
