#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: gather the status of a node in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_status
short_description: Gather the status of a node
description:
  - Gathers, in one round trip, the facts that show whether a Raspberry Pi works well. Changes nothing. A fact that a node does
    not have is null or empty, and not an error.
  - An action plugin of the same name adds the difference between the clocks of the node and of the control machine.
author: The Bramble team (!UNKNOWN)
options:
  units:
    description: The systemd units whose state is returned.
    type: list
    elements: str
    default: []
  disks:
    description: The mount points whose use is returned.
    type: list
    elements: path
    default: [/, /boot/firmware]
attributes:
  check_mode: {support: full, description: The module changes nothing.}
  diff_mode: {support: none, description: The module changes nothing.}
"""

EXAMPLES = r"""
- name: Gather the status of the node
  bramble.cluster.node_status:
    units: [bramble-worker]
  become: true  # only root can read the kernel's journal
"""

RETURN = r"""
uptime: {description: The seconds since the node booted., type: float, returned: always}
load: {description: "The average number of runnable processes in the last minute (proc(5)).", type: float, returned: always}
cores: {description: The number of processors., type: int, returned: always}
memory_available: {description: "The share of memory available, from 0 to 1.", type: float, returned: always}
temperature: {description: "The hottest sensor, in degrees Celsius; null without a sensor.", type: float, returned: always}
throttled: {description: "The bits of vcgencmd get_throttled, as a number; null without vcgencmd.", type: int, returned: always}
disks:
  description: By mount point, C(used) (from 0 to 1, as df(1) counts it), C(bytes) and C(read_only).
  type: dict
  returned: always
card:
  description: >-
    C(life_time) and C(pre_eol) of the card (only cards with eMMC 5.0 or newer have them), and C(ext4_errors) of the root file
    system; each is null if it is unknown.
  type: dict
  returned: always
io_errors: {description: "The kernel's messages of this boot about a failing card, at most 20.", type: list, returned: always}
units:
  description: By unit, C(active) (such as active or failed), C(restarts), and C(bundle), its folder in /opt/bramble.
  type: dict
  returned: always
failed_units: {description: The names of all units that have failed., type: list, returned: always}
kernel: {description: The release of the kernel., type: str, returned: always}
os: {description: "The operating system, PRETTY_NAME of os-release(5).", type: str, returned: always}
chrony:
  description: The time source of chrony (C(source), C(stratum)), and C(offset), its difference in seconds; null without chrony.
  type: dict
  returned: always
began: {description: "The time of the node when the module started, in seconds since 1970.", type: float, returned: always}
ended: {description: "The time of the node when the module ended, in seconds since 1970.", type: float, returned: always}
clock_offset:
  description: The seconds by which the node's clock is ahead of the control machine's. The action plugin adds it.
  type: float
  returned: always
clock_error: {description: "The greatest error of clock_offset, in seconds.", type: float, returned: always}
"""

import glob
import os
import re
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

# The messages of the block layer, the MMC driver and ext4 about a failing card.
IO_ERRORS = r"I/O error|mmc[0-9]+: (error|[Tt]imeout|card .*removed)|EXT4-fs error|EXT4-fs .*remounting filesystem read-only"


def read_file(path: str) -> str:
    """Return the text of a small file, stripped; "" if it does not exist."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""


def parse_integer(text: str, base: int = 10) -> int | None:
    """Return the integer that a text is; None if it is none."""
    try:
        return int(text, base)
    except ValueError:
        return None


def program_output(module: AnsibleModule, *command: str) -> str:
    """Return the standard output of a program; "" if it is missing or fails."""
    path = module.get_bin_path(command[0], opt_dirs=["/opt/vc/bin", "/usr/sbin"])
    code, out, _ = module.run_command([path, *command[1:]]) if path else (1, "", "")
    return str(out) if not code else ""


def read_temperature() -> float | None:
    """Return the temperature of the hottest sensor in degrees Celsius (kernel: thermal/sysfs-api)."""
    found = [
        value
        for zone in glob.glob("/sys/class/thermal/thermal_zone*/temp")
        if (value := parse_integer(read_file(zone))) is not None
    ]
    return max(found) / 1000 if found else None


