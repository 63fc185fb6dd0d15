"""Read and edit the files of netplan(5): find and remove a port, and write Bramble's configuration of it."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.network.places import CLOUD_NETPLAN, belongs_to


def load_netplan(path: str, text: str) -> dict[str, Any]:
    """Return the content of a file, {} if it defines no network. Raises BrambleError if it is not a file of netplan."""
    import yaml  # netplan depends on PyYAML

    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise BrambleError(f"{path} is not YAML: {where}. Correct or remove it. Nothing was changed.") from error
    network = data.get("network") if isinstance(data, dict) else 0
    if not isinstance(network, dict | None):
        raise BrambleError(
            f"{path} is not a file of netplan: network is not a mapping. Correct or remove it. Nothing was changed."
        )
    return data if network else {}


def dump_netplan(data: Mapping[str, Any]) -> str:
    """Return the text of a file with this content."""
    import yaml

    text: str = yaml.safe_dump(data, default_flow_style=False, indent=2)
    return text


def netplan_ports(text: str, interface: str, mac: str = "", path: str = "netplan") -> list[str]:
    """Return the names under which a file defines the port. Raises BrambleError if it is not a file of netplan."""
    ethernets = load_netplan(path, text).get("network", {}).get("ethernets") or {}
    found = []
    for name, port in ethernets.items() if isinstance(ethernets, dict) else ():
        match = port.get("match") if isinstance(port, dict) else None
        settings = ((port.get("networkmanager") or {}).get("passthrough") or {}) if isinstance(port, dict) else {}
        if match is None:
            matches = name == interface
        elif settings.get("connection.interface-name"):
            matches = settings["connection.interface-name"] == interface
        else:
            matches = _matches_port(match, interface, mac)
        if matches:
            found.append(name)
    return found


def _matches_port(match: Any, interface: str, mac: str) -> bool:
    """Return whether a `match` of netplan(5) is for this port. One by the driver alone does not count."""
    if not isinstance(match, dict) or not (match.get("name") or match.get("macaddress")):
        return False
    by_name = "name" not in match or fnmatch.fnmatchcase(interface, str(match["name"]))
    return by_name and ("macaddress" not in match or str(match["macaddress"]).lower() == mac.lower())


def without_netplan_port(path: str, text: str, interface: str, mac: str) -> str | None:
    """Return the text of a file without a port; None when nothing remains. Raises BrambleError."""
    names = netplan_ports(text, interface, mac, path)
    if not names:
        return text
    data = load_netplan(path, text)
    network = dict(data["network"])
    network["ethernets"] = {name: port for name, port in network["ethernets"].items() if name not in names}
    if not network["ethernets"]:
        del network["ethernets"]
    return dump_netplan({**data, "network": network}) if set(network) - {"version", "renderer"} else None


def netplan_file(text: str, before: str, backend: str, interface: str, mac: str) -> str:
    """Return the text of Bramble's file, which keeps the other ports and the renderer of the previous one.

    :param text: the new configuration of the port, as a file of netplan
    :param before: the previous text of the file
    """
    new_data = load_netplan("netplan", text)
    network = load_netplan(CLOUD_NETPLAN, before).get("network", {})
    names = netplan_ports(before, interface, mac, CLOUD_NETPLAN)
    others = {name: port for name, port in (network.get("ethernets") or {}).items() if name not in names}
    port = dict(new_data["network"]["ethernets"][interface])
    if backend == "NetworkManager":
        port |= _ipv6_by_networkmanager(port)
    kept = {key: value for key, value in network.items() if key not in ("ethernets", "version")}
    network = {**kept, "version": 2, "ethernets": {**others, interface: port}}
    return "# From Bramble's inventory.\n" + dump_netplan({"network": network})


def _ipv6_by_networkmanager(port: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by which NetworkManager manages IPv6.

    Without them it leaves IPv6 to the kernel, which accepts what a router advertises.
    """
    settings: dict[str, Any] = {"renderer": "NetworkManager"}
    if (
        not port.get("accept-ra")
        and not port.get("dhcp6")
        and not any(":" in str(entry) for entry in port.get("addresses") or [])
    ):
        method = "disabled" if port.get("link-local") == [] else "link-local"
        settings["networkmanager"] = {"passthrough": {"ipv6.method": method}}
    return settings


def merged_netplan(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the settings of all files together, as netplan reads them. Raises BrambleError."""
    merged: dict[str, Any] = {}
    for path in sorted(texts):
        if belongs_to("netplan", path) and (text := texts[path]):
            _merge_settings(merged, load_netplan(path, text))
    return merged


def without_networkmanager_settings(merged: dict[str, Any]) -> dict[str, Any]:
    """Return the merged settings of netplan without those of `_ipv6_by_networkmanager`."""
    for port in ((merged.get("network") or {}).get("ethernets") or {}).values():
        for key in ("renderer", "networkmanager") if isinstance(port, dict) else ():
            port.pop(key, None)
    return merged


def _merge_settings(into: dict[str, Any], data: Mapping[str, Any]) -> None:
    """Merge the settings of a file into those of the previous files."""
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge_settings(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
