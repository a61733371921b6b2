# Each target makes the virtual environment first. PYTHON chooses the interpreter, TORCH=cpu the CPU-only wheels.
PYTHON ?= python3
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python run_net.py --mode train --cfg

.PHONY: venv demo test tables lint clean

venv: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),)
	$(BIN)/pip install -q --no-compile -r requirements.txt -r requirements-dev.txt -c constraints.txt
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true # pip would on one core; some files are templates
else
	$(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --torch-backend $(TORCH) -r requirements.txt -r requirements-dev.txt -c constraints.txt
endif
	touch $@

demo: venv
	$(RUN) configs/digits/r-8_digits.yaml
	$(RUN) configs/digits/r-14_digits.yaml
	$(RUN) configs/digits/mixer-nano_digits_base.yaml
	$(RUN) configs/digits/mixer-nano_digits_single.yaml
	$(RUN) configs/digits/mixer-nano_digits_multi.yaml
	$(RUN) configs/digits/mixer-nano_digits_KD_ours.yaml
	@echo
	@$(BIN)/python tools/make_table.py runs/*_digits*
	@echo
	@echo "The runs are in runs/<config>/seed0: config.yaml, run.json, metrics.jsonl, TensorBoard events, checkpoints/."
	@echo "Look at their curves with:  $(BIN)/tensorboard --logdir runs"

test: venv
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -rs

tables: venv
	$(BIN)/python tools/fill_tables.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
