"""Check that a node can have a set of security tools, before anything is changed.

A set belongs to a distribution, and foreign repositories are never mixed in: the sources of a node's apt, and the keys that it
trusts, must be those of the node's own distribution. References: sources.list(5), os-release(5), RFC 4880 sections 4.2, 5.5.2
and 12.2 (keys and fingerprints).
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
KALI_LOST_KEY = "44C6513A8E4FB3D30875F758ED444FF07D8D0BF6"
"""The key that Kali lost in April 2025. Its signatures prove nothing."""
PARROT_KEY = "B711822346552E4D92DA02DF7A8286AF0E81EE4A"
BLACKARCH_KEY = "4345771566D76038C7FEB43863EC0ADBEA87E4E3"

GUIDE = "docs/lab/README.md"
UNSUPPORTED_SETS = {
    "backbox": (
        "BackBox is a desktop for PCs (amd64), and has no image for a Raspberry Pi. The nearest alternative: lab_tools_set: "
        "debian with lab_tools_groups: [scanning, web, passwords, sniffing]"
    ),
    "cyborg-hawk": (
        "Cyborg Hawk is of 2015, has had no updates since, and is for PCs only. The nearest alternative: lab_tools_set: debian "
        "with lab_tools_groups: [scanning, web, wireless, forensics]"
    ),
}
SETS = ("debian", "kali", "parrot", "blackarch", *UNSUPPORTED_SETS)

# The file names of the keyrings of a distribution's own packages.
_KEYRINGS = {
    "debian": r"(debian-archive|raspberrypi-archive|raspbian-archive)-.+",
    "kali": r"kali-archive-keyring",
    "parrot": r"parrot-archive-keyring|parrot",
}
_SUITES = {"kali": r"kali-(rolling|last-snapshot|experimental)"}
_SUITE_PARTS = r"(-updates|-security|-backports|-proposed-updates|/updates)?"


class Release(NamedTuple):
    """The distribution of a node: ID, NAME and VERSION_CODENAME of os-release."""

    id: str
    name: str
    codename: str


class Source(NamedTuple):
    """A line or a stanza of apt's sources: its file, its suites, and the keyrings it names (none: all trusted keyrings)."""

    file: str
    suites: tuple[str, ...]
    keyrings: tuple[str, ...]


def read_release(root: Path) -> Release:
    """Return the distribution of a node; missing fields are empty."""
    for path in (root / "etc/os-release", root / "usr/lib/os-release"):
        if path.is_file():
            fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))
            return Release(fields.get("ID", "linux"), fields.get("NAME", ""), fields.get("VERSION_CODENAME", ""))
    return Release("", "", "")


def _one_line_sources(text: str, file: str) -> Iterator[Source]:
    """Yield the sources of a file in one-line style: deb [option=value ...] URI SUITE COMPONENT..."""
    for line in text.splitlines():
        if found := re.match(r"\s*deb(?:-src)?\s+(?:\[([^\]]*)\]\s*)?\S+\s+(\S+)", line):
            keyrings = re.search(r"signed-by=(\S+)", found[1] or "", re.IGNORECASE)
            yield Source(file, (found[2],), tuple(keyrings[1].split(",")) if keyrings else ())


def _deb822_sources(text: str, file: str) -> Iterator[Source]:
    """Yield the sources of a file in deb822 style. A key inside a stanza counts as a keyring of no distribution."""
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


def read_sources(root: Path) -> list[Source]:
    """Return the sources of a node's apt."""
    found: list[Source] = []
    folder = root / "etc/apt"
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            parse = _deb822_sources if path.suffix == ".sources" else _one_line_sources
            found += parse(path.read_text(encoding="utf-8", errors="replace"), f"/{path.relative_to(root)}")
    return found


def key_fingerprints(data: bytes) -> list[str]:
    """Return the fingerprints (40 upper-case hexadecimal digits) of the primary keys of version 4 in an OpenPGP keyring."""
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


def _trusted_keyrings(root: Path, found: Sequence[Source]) -> set[str]:
    """Return the keyrings that a node's apt trusts for any of its sources."""
    named = {keyring for source in found for keyring in source.keyrings}
    if any(not source.keyrings for source in found):
        paths = [root / "etc/apt/trusted.gpg", *(root / "etc/apt/trusted.gpg.d").glob("*")]
        named |= {f"/{path.relative_to(root)}" for path in paths if path.is_file()}
    return named


def _foreign_sources(distribution: str, root: Path, node_release: Release, found: Sequence[Source]) -> Iterator[str]:
    """Yield a phrase for each suite and keyring of a node's apt that is not of its own distribution."""
    suites = _SUITES.get(distribution) or rf"({re.escape(node_release.codename or 'stable')}|stable){_SUITE_PARTS}"
    for source in found:
        for suite in source.suites:
            if not re.fullmatch(suites, suite.rstrip("/")):
                yield f"{source.file} has the suite {suite}"
    for keyring in sorted(_trusted_keyrings(root, found)):
        if not re.fullmatch(rf"({_KEYRINGS[distribution]})\.(gpg|pgp|asc)", Path(keyring).name):
            yield f"apt trusts {keyring}"


