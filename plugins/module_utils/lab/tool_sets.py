"""Which sets of security tools a node may get, and why not: decided before anything is changed.

A set belongs to a distribution. A foreign repository is never mixed in: what a node's apt trusts and asks for has to be its own
distribution's. Sources: sources.list(5), os-release(5), RFC 4880 sections 4.2, 5.5.2 and 12.2 (keys and fingerprints).
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

DEBIANS = ("debian", "raspbian")
KALI_KEY = "827C8569F2518CC677FECA1AED65462EC8D5E4C5"
KALI_LOST = "44C6513A8E4FB3D30875F758ED444FF07D8D0BF6"
"""The key that Kali lost in April 2025: nobody vouches for what it signs."""
PARROT_KEY = "B711822346552E4D92DA02DF7A8286AF0E81EE4A"
BLACKARCH_KEY = "4345771566D76038C7FEB43863EC0ADBEA87E4E3"

GUIDE = "docs/lab/README.md"
REFUSED = {
    "backbox": (
        "BackBox is a desktop for PCs (amd64): there is no image for a Raspberry Pi. The nearest: lab_tools_set: debian with "
        "lab_tools_groups: [scanning, web, passwords, sniffing]"
    ),
    "cyborg-hawk": (
        "Cyborg Hawk is of 2015, has had no updates since, and was for PCs only. The nearest: lab_tools_set: debian with "
        "lab_tools_groups: [scanning, web, wireless, forensics]"
    ),
}
SETS = ("debian", "kali", "parrot", "blackarch", *REFUSED)

# Keyrings of a distribution's own packages, by file name.
_KEYRINGS = {
    "debian": r"(debian-archive|raspberrypi-archive|raspbian-archive)-.+",
    "kali": r"kali-archive-keyring",
    "parrot": r"parrot-archive-keyring|parrot",
}
_SUITES = {"kali": r"kali-(rolling|last-snapshot|experimental)"}
_SUITE_PARTS = r"(-updates|-security|-backports|-proposed-updates|/updates)?"


class Release(NamedTuple):
    """What a node says it is: os-release's ID, NAME and VERSION_CODENAME."""

    id: str
    name: str
    codename: str


class Source(NamedTuple):
    """A line or a stanza of apt's sources: the file, the suites, and the keyrings it names (none: all trusted ones)."""

    file: str
    suites: tuple[str, ...]
    keyrings: tuple[str, ...]


def release(root: Path) -> Release:
    """Read os-release; what is not said is empty."""
    for path in (root / "etc/os-release", root / "usr/lib/os-release"):
        if path.is_file():
            said = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))
            return Release(said.get("ID", "linux"), said.get("NAME", ""), said.get("VERSION_CODENAME", ""))
    return Release("", "", "")


def _lines(text: str, file: str) -> Iterator[Source]:
    """One-line style: deb [option=value ...] URI SUITE COMPONENT..."""
    for line in text.splitlines():
        if found := re.match(r"\s*deb(?:-src)?\s+(?:\[([^\]]*)\]\s*)?\S+\s+(\S+)", line):
            keyrings = re.search(r"signed-by=(\S+)", found[1] or "", re.IGNORECASE)
            yield Source(file, (found[2],), tuple(keyrings[1].split(",")) if keyrings else ())


def _stanzas(text: str, file: str) -> Iterator[Source]:
    """deb822 style. A key that is written into the stanza itself counts as a keyring of no distribution."""
    for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = fields.get(name, "") + "\n" + line.strip()
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if "suites" in fields and fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off"):
            key = fields.get("signed-by", "")
            keyrings = ("a key inside the file",) if "BEGIN PGP" in key else tuple(key.split())
            yield Source(file, tuple(fields["suites"].split()), keyrings)


def sources(root: Path) -> list[Source]:
    """What a node's apt gets packages from."""
    found: list[Source] = []
    folder = root / "etc/apt"
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            read = _stanzas if path.suffix == ".sources" else _lines
            found += read(path.read_text(encoding="utf-8", errors="replace"), f"/{path.relative_to(root)}")
    return found


def fingerprints(data: bytes) -> list[str]:
    """The fingerprints (40 upper-case hexadecimal digits) of the primary keys, version 4, in an OpenPGP keyring."""
    if data.lstrip().startswith(b"-----BEGIN PGP"):
        blocks = re.findall(rb"-----BEGIN PGP[^\n]*\n(?:[^\n]+: [^\n]*\n)*\s*\n(.*?)\n(?:=[^\n]{4}\n)?-----END", data, re.DOTALL)
        data = b"".join(base64.b64decode(block) for block in blocks)
    found, at = [], 0
    while at < len(data):
        tag, at = data[at], at + 1
        if tag & 0x40:
            kind, first = tag & 0x3F, data[at]
            if first < 192:
                length, at = first, at + 1
            elif first < 224:
                length, at = ((first - 192) << 8) + data[at + 1] + 192, at + 2
            else:
                length, at = struct.unpack(">I", data[at + 1 : at + 5])[0], at + 5
        else:
            kind, size = tag >> 2 & 0xF, 1 << (tag & 3)
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        body = data[at : at + length]
        at += length
        if kind == 6 and body[:1] == b"\x04":
            digest = hashlib.sha1(b"\x99" + struct.pack(">H", len(body)) + body, usedforsecurity=False)
            found.append(digest.hexdigest().upper())
    return found


