"""Find the files to change so that only one network stack manages a port, and whether that changes the network.

The functions work on the texts of files. They read and change nothing on the node.
"""

from __future__ import annotations

from collections.abc import Mapping

from ansible_collections.bramble.cluster.plugins.module_utils.network.ifupdown import (
    SOURCE_LINE,
    reads_interfaces_folder,
    without_ifupdown_port,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.netplan import (
    merged_netplan,
    netplan_file,
    without_netplan_port,
    without_networkmanager_settings,
)
from ansible_collections.bramble.cluster.plugins.module_utils.network.owner import Owner
from ansible_collections.bramble.cluster.plugins.module_utils.network.places import (
    INTERFACES_FILE,
    belongs_to,
    configuration_path,
    find_stack,
    meaningful_lines,
    section_value,
)


def changed_files(owner: Owner, interface: str, text: str, texts: Mapping[str, str], mac: str = "") -> dict[str, str | None]:
    """Return the files to change so that only Bramble's configuration defines the port: path -> text, None to remove a file.

    :param text: the configuration of the port in the form of its stack; for netplan that of the whole node
    :param texts: path -> text of the files in PLACES
    :param mac: the hardware address of the port, as aa:bb:cc:dd:ee:ff
    :raises BrambleError: when a file in the folder of netplan is not one of netplan
    """
    bramble_file = configuration_path(owner.stack, interface)[0]
    after: dict[str, str | None] = {}
    for path, before in texts.items():
        if path != bramble_file:
            after[path] = without_port(path, before, interface, mac)
    if owner.stack == "netplan":
        text = netplan_file(text, texts.get(bramble_file, ""), owner.backend, interface, mac)
    if owner.stack == "ifupdown":
        main = after.get(INTERFACES_FILE) or texts.get(INTERFACES_FILE, "")
        if not reads_interfaces_folder(main):
            after[INTERFACES_FILE] = f"{main.rstrip()}\n\n{SOURCE_LINE}\n".lstrip()
    after[bramble_file] = text
    return {path: entry for path, entry in after.items() if entry != texts.get(path)}


def without_port(path: str, text: str, interface: str, mac: str = "") -> str | None:
    """Return the text of a file of any stack without a port; None when nothing remains. Other ports do not change."""
    if belongs_to("netplan", path):
        return without_netplan_port(path, text, interface, mac)
    if belongs_to("networkmanager", path):
        return None if section_value(text, "connection", "interface-name") == interface else text
    if belongs_to("networkd", path):
        return None if section_value(text, "Match", "Name") == interface else text
    kept = without_ifupdown_port(text, interface)
    return kept if path == INTERFACES_FILE or kept == text or meaningful_lines(kept) else None


def has_equal_settings(stack: str, texts: Mapping[str, str], changes: Mapping[str, str | None]) -> bool:
    """Return whether the changed files mean the same as before, except for IPv6 by NetworkManager. If so, the port stays up."""
    if any(not belongs_to(stack, path) for path in changes if find_stack(path)):
        return False
    if stack == "netplan":
        return without_networkmanager_settings(merged_netplan(texts)) == without_networkmanager_settings(
            merged_netplan({**texts, **changes})
        )
    return all(
        meaningful_lines(texts.get(path) or "") == meaningful_lines(text or "")
        for path, text in changes.items()
        if find_stack(path)
    )
