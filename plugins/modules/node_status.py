#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: how a node is, all in one question."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_status
short_description: How a node is
description:
  - Gathers in one go what tells whether a Raspberry Pi is well. Changes nothing, and fails for nothing that it cannot read,
    since nodes differ in what they have.
  - Runs with an action plugin of the same name, which adds how far the node's clock is from the control machine's.
author: The Bramble team (!UNKNOWN)
options:
  units:
    description: systemd units to tell the state of.
    type: list
    elements: str
    default: []
  disks:
    description: Mount points to measure.
    type: list
    elements: path
    default: [/, /boot/firmware]
attributes:
  check_mode: {support: full, description: It only looks.}
  diff_mode: {support: none, description: It only looks.}
"""

EXAMPLES = r"""
- name: Ask the node how it is
  node_status:
    units: [bramble-worker]
  become: true  # the kernel's journal is root's
"""

RETURN = r"""
uptime: {description: Seconds since it booted., type: float, returned: always}
load: {description: "Runnable processes, over the last minute (proc(5)).", type: float, returned: always}
cores: {description: How many processors it has., type: int, returned: always}
memory_available: {description: "The share of memory available, from 0 to 1.", type: float, returned: always}
temperature: {description: "The hottest sensor, in degrees Celsius; null without any.", type: float, returned: always}
throttled: {description: "What vcgencmd get_throttled says, as a number; null without vcgencmd.", type: int, returned: always}
disks:
  description: By mount point, C(used) (from 0 to 1, as df(1) counts it), C(bytes) and C(read_only).
  type: dict
  returned: always
card:
  description: >-
    C(life_time) and C(pre_eol) as the card says (only eMMC 5.0 and newer cards do), C(ext4_errors) of the root file system;
    null each where it cannot be told.
  type: dict
  returned: always
io_errors: {description: "The kernel's lines of this boot about a disk that fails, 20 at most.", type: list, returned: always}
units:
  description: By unit, C(active) (such as active or failed), C(restarts) and C(bundle), its program's folder in /opt/bramble.
  type: dict
  returned: always
failed_units: {description: The names of all units that have failed., type: list, returned: always}
kernel: {description: Its release., type: str, returned: always}
os: {description: "As os-release(5) calls it, PRETTY_NAME.", type: str, returned: always}
chrony:
  description: From whom chrony has the time (C(source), C(stratum)), and how many seconds it is off; null without chrony.
  type: dict
  returned: always
began: {description: "The node's clock when the module began, in seconds since 1970.", type: float, returned: always}
ended: {description: The same when it ended., type: float, returned: always}
clock_offset:
  description: How far the node's clock is ahead of the control machine's, in seconds. Added by the action plugin.
  type: float
  returned: always
clock_error: {description: "How wrong clock_offset can be, either way, in seconds.", type: float, returned: always}
"""

import glob
import os
import re
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module

# What block layer, MMC driver and ext4 say of a card that fails.
IO_ERRORS = r"I/O error|mmc[0-9]+: (error|[Tt]imeout|card .*removed)|EXT4-fs error|EXT4-fs .*remounting filesystem read-only"


def read(path: str) -> str:
    """A small file, stripped; "" where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""


def number(text: str, base: int = 10) -> int | None:
    """A whole number, or None where there is none."""
    try:
        return int(text, base)
    except ValueError:
        return None


def said(module: AnsibleModule, *command: str) -> str:
    """What a program says; "" where there is no such program, or it fails."""
    path = module.get_bin_path(command[0], opt_dirs=["/opt/vc/bin", "/usr/sbin"])
    code, out, _ = module.run_command([path, *command[1:]]) if path else (1, "", "")
    return str(out) if not code else ""


def temperature() -> float | None:
    """The hottest sensor in degrees Celsius (kernel: thermal/sysfs-api)."""
    found = [value for zone in glob.glob("/sys/class/thermal/thermal_zone*/temp") if (value := number(read(zone))) is not None]
    return max(found) / 1000 if found else None


def disks(points: list[str]) -> dict[str, dict[str, Any]]:
    """By mount point; those that are not mount points are left out."""
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


def card() -> dict[str, Any]:
    """What the card (kernel: driver-api/mmc/mmc-dev-attrs) and its root file system (filesystems/ext4) say of their health."""
    mmc, device = "/sys/block/mmcblk0/device", os.stat("/").st_dev
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    life = [value for word in read(f"{mmc}/life_time").split() if (value := number(word, 16)) is not None]
    return {
        "life_time": max(life) if life else None,
        "pre_eol": number(read(f"{mmc}/pre_eol_info"), 16),
        "ext4_errors": number(read(f"/sys/fs/ext4/{name}/errors_count")),
    }


def units(module: AnsibleModule, names: list[str]) -> dict[str, dict[str, Any]]:
    """The state of systemd units, by name."""
    if not names:
        return {}
    # Id first: one block of lines for each unit, an empty line between them.
    text = said(module, "systemctl", "show", "--property=Id,ActiveState,NRestarts,ExecStart", *names)
    found = {}
    for block in text.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.strip().splitlines() if "=" in line)
        program = re.search(r"path=(\S+)", fields.get("ExecStart", ""))
        bundle = re.match(r"/opt/bramble/([^/]+)/", program[1]) if program else None
        name = fields.get("Id", "").removesuffix(".service")
        found[name] = {
            "active": fields.get("ActiveState", ""),
            "restarts": number(fields.get("NRestarts", "")) or 0,
            "bundle": bundle[1] if bundle else "",
        }
    return found


def chrony(module: AnsibleModule) -> dict[str, Any] | None:
    """What chrony thinks: chronyc(1), `tracking` as comma-separated values."""
    fields = said(module, "chronyc", "-c", "tracking").strip().split(",")
    try:
        return {"source": fields[1], "stratum": int(fields[2]), "offset": float(fields[4])}
    except (IndexError, ValueError):
        return None


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return what the node says of itself."""
    began = time.time()
    memory = dict(line.split(":", 1) for line in read("/proc/meminfo").splitlines() if ":" in line)
    kib = {name: number(memory.get(name, "").removesuffix("kB").strip()) or 0 for name in ("MemTotal", "MemAvailable")}
    release = dict(line.split("=", 1) for line in read("/etc/os-release").splitlines() if "=" in line)
    vcgencmd = re.search(r"throttled=0x([0-9a-fA-F]+)", said(module, "vcgencmd", "get_throttled"))
    lines = said(
        module, "journalctl", "--dmesg", "--boot", "--quiet", "--no-pager", "--output=cat", f"--grep={IO_ERRORS}", "--lines=20"
    )
    failed = said(module, "systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--no-pager")
    return dict(
        uptime=float(read("/proc/uptime").split()[0]),
        load=float(read("/proc/loadavg").split()[0]),
        cores=os.cpu_count() or 1,
        memory_available=kib["MemAvailable"] / kib["MemTotal"] if kib["MemTotal"] else None,
        temperature=temperature(),
        throttled=number(vcgencmd[1], 16) if vcgencmd else None,
        disks=disks(module.params["disks"]),
        card=card(),
        io_errors=lines.splitlines(),
        units=units(module, module.params["units"]),
        failed_units=[line.split()[0] for line in failed.splitlines() if line.split()],
        kernel=os.uname().release,
        os=release.get("PRETTY_NAME", "").strip('"'),
        chrony=chrony(module),
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
