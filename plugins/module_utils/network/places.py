"""Where each network stack keeps its files, and which stack a file belongs to."""

from __future__ import annotations

import fnmatch

STACKS = ("networkmanager", "netplan", "networkd", "ifupdown")
# Where each keeps what people and programs configure, as globs.
PLACES = {
    "networkmanager": "/etc/NetworkManager/system-connections/*",
    "netplan": "/etc/netplan/*.yaml",
    "networkd": "/etc/systemd/network/*.network",
    "ifupdown": "/etc/network/interfaces*",
    "ifupdown.d": "/etc/network/interfaces.d/*",
}
INTERFACES_FILE = "/etc/network/interfaces"
# cloud-init's: what it wrote at the first boot is taken over, so that nothing is there twice.
CLOUD_NETPLAN = "/etc/netplan/50-cloud-init.yaml"


def own_path(stack: str, interface: str) -> tuple[str, int]:
    """Return the path of our configuration of a port, and the file's mode."""
    return {
        "networkmanager": (f"/etc/NetworkManager/system-connections/bramble-{interface}.nmconnection", 0o600),
        "netplan": (CLOUD_NETPLAN, 0o600),
        # Before any other: the first file that matches a port counts.
        "networkd": (f"/etc/systemd/network/05-bramble-{interface}.network", 0o644),
        # No dot: source-directory passes over names with one.
        "ifupdown": (f"/etc/network/interfaces.d/bramble-{interface}", 0o644),
    }[stack]


def stack_of(path: str) -> str | None:
    """Return the stack that reads a file, None if none does."""
    return next((stack for stack in STACKS if belongs_to(stack, path)), None)


def belongs_to(stack: str, path: str) -> bool:
    """Return whether a stack reads a file."""
    return any(fnmatch.fnmatchcase(path, glob) for name, glob in PLACES.items() if name.split(".", maxsplit=1)[0] == stack)


def meaningful_lines(text: str) -> list[str]:
    """Return the lines of a file that are neither blank nor comments."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", ";"))]


def section_value(text: str, section: str, key: str) -> str:
    """Return a value of a file in sections, empty if there is none; the last one counts."""
    here, found = "", ""
    for line in meaningful_lines(text):
        if line.startswith("["):
            here = line.strip("[]")
        name, equals, value = line.partition("=")
        if equals and here == section and name.strip() == key:
            found = value.strip()
    return found
