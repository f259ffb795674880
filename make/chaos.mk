# Killing the server at random, for longer than `make test` does.

CHAOS_SECONDS ?= 300
CHAOS_SEED ?=

.PHONY: chaos-local

chaos-local: dev ## kill and restart the server at random for 5 minutes; CHAOS_SECONDS and CHAOS_SEED change that
	@echo "== pytest tests/crash/test_random.py"
	@CHAOS_SECONDS="$(CHAOS_SECONDS)" CHAOS_SEED="$(CHAOS_SEED)" $(BIN)/python -m pytest -s tests/crash/test_random.py $(PYTEST_ARGS)