def _trusted_keys(root: Path, found: Sequence[Source]) -> set[str]:
    """Return the fingerprints of the keys that a node's apt trusts for any of its sources."""
    paths = [root / keyring.lstrip("/") for keyring in _trusted_keyrings(root, found)]
    return {key for path in paths if path.is_file() for key in key_fingerprints(path.read_bytes())}


def _debian_problems(node_release: Release) -> Iterator[str]:
    """Yield why a node cannot have Debian's tools."""
    if node_release.id not in DEBIANS:
        hint = f". Use lab_tools_set: {node_release.id}" if node_release.id in ("kali", "parrot") else ""
        yield (
            f"the distribution of this node is {node_release.name or node_release.id or 'unknown'}, and the set debian is for "
            f"Debian and Raspberry Pi OS{hint}"
        )


def _own_image_problems(wanted: str, root: Path, node_release: Release, found: Sequence[Source]) -> Iterator[str]:
    """Yield why a node cannot have the tools of Kali or Parrot: they need its own image and its publisher's key."""
    is_own_image = node_release.id == wanted or node_release.name.lower().startswith(wanted)
    if not is_own_image:
        yield (
            f"the distribution of this node is {node_release.name or node_release.id}, and {wanted}'s tools need "
            f"{wanted}'s own image: its repository is never mixed with those of another distribution. Flash that image "
            f"(playbooks/cards.yml), or use the set debian. See {GUIDE}"
        )
        return
    keys = _trusted_keys(root, found)
    if wanted == "kali" and KALI_LOST_KEY in keys:
        yield (
            f"apt trusts the key {KALI_LOST_KEY}, which Kali lost in 2025. Remove it from the keyring: "
            f"gpg --no-default-keyring --keyring /usr/share/keyrings/kali-archive-keyring.gpg --delete-keys {KALI_LOST_KEY}"
        )
    own = {"kali": KALI_KEY, "parrot": PARROT_KEY}[wanted]
    if own not in keys:
        yield (
            f"apt does not trust {wanted}'s key {own} (found: {', '.join(sorted(keys)) or 'none'}): the image is another one, or "
            "old. Flash the current image"
        )


def _blackarch_problems(root: Path, node_release: Release, architecture: str) -> Iterator[str]:
    """Yield why a node cannot have BlackArch's tools: they need Arch Linux ARM with a repository that is added by hand."""
    if node_release.id not in ("arch", "archarm") or architecture != "aarch64":
        yield (
            f"BlackArch's tools are for Arch Linux ARM (aarch64), and the distribution of this node is "
            f"{node_release.name or node_release.id} ({architecture}). {GUIDE} tells how to install it"
        )
        return
    trusted = root / "usr/share/pacman/keyrings/blackarch-trusted"
    conf = root / "etc/pacman.conf"
    if not conf.is_file() or not re.search(r"^\[blackarch\]", conf.read_text(), re.MULTILINE):
        yield f"/etc/pacman.conf has no repository [blackarch]. {GUIDE} tells how to add it"
    if not trusted.is_file() or BLACKARCH_KEY not in trusted.read_text():
        yield f"pacman does not trust BlackArch's key {BLACKARCH_KEY}. {GUIDE} tells how to check and add it"


def choice_problems(wanted: str, groups: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return why a choice of tools is impossible on any node; one sentence for each problem.

    :param wanted: the set (lab_tools_set)
    :param groups: the groups of tools (lab_tools_groups)
    :param known: all groups of tools
    """
    known = sorted(known)
    if wanted not in SETS:
        return [f"there is no set {wanted!r}. Set lab_tools_set to one of {', '.join(SETS[:4])}"]
    if wanted in UNSUPPORTED_SETS:
        return [UNSUPPORTED_SETS[wanted]]
    unknown = [group for group in groups if group not in known]
    if unknown or not known:
        return [f"there is no group of tools {', '.join(unknown)}. lab_tools_groups may name {', '.join(known)}"]
    return []


def node_problems(wanted: str, root: Path, architecture: str) -> list[str]:
    """Return why a node cannot have a set: one sentence for each problem, with what to do; empty when it can.

    :param root: the node's root file system
    :param architecture: as `uname -m` prints it
    """
    node_release, found = read_release(root), read_sources(root)
    if wanted == "blackarch":
        return list(_blackarch_problems(root, node_release, architecture))
    problems = list(
        _debian_problems(node_release) if wanted == "debian" else _own_image_problems(wanted, root, node_release, found)
    )
    if not problems and (foreign := list(_foreign_sources(wanted, root, node_release, found))):
        problems.append(
            f"apt has sources or keys that are not of {node_release.name}: {'; '.join(foreign)}. Mixed repositories break a node "
            "sooner or later. Remove these, or flash the card again"
        )
    return problems
