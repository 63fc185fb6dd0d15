"""Check that a file is signed by the key that is pinned, and get that key."""

from __future__ import annotations

import base64
import binascii
import os
import re
import tempfile

from ansible_collections.bramble.cluster.plugins.module_utils.core.error import BrambleError
from ansible_collections.bramble.cluster.plugins.module_utils.core.process import run_program
from ansible_collections.bramble.cluster.plugins.module_utils.image.http import Web


def check_signature(data: bytes, signature: bytes, key: bytes, signer: str) -> None:
    """Check that `data` is signed by the key with fingerprint `signer`, one of those in `key` (binary OpenPGP).

    Raises BrambleError.

    Source: gnupg, doc/DETAILS, "Format of the --status-fd output".
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("key.gpg", "signature", "data")]
        for path, content in zip(paths, (key, signature, data), strict=True):
            with open(path, "wb") as file:
                file.write(content)
        command = ["gpgv", "--homedir", folder, "--status-fd", "1", "--keyring", *paths]
        status = run_program(command, exit_codes=None).stdout.decode(errors="replace")
    # A key that has expired or was revoked gives VALIDSIG too, but not GOODSIG. The signature of another key does not matter.
    for one in status.split("[GNUPG:] NEWSIG")[1:]:
        valid = re.search(r"^\[GNUPG:\] VALIDSIG (.*)$", one, re.MULTILINE)
        if valid and "[GNUPG:] GOODSIG " in one and signer.upper() in valid[1].split():
            return
    verdicts = re.findall(r"^\[GNUPG:\] ((?:BAD|ERR|EXP|EXPKEY|REVKEY|GOOD)SIG) (\S+)", status, re.MULTILINE)
    found = "; ".join(f"{verdict} of key {which}" for verdict, which in verdicts) or "no signature"
    raise BrambleError(f"it is not signed by {signer} ({found}). Somebody may have changed it; nothing of it is used")


def public_key(keyring: str, url: str, signer: str, web: Web) -> bytes:
    """Return the keys in a keyring file; without that file, what a key server has for `signer`. Raises BrambleError.

    It need not be trusted: a signature counts only with the fingerprint that is pinned.
    """
    if os.path.exists(keyring):
        with open(keyring, "rb") as file:
            return file.read()
    try:
        return dearmor(web.read(url + signer, 2**20))
    except BrambleError as error:
        raise BrambleError(
            f"The key {signer} is neither in {keyring} nor to be had: {error}.\n"
            "On Ubuntu: apt install ubuntu-keyring. Elsewhere set image_ubuntu_keyring to a file with the key in it"
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
        raise BrambleError("what the key server sends is no OpenPGP key") from None
