"""Ansible lookup: draw new secrets for the targets of the isolated lab."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lab_secrets
short_description: Draw new secrets for the targets of the isolated lab
description:
  - Draws all secrets of a set-up, new ones in each call. The instructor knows them, and the learners find them.
author: Bramble
options:
  _terms:
    description: The words to draw weak passwords from, at least six different ones.
    required: true
  defended:
    description: Draw strong passwords and use slow hashes instead.
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
SHORT_PASSWORD_LENGTH = 4
"""The length, in letters a to z, of the passwords whose unsalted hashes a small rainbow table can find."""


def hash_password(password: str, prefix: str) -> str:
    """Return a password's hash as /etc/shadow has it (crypt(5)), with a new salt.

    Python no longer has a module crypt, and every Debian has libcrypt.

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
        raise OSError(
            f"libcrypt does not support hashes with the prefix {prefix}. Upgrade it on the control machine: "
            "apt-get install --only-upgrade libcrypt1"
        )
    return str(found.decode())


def _random_text(characters: str, length: int) -> str:
    return "".join(secrets.choice(characters) for _ in range(length))


def lab_secrets(words: Sequence[str], defended: bool = False) -> dict[str, Any]:
    """Return all secrets of a set-up: see DOCUMENTATION and RETURN."""
    strong = string.ascii_letters + string.digits
    weak = secrets.SystemRandom().sample(sorted(set(words)), len(NAMES) + 1)
    draw_password: Callable[[], str] = (lambda: _random_text(strong, 20)) if defended else weak.pop
    unsalted_passwords = {name: _random_text(string.ascii_lowercase, SHORT_PASSWORD_LENGTH) for name in NAMES}
    salted_passwords = {name: draw_password() for name in NAMES}
    intern_password = draw_password()
    md5 = {name: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() for name, text in unsalted_passwords.items()}
    files = {
        "unsalted.txt": "".join(f"{name}:{digest}\n" for name, digest in md5.items()),
        "salted.txt": "".join(
            f"{name}:{hash_password(text, '$y$' if defended else '$1$')}\n" for name, text in salted_passwords.items()
        ),
    }
    if defended:
        del files["unsalted.txt"]
    return {
        "ssh": {"user": "intern", "password": intern_password, "hash": hash_password(intern_password, "$6$")},
        "desk": {"user": "clerk", "password": _random_text(strong, 12), "files": files},
        "shop": {
            "coupon": f"BRAMBLE-{_random_text(string.ascii_uppercase, 8)}",
            "customers": [{"name": name, "md5": md5[name]} for name in NAMES],
        },
        "solution": {"unsalted": unsalted_passwords, "salted": salted_passwords},
    }


class LookupModule(LookupBase):
    """The lookup lab_secrets."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Return one set of secrets."""
        self.set_options(var_options=variables, direct=kwargs)
        return [lab_secrets(terms, self.get_option("defended"))]
