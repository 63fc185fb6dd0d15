"""A card for a Raspberry Pi, written on a PC, boots an emulated Raspberry Pi and a stand-in."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import ROOT

from .conftest import NODE, playbook, ssh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.geteuid() != 0, reason="making cards needs root"),
]
ADDRESS = "10.77.82.101"


def test_a_second_run_finds_the_image(image: list[int]) -> None:
    assert image[1] == 0


def firmware(card: Path, folder: Path) -> list[str]:
    """Return qemu's options for a Raspberry Pi 3 with the kernel, initramfs and command line that config.txt names.

    :param folder: the files of the boot partition are copied to it
    """
    table = subprocess.run(["partx", "-gn", "1", "-o", "START", card], capture_output=True, check=True).stdout
    subprocess.run(["mcopy", "-s", "-n", "-i", f"{card}@@{int(table) * 512}", "::/", folder], check=True)
    lines = [line.replace("=", " ").split() for line in (folder / "config.txt").read_text().splitlines()]
    config = {line[0]: line[1] for line in lines if len(line) == 2}
    assert config["arm_64bit"] == "1"
    loaded = {"-kernel": config["kernel"], "-initrd": config["initramfs"], "-dtb": "bcm2837-rpi-3-b.dtb"}
    options = [word for option, name in loaded.items() for word in (option, str(folder / name))]
    return [*options, "-append", (folder / "cmdline.txt").read_text().strip()]


@contextmanager
def raspberry_pi(qemu: Path, card: Path, folder: Path) -> Iterator[tuple[int, Callable[[], str]]]:
    """Power on an emulated Raspberry Pi 3; yield the local port that leads to its SSH, and a function that reads its console."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    boot, console = folder / "boot", folder / "console"
    boot.mkdir()
    # The unpacked qemu runs with its own loader, which finds its own libraries.
    loader = next(qemu.glob("usr/lib/*-linux-gnu/ld-linux-*.so.*"))
    command: list[str | Path] = [
        *(loader, "--library-path", loader.parent, qemu / "usr/bin/qemu-system-aarch64", "-L", qemu / "usr/share/qemu"),
        *("-machine", "raspi3b", *firmware(card, boot), "-drive", f"file={card},if=sd,format=raw"),
        # The emulated clock counts instructions, so that on a busy machine no timeout of the emulated system expires too early.
        *("-icount", "shift=1"),
        # The network of the cluster, in which only the control machine is reachable.
        *("-netdev", f"user,id=switch,net=10.77.82.0/24,host=10.77.82.1,restrict=on,hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:22"),
        *("-device", "usb-net,netdev=switch,mac=dc:a6:32:00:00:01"),
        # The second serial port is the console.
        *("-display", "none", "-monitor", "none", "-serial", "null", "-serial", f"file:{console}"),
    ]
    with subprocess.Popen(command) as process:
        try:
            yield port, lambda: console.read_text(errors="replace")[-4000:] if process.poll() is None else "qemu has exited"
        finally:
            process.kill()


def test_the_card_boots_an_emulated_raspberry_pi(card: Path, unpack: Callable[[str], Path], tmp_path: Path) -> None:
    with raspberry_pi(unpack("qemu-system-arm"), card, tmp_path) as (port, console):
        options = ("-o", "HostName=127.0.0.1", "-o", f"Port={port}", "-o", f"HostKeyAlias={ADDRESS}")
        for _ in range(120):
            done = ssh("cloud-init status --wait >/dev/null; systemctl is-system-running --wait", *options)
            if done.returncode != 255:
                break
            time.sleep(10)
        assert done.returncode != 255, f"{done.stderr}\n{console()}"

        def output(command: str) -> str:
            done = ssh(command, *options)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            return done.stdout.strip().strip("\0")

        assert done.stdout.strip() == "running", output("systemctl --failed --no-legend")
        assert output("hostname") == NODE
        assert output("cat /proc/device-tree/model") == "Raspberry Pi 3 Model B"
        assert output("uname -m; dpkg --print-architecture").split() == ["aarch64", "arm64"]
        assert f"{ADDRESS}/24" in output("ip -4 -brief address show eth0").split()
        assert output("findmnt -no FSTYPE /boot/firmware") == "vfat"
        # The root file system has grown to the card: its 4 GiB less the boot partition and what ext4 needs for itself.
        assert int(output("findmnt -bno SIZE /")) > card.stat().st_size * 0.85
        assert output("sudo sshd -T | grep '^hostkey '").split() == ["hostkey", "/etc/bramble/ssh/ssh_host_ed25519_key"]
        # A new initramfs is copied to the boot partition, and nothing else changes there.
        before = output("cat /boot/firmware/cmdline.txt /boot/firmware/config.txt")
        assert output("sudo sh -c 'exec /etc/initramfs/post-update.d/z50-raspi-firmware' 2>&1") == ""
        assert output("cat /boot/firmware/cmdline.txt /boot/firmware/config.txt") == before


