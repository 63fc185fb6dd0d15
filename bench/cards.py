"""Compare writing and reading back cards with other tools, side by side in one run.

    make bench-cards      writes reports/bench/cards.json

The image has 512 MiB, of which three quarters are used, as in publishers' images. Every card is a loop device in memory, at full
speed or limited to 20 MB/s for reading and for writing. These are compared:

  bramble    the module card_write, from the start to the end of its process: SHA-256 of the image, overlays of the nodes,
             preflight, writing, reading back. `card` is the part from the first read of a card to the last result.
  dd         dd of the whole image (not of the whole card), then cmp of all of it. In series, eight cards take eight times as long
             as one.
  capture    the module card_capture on a card that was written before, compared with the time of reading its used bytes
  bmaptool   bmaptool copy of the mapped blocks, which checks their SHA-256, then cmp of the mapped blocks. It adds no files to
             a card, so the run of bramble that it is compared with adds none either.

Only ratios are compared, as seconds differ between machines. The time of bramble depends on the used bytes and that of dd on all
bytes, so eight_vs_serial_dd grows with the quotient of both (4/3 here) and not with the size: for the image of a 32 GB card with
3 GB in use, the calculated ratio is over 70. In one_vs_limit, the used bytes are those that the file systems use; in
one_vs_limit_nonzero, only those of them that are not zero, which bmaptool copies. Bramble also reads journals and empty inode
tables, as they must be zero. The other ratios hardly depend on the size, as the fixed part (reading the image once) grows with
it, too. Every figure is the best of its rounds. The benchmark needs root, 5 GiB of free memory, an idle machine with two cores,
and about six minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.support import ROOT, tiny_image
from tests.support.cards import Rig

MIB = 2**20
RATE = 20e6
CARDS = 8
AT_MOST = {
    "eight_vs_one_throttled": 1.10,
    "one_vs_limit": 1.05,
    "vs_bmaptool_readback": 1.0,
    "capture_vs_read": 1.3,
    "peak_memory_mb": 300,
}
AT_LEAST = {"eight_vs_serial_dd": 8}


@dataclass
class Image:
    """The image that all tools write; `used` is the number of its bytes in blocks of 4 KiB that are not zero."""

    path: Path
    size: int = field(init=False)
    used: int = field(init=False)
    sha256: str = field(init=False)
    mapped: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        """Create the block map of the image, which bmaptool uses, too."""
        subprocess.run(["fallocate", "--dig-holes", self.path], check=True)
        subprocess.run(["bmaptool", "--quiet", "create", "--output", self.bmap, self.path], check=True)
        tree = ElementTree.parse(self.bmap).getroot()
        block = int(tree.findtext("BlockSize", "0"))
        ranges = [[int(number) for number in (node.text or "").split("-")] for node in tree.iter("Range")]
        self.mapped = [(first[0] * block, (first[-1] + 1 - first[0]) * block) for first in ranges]
        self.size, self.used = self.path.stat().st_size, sum(length for _, length in self.mapped)
        with self.path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def bmap(self) -> Path:
        """The path of the block map."""
        return self.path.with_suffix(".bmap")


@dataclass(frozen=True)
class Measurement:
    """A run: seconds in total and since the first read of a card, MB of memory, and used bytes of a card."""

    seconds: float
    card: float
    memory: float
    used: int


def card_write(image: Image, devices: Sequence[Path], folder: Path, identities: bool = True) -> Measurement:
    """Write and verify cards with the module card_write, in a process of its own."""
    events = folder / "events.jsonl"
    events.unlink(missing_ok=True)
    cards: list[dict[str, object]] = [
        {"node": f"pi-{number:02}", "slot": str(device)} for number, device in enumerate(devices, 1)
    ]
    for card in cards if identities else ():
        key = {"path": "/etc/ssh/ssh_host_ed25519_key", "content": f"{card['node']}" * 40, "mode": "0600"}
        boot = {"user-data": f"#cloud-config\nhostname: {card['node']}\n", "cmdline.txt": "console=tty1 rootwait resize\n"}
        card |= {"boot_files": boot, "root_files": [key]}
    options = {
        "image": str(image.path),
        "image_sha256": image.sha256,
        "cards": cards,
        "confirm": True,
        "map_file": str(image.path.with_suffix(".map")),
        "progress_file": str(events),
    }
    outcome, seconds, memory_mb = run_module("card_write", options, folder)
    if {result["result"] for result in outcome["results"]} != {"written"}:
        raise SystemExit(f"bench: the cards were not written: {outcome}")
    times = [event["time"] for line in events.read_text().splitlines() if (event := json.loads(line))["phase"] != "prepare"]
    return Measurement(seconds, times[-1] - times[0], memory_mb, max(result["bytes_verified"] for result in outcome["results"]))


def run_module(name: str, options: dict[str, Any], folder: Path) -> tuple[dict[str, Any], float, float]:
    """Run a module, and return its result, the seconds that it took, and its peak memory in MB."""
    arguments, result_file = folder / "arguments.json", folder / "result.json"
    arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
    start = time.monotonic()
    with result_file.open("wb") as output:
        module = f"ansible_collections.bramble.cluster.plugins.modules.{name}"
        process = subprocess.Popen([sys.executable, "-m", module, arguments], cwd=ROOT, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    outcome = json.loads(result_file.read_text())
    if outcome.get("failed"):
        raise SystemExit(f"bench: {name} failed: {outcome}")
    return outcome, seconds, usage.ru_maxrss * 1024 / 1e6


def capture_ratio(device: Path, folder: Path) -> float:
    """Capture a card, and return the quotient of the time and that of reading its used bytes at 20 MB/s."""
    outcome, seconds, _ = run_module("card_capture", {"slot": str(device), "folder": str(folder), "name": "captured"}, folder)
    return seconds / (int(outcome["used_bytes"]) / RATE)


def measure_seconds(copy: Callable[[Image, Path], None], image: Image, device: Path) -> float:
    """Copy an image to a card, and return the seconds that this takes."""
    start = time.monotonic()
    copy(image, device)
    return time.monotonic() - start


def drop_cache(device: Path) -> None:
    """Drop the cached data of a device from memory."""
    subprocess.run(["blockdev", "--flushbufs", device], check=True)


def dd_and_cmp(image: Image, device: Path) -> None:
    """Copy the whole image with dd, and compare it with cmp."""
    subprocess.run(["dd", f"if={image.path}", f"of={device}", "bs=4M", "oflag=direct", "conv=fsync", "status=none"], check=True)
    drop_cache(device)
    subprocess.run(["cmp", f"--bytes={image.size}", image.path, device], check=True)


def bmaptool_and_cmp(image: Image, device: Path) -> None:
    """Copy the mapped blocks of the image with bmaptool, and compare them with cmp."""
    subprocess.run(["bmaptool", "--quiet", "copy", "--bmap", image.bmap, image.path, device], check=True)
    drop_cache(device)
    for start, length in image.mapped:
        subprocess.run(["cmp", f"--ignore-initial={start}", f"--bytes={length}", image.path, device], check=True)


def measure_rig_rate(devices: Sequence[Path], amount: int) -> float:
    """Return the speed of dd to the slowest of some cards, all at the same time, in MB/s: the real speed of the rig."""
    command = ["dd", "if=/dev/zero", "bs=1M", f"count={amount // MIB}", "oflag=direct", "status=none"]
    start = time.monotonic()
    running = [subprocess.Popen([*command, f"of={device}"]) for device in devices]
    if any([process.wait() for process in running]):
        raise SystemExit("bench: dd cannot write to the cards of the rig. Its own message is above. Run the same command again.")
    return amount // MIB * MIB / (time.monotonic() - start) / 1e6


@contextlib.contextmanager
def memory_folder(size: int) -> Iterator[Path]:
    """Yield a folder in memory for `size` bytes. /dev/shm cannot be used, as the guard refuses cards in /dev."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    if free < size + 2**29:
        raise SystemExit(
            f"bench: {(size + 2**29) / 2**30:.1f} GiB of memory are needed, and {free / 2**30:.1f} GiB are free. "
            "Close other programs, or use a smaller image: --used MIB"
        )
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


