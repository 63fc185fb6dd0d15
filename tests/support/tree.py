"""Compare the state of a node with an earlier state: its files, packages, and active network settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

# Running programs change these paths: journals, caches, leases, clock drift, the state of cloud-init, backups of useradd and
# dpkg, and the lock of the role network. Nothing else may differ after a role was removed.
ALLOWED = (
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/passwd-",
    "/etc/shadow-",
    "/home/*/.ansible",
    "/root/.ansible",
    "/var/cache",
    "/var/lib/bramble/network",
    "/var/lib/cloud",
    "/var/lib/dpkg/status-old",
    "/var/lib/apt/lists",
    "/var/lib/chrony",
    "/var/lib/systemd",
    "/var/lib/NetworkManager",
    "/var/log",
    "/var/tmp",
)

# This script runs on the node as root. It prints type, mode, owner, and content or target of all files that boots do not create.
SNAPSHOT_SCRIPT = f"""
import fnmatch, grp, hashlib, json, os, pwd, stat, subprocess
skipped = ("/dev", "/proc", "/run", "/sys", "/tmp", "/lost+found")
allowed = {ALLOWED!r}
found = {{}}
for folder, folders, names in os.walk("/"):
    for name in [*folders, *names]:
        path = os.path.join(folder, name)
        if path in skipped or any(fnmatch.fnmatchcase(path, pattern) for pattern in allowed):
            folders[:] = [other for other in folders if other != name]
            continue
        entry = os.lstat(path)
        kind = "link " + os.readlink(path) if stat.S_ISLNK(entry.st_mode) else "folder"
        if stat.S_ISREG(entry.st_mode):
            with open(path, "rb") as file:
                kind = hashlib.file_digest(file, "sha256").hexdigest()
        found[path] = f"{{stat.filemode(entry.st_mode)}} {{entry.st_uid}}:{{entry.st_gid}} {{kind}}"
def output(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout
for line in output("dpkg-query", "--show", "--showformat=${{Package}} ${{Version}} ${{db:Status-Abbrev}}\\n").splitlines():
    found["package " + line.split()[0]] = line
found["routes"] = output("ip", "route")
found["firewall"] = output("nft", "list", "ruleset")
found["masked"] = output("systemctl", "list-unit-files", "--state=masked", "--no-legend")
for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6",
             "ipv6/conf/eth0/disable_ipv6", "ipv4/conf/eth0/arp_ignore"):
    with open("/proc/sys/net/" + name) as file:
        found["kernel " + name] = file.read()
print(json.dumps(found))
"""


def node_snapshot(run_on_node: Callable[[str], str]) -> dict[str, str]:
    """Return the state of a node: its files, packages and network settings, by name.

    :param run_on_node: runs a command on the node, as a user with sudo, and returns its output
    """
    found: dict[str, str] = json.loads(run_on_node(f"sudo python3 - <<'END'\n{SNAPSHOT_SCRIPT}\nEND"))
    return found


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return one line for each difference between two states."""
    names = sorted({*before, *after})
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names if before.get(name) != after.get(name)]
