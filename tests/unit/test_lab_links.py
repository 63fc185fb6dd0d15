"""Network interfaces and radios are disabled, and enabled again as they were."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.modules import lab_links

from .conftest import Run


@pytest.fixture
def links(tmp_path: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Runs the module on a node with four ports, of which three are up, and two radios. `ip` is a script that sets the flags."""
    for name, flags in {"lo": "0x9", "eth0": "0x1003", "eth1": "0x1003", "wg0": "0x1002", "usb0": "0x1003"}.items():
        port = tmp_path / "sys/net" / name
        port.mkdir(parents=True)
        (port / "flags").write_text(f"{flags}\n")
        (port / "address").write_text("02:00:00:00:00:01\n")
    (tmp_path / "drivers/cdc_ether").mkdir(parents=True)
    (tmp_path / "sys/net/usb0/device").mkdir()
    (tmp_path / "sys/net/usb0/device/driver").symlink_to(tmp_path / "drivers/cdc_ether")
    for number, (kind, soft) in enumerate([("wlan", "0"), ("bluetooth", "1")]):
        radio = tmp_path / f"sys/rfkill/rfkill{number}"
        radio.mkdir(parents=True)
        for name, text in {"type": kind, "name": f"phy{number}", "soft": soft}.items():
            (radio / name).write_text(f"{text}\n")
    (tmp_path / "bin").mkdir()
    ip = tmp_path / "bin/ip"
    ip.write_text(f"#!/bin/sh\n[ $5 = up ] && flags=0x1003 || flags=0x1002\necho $flags >{tmp_path}/sys/net/$4/flags\n")
    ip.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(lab_links, "SYS", tmp_path / "sys")
    monkeypatch.setattr(lab_links, "RECORDS_FOLDER", tmp_path / "records")

    def run(kind: str, check: bool = False, **options: object) -> dict:
        return run_module("lab_links", {"kind": kind, **options}, check=check)

    return run


def up(folder: Path) -> list[str]:
    return sorted(port.name for port in (folder / "sys/net").iterdir() if int((port / "flags").read_text(), 16) & 1)


def test_other_ports_are_set_down_and_up_again(tmp_path: Path, links: Callable[..., dict]) -> None:
    found = ["eth1 (02:00:00:00:00:01, software)", "usb0 (02:00:00:00:00:01, cdc_ether)"]
    dry = links("links", check=True, keep=["eth0"])
    assert dry["changed"] and dry["found"] == found and up(tmp_path) == ["eth0", "eth1", "lo", "usb0"]
    assert links("links", keep=["eth0"])["found"] == found
    assert up(tmp_path) == ["eth0", "lo"]
    assert links("links", keep=["eth0"]) == {**dry, "changed": False, "found": []}
    # wg0 was down at the start, so it stays down.
    back = links("links", state="absent")
    assert back["changed"] and back["found"] == ["eth1", "usb0"] and up(tmp_path) == ["eth0", "eth1", "lo", "usb0"]
    assert not links("links", state="absent")["changed"] and not (tmp_path / "records").exists()


def test_new_port_is_recorded_and_removed_port_is_ignored(tmp_path: Path, links: Callable[..., dict]) -> None:
    links("links", keep=["eth0"])
    (tmp_path / "sys/net/wg0/flags").write_text("0x1003\n")
    assert links("links", keep=["eth0"])["found"] == ["wg0 (02:00:00:00:00:01, software)"]
    for entry in (tmp_path / "sys/net/eth1").iterdir():
        entry.unlink()
    (tmp_path / "sys/net/eth1").rmdir()
    links("links", state="absent")
    assert up(tmp_path) == ["eth0", "lo", "usb0", "wg0"]


def test_radio_is_blocked_and_blocked_radio_stays_blocked(tmp_path: Path, links: Callable[..., dict]) -> None:
    def soft() -> list[str]:
        return [path.read_text().strip() for path in sorted((tmp_path / "sys/rfkill").glob("*/soft"))]

    links("links", keep=["eth0"])
    assert links("radios")["found"] == ["wlan phy0"] and soft() == ["1", "1"]
    assert not links("radios")["changed"]
    links("radios", state="absent")
    assert soft() == ["0", "1"] and (tmp_path / "records/links.json").exists()