def processes_in(folder: Path) -> dict[str, str]:
    """Return the processes that run a program in a folder, or have a mount in it, as process ids with their programs."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # The process has just ended.
            program = os.readlink(process / "exe")
            if program.startswith(f"{folder}/") or f" {folder}/" in (process / "mountinfo").read_text():
                found[process.name] = program
    return found


def wait_until(is_met: Callable[[], object], seconds: int) -> None:
    """Wait until a condition is met."""
    for _ in range(seconds * 5):
        if is_met():
            return
        time.sleep(0.2)
    raise AssertionError(f"The condition was not met within {seconds} s.")


@pytest.fixture
def binfmt(tmp_path: Path) -> Iterator[Path]:
    """Mount binfmt_misc, where the kernel lists the interpreters that are registered, and yield the folder."""
    folder = tmp_path / "binfmt_misc"
    folder.mkdir()
    subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, binfmt: Path, number: int) -> None:
    cache = tmp_path / "cache"
    before = sorted(binfmt.iterdir())
    command: list[str | Path] = [sys.executable, ROOT / "images/debian/build.py", "--architecture", "arm64", "--cache", cache]
    builder = subprocess.Popen(command)
    try:
        # Once programs of the other architecture run, packages are being configured.
        wait_until(lambda: any("/qemu-aarch64" in program for program in processes_in(cache).values()), 900)
        assert sorted(binfmt.iterdir()) == before, "The build has registered an interpreter for the whole machine."
    finally:
        builder.send_signal(number)
        builder.wait()
    assert builder.returncode in (128 + number, -number)
    wait_until(lambda: not processes_in(cache), 60)
    assert sorted(binfmt.iterdir()) == before
    assert number == signal.SIGKILL or [path.name for path in cache.iterdir()] == [".lock"]


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[None]:
    """Register qemu-user for the whole machine, as a Debian package does."""
    build = runpy.run_path(str(ROOT / "images/debian/build.py"))
    recipe = build["Recipe"].load(ROOT / "images/debian/debian-trixie.toml", "arm64")
    build["emulate"](recipe, "arm64", tmp_path)
    yield
    (tmp_path / "binfmt/arm64").write_text("-1")
    subprocess.run(["umount", tmp_path / "binfmt"], check=True)


@pytest.mark.usefixtures("registered")
def test_the_card_boots_a_stand_in(card: Path) -> None:
    try:
        playbook("rehearse", arguments=f"--limit {NODE}")
        assert ssh("hostname; uname -m; dpkg --print-architecture").stdout.split() == [NODE, "aarch64", "arm64"]
        assert f"{ADDRESS}/24" in ssh("ip -4 -brief address show eth0").stdout.split()
        assert int(ssh("findmnt -bno SIZE /").stdout) > card.stat().st_size * 0.85
        first = ssh("cat /proc/sys/kernel/random/boot_id").stdout
        ssh("sudo reboot")
        playbook("rehearse", arguments=f"--limit {NODE} --tags wait")
        again = ssh("cat /proc/sys/kernel/random/boot_id")
        assert again.returncode == 0 and again.stdout != first
    finally:
        playbook("rehearse", variables={"cluster_state": "absent"})


@pytest.mark.usefixtures("registered")
def test_the_container_image_computes_the_same_result_as_the_control_machine(tmp_path: Path) -> None:
    """The container image is built without emulation, and does not depend on the image of the nodes, which is Ubuntu's here."""
    playbook(
        "kubernetes_image", variables={"cluster_image": "ubuntu-24.04-server", "kubernetes_workloads_image_dir": str(tmp_path)}
    )
    (archive,) = tmp_path.glob("bramble-aarch64-*.tar")
    blobs, tree = tmp_path / "archive", tmp_path / "tree"
    for folder in (blobs, tree):
        folder.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", blobs], check=True)
    (manifest,) = json.loads((blobs / "manifest.json").read_text())
    for layer in manifest["Layers"]:
        subprocess.run(["tar", "-xzf", blobs / layer, "-C", tree], check=True)
    config = json.loads((blobs / manifest["Config"]).read_text())
    assert config["architecture"] == "arm64"

    def inside(*command: str) -> str:
        environment = dict(each.split("=", 1) for each in config["config"]["Env"])
        return subprocess.run(
            [str(shutil.which("chroot")), str(tree), *command], env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    assert inside("python3", "-c", "import platform; print(platform.machine())") == "aarch64\n"
    words = ["pi", "--points", "1e7", "--on", "local", "--report"]
    inside("bramble", *words, "/report")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workloads/src")}
    subprocess.run([sys.executable, "-m", "bramble", *words, tmp_path / "report"], env=environment, check=True)
    container, local = (json.loads((folder / "pi.json").read_text()) for folder in (tree / "report", tmp_path / "report"))
    assert container["inside"] == local["inside"]
