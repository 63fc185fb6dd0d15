"""Find cmdline.txt and config.txt of a card, and replace them with a backup of the original."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.bramble.cluster.plugins.module_utils.boot.config_txt import parse_lines
from ansible_collections.bramble.cluster.plugins.module_utils.core.text_file import read_text, write_text

ROOT = Path("/")
_GENERATOR = "etc/kernel/postinst.d/z50-raspi-firmware"


@dataclass(frozen=True)
class BootFiles:
    """The boot files of a card: None for one that does not exist. The inputs are the files from which a generator writes them."""

    cmdline: Path | None
    config: Path | None
    cmdline_inputs: tuple[Path, ...] = ()
    config_inputs: tuple[Path, ...] = ()


def find_boot_files() -> BootFiles:
    """Return the boot files of this node's card: in /boot/firmware or, on images without that folder, in /boot."""
    folder = ROOT / "boot/firmware"
    if not folder.is_dir():
        folder = ROOT / "boot"
    config = folder / "config.txt"
    found = {"os_prefix": "", "cmdline": "cmdline.txt"}
    for line in parse_lines(read_text(config)):
        if line.key in found and not line.filters:
            found[line.key] = line.text.partition("=")[2].strip()
    names = (found["os_prefix"] + found["cmdline"], found["cmdline"])
    cmdline = next((path for path in (folder / name for name in names) if path.is_file()), None)
    # Debian's raspi-firmware writes both files again whenever a kernel, an initramfs or the firmware changes.
    with contextlib.suppress(OSError):
        if "raspi-extra-cmdline" in (ROOT / _GENERATOR).read_text(encoding="utf-8", errors="replace"):
            inputs = (ROOT / "etc/default/raspi-extra-cmdline",), (ROOT / "etc/default/raspi-firmware-custom",)
            return BootFiles(cmdline, config if config.is_file() else None, *inputs)
    return BootFiles(cmdline, config if config.is_file() else None)


def backup_path(path: Path) -> Path:
    """Return the path of the backup that is made before a file is edited for the first time."""
    return path.with_name(path.name + ".before-bramble")


def save_with_backup(path: Path, text: str) -> None:
    """Replace a file, after a backup of the original if there is none yet. Raises OSError."""
    if not backup_path(path).exists():
        write_text(backup_path(path), read_text(path))
    write_text(path, text)
