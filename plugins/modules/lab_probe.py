#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: what this node can reach, tried out."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_probe
short_description: Try out what a node can reach
description:
  - Runs probes, and says of each whether it got through. Nothing is installed and nothing stays.
  - With I(hostile), as a hostile root would. The node's whole nftables ruleset is flushed, IPv6 is switched on and default routes
    by I(gateways) are set, for the time of the probes. All is undone in any case, also when this is killed (systemd-run(1)).
author: The Bramble team (!UNKNOWN)
options:
  rows: {description: "The probes, as plugins/module_utils/lab_probe.py takes them.", type: list, elements: dict, default: []}
  interface: {description: The wired port., type: str, required: true}
  hostile: {description: Try it as a hostile root., type: bool, default: false}
  gateways: {description: "What a hostile root takes for gateways, of IPv4 and IPv6.", type: list, elements: str, default: []}
  capture:
    description:
      - C(start) counts the frames at I(uplink) that have an address in I(networks), until C(stop), which tells.
    type: str
    choices: [start, stop]
  uplink: {description: "The way out. Empty: the port of the default route, if it is not I(interface).", type: str, default: ""}
  program: {description: "What counts: roles/isolated_lab/files/capture.py.", type: str}
  networks: {description: What is counted., type: list, elements: str, default: []}
attributes:
  check_mode: {support: none, description: A probe that is not run tells nothing.}
  diff_mode: {support: none, description: Nothing to show.}
"""

EXAMPLES = r"""
- name: Does anything answer outside?
  lab_probe:
    interface: eth0
    rows: [{kind: tcp, host: 198.51.100.80, port: 80}]
"""

RETURN = r"""
rows:
  description: The rows, each with C(reached) and C(seen).
  returned: always
  type: list
  elements: dict
about:
  description: What others need to know to try their way through this node (lab_probe.about).
  returned: always
  type: dict
frames:
  description: "What was counted: C(lab), of the networks, and C(all). Empty where there is no uplink."
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
from ansible_collections.bramble.cluster.plugins.module_utils.lab import probe

UNIT = "bramble-lab-capture"
FRAMES = Path("/run/bramble-lab-frames.json")
UNDO = "bramble-lab-hostile-undo"
UNDO_AFTER = 120  # seconds; the probes take fewer


def start(module: AnsibleModule, uplink: str) -> None:
    """Start counting, beside this. Raises OSError."""
    FRAMES.unlink(missing_ok=True)
    unit = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}"]
    command = ["python3", "-c", module.params["program"], uplink, str(FRAMES), *module.params["networks"]]
    module.run_command([*unit, *command], check_rc=True)
    end = time.monotonic() + 20
    while not FRAMES.exists():
        if time.monotonic() > end:
            raise OSError(f"The capture at {uplink} did not start: journalctl -u {UNIT}")
        time.sleep(0.1)


def stop(module: AnsibleModule) -> dict[str, int]:
    """Stop it; what was counted. Raises OSError, ValueError."""
    module.run_command(["systemctl", "stop", UNIT], check_rc=True)
    counts: dict[str, int] = json.loads(FRAMES.read_text(encoding="ascii"))
    FRAMES.unlink()
    return counts


@contextlib.contextmanager
def hostile_root(module: AnsibleModule) -> Iterator[None]:
    """What a hostile root does first; undone at the end, and by itself if this is killed. Raises OSError."""
    interface, run = module.params["interface"], module.run_command
    routes = [[f"-{6 if ':' in gateway else 4}", gateway] for gateway in module.params["gateways"]]
    switch = f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
    before = Path(switch).read_text(encoding="ascii").strip() if os.path.exists(switch) else ""
    rules = run(["nft", "list", "ruleset"], check_rc=True)[1]
    with tempfile.NamedTemporaryFile("w", dir="/run", prefix="bramble-lab-", suffix=".nft", delete=False) as file:
        file.write(f"flush ruleset\n{rules}")
    undo = [f"nft --file {file.name}", f"rm {file.name}"]
    undo += [f"ip {family} route delete default via {gateway} dev {interface} metric 4000" for family, gateway in routes]
    undo += [f"echo {before} >{switch}"] if before else []
    timer = ["systemd-run", "--quiet", "--collect", f"--unit={UNDO}", f"--on-active={UNDO_AFTER}"]
    run([*timer, "sh", "-c", "; ".join(undo)], check_rc=True)
    try:
        run(["nft", "flush", "ruleset"], check_rc=True)
        if before:
            Path(switch).write_text("0", encoding="ascii")
        for family, gateway in routes:
            run(["ip", family, "route", "replace", "default", "via", gateway, "dev", interface, "metric", "4000"])
        yield
    finally:
        run(["sh", "-c", "; ".join(undo)])
        run(["systemctl", "stop", f"{UNDO}.timer"])


def main() -> None:
    """Run, and turn what is wrong into a message."""
    module = AnsibleModule(
        argument_spec={
            "rows": {"type": "list", "elements": "dict", "default": []},
            "interface": {"type": "str", "required": True},
            "hostile": {"type": "bool", "default": False},
            "gateways": {"type": "list", "elements": "str", "default": []},
            "capture": {"type": "str", "choices": ["start", "stop"]},
            "uplink": {"type": "str", "default": ""},
            "program": {"type": "str"},
            "networks": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("capture", "start", ["program"])],
    )
    wanted: dict[str, Any] = module.params
    try:
        about = probe.about(wanted["interface"], wanted["uplink"])
        with hostile_root(module) if wanted["hostile"] else contextlib.nullcontext():
            rows = probe.run(wanted["rows"])
        frames: dict[str, int] = {}
        if wanted["capture"] == "start" and about["uplink"]:
            start(module, about["uplink"])
        if wanted["capture"] == "stop" and FRAMES.exists():
            frames = stop(module)
        module.exit_json(changed=False, rows=rows, about=about, frames=frames)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
