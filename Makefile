# Bramble: blank cards to a working cluster. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export NODES ?= 4
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Packages, the Docker engine and loop devices are root's.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=NODES$(comma)PYTHON,)
comma := ,

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## The whole job with no hardware: cards, nodes, cluster, sixteen jobs, pi (NODES=8 for the full story)
	@$(SUDO) scripts/bootstrap
	@$(SUDO) .venv/bin/python scripts/demo

.PHONY: up
up: ## Power on the stand-ins of the last demo, to try things on
	@$(SUDO) scripts/bootstrap
	@$(SUDO) scripts/engine start
	@$(SUDO) .venv/bin/ansible-playbook -i inventory/hosts.yml -i inventory/rehearsal playbooks/rehearse.yml

.PHONY: down
down: ## Power them off; the cards stay
	@$(SUDO) scripts/down

.PHONY: test
test: ## All tests: lint, unit, property, molecule, end to end
	@$(SUDO) scripts/bootstrap --test
	@$(SUDO) scripts/test

.PHONY: lint
lint: ## Only the linters
	@$(SUDO) scripts/bootstrap --test
	@scripts/lint

.PHONY: unit
unit: ## Only the unit and property tests
	@$(SUDO) scripts/bootstrap --test
	@.venv/bin/python -m pytest tests/unit tests/workloads

.PHONY: requirements
requirements: ## Resolve requirements.in anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  requirements.in -o requirements.txt --upgrade
	uv pip compile --universal --python-version 3.13 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  workloads/requirements.in -o workloads/requirements.txt --upgrade

.PHONY: clean
clean: ## Remove everything that demo and test made (a real cluster's keys in .state/ stay)
	@$(SUDO) scripts/clean
