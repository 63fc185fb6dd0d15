"""Plan the probes of the isolation proof, and evaluate their results."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]

# The kinds of probes that read a setting of the node itself; all others send something.
STATES = {"default_route", "resolver", "ipv6", "links", "radios", "packages", "firewall", "forwarding"}


def _row(what: str, to: str, kind: str, *, must: str = "fail", **options: Any) -> Row:
    return {"what": what, "to": to, "must": must, "kind": kind, **options}


def _internet_rows(lab: Mapping[str, Any]) -> list[Row]:
    """Return the probes of the internet, in every common way."""
    rows: list[Row] = []
    for host in (lab["outside_ipv4"], lab["outside_ipv6"]):
        if not host:
            continue
        version = f"IPv{ipaddress.ip_address(host).version}"
        rows += [_row(f"tcp {port}, {version}", "internet", "tcp", host=host, port=port) for port in (80, 443, 22)]
        rows += [_row(f"udp {port}, {version}", "internet", "udp", host=host, port=port) for port in (123, 443)]
        rows.append(_row(f"ping, {version}", "internet", "icmp", host=host))
        rows.append(_row(f"name server, {version}", "internet", "dns", host=host, name=lab["outside_name"]))
        rows.append(_row(f"name server by tcp, {version}", "internet", "dns", host=host, name=lab["outside_name"], tcp=True))
    if lab["outside_ipv4"]:
        rows.append(_row("tcp 80 as another user", "internet", "user", host=lab["outside_ipv4"], port=80))
    rows.append(_row("any known name server", "internet", "resolvers", name=lab["outside_name"]))
    rows.append(_row("the address of a name", "internet", "lookup", name=lab["outside_name"]))
    return rows


def _client_rows(lab: Mapping[str, Any], address: str, client_facts: Mapping[str, Any], own: str) -> list[Row]:
    """Return the probes of the client, and of what lies behind it."""
    interface, rows = lab["interface"], []
    for host, gateway in ((lab["outside_ipv4"], address), (lab["outside_ipv6"], client_facts["link_local"])):
        if host and gateway:
            what = f"tcp 80 with the client as gateway, IPv{ipaddress.ip_address(host).version}"
            rows.append(_row(what, "internet", "via", host=host, port=80, via=gateway, interface=interface))
    if lab["outside_ipv4"] and client_facts["mac"]:
        raw = {"interface": interface, "source": own, "mac": client_facts["mac"]}
        rows.append(_row("a hand-made frame through the client", "internet", "frame", host=lab["outside_ipv4"], **raw))
    homes = [home for home in [lab["home"] or client_facts["gateway"]] if home]
    for home in homes:
        rows.append(_row("ping", "home network", "icmp", host=home))
        rows.append(_row("tcp 80", "home network", "tcp", host=home, port=80))
    for uplink in client_facts["uplink_addresses"]:
        rows.append(_row(f"ping its uplink {uplink}", "client", "icmp", host=uplink))
        rows.append(_row(f"tcp 22 at its uplink {uplink}", "client", "tcp", host=uplink, port=22))
        if ":" not in uplink:
            rows.append(_row(f"arp for its uplink {uplink}", "client", "arp", host=uplink, interface=interface, source=own))
    for port in sorted({22, *client_facts["listening"]} - set(lab["client_tcp_ports"])):
        rows.append(_row(f"tcp {port}", "client", "tcp", host=address, port=port))
    return rows


def _state_rows(lab: Mapping[str, Any]) -> list[Row]:
    """Return the probes of the settings of the node itself."""
    port = {"interface": lab["interface"]}
    return [
        _row("a default route, IPv4", "itself", "default_route", family=4, layer="route"),
        _row("a default route, IPv6", "itself", "default_route", family=6, layer="ipv6"),
        _row("a name server in resolv.conf", "itself", "resolver", layer="resolver"),
        _row("IPv6", "itself", "ipv6", layer="ipv6", **port),
        _row("another port that is up", "itself", "links", layer="nic", **port),
        _row("a radio that is not off", "itself", "radios", layer="radio", overlays=lab["overlays"]),
        _row("packages from elsewhere", "itself", "packages", layer="package", mirror=lab["mirror"]),
        _row("no firewall", "itself", "firewall", layer="firewall", table=lab["table"], hooks=["input", "output", "forward"]),
    ]


def lab_plan(host: str, lab: Mapping[str, Any], is_hostile_root: bool = False) -> list[Row]:
    """Return the probes that a host runs.

    :param host: its name
    :param lab: addresses (of all hosts, by name), client (its name), client_facts (host_facts that the module lab_probe returned
        there), interface, table, overlays, outside_ipv4, outside_ipv6, outside_name, home, mirror (URL), client_tcp_ports and
        client_udp_ports (the ports that nodes may reach), services (name -> ports that must be reachable), lab_port
    :param is_hostile_root: only probes that send something, since a hostile root can change all settings
    """
    addresses, client, client_facts = lab["addresses"], lab["client"], lab["client_facts"]
    peers = {name: address for name, address in addresses.items() if name not in (host, client)}
    if host == client:
        rows = [
            _row("forwarding", "itself", "forwarding", layer="client"),
            _row("no firewall", "itself", "firewall", layer="client", table=lab["table"], hooks=["forward"]),
        ]
        for name, address in peers.items():
            rows.append(_row("ssh", name, "tcp", host=address, port=22, service=True, must="pass"))
            rows.append(_row("ping", name, "icmp", host=address, must="pass"))
        return rows
    rows = _internet_rows(lab) + _client_rows(lab, addresses[client], client_facts, addresses[host])
    rows += [_row("ssh", name, "tcp", host=address, port=22) for name, address in peers.items()]
    if is_hostile_root:
        return [row for row in rows if row["kind"] != "via"]
    rows += _state_rows(lab)
    for name, address in peers.items():
        rows.append(_row("ping", name, "icmp", host=address, must="pass"))
        rows.append(_row(f"tcp {lab['lab_port']}", name, "tcp", host=address, port=lab["lab_port"], must="pass"))
    for port in lab["client_udp_ports"]:
        rows.append(_row(f"udp {port}", client, "udp", host=addresses[client], port=port, must="pass"))
    for name, ports in lab["services"].items():
        for port in ports if name != host else ():
            rows.append(_row(f"tcp {port}", name, "tcp", host=addresses[name], port=port, service=True, must="pass"))
    return rows


def lab_rows(results: Mapping[str, Mapping[str, Any]], is_hostile_root: bool = False) -> list[Row]:
    """Return the rows of all hosts, each with `from` and, for a hostile root, `as`.

    :param results: the results of the module lab_probe, by host
    """
    role = {"as": "hostile root"} if is_hostile_root else {}
    return [{"from": host, **role, **row} for host, result in results.items() for row in result.get("rows", [])]


def _describe_row(row: Mapping[str, Any]) -> str:
    """Return a description of a probe and of what it saw."""
    target = "" if row["to"] == "itself" else f" to {row['to']}"
    return f"{row['from']}{', hostile root' if row.get('as') else ''}: {row['what']}{target} ({row['seen']})"


def lab_verdict(rows: Sequence[Mapping[str, Any]], frames: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return the verdict of an isolation proof.

    :param rows: of all hosts (lab_rows)
    :param frames: the counts of the capture at the uplink (`lab`: frames of the lab); None or empty without a capture
    :returns: the numbers forbidden, reached (of those), allowed and failed (of those); and failures, a list of sentences
    """
    forbidden = [row for row in rows if row["must"] == "fail"]
    allowed = [row for row in rows if row["must"] == "pass"]
    reached = [row for row in forbidden if row["reached"]]
    failed = [row for row in allowed if not row["reached"]]
    failures = [f"REACHED, and must be blocked: {_describe_row(row)}" for row in reached]
    failures += [f"NOT REACHED, and must be reachable: {_describe_row(row)}" for row in failed]
    if frames and frames["lab"]:
        failures.append(f"{frames['lab']} frames of the lab were seen at the client's uplink")
    if not forbidden or not allowed:
        failures.append("there was no probe that must fail, or none that must pass")
    return {
        "forbidden": len(forbidden),
        "reached": len(reached),
        "allowed": len(allowed),
        "failed": len(failed),
        "failures": failures,
    }


