"""Run the playbooks of the project as a user does, and record what they did. The demo and the end-to-end tests use this."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_runner.interface import run as run_playbook

from . import ROOT

INVENTORY = (ROOT / "inventory/hosts.yml", ROOT / "inventory/rehearsal")
# The inventory of ansible.cfg.
HARDWARE = (ROOT / "inventory/hosts.yml", ROOT / "inventory/active.yml")


class PlaybookFailed(Exception):
    """A playbook has failed; the message has the failed tasks."""


@dataclass
class Play:
    """The result of one ansible-playbook run: the number of changes and the failure by host, and the events of the runner."""

    playbook: str
    status: str
    changed: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def changes(self) -> list[str]:
        """Return the tasks that changed something, as "host: task"."""
        return [
            f"{event['event_data'].get('host')}: {event['event_data'].get('task')}"
            for event in self.events
            if event["event"] == "runner_on_ok" and event["event_data"].get("res", {}).get("changed")
        ]


def ssh_command(state: Path, node: str, command: str, *options: str) -> list[str | Path]:
    """Return the ssh command that runs a command on a node, and accepts only the host key of its card.

    :param state: the folder of the cluster's keys, .state/<cluster_name>
    :param options: further options of ssh(1)
    """
    return ["ssh", "-F", state / "ssh/ssh_config", "-o", "BatchMode=yes", *options, node, command]


def ssh(state: Path, node: str, command: str, *options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command on a node. The parameters are those of `ssh_command`.

    :raises subprocess.TimeoutExpired: after `timeout` seconds
    """
    return subprocess.run(
        ssh_command(state, node, command, *options), capture_output=True, text=True, check=False, timeout=timeout
    )


def write_file(state: Path, node: str, path: str, content: bytes) -> None:
    """Write a file on a node as root, and create its folder. The state is that of `ssh_command`."""
    subprocess.run(ssh_command(state, node, f"sudo install -D /dev/stdin {path}"), input=content, check=True, timeout=60)


def _message(result: dict[str, Any]) -> str:
    message = result.get("msg", result)
    items = [item.get("msg") for item in result.get("results", []) if isinstance(item, dict) and item.get("failed")]
    text = "\n".join(str(item) for item in items) if items else message
    text = "\n".join(map(str, text)) if isinstance(text, list) else str(text)
    return text if not result.get("stderr") else f"{text}\n{result['stderr']}"


@contextlib.contextmanager
def signals_restored() -> Iterator[None]:
    """Restore the handlers of signals. ansible-runner cancels a playbook by SIGINT and SIGTERM, and ignores both after it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def play(
    playbook: str,
    *,
    inventory: Sequence[Path] = INVENTORY,
    variables: dict[str, Any] | None = None,
    arguments: str = "",
    environment: dict[str, str] | None = None,
    log: Path | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    check: bool = True,
) -> Play:
    """Run playbooks/PLAYBOOK.yml.

    :param inventory: the inventory sources; later ones override earlier ones
    :param arguments: further arguments of ansible-playbook, for example "--limit pi-03"
    :param environment: further environment variables, for example ANSIBLE_FORKS
    :param log: a file to which the output of Ansible is appended
    :param on_event: is called with every event of the runner
    :raises PlaybookFailed: when check is set and any host failed or was unreachable
    """
    run = Play(playbook, "")

    def handle_event(event: dict[str, Any]) -> bool:
        run.events.append(event)
        data = event.get("event_data", {})
        if event["event"] in {"runner_on_failed", "runner_on_unreachable"} and not data.get("ignore_errors"):
            run.failed[data.get("host", "?")] = f"{data.get('task')}: {_message(data.get('res', {}))}"
        if log and event.get("stdout"):
            with log.open("a", encoding="utf-8") as file:
                file.write(event["stdout"] + "\n")
        if on_event:
            on_event(event)
        return False

    with tempfile.TemporaryDirectory(prefix="bramble-runner-") as folder, signals_restored():
        result = run_playbook(
            private_data_dir=folder,
            project_dir=str(ROOT),
            playbook=str(ROOT / f"playbooks/{playbook}.yml"),
            inventory=[str(source) for source in inventory],
            extravars=variables or {},
            cmdline=arguments or None,
            envvars={
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "PATH": os.environ["PATH"],
                **(environment or {}),
            },
            event_handler=handle_event,
            quiet=True,
        )
        stats = result.stats or {}
        run.status, run.changed = str(result.status), dict(stats.get("changed", {}))
        if result.status != "successful" and not run.failed:
            # No task has failed, so ansible-playbook itself reports an error.
            run.failed["ansible-playbook"] = "\n".join(result.stdout.read().strip().splitlines()[-15:])
    if run.status == "canceled":
        raise KeyboardInterrupt
    if check and run.status != "successful":
        details = "\n".join(f"{host}: {message}" for host, message in run.failed.items())
        raise PlaybookFailed(f"playbooks/{playbook}.yml {arguments} ended as {run.status}.\n{details}")
    return run
