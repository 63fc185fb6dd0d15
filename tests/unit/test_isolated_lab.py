"""The probes of the isolation proof, its verdict and its report."""

from __future__ import annotations

import copy
import os
from typing import Any
from xml.etree import ElementTree

import jinja2
import pytest
from ansible_collections.bramble.cluster.plugins.filter.isolated_lab import (
    STATES,
    lab_baseline,
    lab_masks,
    lab_plan,
    lab_problems,
    lab_rows,
    lab_verdict,
)
from ansible_collections.bramble.cluster.plugins.filter.isolated_lab_report import count_connections, lab_report
from ansible_collections.bramble.cluster.plugins.module_utils.lab import probe

from tests.support import ROOT

LAB: dict[str, Any] = {
    "addresses": {"pi-client": "10.0.0.100", "pi-01": "10.0.0.101", "pi-02": "10.0.0.102"},
    "client": "pi-client",
    "client_facts": {
        "mac": "dc:a6:32:00:00:00",
        "link_local": "fe80::1",
        "uplink": "eth1",
        "gateway": "203.0.113.1",
        "uplink_addresses": ["203.0.113.2", "2001:db8:51::2"],
        "listening": [22, 3142, 8786],
    },
    "interface": "eth0",
    "table": "bramble_lab",
    "overlays": ["dtoverlay=disable-wifi"],
    "outside_ipv4": "198.51.100.80",
    "outside_ipv6": "2001:db8:80::80",
    "outside_name": "www.outside.example",
    "home": "",
    "mirror": "http://10.0.0.100:3142/",
    "client_tcp_ports": [3142],
    "client_udp_ports": [123],
    "services": {"pi-client": [3142], "pi-02": [8000]},
    "lab_port": 31337,
}
PHASES = ("before", "isolated")


def tried(reached: bool | None = None, **changes: Any) -> list[dict[str, Any]]:
    """Return the rows of all hosts with results. `reached`: whether the forbidden probes got through; by default they did not."""
    lab = {**LAB, **changes}
    rows = lab_rows({host: {"rows": lab_plan(host, lab)} for host in lab["addresses"]})
    return [{**row, "reached": row["must"] == "pass" or bool(reached), "seen": "as <seen>"} for row in rows]


def phase(name: str, rows: list[dict[str, Any]], frames: int = 0) -> dict[str, Any]:
    counts = {"lab": frames, "all": frames}
    about = {"cluster": "octapi", "subnet": "10.0.0.0/24", "phase": name, "at": f"2026-11-23T03:0{PHASES.index(name)}:00Z"}
    return {**about, "frames": counts, "rows": rows, **lab_verdict(rows, counts)}