def lab_baseline(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the probes that did not get through before the isolation. That they do not get through later proves nothing.

    Only one node needs a second port.
    """
    rows = list(rows)
    second_port_seen = any(row["kind"] == "links" and row["reached"] for row in rows)
    return [_describe_row(row) for row in rows if not row["reached"] and not (row["kind"] == "links" and second_port_seen)]


def lab_problems(proof: Mapping[str, Any], is_rehearsal: bool, reports: str) -> list[str]:
    """Return why a play must stop after a proof; an empty list when it may continue.

    :param proof: the verdict (lab_verdict) with its phase, rows and frames
    :param is_rehearsal: whether the stand-ins' outside exists, which must be reached before the isolation
    :param reports: the folder of the report
    """
    if proof["phase"] != "before":
        return (
            [f"The lab is not proven to be isolated. Read the report: {reports}/report.html", *proof["failures"]]
            if proof["failures"]
            else []
        )
    frames = (proof["frames"] or {}).get("lab", 0)
    failed_probes = lab_baseline(proof["rows"])
    if not is_rehearsal or (frames and not failed_probes):
        return []
    return [
        "The network of the rehearsal is broken, so a later proof would prove nothing. Not reached before the isolation:",
        *failed_probes,
        f"frames of the lab at the uplink: {frames}",
    ]


def lab_masks(units: Iterable[str], masked: bool) -> list[dict[str, str]]:
    """Return the masks of units for the module node_files. Masks of others stay: those link to /dev/null by its absolute path."""
    return [
        {
            "path": f"/etc/systemd/system/{unit}",
            "link": "../../../dev/null",
            "unless_link": "/dev/null",
            "only_where": f"/usr/lib/systemd/system/{unit}",
            "state": "present" if masked else "absent",
        }
        for unit in units
    ]


class FilterModule:
    """Filters for the role isolated_lab."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "lab_plan": lab_plan,
            "lab_problems": lab_problems,
            "lab_rows": lab_rows,
            "lab_verdict": lab_verdict,
            "lab_masks": lab_masks,
        }
