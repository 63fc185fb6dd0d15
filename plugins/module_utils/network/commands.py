"""The commands that tell a network stack of changed files."""

from __future__ import annotations

from typing import NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.network.owner import Owner


class Commands(NamedTuple):
    """The commands that tell a stack of changed files."""

    same: list[list[str]]  # when they say the same, but for IPv6 by NetworkManager
    down: list[list[str]]  # before they change; errors do not count
    new: list[list[str]]  # to apply the new ones
    old: list[list[str]]  # to apply the old ones again
    boot: list[list[str]]  # when the old ones are put back before the network comes up
    last: list[list[str]]  # when `old` fails


def stack_commands(who: Owner, interface: str, ours: str, before: str) -> Commands:
    """Return the commands of a stack: never `netplan apply`, which stops NetworkManager, and then may fail at something else.

    :param ours: the uuid of our connection in NetworkManager
    :param before: the uuid of the one that is active, empty if there is none
    """
    generate = [["netplan", "generate"]] if who.stack == "netplan" else []
    if who.backend == "NetworkManager":
        reload = [*generate, ["nmcli", "connection", "reload"]]
        name = ["id", f"netplan-{interface}"] if who.stack == "netplan" else ["uuid", ours]
        new = ["nmcli", "--wait", "30", "connection", "up", *name, "ifname", interface]
        old = ["nmcli", "--wait", "30", "connection", "up", "uuid", before, "ifname", interface]
        last = [["systemctl", "restart", "NetworkManager"]]
        same = [*reload, ["nmcli", "device", "reapply", interface]] if who.stack == "netplan" else []
        return Commands(same, [], [*reload, new], [*reload, old] if before else reload, generate, last)
    if who.backend == "networkd":
        again = [*generate, ["networkctl", "reload"], ["networkctl", "reconfigure", interface]]
        return Commands([], [], again, again, generate, [["systemctl", "restart", "systemd-networkd"]])
    down = [["ifdown", "--force", interface], ["ip", "address", "flush", "dev", interface]]
    return Commands([], down, [["ifup", interface]], [["ifup", interface]], [], [["systemctl", "restart", "networking"]])
