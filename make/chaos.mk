# Killing servers at random, for longer than `make test` does.

CHAOS_SECONDS ?= 300
CHAOS_SEED ?=
LOOMGATE_CHAOS_SEED ?=
LOOMGATE_CHAOS_RUNS ?= 2000

.PHONY: chaos chaos-local

chaos: $(DEV_INSTALLED) ## 2,000 runs on a cluster under random faults; LOOMGATE_CHAOS_SEED and LOOMGATE_CHAOS_RUNS change that
	@echo "== pytest tests/chaos/test_cluster.py"
	@LOOMGATE_CHAOS_SEED="$(LOOMGATE_CHAOS_SEED)" LOOMGATE_CHAOS_RUNS="$(LOOMGATE_CHAOS_RUNS)" \
		$(BIN)/python -m pytest -s tests/chaos/test_cluster.py $(PYTEST_ARGS)

chaos-local: dev ## kill and restart the server at random for 5 minutes; CHAOS_SECONDS and CHAOS_SEED change that
	@echo "== pytest tests/crash/test_random.py"
	@CHAOS_SECONDS="$(CHAOS_SECONDS)" CHAOS_SEED="$(CHAOS_SEED)" $(BIN)/python -m pytest -s tests/crash/test_random.py $(PYTEST_ARGS)
