# The targets of Bramble: `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export NODES ?= 4
export PATH := $(CURDIR)/.venv/bin:$(PATH)
comma := ,
# Packages, the Docker engine and loop devices need root. The files that commands create belong to the user.
USER_ID := $(shell id -u)
SUDO := $(if $(filter-out 0,$(USER_ID)),sudo --preserve-env=NODES$(comma)PYTHON) env PATH="$(PATH)"
GIVE_FILES_TO_USER := $(if $(filter-out 0,$(USER_ID)),sudo chown -R "$(USER_ID):$(shell id -g)" . || code=1,:)
# as-root COMMAND: run the command as root, give the files that it has created to the user, and exit with its exit code
as-root = @code=0; $(SUDO) $(1) || code=$$?; $(GIVE_FILES_TO_USER); exit $$code

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Run everything without hardware: cards, nodes, cluster, sixteen jobs, pi (NODES=8: with all servers)
	$(call as-root,BRAMBLE_START=$$(date +%s) sh -c 'scripts/bootstrap && .venv/bin/python scripts/demo')

.PHONY: up
up: ## Power on the stand-ins of the last demo
	$(call as-root,scripts/bootstrap)
	$(call as-root,scripts/engine start)
	$(call as-root,.venv/bin/ansible-playbook -i inventory/hosts.yml -i inventory/rehearsal playbooks/rehearse.yml)

.PHONY: down
down: ## Power off the stand-ins; their cards stay
	$(call as-root,scripts/down)

.PHONY: test
test: ## Run the linters, and the unit, property, scenario and end-to-end tests
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/test)

.PHONY: test-slow
test-slow: ## Run the tests that take hours: emulated boots, the isolated lab and its exercises, long computations
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/test slow)

.PHONY: test-kubernetes
test-kubernetes: ## Test the rebuild as Kubernetes and its workloads on stand-ins; builds Kubernetes first
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/test kubernetes)

.PHONY: lint
lint: ## Run the linters and the type checker
	$(call as-root,scripts/bootstrap --test)
	@scripts/lint

.PHONY: unit
unit: ## Run the unit and property tests
	$(call as-root,scripts/bootstrap --test)
	@.venv/bin/python -m pytest -n 2 --dist loadfile tests/unit workloads/tests

.PHONY: bench-speedup
bench-speedup: ## Measure the speed-up on 1, 2, 4 and 8 nodes; writes reports/bench/speedup.json
	$(call as-root,scripts/bootstrap)
	$(call as-root,.venv/bin/python bench/speedup.py)

.PHONY: bench-cards
bench-cards: ## Measure card writing against dd and bmaptool; writes reports/bench/cards.json
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,.venv/bin/python bench/cards.py)

.PHONY: bench-provision
bench-provision: ## Measure the first and the second run of site.yml on 1, 2, 4 and 8 nodes; writes reports/bench/provision.json
	$(call as-root,scripts/bootstrap)
	$(call as-root,scripts/engine run .venv/bin/python bench/provision.py)

.PHONY: bench-engine
bench-engine: ## Measure the engine on 1, 2, 4 and 8 nodes, and against dask alone and dispy; writes reports/bench/engine.json
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/engine run .venv/bin/python bench/engine.py)

.PHONY: bench-workloads
bench-workloads: ## Measure the kernels of the workloads on one core against other programs; writes reports/bench/workloads.json
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/engine run .venv/bin/python bench/workloads.py)

.PHONY: requirements
requirements: ## Update the pinned versions in requirements.txt from requirements.in (needs uv)
	for set in requirements workloads/requirements; do \
	  uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	    --overrides workloads/overrides.txt $$set.in -o $$set.txt --upgrade; \
	done

.PHONY: clean
clean: ## Remove everything that demo and test have created (the state of real clusters, .state/<cluster_name>/, stays)
	$(call as-root,scripts/clean)
