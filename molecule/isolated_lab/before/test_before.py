"""playbooks/isolated_lab.yml changes nothing without confirmation. The nodes' files are recorded for the test of the removal."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.support.nodes import failures, scenario
from tests.support.tree import node_snapshot

CLUSTER = scenario("isolated_lab")
SUBNET = "10.77.136.0/24"
NODES = ["pi-client", "pi-01", "pi-02"]


@pytest.mark.parametrize("confirm", ["", "192.168.1.0/24"])
def test_the_playbook_requires_the_subnet_and_changes_nothing_without_it(confirm: str) -> None:
    run = CLUSTER.playbook("isolated_lab", variables={"isolated_lab_confirm": confirm}, check=False)
    assert run.status == "failed" and run.changes() == []
    assert "only machines you own, inside this network" in failures(run)
    assert f"isolated_lab_confirm={SUBNET}" in failures(run)


def test_the_files_of_the_nodes_are_recorded() -> None:
    with ThreadPoolExecutor() as pool:
        trees = dict(zip(NODES, pool.map(lambda node: node_snapshot(partial(CLUSTER.output, node)), NODES), strict=True))
    (CLUSTER.state / "trees.json").write_text(json.dumps(trees))
