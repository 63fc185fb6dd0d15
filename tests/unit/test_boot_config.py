"""The module boot_config changes only the requested settings of cmdline.txt and config.txt."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from ansible_collections.bramble.cluster.plugins.module_utils.boot import cmdline as kernel
from ansible_collections.bramble.cluster.plugins.module_utils.boot import config_txt
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Machine, Run

CASES = Path(__file__).parent / "boot_config"
REQUEST = yaml.safe_load((CASES / "request.yml").read_text())
IMAGES = sorted(path.name for path in CASES.iterdir() if path.is_dir())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root file system, which the module uses as that of the node."""
    monkeypatch.setattr("ansible_collections.bramble.cluster.plugins.module_utils.boot.files.ROOT", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "boot/firmware").mkdir(parents=True)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cmdline(root: Path, content: bytes) -> Path:
    path = root / "boot/firmware/cmdline.txt"
    path.write_bytes(content)
    return path


# The images


@pytest.mark.parametrize("image", IMAGES)
def test_edits_of_real_images(root: Path, run_module: Run, image: str) -> None:
    before, after = tree(CASES / image / "before"), tree(CASES / image / "after")
    shutil.copytree(CASES / image / "before", root, dirs_exist_ok=True)
    dry = run_module("boot_config", REQUEST, check=True, diff=True)
    assert tree(root) == before and dry["changed"] and dry["reboot_required"]
    done = run_module("boot_config", REQUEST, diff=True)
    assert (done["diff"], done["files"]) == (dry["diff"], dry["files"])
    assert [side["after"].encode() for side in done["diff"]] == [(root / name).read_bytes() for name in map(Path, done["files"])]
    changed = {name: content for name, content in after.items() if content != before.get(name)}
    kept = {f"{name}.before-bramble": before.get(name, b"") for name in changed}
    assert tree(root) == {**after, **kept, "run/reboot-required": b"*** System restart required ***\n"}

    (root / "run/reboot-required").unlink()
    again = run_module("boot_config", REQUEST)
    assert (again["changed"], again["files"], again["reboot_required"]) == (False, [], False)
    assert "run/reboot-required" not in tree(root)

    # The backup is that of the first change, and restores the original values.
    assert run_module("boot_config", {"cmdline_present": ["fsck.repair=preen"]})["changed"]
    names = ["fsck.repair", "cgroup_enable", "cgroup_memory", "console", "quiet", "splash", "resize"]
    run_module("boot_config", {"cmdline_restored": names})
    for name in (name for name in changed if "cmdline" in name):
        assert sorted((root / name).read_text().split()) == sorted(before[name].decode().split())
        assert (root / f"{name}.before-bramble").read_bytes() == before[name]


def test_os_prefix_and_cmdline_in_config_are_followed(root: Path, run_module: Run) -> None:
    (root / "boot/firmware/config.txt").write_text("[pi5]\ncmdline=other.txt\n[all]\nos_prefix=current/\n")
    (root / "boot/firmware/current").mkdir()
    (root / "boot/firmware/current/cmdline.txt").write_text("a\n")
    stale = cmdline(root, b"stale\n")
    done = run_module("boot_config", {"cmdline_present": ["b"]})
    assert done["files"] == [str(root / "boot/firmware/current/cmdline.txt")] and stale.read_bytes() == b"stale\n"


def test_old_image_has_its_files_in_boot(root: Path, run_module: Run) -> None:
    (root / "boot/firmware").rmdir()
    (root / "boot/cmdline.txt").write_text("a")
    assert run_module("boot_config", {"cmdline_present": ["b"]})["changed"]
    assert (root / "boot/cmdline.txt").read_text() == "a b"


def test_lines_of_config_are_restored(root: Path, run_module: Run) -> None:
    """Original lines stay, added lines are removed, and so is the backup when nothing else differs."""
    path = root / "boot/firmware/config.txt"
    path.write_text("[all]\ndtoverlay=disable-bt\n")
    radios = [{"setting": "dtoverlay=disable-wifi"}, {"setting": "dtoverlay=disable-bt"}]
    before = tree(root)
    assert not run_module("boot_config", {"config_restored": radios})["changed"]
    run_module("boot_config", {"config_present": radios})
    assert path.read_text() == "[all]\ndtoverlay=disable-bt\ndtoverlay=disable-wifi\n"
    assert run_module("boot_config", {"config_restored": radios}, check=True)["changed"]
    assert run_module("boot_config", {"config_restored": radios})["changed"]
    (root / "run/reboot-required").unlink()
    assert tree(root) == before
    run_module("boot_config", {"config_present": [*radios, {"setting": "arm_boost=1"}]})
    run_module("boot_config", {"config_restored": radios})
    assert path.read_text() == "[all]\ndtoverlay=disable-bt\narm_boost=1\n"
    assert (root / "boot/firmware/config.txt.before-bramble").read_bytes() == before["boot/firmware/config.txt"]


