"""What playbooks/microk8s.yml does before it changes a node: refuses, and tells in a dry run."""

from __future__ import annotations

from tests.support.nodes import failures as said
from tests.support.nodes import scenario

CLUSTER = scenario("microk8s")
NODES = ["pi-01", "pi-02", "pi-client"]

playbook, told = CLUSTER.playbook, CLUSTER.output


def test_everything_that_stands_in_the_way_is_named_before_anything_is_changed() -> None:
    wrong = {
        "microk8s_disk": 10**6,
        "microk8s_addons": ["dashboard"],
        "microk8s_distributions": ["ubuntu"],
        "microk8s_snap_dir": "/none",
    }
    run = playbook("microk8s", variables=wrong, check=False)
    assert run.changes() == []
    for node in NODES:
        assert f"{node}: /var has" in said(run) and f"{node}: it has debian" in said(run)
    assert "has no dashboard any more" in said(run) and "one file microk8s_*.snap in /none" in said(run)
    assert "Nothing was changed" in said(run)


def test_a_dry_run_says_what_it_would_do() -> None:
    run = playbook("microk8s", arguments="--tags microk8s --check --diff", check=False)
    assert run.failed == {}
    changed = {change.split(": ", 1)[1].split(" : ")[-1] for change in run.changes()}
    assert {"Install it", "Let nobody but us refresh it", "Join the cluster"} <= changed
    assert told("pi-01", "snap list 2>&1 || true").startswith("No snaps")
