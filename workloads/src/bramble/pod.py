"""The program of the pods in Kubernetes. A container that ends takes its files along, so it waits until they are fetched.

python -m bramble.pod run pi --report /report ...     # the command `bramble`; then wait
python -m bramble.pod share 8 pi --report /report ... # the share of this pod, by its index
python -m bramble.pod fetch                           # in the same container: wait for the end, write the report as a tar
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

from bramble import BrambleError, UsageError

REPORT = Path(os.environ.get("BRAMBLE_REPORT", "/report"))
KEEP_SECONDS = 600.0
"""Seconds that a report is kept for whoever fetches it. Deleting the pod ends it at once."""


def exit_code_path() -> Path:
    """The file that says how `bramble` ended, when it has; beside the report, not in it."""
    return Path(os.environ.get("TMPDIR", "/tmp"), "ended")


def pod_index() -> int:
    """The number of this pod, from 0: that of an Indexed Job, else of a StatefulSet (the end of the name). Raises UsageError."""
    given = os.environ.get("JOB_COMPLETION_INDEX") or (re.findall(r"-(\d+)$", socket.gethostname()) or [""])[0]
    if not given.isdigit():
        raise UsageError(f"{socket.gethostname()} is no pod of an Indexed Job (JOB_COMPLETION_INDEX) or a StatefulSet (NAME-0)")
    return int(given)


def run_command(arguments: list[str]) -> int:
    """Run `bramble`, keep what it wrote, and end as it did. SIGTERM (the pod is deleted) is its Ctrl-C, and ends the keeping."""
    exit_code_path().unlink(missing_ok=True)
    deleted = threading.Event()
    with subprocess.Popen([sys.executable, "-m", "bramble", *arguments]) as process:

        def delete(*_: object) -> None:
            deleted.set()
            process.send_signal(signal.SIGINT)  # not sent to one that has ended

        signal.signal(signal.SIGTERM, delete)
        code = process.wait()
    # Whole or not at all: somebody waits for it.
    draft = exit_code_path().with_suffix(".part")
    draft.write_text(str(code))
    draft.rename(exit_code_path())
    deleted.wait(KEEP_SECONDS)
    return code


def write_report() -> int:
    """Wait until `bramble` has ended, write the report as a tar to standard output, and say on standard error how it ended."""
    while not exit_code_path().exists():
        time.sleep(0.2)
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for path in sorted(REPORT.iterdir()):
            tar.add(path, path.name)
    print(f"bramble ended with {exit_code_path().read_text()}", file=sys.stderr)
    return 0


def main(words: list[str]) -> int:
    """Do what is asked for; the exit code."""
    try:
        match words:
            case ["run", line]:
                return run_command(shlex.split(line))
            case ["share", count, line] if count.isdigit():
                return run_command([*shlex.split(line), "--share", f"{pod_index() + 1}/{count}"])
            case ["fetch"]:
                return write_report()
        raise UsageError(f"{words} is nothing that a pod does: run LINE, share N LINE or fetch")
    except BrambleError as error:
        print(f"bramble: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
