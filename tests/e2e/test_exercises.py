"""The lab's exercises: each is solved by a script on the client, then its defence is tested, then the nodes are as before.

The tests depend on each other and run in their order. The test writes the isolation proof itself, in place of
playbooks/isolated_lab.yml, so that it can test what happens without one. It checks that the stand-ins have no default route.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, rehearsal
from tests.support.rehearsal import INVENTORY, Play, play

from . import conftest

OVERLAY = Path(__file__).parent / "exercises"
SOLUTIONS = Path(__file__).parent / "solutions"
STATE = ROOT / ".state/h-exercises"
NODES = ["pi-client", "pi-01"]
TARGET = "10.77.124.101"
PROOF = "/run/bramble-lab/proof.json"
# These paths are not compared: files that any login, sudo or apt writes, and the bundle server, from which the tools come.
IGNORED_PATHS = "|".join(
    [
        *(
            "var/log",
            "var/cache",
            "var/backups",
            "var/tmp",
            "var/lib/ucf/hashfile[.0-9]*",
            "var/lib/cloud",
            "var/lib/NetworkManager",
            "etc/[a-z]*-",
            "etc/.*[.]cache",
        ),
        *("var/lib/systemd/(timers|random-seed|timesync|credential.secret)", "var/lib/dpkg/(status-old|lock.*|triggers)"),
        *("var/lib/apt/(extended_states|lists)", "home/pi/[.]ansible", "root/[.]ansible"),
        *("etc/systemd/system/(multi-user.target.wants/)?bramble-bundle.service", "var/lib/bramble-bundle"),
    ]
)
FIND_OPTIONS = f"-regextype posix-extended -regex '({IGNORED_PATHS})(/.*)?' -prune -o"
READ_STATE = (
    f"cd / && find etc home opt root usr var {FIND_OPTIONS} -printf '%y %m %u %g %p %l\\n' | sort; "
    f"find etc {FIND_OPTIONS} -type f -print0 | sort -z | xargs -0 sha256sum; "
    "dpkg-query --show; ls /var/lib/bramble-bundle || true"
)

# The tests take up to a quarter of an hour, so only `make test-slow` runs them.
pytestmark = pytest.mark.slow

playbook = partial(play, inventory=[*INVENTORY, OVERLAY])
output = partial(conftest.node_output, STATE)


def lab(tags: str = "all", check: bool = True, **variables: Any) -> Play:
    return playbook("../tests/e2e/exercises", variables=variables, arguments=f"--tags {tags}", check=check)


def output_as_root(node: str, command: str) -> str:
    return output(node, f"sudo sh -c {shlex.quote(command)}")


def run_solution(name: str, *arguments: str) -> tuple[int, str]:
    """Run a solution on the client; return its exit code and its output."""
    command = f"sh /tmp/{name}.sh {shlex.join(arguments)}"
    done = rehearsal.ssh(STATE, "pi-client", command, timeout=240)
    return done.returncode, (done.stdout + done.stderr).strip()


def write_proof(**changes: Any) -> None:
    """Write an isolation proof on each node, as playbooks/isolated_lab.yml does."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    proof = {"at": at, "subnet": "10.77.124.0/24", "forbidden": 30, "reached": 0, "allowed": 6, "failed": 0, **changes}
    for node in NODES:
        output_as_root(node, f"mkdir -p /run/bramble-lab && printf %s {shlex.quote(json.dumps(proof))} >{PROOF}")


def secrets(kind: str = "secrets") -> dict[str, Any]:
    path = STATE / f"lab/{kind}.json"
    assert path.stat().st_mode & 0o077 == 0
    return json.loads(path.read_text())


