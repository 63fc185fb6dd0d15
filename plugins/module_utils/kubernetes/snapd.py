"""Query snapd on this node through its REST API: https://snapcraft.io/docs/snapd-api."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from pathlib import Path
from typing import Any

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError

SOCKET = Path("/run/snapd.socket")
SNAPS_FOLDER = Path("/var/lib/snapd/snaps")


class _UnixConnection(http.client.HTTPConnection):
    """A connection to snapd's socket."""

    def connect(self) -> None:
        """Connect to the socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(SOCKET))


def get_resource(path: str) -> Any:
    """Return the result of a GET request. Raises BrambleError."""
    connection = _UnixConnection("localhost")
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BrambleError(
            f"snapd does not answer at {SOCKET} ({error}). Check that it is installed: systemctl status snapd.socket"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise BrambleError(f"snapd refuses {path}: {answer.get('result', {}).get('message', answer)}")
    return answer["result"]


def installed_snaps() -> dict[str, dict[str, Any]]:
    """Return the installed snaps, by name: revision, version, channel (tracked), held, confinement, asserted.

    Raises BrambleError.
    """
    return {
        snap["name"]: {
            "revision": snap["revision"],
            "version": snap["version"],
            "channel": snap.get("tracking-channel", ""),
            "held": bool(snap.get("hold")),
            "confinement": snap.get("confinement", ""),
            # The revisions of unsigned local files are x1, x2 and so on.
            "asserted": not snap["revision"].startswith("x"),
        }
        for snap in get_resource("/v2/snaps")
    }


def snap_sha256(name: str, revision: str) -> str:
    """Return the SHA-256 of the file that a snap was installed from. Raises OSError."""
    with (SNAPS_FOLDER / f"{name}_{revision}.snap").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
