"""What is in each slot of a batch, its verdict, and the table of it for people. Every size is in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.text import text_table

USB2_SPEED = 480  # Mbit/s
OK = "OK"
ABSENT = "ABSENT"
IN_USE = "IN USE"
NOT_A_CARD = "NOT A CARD"
NOT_REMOVABLE = "NOT REMOVABLE"
READ_ONLY = "READ ONLY"
SAME_TWICE = "SAME CARD TWICE"
SYSTEM_DISK = "SYSTEM DISK"
TOO_SMALL = "TOO SMALL"


@dataclass
class Facts:
    """One slot of a batch: what is in it and whether it may be overwritten."""

    node: str
    slot: str
    device: str = ""
    kind: str = ""
    bus: str = ""
    model: str = ""
    # Of the reader; empty where there is none, as in a built-in slot.
    serial: str = ""
    # The USB controller the reader hangs on, as usb1, and what it carries for all its readers, in Mbit/s.
    controller: str = ""
    controller_speed: int = 0
    bytes: int = 0
    needed_bytes: int = 0
    verdict: str = ABSENT
    reason: str = ""
    # Says whether it is still the same card when it is opened to be written.
    identity: tuple[str | int, ...] = ()
    # A virtual card that does not exist yet.
    blank: bool = False

    def report(self) -> dict[str, object]:
        """Return the facts as a module returns them, with GB and GiB for people."""
        report = asdict(self)
        del report["identity"], report["blank"]
        return {**report, "gb": round(self.bytes / 1e9, 2), "gib": round(self.bytes / 2**30, 2)}


def warnings(batch: Sequence[Facts]) -> list[str]:
    """Return a warning for each USB 2 controller that several readers share."""
    by_controller: dict[str, list[str]] = {}
    for facts in batch:
        if 0 < facts.controller_speed <= USB2_SPEED:
            by_controller.setdefault(facts.controller, []).append(facts.node)
    return [
        f"The readers of {', '.join(nodes)} share one USB 2 controller ({name}), which carries 25 to 40 MB/s for all of them "
        "together: spread them over more, or use USB 3."
        for name, nodes in by_controller.items()
        if len(nodes) > 1
    ]


def table(batch: Sequence[Facts]) -> str:
    """Return the batch as a table for people, one line per slot."""
    rows = [("node", "slot", "bus", "bytes", "GB", "GiB", "needed", "verdict")]
    for facts in batch:
        size = (f"{facts.bytes:,}", f"{facts.bytes / 1e9:.2f}", f"{facts.bytes / 2**30:.2f}") if facts.bytes else ("-",) * 3
        glue = " " if facts.verdict == TOO_SMALL else ": "
        verdict = glue.join(part for part in (facts.verdict, facts.reason) if part)
        rows.append((facts.node, facts.slot, facts.bus or "-", *size, f"{facts.needed_bytes:,}", verdict))
    return text_table(rows, range(3, 7))
