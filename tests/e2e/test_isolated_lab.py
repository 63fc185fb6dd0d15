"""The isolated lab on two nodes and a client that shares its "internet" (scripts/outside.py), and back. One story, in this order.

pi-01 has a second port into the outside. Nothing here leaves this machine.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import outside
import pytest
import rehearsal
from rehearsal import INVENTORY, ROOT, Play, play

from ..rig.tree import differences, tree
from . import conftest

OVERLAY = Path(__file__).parent / "isolated_lab"
STATE = ROOT / ".state/h-lab"
REPORT = ROOT / "reports/isolated_lab/h-lab"
SUBNET = "10.77.123.0/24"
SERVERS = ["pi-01", "pi-02"]
NODES = ["pi-client", *SERVERS]
LAYERS = ["client", "firewall", "route", "resolver", "ipv6", "radio", "nic", "package"]
PROOF = "/run/bramble-lab/proof.json"

playbook = partial(play, inventory=[*INVENTORY, OVERLAY], environment={"ANSIBLE_STRATEGY": "mitogen_linear"})
told = partial(conftest.told, STATE, options=("-o", "ConnectTimeout=5"))
OUTSIDE = outside.Outside("h-lab", SUBNET, leak="pi-01")


def lab(arguments: str = "", check: bool = True, **variables: Any) -> Play:
    return playbook("isolated_lab", variables={"isolated_lab_confirm": SUBNET, **variables}, arguments=arguments, check=check)


def report(phase: str = "isolated") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPORT / f"{phase}.json").read_text())
    return found


def why(run: Play) -> str:
    return "\n".join(run.failed.values())


@contextmanager
def frames_at_the_uplink() -> Iterator[list[str]]:
    """What tcpdump sees there meanwhile, of anybody: for the caller when it is over."""
    seen: list[str] = []
    command = OUTSIDE.inside("tcpdump", "--immediate-mode", "-l", "-n", "-e", "-i", outside.UPLINK)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture:
        assert capture.stdout and capture.stderr
        assert "listening on" in capture.stderr.readline() + capture.stderr.readline()
        yield seen
        time.sleep(0.5)
        capture.terminate()
        seen += capture.stdout.read().splitlines()


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    with conftest.booted(playbook, STATE, SERVERS):
        try:
            OUTSIDE.up()
            yield
        finally:
            OUTSIDE.down()


@pytest.fixture(scope="module")
def base() -> dict[str, dict[str, str]]:
    """What is on the nodes before, to compare with."""
    return {node: tree(partial(told, node)) for node in NODES}


@pytest.mark.parametrize("confirm", ["", "192.168.1.0/24"])
def test_it_asks_for_the_subnet_and_changes_nothing_without_it(confirm: str, base: dict[str, dict[str, str]]) -> None:
    run = lab(isolated_lab_confirm=confirm, check=False)
    assert run.status == "failed" and run.changes() == []
    assert "only machines you own, inside this network" in why(run) and f"isolated_lab_confirm={SUBNET}" in why(run)


def test_all_is_reached_before_and_nothing_after(base: dict[str, dict[str, str]]) -> None:
    lab()
    before, after = report("before"), report()
    # 3 hosts; what gets through before is what is blocked after.
    assert before["forbidden"] - before["reached"] == 1  # pi-02 has no second port
    assert (after["reached"], after["failed"], after["frames"]["lab"]) == (0, 0, 0) and before["frames"]["lab"] > 20
    hostile = [row for row in after["rows"] if row.get("as") == "hostile root"]
    assert {row["from"] for row in hostile} == set(SERVERS) and len(hostile) > 50
    for node in NODES:
        proof = json.loads(told(node, f"cat {PROOF}"))
        assert proof == {key: after[key] for key in ("at", "subnet", "forbidden", "reached", "allowed", "failed")}
        assert told(node, f"stat -c '%U %a' {PROOF}") == "root 644"
    assert "Yes, by the proof of" in (REPORT / "report.html").read_text() and (REPORT / "report.svg").exists()


def test_the_second_run_changes_nothing_and_nobody_outside_hears_of_it() -> None:
    with frames_at_the_uplink() as seen:
        assert lab().changes() == []
    assert seen == []


@pytest.mark.parametrize("layer", LAYERS)
def test_without_any_one_layer_it_is_red(layer: str) -> None:
    """Each layer alone is missed by a probe of its own; then it is put back."""
    others = [other for other in LAYERS if other != layer]
    tags = f"--tags {layer},verify"
    run = lab(f"{tags} --skip-tags none", check=False, isolated_lab_layers=others)
    assert run.status == "failed" and "The lab is not proven to be isolated" in why(run)
    red = [row for row in report()["rows"] if row["must"] == "fail" and row["reached"]]
    assert layer in {row.get("layer") for row in red}
    assert told("pi-01", f"test -e {PROOF} || echo none") == "none"
    lab(f"--tags {layer}")


def test_without_the_clients_layer_a_hostile_root_gets_out_and_with_it_he_does_not() -> None:
    """The node's own firewall is not containment."""
    rows = {(row["as"], row["what"]): row for row in report()["rows"] if row.get("as")}
    assert rows
