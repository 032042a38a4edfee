# make demo: set up, train on the embedded digits, sample, evaluate, write runs/demo/report.html
# make test: set up, lint, run the fast suite

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint venv clean

demo: venv
	@echo "== train (4 to 6 minutes on two cores; make demo again goes on where it was stopped)"
	$(BIN)/fewstep train digits-stmd --out $(RUN) --resume
	@echo "== sample with 1, 2 and 4 steps"
	@for steps in 1 2 4; do \
		$(BIN)/fewstep sample $(RUN) --n 64 --steps $$steps --flow-steps 1 --out $(RUN)/samples-$$steps || exit 1; \
	done
	@echo "== evaluate"
	$(BIN)/fewstep evaluate $(RUN) --pairs 200
	@echo "== report"
	$(BIN)/fewstep report $(RUN)

test: lint
	$(BIN)/python -m pytest -n auto -q --durations 5

test-slow: venv
	$(BIN)/python -m pytest -m slow -q --durations 0

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fewstep needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	@echo "== set up .venv (once; a minute or two)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv runs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
