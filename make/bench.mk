# Measuring, and the tests that need a genuine model server.

BENCH_ARGS ?=
MODEL_SERVER := .tools/model-server
MODEL_SERVER_INSTALLED := $(MODEL_SERVER)/.installed

.PHONY: bench test-model-server lock-model-server

bench: $(DEV_INSTALLED) ## measure the server on this machine; writes docs/benchmarks.md; BENCH_ARGS=--quick only tries
	@$(BIN)/python -m bench.run $(BENCH_ARGS)

test-model-server: dev $(MODEL_SERVER_INSTALLED) ## runs on a genuine model server (compiled first, about 6 minutes)
	@echo "== pytest tests/model_server"
	@LOOMGATE_MODEL_SERVER="$(CURDIR)/$(MODEL_SERVER)/bin/python" $(BIN)/python -m pytest tests/model_server $(PYTEST_ARGS)

$(MODEL_SERVER_INSTALLED): requirements-model-server.lock | .venv/bin/python
	@echo "== install: requirements-model-server.lock (compiles a model server)"
	@$(PYTHON) -m venv $(MODEL_SERVER)
	@$(MODEL_SERVER)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --require-hashes \
		-r requirements-model-server.lock
	@touch $@

lock-model-server: $(DEV_INSTALLED) ## bring requirements-model-server.lock in line with its .in file
	@$(BIN)/uv pip compile tests/model_server/requirements.in --quiet --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --output-file requirements-model-server.lock
