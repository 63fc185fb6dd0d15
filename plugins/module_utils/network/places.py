"""The paths of the files of each network stack."""

from __future__ import annotations

import fnmatch

STACKS = ("networkmanager", "netplan", "networkd", "ifupdown")
# The files that people and programs configure, as globs, by stack.
PLACES = {
    "networkmanager": "/etc/NetworkManager/system-connections/*",
    "netplan": "/etc/netplan/*.yaml",
    "networkd": "/etc/systemd/network/*.network",
    "ifupdown": "/etc/network/interfaces*",
    "ifupdown.d": "/etc/network/interfaces.d/*",
}
INTERFACES_FILE = "/etc/network/interfaces"
# cloud-init writes this file at the first boot. Bramble replaces it, so that a port is not defined twice.
CLOUD_NETPLAN = "/etc/netplan/50-cloud-init.yaml"


def configuration_path(stack: str, interface: str) -> tuple[str, int]:
    """Return the path of Bramble's configuration of a port, and the mode of the file."""
    return {
        "networkmanager": (f"/etc/NetworkManager/system-connections/bramble-{interface}.nmconnection", 0o600),
        "netplan": (CLOUD_NETPLAN, 0o600),
        # The number comes before those of other files, because the first file that matches a port is used.
        "networkd": (f"/etc/systemd/network/05-bramble-{interface}.network", 0o644),
        # source-directory ignores names with a dot.
        "ifupdown": (f"/etc/network/interfaces.d/bramble-{interface}", 0o644),
    }[stack]


def find_stack(path: str) -> str | None:
    """Return the stack that reads a file; None if none does."""
    return next((stack for stack in STACKS if belongs_to(stack, path)), None)


def belongs_to(stack: str, path: str) -> bool:
    """Return whether a stack reads a file."""
    return any(fnmatch.fnmatchcase(path, glob) for name, glob in PLACES.items() if name.split(".", maxsplit=1)[0] == stack)


def meaningful_lines(text: str) -> list[str]:
    """Return the lines of a file that are neither blank nor comments."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", ";"))]


def section_value(text: str, section: str, key: str) -> str:
    """Return the last value of a key in a section of a file; empty if there is none."""
    current_section, found = "", ""
    for line in meaningful_lines(text):
        if line.startswith("["):
            current_section = line.strip("[]")
        name, equals, value = line.partition("=")
        if equals and current_section == section and name.strip() == key:
            found = value.strip()
    return found
