"""The commands that make a network stack apply changed files."""

from __future__ import annotations

from typing import NamedTuple

from ansible_collections.bramble.cluster.plugins.module_utils.network.owner import Owner


class StackCommands(NamedTuple):
    """The commands that make a stack apply changed files."""

    same: list[list[str]]  # when the files mean the same as before, except for IPv6 by NetworkManager
    before: list[list[str]]  # before the files change; errors are ignored
    new: list[list[str]]  # to apply the new files
    old: list[list[str]]  # to apply the old files again
    boot: list[list[str]]  # after the old files are restored at boot, before the network is set up
    last: list[list[str]]  # when `old` fails


def stack_commands(owner: Owner, interface: str, bramble_uuid: str, active_uuid: str) -> StackCommands:
    """Return the commands of a stack.

    `netplan apply` is not among them, because it stops NetworkManager and may then fail for another reason.

    :param bramble_uuid: the uuid of Bramble's connection in NetworkManager
    :param active_uuid: the uuid of the active connection, empty if there is none
    """
    generate = [["netplan", "generate"]] if owner.stack == "netplan" else []
    if owner.backend == "NetworkManager":
        reload = [*generate, ["nmcli", "connection", "reload"]]
        name = ["id", f"netplan-{interface}"] if owner.stack == "netplan" else ["uuid", bramble_uuid]
        new = ["nmcli", "--wait", "30", "connection", "up", *name, "ifname", interface]
        old = ["nmcli", "--wait", "30", "connection", "up", "uuid", active_uuid, "ifname", interface]
        last = [["systemctl", "restart", "NetworkManager"]]
        same = [*reload, ["nmcli", "device", "reapply", interface]] if owner.stack == "netplan" else []
        return StackCommands(same, [], [*reload, new], [*reload, old] if active_uuid else reload, generate, last)
    if owner.backend == "networkd":
        again = [*generate, ["networkctl", "reload"], ["networkctl", "reconfigure", interface]]
        return StackCommands([], [], again, again, generate, [["systemctl", "restart", "systemd-networkd"]])
    commands_before = [["ifdown", "--force", interface], ["ip", "address", "flush", "dev", interface]]
    return StackCommands(
        [], commands_before, [["ifup", interface]], [["ifup", interface]], [], [["systemctl", "restart", "networking"]]
    )