def _trusted(root: Path, found: Sequence[Source]) -> set[str]:
    """The keyrings that a node's apt trusts for any of its sources."""
    named = {keyring for source in found for keyring in source.keyrings}
    if any(not source.keyrings for source in found):
        paths = [root / "etc/apt/trusted.gpg", *(root / "etc/apt/trusted.gpg.d").glob("*")]
        named |= {f"/{path.relative_to(root)}" for path in paths if path.is_file()}
    return named


def _foreign(own: str, root: Path, now: Release, found: Sequence[Source]) -> Iterator[str]:
    """What a node's apt has that is not its distribution's."""
    suites = _SUITES.get(own) or rf"({re.escape(now.codename or 'stable')}|stable){_SUITE_PARTS}"
    for source in found:
        for suite in source.suites:
            if not re.fullmatch(suites, suite.rstrip("/")):
                yield f"{source.file} has the suite {suite}"
    for keyring in sorted(_trusted(root, found)):
        if not re.fullmatch(rf"({_KEYRINGS[own]})\.(gpg|pgp|asc)", Path(keyring).name):
            yield f"apt trusts {keyring}"


def _keys(root: Path, found: Sequence[Source]) -> set[str]:
    paths = [root / keyring.lstrip("/") for keyring in _trusted(root, found)]
    return {key for path in paths if path.is_file() for key in fingerprints(path.read_bytes())}


def _on_debian(now: Release) -> Iterator[str]:
    if now.id not in DEBIANS:
        own = f". Use lab_tools_set: {now.id}" if now.id in ("kali", "parrot") else ""
        yield f"this node is {now.name or now.id or 'nothing known'}, and the set debian is for Debian and Raspberry Pi OS{own}"


def _on_its_own(wanted: str, root: Path, now: Release, found: Sequence[Source]) -> Iterator[str]:
    """Kali's and Parrot's tools: on their own image, with the key that its publisher has."""
    is_it = now.id == wanted or now.name.lower().startswith(wanted)
    if not is_it:
        yield (
            f"this node is {now.name or now.id}, and {wanted}'s tools are for {wanted}'s own image: its repository is never "
            f"mixed into another distribution's. Flash that image (playbooks/cards.yml), or use the set debian. See {GUIDE}"
        )
        return
    keys = _keys(root, found)
    if wanted == "kali" and KALI_LOST in keys:
        yield (
            f"apt trusts the key {KALI_LOST}, which Kali lost in 2025. Take it out of the keyring: "
            f"gpg --no-default-keyring --keyring /usr/share/keyrings/kali-archive-keyring.gpg --delete-keys {KALI_LOST}"
        )
    own = {"kali": KALI_KEY, "parrot": PARROT_KEY}[wanted]
    if own not in keys:
        yield (
            f"apt does not trust {wanted}'s key {own} (found: {', '.join(sorted(keys)) or 'none'}): this is not its image, or "
            "an old one. Flash a new one"
        )


def _blackarch(root: Path, now: Release, architecture: str) -> Iterator[str]:
    """The check of the documented way: Arch Linux ARM with BlackArch's repository, put there by hand."""
    if now.id not in ("arch", "archarm") or architecture != "aarch64":
        yield (
            f"BlackArch's tools are for Arch Linux ARM (aarch64), and this node is {now.name or now.id} ({architecture}). "
            f"The way there is in {GUIDE}"
        )
        return
    trusted = root / "usr/share/pacman/keyrings/blackarch-trusted"
    conf = root / "etc/pacman.conf"
    if not conf.is_file() or not re.search(r"^\[blackarch\]", conf.read_text(), re.MULTILINE):
        yield f"/etc/pacman.conf has no repository [blackarch]: {GUIDE} says how it gets there"
    if not trusted.is_file() or BLACKARCH_KEY not in trusted.read_text():
        yield f"pacman does not trust BlackArch's key {BLACKARCH_KEY}: {GUIDE} says how to check it"


def choice_problems(wanted: str, groups: Iterable[str], known: Iterable[str]) -> list[str]:
    """What is wrong with what was asked for, on any node; one sentence each."""
    known = sorted(known)
    if wanted not in SETS:
        return [f"there is no set {wanted!r}: lab_tools_set is one of {', '.join(SETS[:4])}"]
    if wanted in REFUSED:
        return [REFUSED[wanted]]
    unknown = [group for group in groups if group not in known]
    if unknown or not known:
        return [f"there is no group {', '.join(unknown)} of tools: lab_tools_groups may name {', '.join(known)}"]
    return []


def node_problems(wanted: str, root: Path, architecture: str) -> list[str]:
    """Why a node can not have a set; one sentence each, with what to do. Empty when it can.

    :param root: the node's root file system
    :param architecture: as `uname -m` says it
    """
    now, found = release(root), sources(root)
    if wanted == "blackarch":
        return list(_blackarch(root, now, architecture))
    problems = list(_on_debian(now) if wanted == "debian" else _on_its_own(wanted, root, now, found))
    if not problems and (foreign := list(_foreign(wanted, root, now, found))):
        problems.append(
            f"apt has what is not {now.name}'s own: {'; '.join(foreign)}. Mixed repositories break a node sooner or later: "
            "remove these, or flash a fresh card"
        )
    return problems