@pytest.fixture(scope="module", autouse=True)
def before() -> Iterator[dict[str, str]]:
    """Boot the nodes; yield the state of each; remove them, even if tests have failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NODES", "1")
        try:
            playbook("cards")
            playbook("rehearse")
            for node in NODES:
                # Without a default route the network of the stand-ins is isolated, as the lab's network is.
                assert output(node, "ip route show default; ip -6 route show default") == ""
                # These commands create the folders of Ansible and apt, so that they are not taken for changes later.
                output_as_root(node, "mkdir -p /root/.ansible && apt-get -qq check")
            script: list[str | Path] = ["scp", "-q", "-F", STATE / "ssh/ssh_config", *SOLUTIONS.glob("*.sh"), "pi-client:/tmp"]
            subprocess.run(script, check=True)
            yield {node: output_as_root(node, READ_STATE) for node in NODES}
        finally:
            playbook("rehearse", variables={"cluster_state": "absent"})
            shutil.rmtree(STATE, ignore_errors=True)


def test_unsupported_tools_are_refused_before_anything_is_changed(before: dict[str, str]) -> None:
    run = lab("tools", check=False, lab_tools_set="kali")
    assert (
        "kali's own image" in run.failed["pi-client"] and "Nothing was changed" in run.failed["pi-client"] and run.changes() == []
    )
    output_as_root("pi-client", "echo 'deb http://mirror.example/kali kali-rolling main' >/etc/apt/sources.list.d/kali.list")
    run = lab("tools", check=False)
    assert "has the suite kali-rolling" in run.failed["pi-client"] and run.changes() == []
    output_as_root("pi-client", "rm /etc/apt/sources.list.d/kali.list")


def test_a_dry_run_changes_nothing(before: dict[str, str]) -> None:
    assert "pi-01: Create the users of the targets" in [
        change.replace("lab_target : ", "") for change in lab("all --check").changes()
    ]
    for node in NODES:
        assert output_as_root(node, READ_STATE) == before[node]


def test_tools_are_installed_and_a_second_run_changes_nothing() -> None:
    lab("tools")
    assert lab("tools").changes() == []


def test_every_package_is_in_debian() -> None:
    """All packages are in apt's lists from which the bundle was made, including those that this test does not install."""
    lists = ROOT.glob(".cache/bundles/.lists-*-*/*_main_binary-*_Packages*")
    names: dict[str, set[str]] = {}
    for path in lists:
        found = re.search(r"_dists_([a-z]+)", path.name)
        text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], capture_output=True, text=True, check=True).stdout
        names.setdefault(found[1] if found else "", set()).update(re.findall(r"^Package: (\S+)$", text, re.MULTILINE))
    assert "trixie" in names
    defaults = (ROOT / "roles/lab_tools/defaults/main.yml").read_text()
    groups = re.search(r"^lab_tools_packages:\n((?:  .*\n)+)", defaults, re.MULTILINE)
    assert groups
    wanted = set(re.findall(r"[\[' ]([a-z0-9][a-z0-9+.-]{2,})(?=[,'\]])", re.sub(r"#.*", "", groups[1]))) - {"bookworm"}
    assert {"nmap", "hydra", "suricata", "python3-scapy", "testssl.sh"} <= wanted and len(wanted) > 35
    for release, known in names.items():
        assert wanted - known <= ({"suricata"} if release == "bookworm" else set())


def test_no_target_starts_and_no_tool_runs_without_a_fresh_proof() -> None:
    run = lab("targets", check=False)
    assert "there is no isolation proof" in run.failed["pi-01"] and "No target was started" in run.failed["pi-01"]
    assert run_solution("shop", f"{TARGET}:8080")[0] == 77
    for changes in ({"reached": 1}, {"subnet": "10.0.0.0/8"}, {"at": "2026-01-01T00:00:00Z"}):
        write_proof(**changes)
        assert run_solution("desk", TARGET, "8081", "/tmp/desk")[0] == 77
    write_proof()


@pytest.fixture(scope="module")
def targets() -> Play:
    return lab("targets")


def test_targets_listen_at_the_lab_address_only_and_are_not_enabled(targets: Play) -> None:
    assert lab("targets").changes() == []
    listening = output("pi-01", "ss -Hltn 'sport > 2000'")
    assert sorted(re.findall(r"(\S+):(2222|8080|8081)\b", listening)) == [(TARGET, port) for port in ("2222", "8080", "8081")]
    for unit in ("shop", "desk", "ssh"):
        assert output("pi-01", f"systemctl is-enabled bramble-lab-{unit} || true") == "static"
        assert output("pi-01", f"stat -c %U /proc/$(systemctl show -P MainPID bramble-lab-{unit})") != "root"
        exposure = output("pi-01", f"systemd-analyze security --no-pager bramble-lab-{unit} | tail -n 1")
        assert float(re.findall(r"[0-9]+[.][0-9]", exposure)[0]) <= 2.5
    # Other users cannot read the secrets, and the intern cannot log in to the node.
    assert rehearsal.ssh(STATE, "pi-01", "cat /opt/bramble-lab/targets/*.json /opt/bramble-lab/targets/passwd").stdout == ""
    assert "intern" not in output_as_root("pi-01", "cat /etc/passwd /etc/shadow")
    output_as_root("pi-01", f"mv {PROOF} {PROOF}.away")
    assert rehearsal.ssh(STATE, "pi-01", "sudo systemctl restart bramble-lab-shop").returncode != 0
    output_as_root("pi-01", f"mv {PROOF}.away {PROOF} && systemctl restart bramble-lab-shop")