def test_unmounted_boot_partition_is_not_an_old_image(root: Path, run_module: Run) -> None:
    (root / "boot/cmdline.txt").write_text("has moved\n")
    request = {"cmdline_present": ["b"]}
    assert "no cmdline.txt" in run_module("boot_config", request)["msg"]
    done = run_module("boot_config", {**request, "optional": True})
    assert not done["changed"] and "no cmdline.txt" in str(done["warnings"])
    assert tree(root) == {"boot/cmdline.txt": b"has moved\n"}


def test_memory_cgroup_is_enabled_after_it_was_disabled_and_restored(root: Path, run_module: Run) -> None:
    """The changes of roles/microk8s: of cgroup_enable and cgroup_disable, the kernel takes the last."""
    before = b"console=tty1 cgroup_disable=memory cgroup_enable=cpuset root=/dev/mmcblk0p2 quiet\n"
    path = cmdline(root, before)
    assert run_module("boot_config", {"cmdline_present": ["cgroup_enable=memory", "cgroup_memory=1"]})["reboot_required"]
    assert path.read_bytes() == before[:-1] + b" cgroup_enable=memory cgroup_memory=1\n"
    # The role base changes another parameter in the meantime.
    run_module("boot_config", {"cmdline_present": ["fsck.repair=yes"]})
    run_module("boot_config", {"cmdline_restored": ["cgroup_enable", "cgroup_memory"]})
    assert path.read_bytes() == before[:-1] + b" fsck.repair=yes\n"


# Faults


@pytest.mark.parametrize(
    ("content", "request_", "message"),
    [
        (b"a b\nc\n", {"cmdline_present": ["d"]}, "more than one line"),
        (b"\na\n", {"cmdline_present": ["d"]}, "more than one line"),
        (b"a\rb", {"cmdline_absent": ["d"]}, "more than one line"),
        (b'a="b c\n', {"cmdline_present": ["d"]}, "not closed"),
        (b"a\n", {"cmdline_present": ["d", "b c"]}, "'b c' is not one kernel parameter"),
        (b"a\n", {"cmdline_present": ["d", "=c"]}, "'=c' is not one kernel parameter"),
        (b"a\n", {"cmdline_present": ["--"]}, "is not one kernel parameter"),
        (b"a\n", {"cmdline_absent": [""]}, "is not one kernel parameter"),
        (b"a\n", {"config_present": [{"setting": "a=1\nb=2"}]}, "is not a setting"),
        (b"a\n", {"config_present": [{"setting": "[pi4]"}]}, "is not a setting"),
        (b"a\n", {"config_present": [{"setting": "# a=1"}]}, "is not a setting"),
        (b"a\n", {"config_present": [{"setting": "a=1", "section": "[pi4]"}]}, "is not a section"),
        (b"a\n", {"config_present": [{"setting": "a=" + 97 * "1"}]}, "has 99 characters"),
    ],
)
def test_invalid_input_is_named_and_changes_nothing(
    root: Path, run_module: Run, content: bytes, request_: dict, message: str
) -> None:
    cmdline(root, content)
    (root / "boot/firmware/config.txt").write_text("x=1\n")
    before = tree(root)
    done = run_module("boot_config", {"config_present": [{"setting": "y=1"}], **request_})
    assert done["failed"] and message in done["msg"]
    assert tree(root) == before


def test_full_partition_leaves_the_old_file(machine: Machine, monkeypatch: pytest.MonkeyPatch, run_module: Run) -> None:
    point = machine.mount("-t", "tmpfs", "-o", "size=64k", "none")
    monkeypatch.setattr("ansible_collections.bramble.cluster.plugins.module_utils.boot.files.ROOT", point)
    (point / "boot/firmware").mkdir(parents=True)
    path = cmdline(point, b"root=/dev/mmcblk0p2\n")
    with (point / "fill").open("wb") as file:
        file.write(bytes(os.statvfs(point).f_bavail * os.statvfs(point).f_frsize))
    before = tree(point)
    done = run_module("boot_config", {"cmdline_present": ["b"]})
    assert done["failed"] and "No space left" in done["msg"] and str(path.parent) in done["msg"]
    assert tree(point) == before
    (point / "fill").unlink()
    (point / "run").mkdir()
    assert run_module("boot_config", {"cmdline_present": ["b"]})["changed"]
    assert path.read_bytes() == b"root=/dev/mmcblk0p2 b\n"


