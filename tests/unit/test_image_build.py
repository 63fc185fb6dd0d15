"""The builder of the Debian image: what it writes, when it reports no change, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.bramble.cluster.images.debian import build
from ansible_collections.bramble.cluster.images.debian.boot_fs import gather_boot
from ansible_collections.bramble.cluster.images.debian.cache import CacheEntry, link_current, publish, workspace
from ansible_collections.bramble.cluster.images.debian.disk import (
    disk_id,
    master_boot_record,
    partuuid,
    place_partitions,
    write_image,
)
from ansible_collections.bramble.cluster.images.debian.emulation import EMULATED_ARCHITECTURES, run_in_user_namespace
from ansible_collections.bramble.cluster.images.debian.packages import mmdebstrap_command
from ansible_collections.bramble.cluster.images.debian.recipe import Recipe
from ansible_collections.bramble.cluster.images.debian.requirements import (
    available_memory,
    check_architecture,
    check_space,
    check_tools,
)
from ansible_collections.bramble.cluster.images.debian.root_fs import configure_root, copy_templates, tree_size
from ansible_collections.bramble.cluster.images.host import fingerprint, run
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ROOT

SOURCE = ROOT / "images/debian"


def words(cmdline: Path) -> list[bytes]:
    try:
        return cmdline.read_bytes().split(b"\0")[:-1]
    except OSError:  # the process has just ended
        return []


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true, for at most a minute."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("the condition was not true within a minute")


RECIPE = Recipe.load(SOURCE / "debian-trixie.toml", "amd64")
HASH = "0123456789abcdef" * 4
MIB = 1 << 20
TREE = [
    "etc/cloud/cloud.cfg.d/05_logging.cfg",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_rsa_key",
    "etc/systemd/system/x.service",
    "usr/lib/netplan/x",
    "usr/share/doc/x/README",
    "usr/share/doc/x/copyright",
    "usr/share/man/man1/x.1",
    "var/lib/dbus/machine-id",
    "var/log/apt.log",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A very small root file system in the state in which mmdebstrap leaves it."""
    root = tmp_path / "root"
    for name in TREE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x\n")
    return root


class TestRecipe:
    def test_recipe_has_the_packages_of_a_node(self) -> None:
        assert {"cloud-init", "openssh-server", "python3", "sudo", "network-manager", "netplan.io"} <= set(RECIPE.packages)
        assert "systemd-firstboot.service" in RECIPE.masked_units

    def test_catalog_has_the_recipe(self) -> None:
        yaml = pytest.importorskip("yaml")
        entry = yaml.safe_load((ROOT / "images/catalog.yml").read_text())["images"][RECIPE.name]
        assert entry["architectures"] == list(RECIPE.architectures)
        assert entry["init_format"] == RECIPE.init_format
        assert (ROOT / "images" / entry["build"] / f"{RECIPE.name}.toml").is_file()

    @pytest.mark.parametrize("text", ["name =", 'name = "x"', 'nonsense = 1\nname = "x"'])
    def test_invalid_recipe_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x.toml").write_text(text)
        with pytest.raises(BrambleError, match=r"x\.toml"):
            Recipe.load(tmp_path / "x.toml", "amd64")

    def test_architecture_extends_the_lists(self) -> None:
        arm64 = Recipe.load(SOURCE / "debian-trixie.toml", "arm64")
        assert set(arm64.packages) - set(RECIPE.packages) == {"linux-image-arm64", "raspi-firmware"}
        assert (RECIPE.components, arm64.components) == (("main",), ("main", "non-free-firmware"))
        assert arm64.packages[: len(RECIPE.packages)] == RECIPE.packages

    def test_architecture_replaces_the_numbers(self, tmp_path: Path) -> None:
        text = (SOURCE / "debian-trixie.toml").read_text()
        (tmp_path / "x.toml").write_text(f"{text}bootfs = 999\n")
        assert Recipe.load(tmp_path / "x.toml", "arm64").bootfs == 999
        assert Recipe.load(tmp_path / "x.toml", "amd64") == RECIPE


