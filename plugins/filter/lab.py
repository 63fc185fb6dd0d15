"""The lab's secrets: drawn anew for each set-up, known to the instructor and, if they do well, to those who learn."""

from __future__ import annotations

import ctypes
import hashlib
import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

NAMES = ("ada", "grace", "joan", "karen", "radia")
LETTERS = 4
"""Characters, a to z, of passwords whose unsalted hashes are to be found by a small rainbow table."""


def crypted(password: str, prefix: str) -> str:
    """A password's hash as /etc/shadow has it (crypt(5)), with a salt of its own: "$1$" MD5, "$6$" SHA-512, "$y$" yescrypt.

    Python's own crypt module is gone; every Debian has libcrypt. Raises OSError.
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


def _text(characters: str, length: int) -> str:
    return "".join(secrets.choice(characters) for _ in range(length))


def lab_secrets(words: Sequence[str], defended: bool = False) -> dict[str, Any]:
    """All secrets of a set-up.

    :param words: the word list that weak passwords are drawn from, at least as many as there are
    :param defended: with good passwords, and slow hashes, instead
    :returns: `ssh` (user, password, hash), `desk` (user, password, files by name), `shop` (coupon, customers), and, for the
        instructor, `solution`: the passwords in the desk's files
    """
    strong = string.ascii_letters + string.digits
    weak = secrets.SystemRandom().sample(sorted(set(words)), len(NAMES) + 1)
    password: Callable[[], str] = (lambda: _text(strong, 20)) if defended else weak.pop
    short = {name: _text(string.ascii_lowercase, LETTERS) for name in NAMES}
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
        "desk": {"user": "clerk", "password": _text(strong, 12), "files": files},
        "shop": {
            "coupon": f"BRAMBLE-{_text(string.ascii_uppercase, 8)}",
            "customers": [{"name": name, "md5": md5[name]} for name in NAMES],
        },
        "solution": {"unsalted": short, "salted": salted},
    }


def lab_difference(before: str, now: str) -> dict[str, list[str]]:
    """What came to a node since it was looked at: names of `packages`, `users`, `groups`; `other`: what is not undone by removal.

    Both are lines: "package NAME VERSION", "user NAME", "group NAME".
    """
    was, there = (
        {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines() if line.strip()} for text in (before, now)
    )
    new = sorted(set(there) - set(was))
    other = [f"{kind} {name} is gone" for kind, name in sorted(set(was) - set(there))]
    other += [
        f"{name} is now {there[kind, name][0]}, was {was[kind, name][0]}"
        for kind, name in was
        if kind == "package" and there.get((kind, name), was[kind, name]) != was[kind, name]
    ]
    found = {f"{kind}s": [name for of, name in new if of == kind] for kind in ("package", "user", "group")}
    return {**found, "other": other}


class FilterModule:
    """Filters for the roles lab_tools and lab_target."""

    def filters(self) -> dict[str, Any]:
        return {"lab_secrets": lab_secrets, "lab_difference": lab_difference}
