"""Other users of a card: each kind is refused before the card is written, and named; and who exchanges it behind its name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bramble.cluster.plugins.module_utils.card import exclusive
from ansible_collections.bramble.cluster.plugins.module_utils.card.batch import write_batch
from ansible_collections.bramble.cluster.plugins.module_utils.card.content import Content
from ansible_collections.bramble.cluster.plugins.module_utils.card.device import Card
from ansible_collections.bramble.cluster.plugins.module_utils.card.exclusive import Key, Processes, file_status
from ansible_collections.bramble.cluster.plugins.module_utils.card.facts import Facts
from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import Guard
from ansible_collections.bramble.cluster.plugins.module_utils.card.image import Image
from ansible_collections.bramble.cluster.plugins.module_utils.card.progress import Progress
from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

from tests.support.tiny_image import SIZE

from .test_card_writer import write_arguments

NewCard = Callable[..., Path]
Hold = Callable[[str, Path], int]
HOLDERS = {
    # QEMU takes shared locks of single bytes: block/file-posix.c, RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE.
    "qemu": "[lock(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte) for byte in (100, 101, 103, 201, 203)]",
    "open file description": "lock(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 5)",
    "process": "fcntl.lockf(fd, fcntl.LOCK_SH, 1, 4096)",
    "flock": "fcntl.flock(fd, fcntl.LOCK_SH)",
    "open": "None",
    # The object of Python keeps a descriptor of its own.
    "mapped": "(globals().update(kept=mmap.mmap(fd, 4096)), os.closerange(3, 100))",
}
PROGRAM = """
import fcntl, mmap, os, struct, sys
def lock(fd, command, kind, byte):
    fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, 0, byte, 1, 0))
