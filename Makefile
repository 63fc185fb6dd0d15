# Bramble: blank cards to a working cluster. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export NODES ?= 4
export PATH := $(CURDIR)/.venv/bin:$(PATH)
comma := ,
# Packages, the Docker engine and loop devices are root's; what is made is the user's.
ME := $(shell id -u)
SUDO := $(if $(filter-out 0,$(ME)),sudo --preserve-env=NODES$(comma)PYTHON) env PATH="$(PATH)"
OWN := $(if $(filter-out 0,$(ME)),sudo chown -R "$(ME):$(shell id -g)" . || code=1,:)
# as-root COMMAND: run it, hand over what it made, end as it ended
as-root = @code=0; $(SUDO) $(1) || code=$$?; $(OWN); exit $$code

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## The whole job with no hardware: cards, nodes, cluster, sixteen jobs, pi (NODES=8 for the full story)
	$(call as-root,BRAMBLE_START=$$(date +%s) sh -c 'scripts/bootstrap && .venv/bin/python scripts/demo')

.PHONY: up
up: ## Power on the stand-ins of the last demo, to try things on
	$(call as-root,scripts/bootstrap)
	$(call as-root,scripts/engine start)
	$(call as-root,.venv/bin/ansible-playbook -i inventory/hosts.yml -i inventory/rehearsal playbooks/rehearse.yml)

.PHONY: down
down: ## Power them off; the cards stay
	$(call as-root,scripts/down)

.PHONY: test
test: ## All tests: lint, unit, property, molecule, end to end
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/test)

.PHONY: test-slow
test-slow: ## The tests that take hours: a Pi's card made by emulation, the stories of the lab, long computations
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/test slow)

.PHONY: test-kubernetes
test-kubernetes: ## Stand-ins rebuilt as a real Kubernetes, built once in a quarter of an hour, and the workloads there
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/test kubernetes)

.PHONY: lint
lint: ## Only the linters
	$(call as-root,scripts/bootstrap --test)
	@scripts/lint

.PHONY: unit
unit: ## Only the unit and property tests
	$(call as-root,scripts/bootstrap --test)
	@.venv/bin/python -m pytest -n 2 --dist loadfile tests/unit workloads/tests

.PHONY: bench-speedup
bench-speedup: ## Measure 1, 2, 4 and 8 nodes side by side; writes reports/bench/speedup.json
	$(call as-root,scripts/bootstrap)
	$(call as-root,.venv/bin/python bench/speedup.py)

.PHONY: bench-cards
bench-cards: ## Measure the writing of cards against dd and bmaptool; writes reports/bench/cards.json
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,.venv/bin/python bench/cards.py)

.PHONY: bench-provision
bench-provision: ## Measure site.yml on 1, 2, 4 and 8 nodes, the first time and when nothing changes; writes reports/bench/provision.json
	$(call as-root,scripts/bootstrap)
	$(call as-root,scripts/engine run .venv/bin/python bench/provision.py)

.PHONY: bench-engine
bench-engine: ## Measure the engine against bare dask and dispy, and on 1, 2, 4 and 8 nodes; writes reports/bench/engine.json
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/engine run .venv/bin/python bench/engine.py)

.PHONY: bench-workloads
bench-workloads: ## Measure the workloads' kernels on one core against their peers; writes reports/bench/workloads.json
	$(call as-root,scripts/bootstrap --test)
	$(call as-root,scripts/engine run .venv/bin/python bench/workloads.py)

.PHONY: requirements
requirements: ## Resolve requirements.in anew (needs uv)
	for set in requirements workloads/requirements; do \
	  uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	    --overrides workloads/overrides.txt $$set.in -o $$set.txt --upgrade; \
	done

.PHONY: clean
clean: ## Remove everything that demo and test made (a real cluster's keys in .state/ stay)
	$(call as-root,scripts/clean)