def read_disks(points: list[str]) -> dict[str, dict[str, Any]]:
    """Return the use of file systems by mount point, without folders that are not mount points."""
    found = {}
    for point in points:
        if not os.path.ismount(point):
            continue
        stat = os.statvfs(point)
        used = stat.f_blocks - stat.f_bfree
        found[point] = {
            "used": used / ((used + stat.f_bavail) or 1),
            "bytes": stat.f_blocks * stat.f_frsize,
            "read_only": bool(stat.f_flag & os.ST_RDONLY),
        }
    return found


def read_card_health() -> dict[str, Any]:
    """Return the health of the card (kernel: driver-api/mmc/mmc-dev-attrs) and of its root file system (filesystems/ext4)."""
    mmc, device = "/sys/block/mmcblk0/device", os.stat("/").st_dev
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    wear_values = [value for word in read_file(f"{mmc}/life_time").split() if (value := parse_integer(word, 16)) is not None]
    return {
        "life_time": max(wear_values) if wear_values else None,
        "pre_eol": parse_integer(read_file(f"{mmc}/pre_eol_info"), 16),
        "ext4_errors": parse_integer(read_file(f"/sys/fs/ext4/{name}/errors_count")),
    }


def read_units(module: AnsibleModule, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the state of systemd units, by name."""
    if not names:
        return {}
    # The output has a block of lines for each unit, with empty lines between them.
    text = program_output(module, "systemctl", "show", "--property=Id,ActiveState,NRestarts,ExecStart", *names)
    found = {}
    for block in text.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.strip().splitlines() if "=" in line)
        program = re.search(r"path=(\S+)", fields.get("ExecStart", ""))
        bundle = re.match(r"/opt/bramble/([^/]+)/", program[1]) if program else None
        name = fields.get("Id", "").removesuffix(".service")
        found[name] = {
            "active": fields.get("ActiveState", ""),
            "restarts": parse_integer(fields.get("NRestarts", "")) or 0,
            "bundle": bundle[1] if bundle else "",
        }
    return found


def read_chrony(module: AnsibleModule) -> dict[str, Any] | None:
    """Return the time source of chrony and its offset: chronyc(1), `tracking` as comma-separated values."""
    fields = program_output(module, "chronyc", "-c", "tracking").strip().split(",")
    try:
        return {"source": fields[1], "stratum": int(fields[2]), "offset": float(fields[4])}
    except (IndexError, ValueError):
        return None


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the status of the node: the result of the module."""
    began = time.time()
    memory = dict(line.split(":", 1) for line in read_file("/proc/meminfo").splitlines() if ":" in line)
    kib = {name: parse_integer(memory.get(name, "").removesuffix("kB").strip()) or 0 for name in ("MemTotal", "MemAvailable")}
    release = dict(line.split("=", 1) for line in read_file("/etc/os-release").splitlines() if "=" in line)
    vcgencmd = re.search(r"throttled=0x([0-9a-fA-F]+)", program_output(module, "vcgencmd", "get_throttled"))
    lines = program_output(
        module, "journalctl", "--dmesg", "--boot", "--quiet", "--no-pager", "--output=cat", f"--grep={IO_ERRORS}", "--lines=20"
    )
    failed = program_output(module, "systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--no-pager")
    return dict(
        uptime=float(read_file("/proc/uptime").split()[0]),
        load=float(read_file("/proc/loadavg").split()[0]),
        cores=os.cpu_count() or 1,
        memory_available=kib["MemAvailable"] / kib["MemTotal"] if kib["MemTotal"] else None,
        temperature=read_temperature(),
        throttled=parse_integer(vcgencmd[1], 16) if vcgencmd else None,
        disks=read_disks(module.params["disks"]),
        card=read_card_health(),
        io_errors=lines.splitlines(),
        units=read_units(module, module.params["units"]),
        failed_units=[line.split()[0] for line in failed.splitlines() if line.split()],
        kernel=os.uname().release,
        os=release.get("PRETTY_NAME", "").strip('"'),
        chrony=read_chrony(module),
        began=began,
        ended=time.time(),
    )


def main() -> None:
    """Run the module."""
    spec = {
        "units": {"type": "list", "elements": "str", "default": []},
        "disks": {"type": "list", "elements": "path", "default": ["/", "/boot/firmware"]},
    }
    run_module(spec, run)


if __name__ == "__main__":
    main()
