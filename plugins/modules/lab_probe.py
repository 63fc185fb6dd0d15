#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: probe what this node can reach."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_probe
short_description: Probe what a node can reach
description:
  - Runs probes, and returns for each whether it got through. Installs nothing.
  - With O(hostile) it probes as a hostile root would. While the probes run, the node's whole nftables ruleset is flushed, IPv6 is
    enabled, and default routes over O(gateways) are set. All of this is rolled back, also when the module is killed
    (systemd-run(1)).
author: The Bramble team (!UNKNOWN)
options:
  rows: {description: "The probes, as plugins/module_utils/lab/probe.py takes them.", type: list, elements: dict, default: []}
  interface: {description: The wired port., type: str, required: true}
  hostile: {description: Probe as a hostile root., type: bool, default: false}
  gateways: {description: "The IPv4 and IPv6 gateways that a hostile root would use.", type: list, elements: str, default: []}
  capture:
    description:
      - V(start) starts to count the frames at O(uplink) that have an address in O(networks). V(stop) returns the count.
    type: str
    choices: [start, stop]
  uplink:
    description: The port to the outside. By default that of the default route, unless it is O(interface).
    type: str
    default: ""
  program: {description: "The text of the program that counts, roles/isolated_lab/files/capture.py.", type: str}
  networks: {description: The networks whose frames are counted., type: list, elements: str, default: []}
attributes:
  check_mode: {support: none, description: A probe that is not run proves nothing.}
  diff_mode: {support: none, description: Nothing to show.}
"""

EXAMPLES = r"""
- name: Probe a web server outside the lab
  bramble.cluster.lab_probe:
    interface: eth0
    rows: [{kind: tcp, host: 198.51.100.80, port: 80}]
"""

RETURN = r"""
rows:
  description: The rows, each with C(reached) and C(seen).
  returned: always
  type: list
  elements: dict
host_facts:
  description: What the probes of other nodes need to know of this node (plugins/module_utils/lab/host.py).
  returned: always
  type: dict
frames:
  description: "The numbers of frames: C(lab), of the networks, and C(all). Empty without an uplink."
  returned: when capture is stop
  type: dict
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bramble.cluster.plugins.module_utils.core.module import run_module
from ansible_collections.bramble.cluster.plugins.module_utils.lab import host, probe

CAPTURE_UNIT = "bramble-lab-capture"
FRAMES = Path("/run/bramble-lab-frames.json")
ROLLBACK_UNIT = "bramble-lab-hostile-rollback"
ROLLBACK_SECONDS = 120  # longer than the probes take


def start_capture(module: AnsibleModule, uplink: str) -> None:
    """Start to count frames in the background. Raises OSError."""
    FRAMES.unlink(missing_ok=True)
    unit = ["systemd-run", "--quiet", "--collect", f"--unit={CAPTURE_UNIT}"]
    command = ["python3", "-c", module.params["program"], uplink, str(FRAMES), *module.params["networks"]]
    module.run_command([*unit, *command], check_rc=True)
    end = time.monotonic() + 20
    while not FRAMES.exists():
        if time.monotonic() > end:
            raise OSError(f"The capture at {uplink} did not start. On the node: journalctl -u {CAPTURE_UNIT}")
        time.sleep(0.1)


def stop_capture(module: AnsibleModule) -> dict[str, int]:
    """Stop counting, and return the counts. Raises OSError, ValueError."""
    module.run_command(["systemctl", "stop", CAPTURE_UNIT], check_rc=True)
    counts: dict[str, int] = json.loads(FRAMES.read_text(encoding="ascii"))
    FRAMES.unlink()
    return counts


@contextlib.contextmanager
def opened_isolation(module: AnsibleModule) -> Iterator[None]:
    """Open all that a hostile root could open, and roll it back at the end, also if this process is killed. Raises OSError."""
    interface, run = module.params["interface"], module.run_command
    routes = [[f"-{6 if ':' in gateway else 4}", gateway] for gateway in module.params["gateways"]]
    ipv6_setting = f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
    before = Path(ipv6_setting).read_text(encoding="ascii").strip() if os.path.exists(ipv6_setting) else ""
    rules = run(["nft", "list", "ruleset"], check_rc=True)[1]
    with tempfile.NamedTemporaryFile("w", dir="/run", prefix="bramble-lab-", suffix=".nft", delete=False) as file:
        file.write(f"flush ruleset\n{rules}")
    undo = [f"nft --file {file.name}", f"rm {file.name}"]
    undo += [f"ip {family} route delete default via {gateway} dev {interface} metric 4000" for family, gateway in routes]
    undo += [f"echo {before} >{ipv6_setting}"] if before else []
    timer = ["systemd-run", "--quiet", "--collect", f"--unit={ROLLBACK_UNIT}", f"--on-active={ROLLBACK_SECONDS}"]
    run([*timer, "sh", "-c", "; ".join(undo)], check_rc=True)
    try:
        run(["nft", "flush", "ruleset"], check_rc=True)
        if before:
            Path(ipv6_setting).write_text("0", encoding="ascii")
        for family, gateway in routes:
            run(["ip", family, "route", "replace", "default", "via", gateway, "dev", interface, "metric", "4000"])
        yield
    finally:
        run(["sh", "-c", "; ".join(undo)])
        run(["systemctl", "stop", f"{ROLLBACK_UNIT}.timer"])


SPEC: dict[str, Any] = {
    "rows": {"type": "list", "elements": "dict", "default": []},
    "interface": {"type": "str", "required": True},
    "hostile": {"type": "bool", "default": False},
    "gateways": {"type": "list", "elements": "str", "default": []},
    "capture": {"type": "str", "choices": ["start", "stop"]},
    "uplink": {"type": "str", "default": ""},
    "program": {"type": "str"},
    "networks": {"type": "list", "elements": "str", "default": []},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Run the probes; return the result of the module. Raises OSError, ValueError."""
    wanted: dict[str, Any] = module.params
    host_facts = host.host_facts(wanted["interface"], wanted["uplink"])
    with opened_isolation(module) if wanted["hostile"] else contextlib.nullcontext():
        rows = probe.run_probes(wanted["rows"])
    frames: dict[str, int] = {}
    if wanted["capture"] == "start" and host_facts["uplink"]:
        start_capture(module, host_facts["uplink"])
    if wanted["capture"] == "stop" and FRAMES.exists():
        frames = stop_capture(module)
    return {"rows": rows, "host_facts": host_facts, "frames": frames}


def main() -> None:
    """Run the module."""
    required = [("capture", "start", ["program"])]
    run_module(SPEC, run, errors=(OSError, ValueError), supports_check_mode=False, required_if=required)


if __name__ == "__main__":
    main()
