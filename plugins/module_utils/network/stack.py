"""Which files of the network stacks must change so that one stack has a port alone, and whether that changes the network.

All of it works on texts that were read; nothing here touches the node.
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
    meaningful_lines,
    own_path,
    section_value,
    stack_of,
)


def changed_files(who: Owner, interface: str, text: str, texts: Mapping[str, str], mac: str = "") -> dict[str, str | None]:
    """Return the files to change, text by path, None to remove one, so that our configuration alone defines the port.

    :param text: our configuration of the port, in the words of its stack; for netplan that of the whole node
    :param texts: path -> text of what is in PLACES
    :param mac: the port's hardware address, as aa:bb:cc:dd:ee:ff
    :raises BrambleError: for what is no file of netplan
    """
    ours = own_path(who.stack, interface)[0]
    after: dict[str, str | None] = {}
    for path, before in texts.items():
        if path != ours:
            after[path] = without_port(path, before, interface, mac)
    if who.stack == "netplan":
        text = netplan_file(text, texts.get(ours, ""), who.backend, interface, mac)
    if who.stack == "ifupdown":
        main = after.get(INTERFACES_FILE) or texts.get(INTERFACES_FILE, "")
        if not reads_interfaces_folder(main):
            after[INTERFACES_FILE] = f"{main.rstrip()}\n\n{SOURCE_LINE}\n".lstrip()
    after[ours] = text
    return {path: entry for path, entry in after.items() if entry != texts.get(path)}


def without_port(path: str, text: str, interface: str, mac: str = "") -> str | None:
    """Return a file of any stack without what it says of a port; None when nothing is left. Other ports stay as they are."""
    if belongs_to("netplan", path):
        return without_netplan_port(path, text, interface, mac)
    if belongs_to("networkmanager", path):
        return None if section_value(text, "connection", "interface-name") == interface else text
    if belongs_to("networkd", path):
        return None if section_value(text, "Match", "Name") == interface else text
    stays = without_ifupdown_port(text, interface)
    return stays if path == INTERFACES_FILE or stays == text or meaningful_lines(stays) else None


def means_same(stack: str, texts: Mapping[str, str], changes: Mapping[str, str | None]) -> bool:
    """Return whether changed files mean the same as before, but for IPv6 by NetworkManager: then the port stays up."""
    if any(not belongs_to(stack, path) for path in changes if stack_of(path)):
        return False
    if stack == "netplan":
        return without_networkmanager_settings(merged_netplan(texts)) == without_networkmanager_settings(
            merged_netplan({**texts, **changes})
        )
    return all(
        meaningful_lines(texts.get(path) or "") == meaningful_lines(text or "")
        for path, text in changes.items()
        if stack_of(path)
    )
