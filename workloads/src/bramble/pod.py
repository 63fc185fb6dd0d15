"""The program of the pods in Kubernetes. The files of a container are lost when it ends, so it waits until they are fetched.

python -m bramble.pod run "pi --report /report"       # runs `bramble pi --report /report`, then waits
python -m bramble.pod share 8 "pi --report /report"   # computes one of 8 shares, by the index of this pod
python -m bramble.pod fetch                           # in the same container: waits for the end, writes the report as a tar
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
from bramble.atomic import replaced

REPORT = Path(os.environ.get("BRAMBLE_REPORT", "/report"))
KEEP_SECONDS = 600.0
"""Seconds that the pod waits for its report to be fetched. Deleting the pod ends it at once."""


def exit_code_path() -> Path:
    """Return the path of the file that has the exit code of `bramble` once it has ended; it is not part of the report."""
    return Path(os.environ.get("TMPDIR", "/tmp"), "ended")


def pod_index() -> int:
    """Return the number of this pod, from 0, in an Indexed Job, or in a StatefulSet (the end of its name). Raises UsageError."""
    given = os.environ.get("JOB_COMPLETION_INDEX") or (re.findall(r"-(\d+)$", socket.gethostname()) or [""])[0]
    if not given.isdigit():
        raise UsageError(
            f"{socket.gethostname()} is not a pod of an Indexed Job (JOB_COMPLETION_INDEX) or of a StatefulSet (NAME-0); "
            "`share` works only in such a pod"
        )
    return int(given)


def run_command(arguments: list[str]) -> int:
    """Run `bramble`, wait for its report to be fetched, and return its exit code.

    SIGTERM (the pod is deleted) interrupts `bramble` as Ctrl-C does, and ends the waiting.
    """
    exit_code_path().unlink(missing_ok=True)
    deleted = threading.Event()
    with subprocess.Popen([sys.executable, "-m", "bramble", *arguments]) as process:

        def delete(*_: object) -> None:
            deleted.set()
            process.send_signal(signal.SIGINT)  # has no effect on a process that has ended

        signal.signal(signal.SIGTERM, delete)
        code = process.wait()
    with replaced(exit_code_path()) as file:  # `fetch` waits for it, and must not read a part
        file.write(str(code).encode())
    deleted.wait(KEEP_SECONDS)
    return code


def write_report() -> int:
    """Wait until `bramble` has ended, write the report as a tar to standard output and the exit code to standard error."""
    while not exit_code_path().exists():
        time.sleep(0.2)
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for path in sorted(REPORT.iterdir()):
            tar.add(path, path.name)
    print(f"bramble ended with {exit_code_path().read_text()}", file=sys.stderr)
    return 0


def main(words: list[str]) -> int:
    """Run one of the commands and return the exit code."""
    try:
        match words:
            case ["run", line]:
                return run_command(shlex.split(line))
            case ["share", count, line] if count.isdigit():
                return run_command([*shlex.split(line), "--share", f"{pod_index() + 1}/{count}"])
            case ["fetch"]:
                return write_report()
        raise UsageError(
            f"unknown arguments {words}; use `run LINE`, `share N LINE` or `fetch`, with the arguments of bramble in LINE"
        )
    except BrambleError as error:
        print(f"bramble: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
