"""The facts of each slot of a batch, with its verdict, and their table for the user. All sizes are in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ansible_collections.bramble.cluster.plugins.module_utils.core.text import printable, text_table

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
    """One slot of a batch: what is in it, and whether it may be overwritten."""

    node: str
    slot: str
    device: str = ""
    kind: str = ""
    bus: str = ""
    model: str = ""
    # The serial number of the reader; empty for a built-in slot.
    serial: str = ""
    # The USB controller of the reader, such as usb1, and its speed for all its readers together, in Mbit/s.
    controller: str = ""
    controller_speed: int = 0
    bytes: int = 0
    needed_bytes: int = 0
    verdict: str = ABSENT
    reason: str = ""
    # Identifies the card, to check that it is still the same one when it is opened for writing.
    identity: tuple[str | int, ...] = ()
    # When the file of a virtual card was created, in nanoseconds; 0 if unknown. A new file can have the inode of a deleted one.
    birth: int = 0
    # Whether this is a virtual card that does not exist yet.
    is_new: bool = False

    def report(self) -> dict[str, object]:
        """Return the facts as a module returns them, with the size in GB and GiB added."""
        report = asdict(self)
        del report["identity"], report["birth"], report["is_new"]
        return {**report, "gb": round(self.bytes / 1e9, 2), "gib": round(self.bytes / 2**30, 2)}


def controller_warnings(batch: Sequence[Facts]) -> list[str]:
    """Return a warning for each USB 2 controller that several readers share."""
    by_controller: dict[str, list[str]] = {}
    for facts in batch:
        if 0 < facts.controller_speed <= USB2_SPEED:
            by_controller.setdefault(facts.controller, []).append(facts.node)
    return [
        f"The readers of {', '.join(nodes)} share one USB 2 controller ({name}), which carries 25 to 40 MB/s for all of them "
        "together. Spread them over more controllers, or use USB 3."
        for name, nodes in by_controller.items()
        if len(nodes) > 1
    ]


def table(batch: Sequence[Facts]) -> str:
    """Return the batch as a table for the user, one line per slot."""
    rows = [("node", "slot", "bus", "bytes", "GB", "GiB", "needed", "verdict")]
    for facts in batch:
        size = (f"{facts.bytes:,}", f"{facts.bytes / 1e9:.2f}", f"{facts.bytes / 2**30:.2f}") if facts.bytes else ("-",) * 3
        separator = " " if facts.verdict == TOO_SMALL else ": "
        verdict = printable(separator.join(part for part in (facts.verdict, facts.reason) if part))
        rows.append((facts.node, printable(facts.slot), facts.bus or "-", *size, f"{facts.needed_bytes:,}", verdict))
    return text_table(rows, range(3, 7))
