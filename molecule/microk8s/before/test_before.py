"""playbooks/microk8s.yml before it changes a node: it reports problems, and a dry run shows its changes."""

from __future__ import annotations

from tests.support.nodes import failures, scenario

CLUSTER = scenario("microk8s")
NODES = ["pi-01", "pi-02", "pi-client"]

playbook, output = CLUSTER.playbook, CLUSTER.output


def test_all_problems_are_reported_before_anything_is_changed() -> None:
    wrong = {
        "microk8s_disk": 10**6,
        "microk8s_addons": ["dashboard"],
        "microk8s_distributions": ["ubuntu"],
        "microk8s_snap_dir": "/none",
    }
    run = playbook("microk8s", variables=wrong, check=False)
    assert run.changes() == []
    for node in NODES:
        assert f"{node}: /var has" in failures(run) and f"{node}: its distribution is debian" in failures(run)
    assert "has no dashboard any more" in failures(run) and "/none must have one file microk8s_*.snap" in failures(run)
    assert "Nothing was changed" in failures(run)


def test_a_dry_run_shows_the_changes() -> None:
    run = playbook("microk8s", arguments="--tags microk8s --check --diff", check=False)
    assert run.failed == {}
    changed = {change.split(": ", 1)[1].split(" : ")[-1] for change in run.changes()}
    assert {"Install the snap", "Hold refreshes", "Join the cluster"} <= changed
    assert output("pi-01", "snap list 2>&1 || true").startswith("No snaps")