class TestFingerprint:
    def test_every_source_changes_the_fingerprint(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        file, link = tmp_path / "d/file", tmp_path / "d/link"
        seen = set()

        def add_fingerprint(*words: str) -> None:
            seen.add(fingerprint([tmp_path / "d"], *words))

        file.write_text("a")
        add_fingerprint("amd64")
        add_fingerprint("arm64")
        file.write_text("b")
        add_fingerprint("amd64")
        file.rename(tmp_path / "d/other")
        add_fingerprint("amd64")
        link.symlink_to("other")
        add_fingerprint("amd64")
        link.unlink()
        link.symlink_to("elsewhere")
        add_fingerprint("amd64")
        assert len(seen) == 6

    def test_fingerprint_is_reproducible(self) -> None:
        paths = [SOURCE / "bootfs", SOURCE / "rootfs", SOURCE / "build.py"]
        assert fingerprint(paths, "amd64") == fingerprint(paths, "amd64")

    @given(st.text("0123456789abcdef", min_size=64, max_size=64))
    def test_disk_identifier_is_never_zero(self, recipe_hash: str) -> None:
        assert 0 < disk_id(recipe_hash) < 1 << 32
        assert int(partuuid(recipe_hash), 16) == disk_id(recipe_hash)
        assert disk_id("0" * 64) == 1


class TestLayout:
    @given(st.integers(0, 30 * 10**9))
    def test_partitions_are_adjacent_and_hold_the_tree(self, size: int) -> None:
        boot, root = place_partitions(RECIPE, size)
        assert boot.start == RECIPE.first_partition * MIB
        assert boot.start + boot.size == root.start
        assert root.size >= size + RECIPE.slack * MIB
        assert root.size % (8 * MIB) == root.start % MIB == 0

    def test_sfdisk_reads_the_boot_record(self, tmp_path: Path) -> None:
        parts = place_partitions(RECIPE, 100 * MIB)
        image = tmp_path / "x.img"
        image.write_bytes(master_boot_record(disk_id(HASH), parts))
        with image.open("r+b") as file:
            file.truncate(parts[1].start + parts[1].size)
        result = json.loads(subprocess.run(["sfdisk", "--json", image], capture_output=True, check=True).stdout)["partitiontable"]
        assert result["label"] == "dos" and result["id"] == f"0x{HASH[:8]}"
        assert [(p["start"] * 512, p["size"] * 512, p["type"]) for p in result["partitions"]] == [
            (parts[0].start, parts[0].size, "c"),
            (parts[1].start, parts[1].size, "83"),
        ]


class TestTree:
    def test_build_files_and_identity_are_removed(self, tree: Path) -> None:
        configure_root(RECIPE, tree, {"PARTUUID": "01234567"})
        assert not list(tree.glob("etc/ssh/ssh_host_*"))
        assert (tree / "etc/machine-id").read_text() == "uninitialized\n"
        for gone in ("etc/resolv.conf", "var/lib/dbus/machine-id", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", "usr/share/man"):
            assert not (tree / gone).exists(), gone
        assert [p.name for p in (tree / "usr/share/doc/x").iterdir()] == ["copyright"]

    def test_tree_has_the_files_of_a_card(self, tree: Path) -> None:
        configure_root(RECIPE, tree, {"PARTUUID": "01234567"})
        fstab = (tree / "etc/fstab").read_text()
        assert "PARTUUID=01234567-01 /boot/firmware" in fstab and "PARTUUID=01234567-02 / " in fstab and "@" not in fstab
        assert (tree / "etc/bramble/ssh").stat().st_mode & 0o777 == 0o700
        assert (tree / "etc/systemd/system/systemd-firstboot.service").readlink() == Path("/dev/null")
        assert (tree / "usr/lib/netplan/00-network-manager-all.yaml").stat().st_mode & 0o777 == 0o600
        assert (tree / "etc/fstab").stat().st_mode & 0o777 == 0o644
        for stamp in ("etc/.updated", "var/.updated"):
            assert (tree / stamp).stat().st_mtime >= (tree / "usr").stat().st_mtime

    def test_command_line_names_the_root_partition(self, tmp_path: Path) -> None:
        copy_templates(SOURCE / "bootfs", tmp_path, {"PARTUUID": "01234567"})
        words = (tmp_path / "cmdline.txt").read_text().split()
        assert "root=PARTUUID=01234567-02" in words and words[-1] == "resize"
        assert {"user-data", "meta-data", "network-config", "config.txt"} <= {path.name for path in tmp_path.iterdir()}

    def test_recipe_customizes_and_excludes_files(self, tree: Path, tmp_path: Path) -> None:
        other = dataclasses.replace(RECIPE, customize=("true",), without=("etc/ssh/sshd_config.d/*", "nowhere/*"))
        assert "--customize-hook=true" in mmdebstrap_command(other, "amd64", tree, tmp_path)
        configure_root(other, tree, {"PARTUUID": "01234567"})
        assert list((tree / "etc/ssh/sshd_config.d").iterdir()) == []
        assert (tree / "etc/cloud/cloud.cfg.d/90-bramble.cfg").exists()

    def test_password_logins_are_disabled(self) -> None:
        sshd = "".join(path.read_text() for path in (SOURCE / "rootfs/etc/ssh/sshd_config.d").iterdir())
        assert "PasswordAuthentication no" in sshd and "PermitRootLogin no" in sshd
        assert not re.search(r"passwd|chpasswd", "".join(p.read_text() for p in (SOURCE / "bootfs").iterdir()))


class TestBootPartition:
    @pytest.fixture
    def firmware(self, tmp_path: Path) -> Path:
        """The folder of a root tree to which packages install boot files."""
        (tmp_path / "root/boot/firmware").mkdir(parents=True)
        (tmp_path / "boot").mkdir()
        return tmp_path / "root/boot/firmware"

    def gather(self, tmp_path: Path) -> Path:
        gather_boot(tmp_path / "root", tmp_path / "boot", {"PARTUUID": "01234567"})
        return tmp_path / "boot"

    def test_boot_partition_without_a_kernel(self, firmware: Path, tmp_path: Path) -> None:
        copy_templates(SOURCE / "bootfs", tmp_path / "root", {"PARTUUID": "01234567"})
        boot = self.gather(tmp_path)
        assert all(path.read_text() == (tmp_path / "root" / path.name).read_text() for path in boot.iterdir())

    def test_files_of_packages_are_moved(self, firmware: Path, tmp_path: Path) -> None:
        (firmware / "overlays").mkdir()
        for name in ("vmlinuz-6.12", "initrd.img-6.12", "overlays/x.dtbo", "cmdline.txt"):
            (firmware / name).write_text("theirs")
        (firmware / "config.txt").write_text("# a comment\nkernel=vmlinuz-6.12\ninitramfs initrd.img-6.12\n")
        boot = self.gather(tmp_path)
        assert (boot / "cmdline.txt").read_text() == (boot / "overlays/x.dtbo").read_text() == "theirs"
        assert (boot / "user-data").exists() and list(firmware.iterdir()) == []

    @pytest.mark.parametrize("line", ["kernel=vmlinuz-6.12", "initramfs vmlinuz-6.12"])
    def test_missing_kernel_is_an_error(self, firmware: Path, tmp_path: Path, line: str) -> None:
        (firmware / "config.txt").write_text(f"arm_64bit=1\n{line}\n")
        with pytest.raises(BrambleError, match=r"config\.txt names vmlinuz-6\.12"):
            self.gather(tmp_path)

    def test_new_kernel_writes_the_same_command_line(self, tmp_path: Path) -> None:
        """raspi-firmware sources one of the files, and appends the other."""
        copy_templates(SOURCE / "rootfs-arm64", tmp_path, {"PARTUUID": "01234567"})
        defaults = tmp_path / "etc/default"
        script = f'. {defaults}/raspi-firmware; echo "$ROOTPART/$CMA/$CONSOLES"'
        output = subprocess.run(["sh", "-eu", "-c", script], capture_output=True, text=True, check=True).stdout
        assert output == "PARTUUID=01234567-02/0/ttyS1,115200 tty0\n"
        assert (defaults / "raspi-extra-cmdline").read_text() == "resize\n"


class TestEmulation:
    def test_mask_matches_only_programs_of_the_architecture(self) -> None:
        _, magic, mask = EMULATED_ARCHITECTURES["arm64"]
        assert len(magic) == len(mask) == 20

        def known(header: bytes) -> bool:
            return all((a ^ b) & counts == 0 for a, b, counts in zip(header, magic, mask, strict=True))

        # e_ident (any OS ABI), e_type (ET_EXEC, ET_DYN), e_machine (EM_AARCH64 = 183, EM_X86_64 = 62)
        header = struct.Struct("<4sBBBB8xHH")
        assert all(known(header.pack(b"\x7fELF", 2, 1, 1, abi, kind, 183)) for abi in (0, 3) for kind in (2, 3))
        assert not known(header.pack(b"\x7fELF", 2, 1, 1, 0, 2, 62))
        assert not known(header.pack(b"\x7fELF", 1, 1, 1, 0, 2, 183))

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_user_namespace_maps_every_user_to_itself(self, tmp_path: Path) -> None:
        script = f"chown 123:456 {tmp_path} && cat /proc/self/uid_map > {tmp_path}/map && exit 7"
        assert run_in_user_namespace(["sh", "-c", script]) == 7
        assert (tmp_path.stat().st_uid, tmp_path.stat().st_gid) == (123, 456)
        assert (tmp_path / "map").read_text().split() == ["0", "0", "4294967295"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_stopped_build_leaves_no_process(self, number: int) -> None:
        # No other process has this argument.
        seconds = f"600.{os.getpid()}"
        program = (
            "import signal; from ansible_collections.bramble.cluster.images.debian import build; "
            "signal.signal(signal.SIGTERM, build.exit_on_signal); "
            f"build.run_in_user_namespace([*build.NEW_NAMESPACES, 'sleep', {seconds!r}])"
        )

        def sleeping() -> list[Path]:
            return [path for path in Path("/proc").glob("[0-9]*/cmdline") if words(path) == [b"sleep", seconds.encode()]]

        with subprocess.Popen([sys.executable, "-c", program]) as builder:
            wait_until(sleeping)
            builder.send_signal(number)
        wait_until(lambda: not sleeping())
        assert builder.returncode in (128 + number, -number)


class TestImage:
    @pytest.fixture
    def image(self, tree: Path, tmp_path: Path) -> Path:
        values = {"PARTUUID": partuuid(HASH)}
        configure_root(RECIPE, tree, values)
        (tree / "etc/big").write_bytes(bytes(range(256)) * 40_000)
        boot = tmp_path / "boot"
        boot.mkdir()
        copy_templates(SOURCE / "bootfs", boot, values)
        small = dataclasses.replace(RECIPE, bootfs=48, slack=8)
        image = tmp_path / "x.img"
        write_image(small, HASH, tree, boot, image)
        self.parts = place_partitions(small, tree_size(tree))
        return image

    def test_both_file_systems_are_valid_and_hold_their_tree(self, image: Path, tmp_path: Path) -> None:
        data = image.read_bytes()
        boot, root = tmp_path / "p1", tmp_path / "p2"
        for path, part in ((boot, self.parts[0]), (root, self.parts[1])):
            path.write_bytes(data[part.start : part.start + part.size])
        assert subprocess.run(["e2fsck", "-fn", root], capture_output=True, check=False).returncode == 0
        assert subprocess.run(["fsck.vfat", "-n", boot], capture_output=True, check=False).returncode == 0
        listed = subprocess.run(["mdir", "-b", "-i", boot, "::/"], capture_output=True, text=True, check=True).stdout
        assert "::/cmdline.txt" in listed and "::/network-config" in listed
        subprocess.run(["debugfs", "-R", f"dump /etc/big {tmp_path / 'big'}", root], capture_output=True, check=True)
        assert (tmp_path / "big").read_bytes() == bytes(range(256)) * 40_000

    def test_labels_and_identifiers_come_from_the_recipe(self, image: Path) -> None:
        def probe(part: Any, tag: str) -> str:
            command = ["blkid", "--probe", "--offset", str(part.start), "--output", "value", "--match-tag", tag, str(image)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        assert [probe(part, "LABEL") for part in self.parts] == ["bootfs", "rootfs"]
        assert probe(self.parts[0], "UUID").replace("-", "") == HASH[:8]
        assert probe(self.parts[1], "UUID") == str(uuid.uuid5(uuid.NAMESPACE_OID, HASH))
        assert struct.unpack_from("<I", image.read_bytes(), 440)[0] == int(HASH[:8], 16)

    def test_image_is_sparse(self, image: Path) -> None:
        assert image.stat().st_blocks * 512 < image.stat().st_size // 2


class TestCache:
    @pytest.fixture
    def entry(self, tmp_path: Path) -> Any:
        return CacheEntry(tmp_path, "debian-trixie-amd64", HASH)

    def fill(self, entry: Any) -> None:
        work = entry.cache / "work"
        work.mkdir()
        (work / "image.img").write_bytes(b"x" * 100)
        publish(entry, work / "image.img", {"bytes": 100})

    def test_published_image_is_found(self, entry: Any) -> None:
        assert not entry.is_complete()
        self.fill(entry)
        assert entry.is_complete() and not entry.is_current()
        link_current(entry)
        link_current(entry)
        assert entry.is_current() and json.loads(entry.current_link.read_text()) == {"bytes": 100}
        assert entry.image.name == "debian-trixie-amd64-0123456789ab.img"

    def test_image_without_a_manifest_is_incomplete(self, entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def rename(self: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == 2:
                raise OSError("power cut")
            return real(self, target)

        real = Path.rename
        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="power cut"):
            self.fill(entry)
        assert calls == [entry.image, entry.manifest]
        assert entry.image.exists() and not entry.is_complete()

    @pytest.mark.parametrize("manifest", ["", "{}", '{"bytes": 99}', "[]"])
    def test_invalid_manifest_is_incomplete(self, entry: Any, manifest: str) -> None:
        self.fill(entry)
        entry.manifest.write_text(manifest)
        assert not entry.is_complete()

    def test_files_of_a_killed_build_are_removed(self, tmp_path: Path) -> None:
        (tmp_path / ".build-old/root").mkdir(parents=True)
        with pytest.raises(RuntimeError), workspace(tmp_path) as work:
            assert not (tmp_path / ".build-old").exists()
            (work / "root").mkdir()
            raise RuntimeError
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


class TestRefusals:
    def test_unknown_architecture(self) -> None:
        with pytest.raises(BrambleError, match="cluster_architecture"):
            check_architecture(RECIPE, "riscv64", "amd64", "6.12.0")

    def test_architecture_that_cannot_be_emulated(self) -> None:
        check_architecture(RECIPE, "arm64", "amd64", "6.7-rc1")
        check_architecture(RECIPE, "arm64", "amd64", "10.0.1-arch1-1")
        # The architecture of the machine needs no emulation.
        check_architecture(RECIPE, "arm64", "arm64", "5.10.0-30-arm64")
        with pytest.raises(BrambleError, match=r"amd64 cannot be built .* which is arm64\. Build it on"):
            check_architecture(RECIPE, "amd64", "arm64", "6.12.0")
        with pytest.raises(BrambleError, match=r"which is amd64 and runs Linux 6\.1\.0-37-amd64: emulation needs Linux 6\.7"):
            check_architecture(RECIPE, "arm64", "amd64", "6.1.0-37-amd64")

    def test_too_little_space(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2_499_999_999))
        with pytest.raises(BrambleError, match=r"2,499,999,999 bytes are free.*2,500,000,000.*cluster_cache_dir") as result:
            check_space(tmp_path)
        assert str(tmp_path) in str(result.value)

    def test_missing_tools(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BrambleError, match=r"apt-get install .*mmdebstrap mtools util-linux debian-archive-keyring"):
            check_tools(tmp_path / "keyring.gpg")

    def test_failed_command_shows_the_end_of_its_output(self) -> None:
        with pytest.raises(BrambleError, match=r"exit code 3[\s\S]*boom"):
            run("sh", "-c", "echo boom; exit 3")


class TestMain:
    def run(self, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
        assert build.main(list(words)) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    def test_check_writes_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        cache = tmp_path / "cache"
        assert self.run(capsys, "--cache", str(cache), "--architecture", "amd64", "--check")["changed"] is True
        assert not cache.exists()

    def test_second_run_changes_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def build_small_image(_args: Any, _recipe: Any, entry: Any) -> None:
            entry.image.write_bytes(b"x" * 10)
            entry.manifest.write_text('{"bytes": 10}')

        monkeypatch.setattr(build, "build", build_small_image)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        words = ("--cache", str(tmp_path), "--architecture", "amd64")
        first = self.run(capsys, *words)
        assert first["changed"] and Path(first["manifest"]).is_file()
        assert not self.run(capsys, *words)["changed"]
        (tmp_path / "debian-trixie-amd64.json").unlink()
        assert self.run(capsys, *words)["changed"]

    def test_error_is_exit_code_1(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert build.main(["--cache", str(tmp_path), "--architecture", "m68k"]) == 1
        assert "build.py: debian-trixie cannot be built for m68k" in capsys.readouterr().err


def test_available_memory() -> None:
    assert available_memory("MemTotal: 9 kB\nMemAvailable:    4 kB\n") == 4096
    assert available_memory("") == 0