def render(template: str, phases: list[dict[str, Any]]) -> str:
    """Return the page or the picture, rendered as roles/isolated_lab/tasks/report.yml renders it."""
    templates = jinja2.FileSystemLoader(ROOT / "roles/isolated_lab/templates")
    environment = jinja2.Environment(loader=templates, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(f"{template}.j2").render(isolated_lab_report=lab_report(phases))


def test_plan_uses_every_kind_of_probe() -> None:
    kinds = {row["kind"] for host in LAB["addresses"] for row in lab_plan(host, LAB)}
    assert kinds == set(probe.KINDS)
    assert kinds > STATES


def test_probes_that_must_fail_and_that_must_pass() -> None:
    """All probes of the isolation proof, listed."""
    rows = lab_plan("pi-01", LAB)
    forbidden = {(row["to"], row["what"]) for row in rows if row["must"] == "fail"}
    for version in ("IPv4", "IPv6"):
        wanted = ("tcp 80", "tcp 443", "tcp 22", "udp 123", "udp 443", "ping", "name server", "name server by tcp")
        assert {("internet", f"{what}, {version}") for what in (*wanted, "tcp 80 with the client as gateway")} <= forbidden
    for what in (
        "tcp 80 as another user",
        "a hand-made frame through the client",
        "any known name server",
        "the address of a name",
    ):
        assert ("internet", what) in forbidden
    assert {("home network", "ping"), ("home network", "tcp 80"), ("pi-02", "ssh")} <= forbidden
    assert {what for to, what in forbidden if to == "client"} == {
        "ping its uplink 203.0.113.2",
        "tcp 22 at its uplink 203.0.113.2",
        "arp for its uplink 203.0.113.2",
        "ping its uplink 2001:db8:51::2",
        "tcp 22 at its uplink 2001:db8:51::2",
        "tcp 22",
        "tcp 8786",
    }
    layers = {row["layer"] for host in LAB["addresses"] for row in lab_plan(host, LAB) if "layer" in row}
    assert layers == {"client", "firewall", "route", "resolver", "ipv6", "radio", "nic", "package"}
    allowed = {(row["to"], row["what"]) for row in rows if row["must"] == "pass"}
    assert allowed == {
        ("pi-02", "ping"),
        ("pi-02", "tcp 31337"),
        ("pi-client", "udp 123"),
        ("pi-client", "tcp 3142"),
        ("pi-02", "tcp 8000"),
    }
    assert {row["to"] for row in lab_plan("pi-client", LAB) if row["must"] == "pass"} == {"pi-01", "pi-02"}


def test_hostile_root_runs_no_probes_of_settings() -> None:
    rows = lab_plan("pi-01", LAB, is_hostile_root=True)
    assert not {row["kind"] for row in rows} & {*STATES, "via"}
    assert {row["must"] for row in rows} == {"fail"}
    assert {"internet", "home network", "client", "pi-02"} == {row["to"] for row in rows}
    found = [{**row, "reached": True, "seen": "x"} for row in lab_rows({"pi-01": {"rows": rows}}, is_hostile_root=True)]
    assert "pi-01, hostile root: ssh to pi-02 (x)" in str(lab_verdict(found)["failures"])


@pytest.mark.parametrize("missing", ["outside_ipv4", "outside_ipv6"])
def test_without_an_outside_address_it_is_not_probed(missing: str) -> None:
    rows = lab_plan("pi-01", {**LAB, missing: ""})
    assert all(row.get("host") != LAB[missing] for row in rows)


def test_client_without_an_uplink() -> None:
    facts = {**LAB["client_facts"], "uplink": "", "gateway": "", "uplink_addresses": []}
    rows = lab_plan("pi-01", {**LAB, "client_facts": facts})
    assert "home network" not in {row["to"] for row in rows}
    assert {row["to"] for row in lab_plan("pi-01", {**LAB, "client_facts": facts, "home": "192.168.178.1"})} >= {"home network"}


def test_any_wrong_result_fails_the_proof() -> None:
    rows = tried()
    assert lab_verdict(rows, {"lab": 0, "all": 9})["failures"] == []
    for number, row in enumerate(rows):
        wrong = copy.deepcopy(rows)
        wrong[number]["reached"] = not row["reached"]
        verdict = lab_verdict(wrong)
        assert len(verdict["failures"]) == 1 and row["what"] in verdict["failures"][0] and row["from"] in verdict["failures"][0]
        assert verdict["reached"] + verdict["failed"] == 1


def test_frame_on_the_uplink_or_missing_probes_fail_the_proof() -> None:
    assert "1 frames of the lab" in lab_verdict(tried(), {"lab": 1, "all": 1})["failures"][0]
    nothing = ["there was no probe that must fail, or none that must pass"]
    assert lab_verdict([])["failures"] == nothing
    assert lab_verdict([row for row in tried() if row["must"] == "fail"])["failures"] == nothing


def test_baseline_names_probes_that_never_got_through() -> None:
    rows = tried(reached=True)
    assert lab_baseline(rows) == []
    second = [row for row in rows if row["kind"] == "links"]
    assert len(second) == 2
    second[0]["reached"] = False  # only one node has a second port
    assert lab_baseline(rows) == []
    second[1]["reached"] = False
    assert len(lab_baseline(rows)) == 2
    next(row for row in rows if row["kind"] == "lookup")["reached"] = False
    assert any("the address of a name" in line for line in lab_baseline(rows))


def test_problems_of_a_proof() -> None:
    after, open_after = PHASES[-1], phase(PHASES[-1], tried(reached=True))
    assert lab_problems(phase(after, tried()), True, "/reports") == []
    first, *failures = lab_problems(open_after, True, "/reports")
    assert "not proven" in first and "/reports/report.html" in first and failures == open_after["failures"]
    # Before the isolation only a rehearsal has an outside that must be reached.
    assert lab_problems(phase("before", tried(reached=True), 3), True, "/reports") == []
    assert "rehearsal is broken" in lab_problems(phase("before", tried(reached=True)), True, "/reports")[0]
    assert len(lab_problems(phase("before", tried(), 3), True, "/reports")) > 2
    assert lab_problems(phase("before", tried()), False, "/reports") == []


def test_masks_link_to_dev_null_where_a_unit_exists() -> None:
    for masked, state in ((True, "present"), (False, "absent")):
        mask = lab_masks(["a.service"], masked)[0]
        assert (mask["path"], mask["state"]) == ("/etc/systemd/system/a.service", state)
        assert os.path.normpath(f"/etc/systemd/system/{mask['link']}") == mask["unless_link"] == "/dev/null"
        assert mask["only_where"] == "/usr/lib/systemd/system/a.service"


def test_page_has_the_verdict_and_every_probe() -> None:
    before, after = phase("before", tried(reached=True), 9), phase("isolated", tried())
    page = render("report.html", [after, before])
    assert "Yes, by the proof of" in page and "only machines you own" in page.lower()
    assert page.index("<th>before") < page.index("<th>isolated")
    assert page.count("<tr>") == len(tried()) + 1
    assert "as &lt;seen&gt;" in page and "as <seen>" not in page
    leak = tried()
    leak[0]["reached"] = True
    page = render("report.html", [before, phase("isolated", leak)])
    assert (
        "No, by the proof of" in page
        and "Yes, by" not in page
        and f"<li>REACHED, and must be blocked: {leak[0]['from']}: {leak[0]['what']}" in page
    )
    assert "Not yet" in render("report.html", [before])


def test_picture_counts_the_probes_of_every_arrow() -> None:
    before, after = phase("before", tried(reached=True), 9), phase("isolated", tried())
    assert sum(through for _, through in count_connections(after).values()) == after["allowed"]
    counted = count_connections(before)
    assert set(counted) == {
        ("nodes", "internet", "fail"),
        ("nodes", "home network", "fail"),
        ("nodes", "client", "fail"),
        ("nodes", "nodes", "fail"),
        ("nodes", "nodes", "pass"),
        ("nodes", "client", "pass"),
        ("client", "nodes", "pass"),
    }
    assert counted["nodes", "nodes", "fail"] == (2, 2) and count_connections(after)["nodes", "nodes", "fail"] == (2, 0)
    picture = ElementTree.fromstring(render("report.svg", [before, after]))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert f"forbidden: 0 of {counted['nodes', 'internet', 'fail'][0]}" in texts
    assert "ssh between nodes: 2 of 2" in texts and "ssh between nodes: 0 of 2" in texts
    # Two arrows lead from the nodes to the client.
    (needed,) = {counted["nodes", "client", "pass"][0]}
    assert f"needed: {needed} of {needed}" in texts and f"forbidden: 0 of {counted['nodes', 'client', 'fail'][0]}" in texts
    assert (
        "frames of the lab at the uplink: 9" in texts
        and "probes that got through before the isolation, 2026-11-23T03:00:00Z" in texts
    )