@contextlib.contextmanager
def blank_cards(number: int, image: Image, rate: float = 0) -> Iterator[tuple[list[Path], Path]]:
    """Yield the devices of new, blank cards, and a folder. With a `rate` (bytes per second), the cards are limited to it."""
    with tempfile.TemporaryDirectory(dir=image.path.parent) as name, Rig(Path(name)) as rig:
        size = image.size + 64 * MIB
        names = [f"card{at}" for at in range(number)]
        yield [rig.throttled_device(name, size, rate) if rate else rig.card(name, size).device() for name in names], Path(name)


def main() -> int:
    """Run the benchmark, print the report, write it to reports/bench/cards.json, and return the exit code."""
    options = argparse.ArgumentParser()
    options.add_argument("--used", type=int, default=384, help="used MiB of the image, which is a third larger")
    options.add_argument("--rounds", type=int, default=2, help="rounds of each measurement")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))  # SystemExit runs the clean-up
    need = (CARDS + 3) * chosen.used * MIB
    with memory_folder(need) as folder:
        path = folder / "image.img"
        tiny_image.build(path, root_size=(4 * chosen.used // 3 - 6) * MIB, blob=chosen.used * MIB)
        report = measure(Image(path), chosen.rounds)
    reports = ROOT / "reports/bench"
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "cards.json").write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    return 0


def measure(image: Image, rounds: int) -> dict[str, Any]:
    """Run all measurements one after another, and return the report."""
    with blank_cards(CARDS, image, RATE) as (devices, _):
        rig = measure_rig_rate(devices, image.used // 4)
    one, eight, plain, bmaptool = list[Measurement](), list[Measurement](), list[Measurement](), list[float]()
    for _ in range(rounds):
        for number, runs in ((1, one), (CARDS, eight)):
            with blank_cards(number, image, RATE) as (devices, folder):
                runs.append(card_write(image, devices, folder))
    with blank_cards(1, image, RATE) as ((device,), folder):
        card_write(image, [device], folder)
        drop_cache(device)
        captured = capture_ratio(device, folder)
    with blank_cards(1, image, RATE) as ((device,), _):
        slow_dd = measure_seconds(dd_and_cmp, image, device)
    with blank_cards(1, image, RATE) as ((device,), _):
        slow_bmaptool = measure_seconds(bmaptool_and_cmp, image, device)
    for _ in range(3 * rounds):  # these runs are short
        with blank_cards(1, image) as ((device,), folder):
            plain.append(card_write(image, [device], folder, identities=False))
        with blank_cards(1, image) as ((device,), folder):
            bmaptool.append(measure_seconds(bmaptool_and_cmp, image, device))
    with blank_cards(1, image) as ((device,), _):
        quick_dd = measure_seconds(dd_and_cmp, image, device)
    with blank_cards(CARDS, image) as (devices, folder):
        quick_eight = card_write(image, devices, folder)

    limit, nonzero = (2 * used / RATE for used in (one[0].used, image.used))
    best_one, best_eight, best_plain = (min(runs, key=lambda run: run.seconds) for runs in (one, eight, plain))
    ratios = {
        "eight_vs_one_throttled": best_eight.seconds / best_one.seconds,
        "one_vs_limit": min(run.card for run in one) / limit,
        "one_vs_limit_nonzero": min(run.card for run in one) / nonzero,
        "vs_bmaptool_readback": best_plain.seconds / min(bmaptool),
        "eight_vs_serial_dd": CARDS * slow_dd / best_eight.seconds,
        "capture_vs_read": captured,
        "peak_memory_mb": max(run.memory for run in [*eight, quick_eight]),
    }
    ratios = {name: round(value, 3) for name, value in ratios.items()}
    missed = {name: most for name, most in AT_MOST.items() if ratios[name] > most}
    missed |= {name: least for name, least in AT_LEAST.items() if ratios[name] < least}
    seconds = {
        "limit of one card at 20 MB/s": limit,
        "bramble, one card at 20 MB/s": best_one.seconds,
        "  of that, card": best_one.card,
        "bramble, eight cards at 20 MB/s": best_eight.seconds,
        "  of that, cards": best_eight.card,
        "bmaptool + cmp, one card at 20 MB/s": slow_bmaptool,
        "dd + cmp, one card at 20 MB/s": slow_dd,
        "dd + cmp, eight in series": CARDS * slow_dd,
        "bramble, one card": best_plain.seconds,
        "  of that, card itself": best_plain.card,
        "bramble, eight cards": quick_eight.seconds,
        "bmaptool + cmp, one card": min(bmaptool),
        "dd + cmp, one card": quick_dd,
    }
    return {
        "ratios": ratios,
        "targets": {**AT_MOST, **AT_LEAST},
        "missed": missed,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "sizes": {
            "image_mb": image.size / 1e6,
            "used_mb": one[0].used / 1e6,
            "nonzero_mb": image.used / 1e6,
            "rig_mb_per_second": round(rig, 2),
        },
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    for name, value in report["sizes"].items():
        print(f"{name:<38}{value:10.2f}")
    if report["sizes"]["rig_mb_per_second"] < 0.97 * RATE / 1e6:
        print("The rig does not reach 20 MB/s, as this machine is too busy. The ratios are not reliable.")
    for name, value in report["seconds"].items():
        print(f"{name:<38}{value:10.2f} s")
    for name, ratio in report["ratios"].items():
        bounds = [f"  target at {word} {of[name]}" for word, of in (("most", AT_MOST), ("least", AT_LEAST)) if name in of]
        print(f"{name:<38}{ratio:10.2f}{''.join(bounds)}{', missed' if name in report['missed'] else ''}")


if __name__ == "__main__":
    sys.exit(main())
