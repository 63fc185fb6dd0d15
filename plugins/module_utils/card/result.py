"""The result of one card of a batch: bytes, seconds and speeds, for the ledger and the module."""

from __future__ import annotations

from dataclasses import asdict, dataclass

WRITTEN = "written"
UNCHANGED = "unchanged"
FAILED = "failed"
SKIPPED = "skipped"


@dataclass
class Result:
    """The result of one card."""

    node: str
    slot: str
    result: str = SKIPPED
    bytes_written: int = 0
    bytes_verified: int = 0
    seconds_write: float = 0.0
    seconds_verify: float = 0.0
    fingerprint: str = ""
    error: str = ""

    @property
    def write_mb_s(self) -> float:
        """The speed of writing in MB/s (10^6 bytes per second); 0 when nothing was written."""
        return round(self.bytes_written / 1e6 / self.seconds_write, 1) if self.seconds_write else 0.0

    @property
    def verify_mb_s(self) -> float:
        """The speed of reading back in MB/s (10^6 bytes per second); 0 when nothing was read back."""
        return round(self.bytes_verified / 1e6 / self.seconds_verify, 1) if self.seconds_verify else 0.0

    def report(self) -> dict[str, object]:
        """Return the result as a module returns it."""
        rounded = {name: round(getattr(self, name), 2) for name in ("seconds_write", "seconds_verify")}
        return {**asdict(self), **rounded}
