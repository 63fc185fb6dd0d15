"""Ansible lookup: new secrets for the lab's targets."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lab_secrets
short_description: New secrets for the targets of the isolated lab
description:
  - Draws all secrets of a set-up, new ones each time, known to the instructor and to be found by those who learn.
author: Bramble
options:
  _terms:
    description: The words that weak passwords are drawn from, at least six different ones.
    required: true
  defended:
    description: Draw good passwords, and use slow hashes, instead.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Create the secrets of a set-up
  ansible.builtin.copy:
    content: "{{ lookup('bramble.cluster.lab_secrets', *words) | to_nice_json }}"
    dest: secrets.json
    mode: "0600"
    force: false
  no_log: true
"""

RETURN = r"""
_raw:
  description:
    - C(ssh) (user, password, hash), C(desk) (user, password, files by name), C(shop) (coupon, customers), and C(solution), the
      passwords in the desk's files, for the instructor.
  type: list
  elements: dict
"""

import ctypes
import hashlib
import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

from ansible.plugins.lookup import LookupBase

NAMES = ("ada", "grace", "joan", "karen", "radia")
LETTERS = 4
"""Characters, a to z, of passwords whose unsalted hashes are to be found by a small rainbow table."""


def crypted(password: str, prefix: str) -> str:
    """Return a password's hash as /etc/shadow has it (crypt(5)), with a new salt.

    Python's own crypt module is gone; every Debian has libcrypt.

    :param prefix: "$1$" for MD5, "$6$" for SHA-512, "$y$" for yescrypt
    :raises OSError: when libcrypt does not know the prefix
    """
    library = ctypes.CDLL("libcrypt.so.1")
    for name, arguments in (
        ("crypt_gensalt", [ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_int]),
        ("crypt", [ctypes.c_char_p] * 2),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_char_p
    found = library.crypt(password.encode(), library.crypt_gensalt(prefix.encode(), 0, None, 0))
    if not found or not found.startswith(prefix.encode()):
        raise OSError(f"libcrypt does not know {prefix}")
    return str(found.decode())


def _random_text(characters: str, length: int) -> str:
    return "".join(secrets.choice(characters) for _ in range(length))


def lab_secrets(words: Sequence[str], defended: bool = False) -> dict[str, Any]:
    """Return all secrets of a set-up: see DOCUMENTATION and RETURN."""
    strong = string.ascii_letters + string.digits
    weak = secrets.SystemRandom().sample(sorted(set(words)), len(NAMES) + 1)
    password: Callable[[], str] = (lambda: _random_text(strong, 20)) if defended else weak.pop
    short = {name: _random_text(string.ascii_lowercase, LETTERS) for name in NAMES}
    salted = {name: password() for name in NAMES}
    intern = password()
    md5 = {name: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() for name, text in short.items()}
    files = {
        "unsalted.txt": "".join(f"{name}:{digest}\n" for name, digest in md5.items()),
        "salted.txt": "".join(f"{name}:{crypted(text, '$y$' if defended else '$1$')}\n" for name, text in salted.items()),
    }
    if defended:
        del files["unsalted.txt"]
    return {
        "ssh": {"user": "intern", "password": intern, "hash": crypted(intern, "$6$")},
        "desk": {"user": "clerk", "password": _random_text(strong, 12), "files": files},
        "shop": {
            "coupon": f"BRAMBLE-{_random_text(string.ascii_uppercase, 8)}",
            "customers": [{"name": name, "md5": md5[name]} for name in NAMES],
        },
        "solution": {"unsalted": short, "salted": salted},
    }


class LookupModule(LookupBase):
    """The lookup lab_secrets."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Return one set of secrets."""
        self.set_options(var_options=variables, direct=kwargs)
        return [lab_secrets(terms, self.get_option("defended"))]
