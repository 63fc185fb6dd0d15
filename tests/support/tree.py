"""What is on a node, to be compared with what was: files, packages, and the network as it is in force."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

# Programs that run write here: journals, caches, leases, drift, what cloud-init notes at each boot, copies that useradd and dpkg
# keep, the lock of the role network. Nothing else may differ after a way back.
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

# Runs on the node, as root. All but what is made anew at each boot: path -> kind, mode, owner, content or target.
LOOK = f"""
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
def say(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout
for line in say("dpkg-query", "--show", "--showformat=${{Package}} ${{Version}} ${{db:Status-Abbrev}}\\n").splitlines():
    found["package " + line.split()[0]] = line
found["routes"] = say("ip", "route")
found["firewall"] = say("nft", "list", "ruleset")
found["masked"] = say("systemctl", "list-unit-files", "--state=masked", "--no-legend")
for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6",
             "ipv6/conf/eth0/disable_ipv6", "ipv4/conf/eth0/arp_ignore"):
    with open("/proc/sys/net/" + name) as file:
        found["kernel " + name] = file.read()
print(json.dumps(found))
"""


def tree(told: Callable[[str], str]) -> dict[str, str]:
    """What is on a node. `told` runs a command on it, as a user with sudo, and returns what it says."""
    found: dict[str, str] = json.loads(told(f"sudo python3 - <<'END'\n{LOOK}\nEND"))
    return found


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """A line for each thing that is not as it was."""
    names = sorted({*before, *after})
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names if before.get(name) != after.get(name)]