def test_the_tools_refuse_targets_outside_the_lab() -> None:
    for command in ("nmap 198.51.100.1", "nmap 10.77.124.0/23", "curl http://[fd00::1]/", "sqlmap -u http://198.51.100.1/?q=1"):
        done = rehearsal.ssh(STATE, "pi-client", f"lab {command}")
        assert done.returncode == 77 and "refused" in done.stderr
    assert re.search(r"2222/tcp open", output("pi-client", f"lab nmap -p 2222 {TARGET}"))
    # sqlmap would also read targets from standard input.
    sqlmap_output = output(
        "pi-client", f"echo http://198.51.100.1/?q=1 | lab sqlmap -u 'http://{TARGET}:8080/price?name=tea' -p name || true"
    )
    assert "198.51.100.1" not in sqlmap_output


def test_the_exercises_are_solved(targets: Play, tmp_path: Path) -> None:
    known = secrets()
    code, answer = run_solution("shop", f"{TARGET}:8080")
    assert code == 0 and answer.splitlines()[-1] == known["shop"]["coupon"]
    assert run_solution("ssh", TARGET, "2222") == (0, known["ssh"]["password"])
    code, answer = run_solution("desk", TARGET, "8081", "/tmp/desk")
    assert (code, answer) == (0, f"clerk:{known['desk']['password']}")
    found = dict(line.split(":")[:2] for line in run_solution("hashes", "/tmp/desk")[1].splitlines())
    assert found == known["solution"]["salted"]
    assert run_solution("audit") == (0, "9")

    # The rainbow tables are computed on the control machine.
    digests = re.findall(r"^\w+:([0-9a-f]{32})$", output("pi-client", "cat /tmp/desk/unsalted.txt"), re.MULTILINE)

    def rainbow(*words: str) -> str:
        command = [sys.executable, "-m", "bramble", "rainbow", *words, "--folder", "tables", "--on", "workstation"]
        own = {**os.environ, "PYTHONPATH": str(ROOT / "workloads/src")}
        done = subprocess.run(
            command, cwd=tmp_path, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return done.stdout

    rainbow("build", "--charset", "lower", "--length", "4", "--tables", "5", "--chain", "100")
    texts = re.findall(r"^[0-9a-f]{32}  '([a-z]{4})'$", rainbow("crack", *digests), re.MULTILINE)
    # Rainbow tables find nearly all of the passwords.
    assert len(texts) >= 4 and set(texts) <= set(known["solution"]["unsalted"].values())


def test_the_defences_hold() -> None:
    lab("targets", lab_target_defended=True)
    known = secrets("secrets-defended")
    code, answer = run_solution("shop", f"{TARGET}:8080")
    assert code != 0 and "do not appear to be injectable" in answer and "BRAMBLE-" not in answer
    assert "BRAMBLE-" not in answer
    assert run_solution("ssh", TARGET, "2222")[1] != known["ssh"]["password"]
    key: list[str | Path] = [
        "ssh",
        "-F",
        STATE / "ssh/ssh_config",
        "-p",
        "2222",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ]
    inside = subprocess.run(
        [*key, f"intern@{TARGET}", "id -un; cat /opt/bramble-lab/targets/desk.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert inside.stdout == "intern\n" and "denied" in inside.stderr.lower()
    assert run_solution("desk", TARGET, "8081", "/tmp/quiet") == (1, "no login was recorded")
    assert "The desk answered the login with HTTP status 200" in output(
        "pi-client", "journalctl -u bramble-lab-visit -n 1 -o cat"
    )
    output_as_root("pi-client", f"printf %s {shlex.quote(known['desk']['files']['salted.txt'])} >/tmp/quiet/salted.txt")
    assert run_solution("hashes", "/tmp/quiet", "crypt") == (0, "")
    assert run_solution("audit") == (0, "2")


def test_everything_can_be_removed(before: dict[str, str]) -> None:
    lab("targets", cluster_state="absent")
    lab("tools", cluster_state="absent")
    assert not (STATE / "lab").exists()
    for node in NODES:
        old, new = (set(text.splitlines()) for text in (before[node], output_as_root(node, READ_STATE)))
        assert (sorted(new - old), sorted(old - new)) == ([], []), node
