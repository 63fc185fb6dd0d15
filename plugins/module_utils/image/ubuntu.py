"""The newest image in a folder of Ubuntu's release server, from its signed SHA256SUMS."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient
from ansible_collections.bramble.cluster.plugins.module_utils.image.release import Release
from ansible_collections.bramble.cluster.plugins.module_utils.image.signature import check_signature


def newest_ubuntu(base: str, folder: str, pattern: str, signer: str, key: bytes, http: HttpClient) -> Release:
    """Return the newest file that matches `pattern` (fnmatch) in a folder's SHA256SUMS, which `signer` has signed.

    Raises BrambleError.
    """
    folder_url = f"{base.rstrip('/')}/{folder}/"
    sums = http.read(f"{folder_url}SHA256SUMS", 2**20)
    try:
        check_signature(sums, http.read(f"{folder_url}SHA256SUMS.gpg", 2**16), key, signer)
    except BrambleError as error:
        raise BrambleError(f"{folder_url}SHA256SUMS: {error}") from None
    found = dict(_sums(sums, pattern))
    if not found:
        raise BrambleError(f"no file in {folder_url}SHA256SUMS matches {pattern}")
    name = max(found, key=_version)
    headers = http.head(folder_url + name)
    length, date = headers.get("Content-Length", ""), email.utils.parsedate(headers.get("Last-Modified"))
    return Release(
        folder_url + name,
        found[name],
        int(length) if re.fullmatch("[0-9]{1,15}", length) else None,
        release_date="{:04}-{:02}-{:02}".format(*date) if date else "",
    )


def _sums(text: bytes, pattern: str) -> Iterator[tuple[str, str]]:
    """Yield the (name, SHA-256) of the files that match a pattern (fnmatch)."""
    for line in text.decode("ascii", errors="replace").splitlines():
        found = re.fullmatch(r"([0-9a-f]{64}) [ *]([!-.0-~]+)", line)
        if found and fnmatchcase(found[2], pattern):
            yield found[2], found[1]


def _version(name: str) -> list[tuple[int, str]]:
    """Return a sort key by version numbers: 24.04.10 comes after 24.04.9."""
    return [(int(digits or 0), word) for digits, word in re.findall(r"([0-9]+)|([^0-9]+)", name)]
