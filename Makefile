.PHONY: demo test bench check coverage clean

PY = .venv/bin/python

demo: .venv/.ready
	$(PY) scripts/demo

test: .venv/.ready
	scripts/test $(ARGS)

bench: .venv/.ready
	scripts/bench $(ARGS)

coverage: .venv/.ready
	scripts/coverage $(ARGS)

check: .venv/.ready
	scripts/check

.venv/.ready: pyproject.toml scripts/setup
	scripts/setup
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage*