def test_fat_partition_accepts_no_modes(root: Path, run_module: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.fchmod", refuse)
    path = cmdline(root, b"a")
    assert run_module("boot_config", {"cmdline_present": ["b"]})["changed"] and path.read_bytes() == b"a b"


# cmdline.txt

blank = st.text(" \t", min_size=1, max_size=2)
name = st.sampled_from(["root", "console", "cgroup_enable", "a.b", "a-b", "quiet", "é", "ro"])
value = st.one_of(st.just(""), st.sampled_from(["=", "=1", "=x,y=z", '="p q"', "=tty1"]))
parameter = st.builds(str.__add__, name, value)
asked = parameter.filter(str.isascii)
line = st.builds(
    lambda first, words, blanks, end: first + "".join(a + b for a, b in zip(words, [*blanks, end], strict=False)),
    st.text(" ", max_size=2),
    st.shared(st.lists(st.one_of(parameter, st.just("--")), max_size=6), key="words"),
    st.shared(st.lists(st.one_of(parameter, st.just("--")), max_size=6), key="words").flatmap(
        lambda words: st.lists(blank, min_size=max(0, len(words) - 1), max_size=max(0, len(words) - 1))
    ),
    st.sampled_from(["", "\n", "\r\n", " \n", "\n\n"]),
)


def words(text: str) -> list[str]:
    """Return all parameters, including those of init. No example has more than one blank in quotes."""
    return text.replace('"p q"', '"p_q"').split()


@given(line, asked)
def test_set_parameter_exists_and_all_others_stay(text: str, wanted: str) -> None:
    after = kernel.set_parameter(text, wanted)
    assert wanted in kernel.kernel_parameters(after)
    key = wanted.partition("=")[0]
    same = [key, wanted][key in kernel.REPEATED_PARAMETERS]
    same_name = [p for p in kernel.kernel_parameters(after) if (p if "=" in same else p.partition("=")[0]) == same]
    assert same_name[-1] == wanted
    rest_before, rest_after = ([p for p in kernel.kernel_parameters(t) if p.partition("=")[0] != key] for t in (text, after))
    assert rest_before == rest_after
    assert len(words(after)) - len(words(text)) in (0, 1)
    assert after.count("\n") == text.count("\n") and after.count("\r") == text.count("\r")


@given(line, asked)
def test_setting_a_parameter_is_idempotent(text: str, wanted: str) -> None:
    once = kernel.set_parameter(text, wanted)
    assert kernel.set_parameter(once, wanted) == once


@given(line, asked)
def test_removing_a_new_parameter_restores(text: str, wanted: str) -> None:
    key = wanted.partition("=")[0]
    if all(p.partition("=")[0] != key for p in kernel.kernel_parameters(text)):
        assert kernel.remove_parameter(kernel.set_parameter(text, wanted), key) == text
        assert kernel.restore_parameter(kernel.set_parameter(text, wanted), key, text) == text


@given(line, asked)
def test_removed_parameter_is_gone_and_all_others_stay(text: str, removed: str) -> None:
    after = kernel.remove_parameter(text, removed)
    match = (lambda p: p == removed) if "=" in removed else (lambda p: p.partition("=")[0] == removed)
    assert kernel.kernel_parameters(after) == [p for p in kernel.kernel_parameters(text) if not match(p)]
    assert kernel.remove_parameter(after, removed) == after


@given(line, st.lists(asked, max_size=3))
def test_restored_parameters_are_the_original_ones(text: str, changes: list[str]) -> None:
    after = text
    for wanted in changes:
        after = kernel.set_parameter(after, wanted)
    for key in {wanted.partition("=")[0] for wanted in changes}:
        after = kernel.restore_parameter(after, key, text)
    assert set(kernel.kernel_parameters(after)) == set(kernel.kernel_parameters(text))


def test_any_bytes_survive(root: Path, run_module: Run) -> None:
    path = cmdline(root, b"a\xff\xa0b=\xe9 c\x85 d\r\n")
    assert run_module("boot_config", {"cmdline_present": ["e"]}, diff=True)["changed"]
    assert path.read_bytes() == b"a\xff\xa0b=\xe9 c\x85 d e\r\n"


def test_parameters_of_init_stay() -> None:
    assert kernel.set_parameter("a -- b=1 --c\n", "b=2") == "a b=2 -- b=1 --c\n"
    assert kernel.remove_parameter("b a  -- b", "b") == "a  -- b"


# config.txt

setting = st.sampled_from(["arm_boost=1", "arm_boost=0", "dtparam=audio=on", "dtparam=spi=on", "dtoverlay=dwc2", "gpu_mem=16"])
section = st.sampled_from(["all", "pi4", "cm4", "pi5", "hdmi:0"])
config_line = st.one_of(
    setting, section.map("[{}]".format), st.sampled_from(["", "# arm_boost=1", " gpu_mem = 1", "é", "[", "[pi4", "#[all]"])
)
config = st.builds(
    lambda lines, newline, end: newline.join(lines) + end,
    st.lists(config_line, max_size=12),
    st.just("\n"),
    st.sampled_from(["", "\n"]),
) | st.lists(config_line, max_size=8).map("\r\n".join)


@given(st.text() | config)
def test_config_round_trips(text: str) -> None:
    assert config_txt.join_lines(config_txt.parse_lines(text)) == text
    assert config_txt.remove_setting(text, "not_there") == text


@given(config, setting, section)
def test_set_setting_is_in_its_section_and_all_others_stay(text: str, wanted: str, where: str) -> None:
    after = config_txt.set_setting(text, wanted, where)
    assert config_txt.set_setting(after, wanted, where) == after
    filters = () if where == "all" else (where,)
    key = wanted.partition("=")[0]
    same_name = [line.text.strip() for line in config_txt.parse_lines(after) if line.filters == filters and line.key == key]
    assert wanted in same_name and (key in config_txt.REPEATED_SETTINGS or same_name[-1] == wanted)

    def others(text: str) -> list[tuple[str, tuple[str, ...]]]:
        changed = (filters, key)
        lines = config_txt.parse_lines(text)
        return [(line.text, line.filters) for line in lines if line.key and (line.filters, line.key) != changed]

    assert others(after) == others(text)
    comments = [[line.text for line in config_txt.parse_lines(t) if not line.key and line.text[:1] != "["] for t in (text, after)]
    assert comments[0] == comments[1]
    assert after.endswith("\n") == text.endswith("\n") or not text
    assert {line.end for line in config_txt.parse_lines(after)} <= {line.end for line in config_txt.parse_lines(text)} | {
        "\n",
        "",
    } or "\r" in text


@given(config, setting, section)
def test_removing_a_new_setting_restores(text: str, wanted: str, where: str) -> None:
    filters = () if where == "all" else (where,)
    if (
        any(line.filters == filters for line in config_txt.parse_lines(text))
        and config_txt.remove_setting(text, wanted.partition("=")[0], where) == text
    ):
        assert config_txt.remove_setting(config_txt.set_setting(text, wanted, where), wanted, where) == text


@pytest.mark.parametrize(
    ("text", "wanted", "where", "after"),
    [
        ("", "a=1", "all", "a=1\n"),
        ("[pi4]\na=1\n", "a=2", "all", "[pi4]\na=1\n[all]\na=2\n"),
        ("a=1", "b=2", "all", "a=1\nb=2"),
        ("a=1\r\nb=2", "c=3", "all", "a=1\r\nb=2\r\nc=3"),
        ("a=1\n\n# of the Pi 4\n[pi4]\nb=2\n", "c=3", "all", "a=1\nc=3\n\n# of the Pi 4\n[pi4]\nb=2\n"),
        ("a=1\n", "b=2", "pi4", "a=1\n[pi4]\nb=2\n[all]\n"),
        # The last setting counts, but not those of other sections.
        ("a=1\na=2\n[pi4]\na=3\n", "a=4", "all", "a=1\na=4\n[pi4]\na=3\n"),
        # One model replaces another, a display narrows it.
        ("[pi4]\n[pi5]\na=1\n[hdmi:0]\na=2\n", "a=3", "pi5", "[pi4]\n[pi5]\na=3\n[hdmi:0]\na=2\n"),
        # After the overlay it would be a parameter of the overlay.
        (
            "dtparam=spi=on\ndtoverlay=vc4-kms-v3d\n",
            "dtparam=audio=off",
            "all",
            "dtparam=spi=on\ndtparam=audio=off\ndtoverlay=vc4-kms-v3d\n",
        ),
        (
            "a=1\n# driver\ndtoverlay=vc4\n[all]\n",
            "dtparam=audio=off",
            "all",
            "a=1\ndtparam=audio=off\n# driver\ndtoverlay=vc4\n[all]\n",
        ),
        ("dtoverlay=vc4\na=1\n", "dtparam=audio=off", "all", "dtparam=audio=off\ndtoverlay=vc4\na=1\n"),
        ("dtoverlay=vc4\n[pi4]\na=1\n", "dtparam=audio=off", "pi4", "dtoverlay=vc4\n[pi4]\na=1\ndtparam=audio=off\n"),
    ],
)
def test_position_of_a_new_setting(text: str, wanted: str, where: str, after: str) -> None:
    assert config_txt.set_setting(text, wanted, where) == after