fd = os.open(sys.argv[1], os.O_RDWR)
exec(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards in use are refused sooner than for a user."""
    monkeypatch.setattr(exclusive, "PATIENCE", 0.4)


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts another process that uses a card in one of the ways of HOLDERS, and returns its PID: hold("qemu", path)."""
    with contextlib.ExitStack() as processes:

        def start(kind: str, path: Path) -> int:
            command: list[str | Path] = [sys.executable, "-c", PROGRAM, path, HOLDERS[kind]]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes.enter_context(process)
            assert process.stdout and process.stdout.readline() == "ready\n"
            return process.pid

        yield start


def inspect_card(slot: Path, needed: int = 1) -> Facts:
    """Return the facts of one card."""
    (facts,) = Guard().facts([{"node": "pi-01", "slot": str(slot)}], needed)
    return facts


@pytest.mark.parametrize("kind", HOLDERS)
def test_file_in_use_is_refused_by_the_guard_and_when_it_is_opened(card: NewCard, hold: Hold, kind: str) -> None:
    path = card("card")
    before = inspect_card(path)
    assert before.verdict == "OK"
    pid = hold(kind, path)
    facts = inspect_card(path)
    assert facts.verdict == "IN USE" and f"process {pid} (python" in facts.reason and "run the same command again" in facts.reason
    for writable in (True, False):
        with pytest.raises(BrambleError, match=rf"^{path} is in use: it is .*process {pid} \(python"):
            Card(before, writable)


@pytest.mark.parametrize("kind", HOLDERS)
def test_users_are_found_without_leases(card: NewCard, hold: Hold, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """On many network file systems, and for a file of another user, no lease can be had."""
    monkeypatch.setattr(exclusive, "_is_only_opening", lambda fd: None)
    path = card("card")
    assert inspect_card(path).verdict == "OK"
    pid = hold(kind, path)
    facts = inspect_card(path)
    assert facts.verdict == "IN USE" and f"process {pid} (python" in facts.reason


@pytest.mark.parametrize("kind", ["qemu", "open", "mapped", "flock"])
@pytest.mark.parametrize("place", ["device", "file"])
def test_loop_device_in_use_is_refused(card: NewCard, hold: Hold, machine: Any, kind: str, place: str) -> None:
    """The other process uses the loop device, or the file behind it."""
    path = card("card")
    device = machine.loop(path)
    before = inspect_card(device)
    assert before.verdict == "OK"
    pid = hold(kind, device if place == "device" else path)
    facts = inspect_card(device)
    assert facts.verdict == "IN USE" and f"process {pid} (python" in facts.reason
    with pytest.raises(BrambleError, match=f"process {pid} "):
        Card(before)


def test_a_user_that_ends_soon_is_waited_for(card: NewCard, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As udev and blkid, which open each new disk."""
    monkeypatch.setattr(exclusive, "PATIENCE", 3.0)
    path, loop = card("card"), machine.loop(card("loop"))
    for slot in (path, loop):
        program = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], 0), 1); print(flush=True); time.sleep(0.6)"
        command: list[str | Path] = [sys.executable, "-c", program, slot]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            assert inspect_card(slot).verdict == "OK"
        before = inspect_card(slot)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            Card(before).close()


def test_all_cards_of_a_batch_are_waited_for_together(card: NewCard, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [card(f"card{number}") for number in range(6)]
    for path in paths:
        hold("open", path)
    sleeps: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    monkeypatch.setattr(time, "monotonic", lambda: 100 + sum(sleeps))
    monkeypatch.setattr(exclusive, "PATIENCE", 3.0)
    batch = Guard().facts([{"node": path.stem, "slot": str(path)} for path in paths], 1)
    assert {facts.verdict for facts in batch} == {"IN USE"} and 2.9 < sum(sleeps) < 3.2


def test_card_in_use_is_not_written(
    image: Path, sha256: str, card: NewCard, hold: Hold, run_module: Callable[..., dict[str, Any]]
) -> None:
    path, other = card("card", fill=b"a virtual machine's disk"), card("other")
    pid = hold("qemu", path)
    outcome = run_module("card_write", write_arguments(image, sha256, pi_01=path, pi_02=other))
    assert outcome["failed"] and "IN USE" in outcome["msg"] and f"process {pid} " in outcome["msg"]
    assert path.read_bytes().startswith(b"a virtual machine's disk") and other.stat().st_blocks == 0


def test_own_lock_of_this_process_is_a_conflict(card: NewCard) -> None:
    """A lock of another opening is found by the kernel, not by the PID of its holder."""
    path = card("card")
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # a lock of this process: it does not conflict with itself elsewhere
        assert inspect_card(path).verdict == "IN USE"
    assert inspect_card(path).verdict == "OK"


@pytest.mark.parametrize("place", ["file", "device"])
def test_shared_lock_of_this_process_is_a_conflict(
    card: NewCard, machine: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The guard has a card open for reading only, and finds a lock with which it could share the card."""
    monkeypatch.setattr(exclusive, "_is_only_opening", lambda fd: None)
    path = card("card")
    slot = path if place == "file" else machine.loop(path)
    with path.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 203, 1, 0))
        facts = inspect_card(slot)
        assert facts.verdict == "IN USE" and "it is locked by another process" in facts.reason
    assert inspect_card(slot).verdict == "OK"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_lock_that_another_process_takes_between_question_and_request(
    card: NewCard, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Nobody has a lock when it is asked for, but it is not granted."""
    path, real = card("card"), fcntl.fcntl

    def refuse(fd: int, command: int, *argument: Any) -> Any:
        if command == fcntl.F_OFD_SETLK:
            raise OSError(number, os.strerror(number))
        return real(fd, command, *argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    facts = inspect_card(path)
    assert facts.verdict == "IN USE" and "it is locked by another process" in facts.reason


def test_open_card_is_locked_for_others(card: NewCard) -> None:
    path = card("card")
    lock = "import fcntl, os, struct, sys; fd = os.open(sys.argv[1], os.O_RDWR); {}"
    tries = {
        "byte": lock.format('fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0))'),
        "process": lock.format("fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 0)"),
        "flock": lock.format("fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)"),
    }
    facts = inspect_card(path)
    one = Card(facts)
    for program in tries.values():
        assert (
            b"BlockingIOError" in subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=False).stderr
        )
    one.close()
    for program in tries.values():
        subprocess.run([sys.executable, "-c", program, path], check=True)


def test_second_writer_is_named(card: NewCard) -> None:
    path = card("card")
    facts = inspect_card(path)
    first = Card(facts)
    with pytest.raises(BrambleError, match="it is being written by another process"):
        Card(facts)
    assert inspect_card(path).verdict == "IN USE" and "is being written by another process" in inspect_card(path).reason
    first.close()
    Card(facts).close()


def test_open_for_naming_only_is_no_use(card: NewCard) -> None:
    path = card("card")
    fd = os.open(path, os.O_PATH)
    command: list[str | Path] = [
        sys.executable,
        "-c",
        "import os, sys; os.open(sys.argv[1], os.O_PATH); print(flush=True); input()",
        path,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        assert inspect_card(path).verdict == "OK" and Processes().users({file_status(str(path)).key}) == []
    os.close(fd)


def test_program_that_started_this_one_may_keep_a_disk_attached(card: NewCard, machine: Any) -> None:
    """It may read the disk, but not write it, and not have a file open."""
    path, device = card("file"), machine.loop(card("card"))
    program = (
        "from ansible_collections.bramble.cluster.plugins.module_utils.card import exclusive\n"
        "from ansible_collections.bramble.cluster.plugins.module_utils.card.guard import Guard\n"
        "import sys; exclusive.PATIENCE = 0.2; exclusive._is_only_opening = lambda fd: None\n"
        "print(Guard().facts([{'node': 'pi-01', 'slot': sys.argv[1]}], 1)[0].verdict)"
    )
    for slot, mode, verdict in ((device, os.O_RDONLY, "OK"), (device, os.O_RDWR, "IN USE"), (path, os.O_RDONLY, "IN USE")):
        fd = os.open(slot, mode)
        found = subprocess.run([sys.executable, "-c", program, slot], check=True, capture_output=True, text=True)
        os.close(fd)
        assert found.stdout == f"{verdict}\n", (slot, mode)


def test_other_program_may_not_even_read_a_disk(card: NewCard, machine: Any) -> None:
    device = machine.loop(card("card"))
    command: list[str | Path] = [sys.executable, "-c", "import sys; file = open(sys.argv[1]); print(flush=True); input()", device]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        facts = inspect_card(device)
    assert facts.verdict == "IN USE" and f"process {process.pid} (python" in facts.reason


def test_use_that_no_process_shows(card: NewCard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel, or a process of another user, has the file open."""
    path = card("card")
    monkeypatch.setattr(Processes, "users", lambda self, keys: [])
    with path.open("rb"):
        facts = inspect_card(path)
    assert facts.verdict == "IN USE" and "by no process that this user can see" in facts.reason


def test_holder_of_a_lock_is_named_without_access_to_its_files(tmp_path: Path) -> None:
    """Any user may read /proc/locks. This file has device 08:01 and inode 77; a waiting lock has an arrow."""
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711/comm").write_text("backup\n")
    (tmp_path / "4712").mkdir()
    (tmp_path / "locks").write_text(
        "1: POSIX  ADVISORY  WRITE 4711 08:01:77 0 EOF\n"
        "1: -> FLOCK  ADVISORY  WRITE 4712 08:01:78 0 EOF\n"
        "2: OFDLCK ADVISORY  READ -1 08:01:77 100 100\n"
    )
    users = Processes(str(tmp_path)).users({Key(False, os.makedev(8, 1), 77)})
    assert [str(user) for user in users] == ["process 4711 (backup)"]
    assert [user.pid for user in Processes(str(tmp_path)).users({Key(False, os.makedev(8, 1), 78)})] == [4712]


def test_signal_of_a_lease_does_not_end_this_process(card: NewCard) -> None:
    """Another process opens the file at the moment of the lease: without another signal, the kernel sends SIGIO, which kills."""
    path = card("card")
    opener = "import os, sys\nprint(flush=True)\nwhile True: os.close(os.open(sys.argv[1], os.O_RDONLY))"
    program = (
        "from ansible_collections.bramble.cluster.plugins.module_utils.card import exclusive\n"
        "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "print({exclusive._is_only_opening(fd) for _ in range(20000)})"
    )
    with subprocess.Popen([sys.executable, "-c", opener, path], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        try:
            found = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True)
        finally:
            process.kill()
    assert "False" in found.stdout


# The same file behind two names: the file of an overlay file system, and the file in its upper layer


@pytest.fixture
def layers(machine: Any, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Makes a card on an overlay file system: layers("upper") is (its name, its name in this layer)."""
    folder = tmp_path / "a, b"
    for name in ("lower", "upper/sub", "work"):
        (folder / name).mkdir(parents=True)
    (folder / "lower/sub").mkdir()

    def make(layer: str) -> tuple[Path, Path]:
        path = folder / layer / "sub/card.img"
        with path.open("wb") as file:
            file.truncate(32 * 2**20)
        names = {name: str(folder / name).replace(",", "\\,") for name in ("lower", "upper", "work")}
        options = f"lowerdir={names['lower']},upperdir={names['upper']},workdir={names['work']}"
        merged = machine.mount("-t", "overlay", "-o", options, "none")
        return merged / "sub/card.img", path

    return make


@pytest.mark.parametrize("first", ["merged", "upper"])
def test_second_run_through_the_upper_layer_is_refused(
    layers: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Also if no lease can be had, as on a file of another user."""
    names = layers("upper") if first == "merged" else layers("upper")[::-1]
    one, other = (inspect_card(name) for name in names)
    assert one.verdict == other.verdict == "OK" and one.identity != other.identity
    for is_lease_granted in (True, False):
        if not is_lease_granted:
            monkeypatch.setattr(exclusive, "_is_only_opening", lambda fd: None)
        with contextlib.closing(Card(one)):
            facts = inspect_card(names[1])
            assert facts.verdict == "IN USE" and "is being written by another process" in facts.reason
            with pytest.raises(BrambleError, match="is being written by another process"):
                Card(other).close()
        Card(other).close()


@pytest.mark.parametrize("kind", ["qemu", "flock", "open", "loop"])
def test_other_user_of_the_upper_layer_is_found(
    layers: Callable[[str], tuple[Path, Path]], hold: Hold, machine: Any, kind: str
) -> None:
    merged, upper = layers("upper")
    assert inspect_card(merged).verdict == "OK"
    owner = machine.loop(upper) if kind == "loop" else f"process {hold(kind, upper)} (python"
    facts = inspect_card(merged)
    assert facts.verdict == "IN USE" and str(owner) in facts.reason


def test_loop_device_on_an_overlay_whose_upper_layer_is_written(
    layers: Callable[[str], tuple[Path, Path]], machine: Any, hold: Hold
) -> None:
    merged, upper = layers("upper")
    device = machine.loop(merged)
    assert inspect_card(device).verdict == "OK"
    pid = hold("open", upper)
    facts = inspect_card(device)
    assert facts.verdict == "IN USE" and f"process {pid} (python" in facts.reason


def test_card_in_a_lower_layer_is_copied_before_it_is_written(layers: Callable[[str], tuple[Path, Path]], image: Path) -> None:
    """So a run that writes the lower file itself writes another card."""
    merged, lower = layers("lower")
    with contextlib.closing(Card(inspect_card(lower))), Image(str(image)) as opened:
        (result,) = write_batch([inspect_card(merged, SIZE)], {"pi-01": Content(opened, {})}, Progress())
    assert result.result == "written" and any(merged.read_bytes()) and not any(lower.read_bytes())


def test_bind_mount_of_a_folder_of_an_overlay(layers: Callable[[str], tuple[Path, Path]], machine: Any) -> None:
    merged, upper = layers("upper")
    bound = machine.mount("--bind", merged.parent) / "card.img"
    with contextlib.closing(Card(inspect_card(bound))):
        assert inspect_card(upper).verdict == inspect_card(merged).verdict == "IN USE"
    with contextlib.closing(Card(inspect_card(upper))):
        assert inspect_card(bound).verdict == "IN USE"


# Mounts in other namespaces


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Callable[[Path], int]]:
    """Mounts a device in a mount namespace of its own, and returns the PID of its process."""
    point = tmp_path / "in a container"
    point.mkdir()
    with contextlib.ExitStack() as processes:

        def start(device: Path) -> int:
            script = 'mount "$1" "$2" && echo ready && read _'
            command: list[str | Path] = [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
                device,
                point,
            ]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes.enter_context(process)
            assert process.stdout and process.stdout.readline() == "ready\n"
            return process.pid

        yield start


def test_disk_mounted_in_a_container_is_refused(
    card: NewCard, machine: Any, container: Callable[[Path], int], tmp_path: Path
) -> None:
    device = machine.loop(card("card"))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", device], check=True)
    before = inspect_card(device)
    assert before.verdict == "OK"
    pid = container(device)
    assert str(device) not in Path("/proc/self/mounts").read_text()
    facts = inspect_card(device)
    point = tmp_path / "in a container"
    assert (
        facts.verdict == "IN USE" and f"mounted on {point} in another mount namespace, that of process {pid} (sh)" in facts.reason
    )
    assert f"nsenter --target {pid} --mount umount" in facts.reason
    with pytest.raises(BrambleError, match="in another mount namespace"):
        Card(before)


@pytest.fixture
def partition(card: NewCard, machine: Any) -> Iterator[tuple[Path, Path]]:
    """A loop device, and a partition of it, which is removed after a mount of `container`: a test must name that one later."""
    device = machine.loop(card("card"))
    subprocess.run(["addpart", device, "1", "2048", "32768"], check=True)
    part = Path(f"{device}p1")
    end = time.monotonic() + 5
    while not part.exists() and time.monotonic() < end:
        time.sleep(0.05)
    yield device, part
    subprocess.run(["delpart", device, "1"], check=True)


def test_partition_mounted_in_a_container_is_refused(partition: tuple[Path, Path], container: Callable[[Path], int]) -> None:
    device, part = partition
    subprocess.run(["mke2fs", "-q", "-t", "ext4", part], check=True)
    assert inspect_card(device).verdict == "OK"
    container(part)
    facts = inspect_card(device)
    assert facts.verdict == "IN USE" and "in another mount namespace" in facts.reason


# Another card behind the same name


class Exchange(Progress):
    """Calls a function once while the card is read back."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__()
        self._act: Callable[[], Any] = act

    def report(self, node: str, phase: str, done: int = 0, total: int = 0) -> None:
        if phase == "verify":
            act, self._act = self._act, lambda: None
            act()


@pytest.mark.parametrize("change", ["renamed over", "renamed", "deleted", "created again", "link", "folder"])
def test_card_exchanged_behind_its_name_while_written(image: Path, card: NewCard, tmp_path: Path, change: str) -> None:
    path, other = card("card"), card("other")
    slot = tmp_path / "slot"
    slot.symlink_to(path)
    folder, second = tmp_path / "folder", tmp_path / "second"
    second.mkdir()
    (second / "card.img").touch()
    folder.symlink_to(tmp_path)

    def point_elsewhere(link: Path, target: Path) -> None:
        link.unlink()
        link.symlink_to(target)

    def create_again() -> None:
        path.unlink()
        path.write_bytes(b"\0")

    actions: dict[str, tuple[Callable[[], Any], str]] = {
        "renamed over": (lambda: other.rename(path), "is now the name of another file"),
        "renamed": (lambda: path.rename(tmp_path / "gone"), "was deleted or renamed"),
        "deleted": (path.unlink, "was deleted or renamed"),
        "created again": (create_again, "is now the name of another file"),
        "link": (lambda: point_elsewhere(slot, other), f"now leads to {other}"),
        "folder": (lambda: point_elsewhere(folder, second), f"now leads to {second}/card.img"),
    }
    act, message = actions[change]
    facts = inspect_card({"link": slot, "folder": folder / "card.img"}.get(change, path), SIZE)
    with Image(str(image)) as opened:
        (result,) = write_batch([facts], {"pi-01": Content(opened, {})}, Exchange(act))
    assert result.result == "failed" and f"{path} is not the card that was checked before: " in result.error
    assert message in result.error and result.bytes_verified == 0


def test_device_node_exchanged_while_written(image: Path, card: NewCard, machine: Any, tmp_path: Path) -> None:
    one, two = machine.loop(card("one")), machine.loop(card("two"))
    slot = tmp_path / "by-path"
    slot.symlink_to(one)

    def exchange() -> None:
        slot.unlink()
        slot.symlink_to(two)

    with Image(str(image)) as opened:
        (result,) = write_batch([inspect_card(slot, SIZE)], {"pi-01": Content(opened, {})}, Exchange(exchange))
    assert result.result == "failed" and f"{slot} now leads to {two}" in result.error


def test_file_created_again_with_the_same_inode(card: NewCard) -> None:
    """Many file systems give the inode of a deleted file to the next one."""
    path = card("card")
    facts = inspect_card(path)
    for _ in range(50):
        path.unlink()
        card("card", fill=b"precious")
        if path.stat().st_ino == facts.identity[2]:
            break
    else:
        pytest.skip("this file system did not use the inode again")
    assert facts.birth
    with pytest.raises(BrambleError, match="the file was deleted and created again"):
        Card(facts)
    assert path.read_bytes().startswith(b"precious")


def test_name_that_became_a_link(card: NewCard) -> None:
    path, other = card("card"), card("other")
    facts = inspect_card(path)
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(BrambleError, match=f"^{path} cannot be opened"):
        Card(facts)
