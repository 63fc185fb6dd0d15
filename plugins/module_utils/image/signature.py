"""Check that a file is signed by the pinned key, and get this key."""

from __future__ import annotations

import base64
import binascii
import os
import re
import tempfile

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import HttpClient


def check_signature(data: bytes, signature: bytes, key: bytes, signer: str) -> None:
    """Check that `data` is signed by the key with the fingerprint `signer`. Raises BrambleError.

    :param key: OpenPGP keys in binary form, among them that of `signer`

    Source: gnupg, doc/DETAILS, "Format of the --status-fd output".
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("key.gpg", "signature", "data")]
        for path, content in zip(paths, (key, signature, data), strict=True):
            with open(path, "wb") as file:
                file.write(content)
        command = ["gpgv", "--homedir", folder, "--status-fd", "1", "--keyring", *paths]
        status = run_program(command, exit_codes=None).stdout.decode(errors="replace")
    # For an expired or revoked key, gpgv reports VALIDSIG, too, but not GOODSIG. Signatures of other keys are ignored.
    for report in status.split("[GNUPG:] NEWSIG")[1:]:
        valid = re.search(r"^\[GNUPG:\] VALIDSIG (.*)$", report, re.MULTILINE)
        if valid and "[GNUPG:] GOODSIG " in report and signer.upper() in valid[1].split():
            return
    verdicts = re.findall(r"^\[GNUPG:\] ((?:BAD|ERR|EXP|EXPKEY|REVKEY|GOOD)SIG) (\S+)", status, re.MULTILINE)
    found = "; ".join(f"{verdict} of key {which}" for verdict, which in verdicts) or "no signature"
    raise BrambleError(f"it is not signed by {signer} ({found}). It may have been changed, so it is not used")


def public_key(keyring: str, url: str, signer: str, http: HttpClient) -> bytes:
    """Return the keys in a keyring file, or, if it does not exist, the key of `signer` from a key server. Raises BrambleError.

    The key server need not be trusted, as only signatures with the pinned fingerprint are accepted.
    """
    if os.path.exists(keyring):
        with open(keyring, "rb") as file:
            return file.read()
    try:
        return dearmor(http.read(url + signer, 2**20))
    except BrambleError as error:
        raise BrambleError(
            f"{keyring} does not exist, and the key {signer} cannot be downloaded: {error}.\n"
            "On Ubuntu, install the package ubuntu-keyring. Elsewhere, set image_ubuntu_keyring to a file that contains the key"
        ) from None


def dearmor(text: bytes) -> bytes:
    """Return the key in an ASCII-armoured block (RFC 9580, section 6.2). Raises BrambleError."""
    block = (
        rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\n(?:.+\n)*\n([A-Za-z0-9+/=\n]+?)\n(?:=....\n)?-----END PGP PUBLIC KEY BLOCK-----"
    )
    found = re.search(block, text.replace(b"\r", b""))
    try:
        return base64.b64decode(found[1].replace(b"\n", b"") if found else b"-", validate=True)
    except binascii.Error:
        raise BrambleError("the answer of the key server is not an OpenPGP key") from None
