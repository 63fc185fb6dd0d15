"""Kernel parameters are set, and restored to their previous values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.bramble.cluster.plugins.modules import sysctl_file

from .conftest import Run

WANTED = {"net.ipv4.ip_forward": 0, "net.ipv4.conf.eth0/5.arp_ignore": 1, "net.ipv6.conf.all.forwarding": 0}


@pytest.fixture
def sysctl(tmp_path: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Runs the module on parameters in the test's folder; forwarding is enabled."""
    for name, value in {"net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0.5/arp_ignore": "0"}.items():
        (tmp_path / "proc" / name).parent.mkdir(parents=True)
        (tmp_path / "proc" / name).write_text(f"{value}\n")
    monkeypatch.setattr(sysctl_file, "PROC", tmp_path / "proc")

    def run(state: str = "present", check: bool = False, **more: int) -> dict:
        options = {"path": f"{tmp_path}/90-lab.conf", "settings": {**WANTED, **more}, "state": state}
        return run_module("sysctl_file", options, check=check, diff=True)

    return run


def values(folder: Path) -> list[str]:
    names = ("net/ipv4/ip_forward", "net/ipv4/conf/eth0.5/arp_ignore")
    return [(folder / "proc" / name).read_text().strip() for name in names]


def test_values_are_set_and_restored(tmp_path: Path, sysctl: Callable[..., dict]) -> None:
    dry = sysctl(check=True)
    assert dry["changed"] and values(tmp_path) == ["1", "0"] and not (tmp_path / "90-lab.conf").exists()
    done = sysctl()
    assert done == dry and values(tmp_path) == ["0", "1"]
    assert done["settings"] == ["net.ipv4.ip_forward", "net.ipv4.conf.eth0/5.arp_ignore"]
    lines = (tmp_path / "90-lab.conf").read_text().splitlines()
    assert "net.ipv4.ip_forward = 0" in lines and "# net.ipv4.ip_forward was 1" in lines and len(lines) == 4
    assert not sysctl()["changed"]
    assert sysctl("absent", check=True)["changed"] and values(tmp_path) == ["0", "1"]
    assert sysctl("absent")["changed"] and values(tmp_path) == ["1", "0"] and not (tmp_path / "90-lab.conf").exists()
    assert not sysctl("absent")["changed"]


def test_manual_change_is_corrected_and_the_first_value_is_restored(tmp_path: Path, sysctl: Callable[..., dict]) -> None:
    sysctl()
    (tmp_path / "proc/net/ipv4/ip_forward").write_text("2\n")
    assert sysctl()["settings"] == ["net.ipv4.ip_forward"] and values(tmp_path) == ["0", "1"]
    sysctl("absent")
    assert values(tmp_path) == ["1", "0"]


def test_unknown_parameter_is_named_and_one_of_ipv6_may_be_missing(tmp_path: Path, sysctl: Callable[..., dict]) -> None:
    wrong = sysctl(**{"net.ipv4.conf.eth9.arp_ignore": 1})
    assert wrong["failed"] and "no parameter net.ipv4.conf.eth9.arp_ignore. Nothing was changed" in wrong["msg"]
    assert values(tmp_path) == ["1", "0"]
    (tmp_path / "proc/net/ipv6").mkdir()
    assert "no parameter net.ipv6.conf.all.forwarding" in sysctl()["msg"]
