"""What blkid recognises on a disk by its signatures: file systems, RAID members, partition tables."""

from __future__ import annotations

from collections.abc import Collection

from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program
from ansible_collections.bramble.cluster.plugins.module_utils.core.tools import TOOL_ENV

# The exit codes of blkid(8): something was found, nothing, several kinds at once, of which none is named.
_FOUND, _NOTHING, _AMBIVALENT = 0, 2, 8


def probe_signatures(device: str, *options: str, pass_fds: Collection[int] = ()) -> dict[str, str] | None:
    """Return the tags that blkid finds, such as TYPE, PTTYPE and LABEL; none for nothing, None for several kinds at once.

    :param device: a device or a file
    :param options: further options of blkid(8), such as --offset
    :param pass_fds: descriptors that `device` names below /proc/self/fd
    :raises BrambleError: when blkid is not installed, or fails
    """
    command = ["blkid", "--probe", *options, "--output", "export", device]
    result = run_program(command, env=TOOL_ENV, pass_fds=pass_fds, exit_codes=(_FOUND, _NOTHING, _AMBIVALENT))
    if result.returncode == _AMBIVALENT:
        return None
    lines = result.stdout.decode(errors="surrogateescape").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
