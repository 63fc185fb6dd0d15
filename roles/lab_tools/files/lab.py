#!/usr/bin/python3 -I
"""Run a security tool against the lab, and against nothing else.

    lab TOOL ARGUMENTS    run the tool, if every target is inside the lab's subnet and its isolation was proven lately
    lab --proof           only say whether it was (targets ask this before they start)

For machines that you own, inside this network only. What is not understood is refused: a tool, an option, or a way to write a
target that is not in the tables below. Names are resolved here, and the tool gets the address: it can not resolve them otherwise.
Ends with 77 when it refuses (sysexits.h: EX_NOPERM), with 64 when it is not used right, else as the tool does.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

SETTINGS = Path("/opt/bramble-lab/lab.json")
PROOF = Path("/run/bramble-lab/proof.json")
SKEW = 60.0
"""Seconds by which a proof may seem to be of the future: clocks differ."""


class Refused(Exception):
    """Why a tool is not run or a target not started; the message says what to do."""


# The proof


def check_proof(path: Path, subnet: IPv4Network, minutes: float, now: float, owner: int = 0) -> None:
    """Raises Refused unless a proof of isolation is there, green, of this subnet and not older than so many minutes.

    :param now: seconds since 1970
    :param owner: who alone can have written it
    """
    again = "Prove it again: ansible-playbook playbooks/isolated_lab.yml --tags verify"
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            data = file.read(1 << 20)
    except OSError as error:
        raise Refused(f"there is no proof that this network is isolated ({path}: {error.strerror}). {again}") from None
    if path.is_symlink() or not stat.S_ISREG(facts.st_mode) or facts.st_uid != owner or facts.st_mode & 0o022:
        raise Refused(f"anybody could have written {path}: it must be a file of root that only root can write. {again}")
    try:
        proof = json.loads(data)
        at = datetime.fromisoformat(str(proof["at"]).replace("Z", "+00:00"))
        age = now - (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        of = IPv4Network(proof["subnet"])
        counts = {name: proof[name] for name in ("forbidden", "reached", "allowed", "failed")}
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts.values()):
            raise ValueError("its counts are not numbers")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is no proof: {error}. {again}") from None
    if of != subnet:
        raise Refused(f"the proof is for {of}, and this lab is {subnet}. {again}")
    if counts["reached"] or counts["failed"] or not counts["forbidden"] or not counts["allowed"]:
        raise Refused(
            f"the last proof failed: {counts['reached']} of {counts['forbidden']} forbidden ways were open, "
            f"{counts['failed']} of {counts['allowed']} allowed ones closed. {again}"
        )
    if age < -SKEW:
        raise Refused(f"the proof is of {proof['at']}, which is in the future: set the clock. {again}")
    if age > minutes * 60:
        raise Refused(f"the proof is {age / 60:.0f} minutes old, and {minutes:g} are the most. {again}")


# Targets


Resolver = Callable[[str], Iterable[str]]
_OCTET = r"(?:[0-9]{1,3}(?:-[0-9]{0,3})?|-[0-9]{1,3}|-|\*)"
_OCTETS = rf"{_OCTET}(?:,{_OCTET})*"
_NAME = re.compile(r"(?=[A-Za-z0-9.-]*[A-Za-z])[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_URL = re.compile(r"(https?)://([A-Za-z0-9.-]+)(:[0-9]{1,5})?((?:[/?][!-\[\]-~]*)?)")


def resolve(name: str) -> list[str]:
    """All addresses of a name. Raises OSError."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


class Lab:
    """The network that tools may reach."""

    def __init__(self, subnet: IPv4Network, resolver: Resolver = resolve) -> None:
        self.subnet = subnet
        self._resolve = resolver

    def _outside(self, text: str) -> Refused:
        return Refused(f"{text} is outside the lab, {self.subnet}. Only machines that you own, inside this network")

    def host(self, text: str) -> str:
        """The address, as text, of one host inside the lab. Raises Refused."""
        if re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+", text):
            try:
                address = IPv4Address(text)
            except ValueError as error:
                raise Refused(f"{text} is no address: {error}") from None
            if address not in self.subnet:
                raise self._outside(text)
            return str(address)
        if ":" in text:
            raise Refused(f"{text}: the lab has no IPv6")
        if not _NAME.fullmatch(text):
            raise Refused(f"{text} is neither an address nor a name")
        try:
            found = sorted(set(self._resolve(text)))
        except OSError as error:
            raise Refused(f"{text} has no address here ({error}). Use the address") from None
        for number in found:
            if ":" in number or IPv4Address(number) not in self.subnet:
                raise self._outside(f"{text} ({number})")
        if not found:
            raise Refused(f"{text} has no address here. Use the address")
        return found[0]

    def hosts(self, text: str) -> str:
        """Hosts as nmap has them, all inside the lab: an address, a name, a network, or ranges in octets. Raises Refused."""
        if re.search(r"[-,*]", text) and re.fullmatch(rf"{_OCTETS}(?:\.{_OCTETS}){{3}}", text):
            self._ranges(text)
            return text
        return self.network(text)

    def networks(self, text: str) -> str:
        """Hosts as masscan has them: an address, a name, a network, or FIRST-LAST. Raises Refused."""
        if found := re.fullmatch(r"([0-9.]+)-([0-9.]+)", text):
            return f"{self.host(found[1])}-{self.host(found[2])}"
        return self.network(text)

    def network(self, text: str) -> str:
        """A network, or one host. Raises Refused."""
        if re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+/[0-9]{1,2}", text):
            try:
                network = IPv4Network(text, strict=False)
            except ValueError as error:
                raise Refused(f"{text} is no network: {error}") from None
            if not network.subnet_of(self.subnet):
                raise self._outside(text)
            return str(network)
        return self.host(text)

    def _ranges(self, text: str) -> None:
        """A network is, octet by octet, from its first to its last address: so may be the ranges."""
        lowest, highest = self.subnet.network_address.packed, self.subnet.broadcast_address.packed
        for octet, low, high in zip(text.split("."), lowest, highest, strict=True):
            for part in octet.split(","):
                first, dash, last = ("0", "-", "255") if part == "*" else part.partition("-")
                begin = int(first or 0)
                end = int(last or 255) if dash else begin
                if not low <= begin <= end <= high:
                    raise self._outside(text)

    def url(self, text: str) -> str:
        """A web address inside the lab, with the host's address in it. Raises Refused."""
        found = _URL.fullmatch(text)
        if not found:
            raise Refused(f"{text} is not like http://ADDRESS:PORT/PATH, with no user and no strange character")
        scheme, host, port, rest = found.groups()
        self.mentioned(rest)
        return f"{scheme}://{self.host(host)}{port or ''}{rest}"

    def service(self, text: str) -> str:
        """A service inside the lab: ssh://ADDRESS:PORT, as hydra and ncrack have it. Raises Refused."""
        found = re.fullmatch(r"(?:([a-z][a-z0-9-]*)://)?([A-Za-z0-9.-]+)(:[0-9]{1,5})?(/(?![0-9])[!-~]*)?", text)
        if not found:  # a number after the slash would be a network to hydra
            raise Refused(f"{text} is not like ssh://ADDRESS:PORT")
        scheme, host, port, rest = found.groups()
        self.mentioned(rest or "")
        return f"{scheme + '://' if scheme else ''}{self.host(host)}{port or ''}{rest or ''}"

    def mentioned(self, text: str) -> None:
        """Look through what should have no target at all. Raises Refused for addresses and web addresses outside."""
        for address in re.findall(r"(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.])", text):
            self.host(address)
        for host in re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://([^/:?#\s]*)", text):
            self.host(host)


# Tools


class Tool(NamedTuple):
    """What of a tool's command line is understood.

    flags: options alone. values: options with a value that is no target. targets, files: options whose value is a target, or a
    file of targets. words: arguments it begins with (a subcommand). first: what it is given always, before all else. target: how
    a target is read, a method of Lab. rest: how many of the other arguments are targets; those that follow are values.
    """

    flags: str = ""
    values: str = ""
    targets: str = ""
    files: str = ""
    words: tuple[str, ...] = ()
    first: str = ""
    target: str = "host"
    rest: int = 0


ANY = sys.maxsize
TOOLS = {
    # -n: names are resolved here. Of its scripts only the default ones, which ask nobody else.
    "nmap": Tool(
        flags="-sS -sT -sU -sV -sC -sn -A -O -Pn -F -v -vv -d -T0 -T1 -T2 -T3 -T4 -T5 --open --reason -r --version-light",
        values="-p --top-ports -oN -oX -oG -oA --min-rate --max-rate --max-retries --host-timeout --scan-delay",
        files="-iL",
        first="-n",
        target="hosts",
        rest=ANY,
    ),
    "masscan": Tool(flags="--banners", values="-p --ports --rate --wait -oL -oJ -oX", files="-iL", target="networks", rest=ANY),
    "ncrack": Tool(
        flags="-v -vv -d -f -T0 -T1 -T2 -T3 -T4 -T5",
        values="-p -U -P --user --pass -g -oN",
        files="-iL",
        target="service",
        rest=ANY,
    ),
    "hydra": Tool(
        flags="-f -F -v -V -q -u -I -K -S",
        values="-l -L -p -P -C -s -t -T -w -W -c -o -b -e -x",
        files="-M",
        target="service",
        rest=1,
    ),
    "medusa": Tool(flags="-f -F -b -L", values="-u -U -p -P -n -M -t -T -r -R -e -O -v -w", targets="-h", files="-H"),
    "sqlmap": Tool(
        flags="-a -b --banner --current-user --current-db --dbs --tables --columns --schema --dump --dump-all --count "
        "--flush-session",
        values="-v -p -D -T -C --data --cookie --user-agent --method --dbms --level --risk --technique --threads --delay "
        "--timeout --output-dir --where --start --stop --string --not-string --prefix --suffix",
        targets="-u --url",
        target="url",
        first="--batch --ignore-stdin --ignore-proxy --ignore-redirects --disable-coloring",
    ),
    "whatweb": Tool(
        flags="-v -q", values="-a --max-threads", first="--follow-redirect=never --color=never", target="url", rest=ANY
    ),
    "gobuster": Tool(
        flags="-q -k -n -e -f --no-progress --no-color",
        values="-w --wordlist -t -x -s -b -o",
        targets="-u --url",
        target="url",
        words=("dir",),
    ),
    "dirb": Tool(flags="-r -S -i -w -f", values="-o -z -X -a -c -H", target="url", rest=1),
    "nikto": Tool(flags="-ssl -nossl", values="-p -port -maxtime -T -Tuning -o -output", targets="-h -host", first="-nocheck"),
    # -q: without its own settings, which may name a proxy. -g: a host is one host.
    "curl": Tool(
        flags="-s -S -sS -i -I -v -k -f -G --compressed",
        values="-u -d --data --data-urlencode -H -X -o -m --max-time -A -b -c --cacert --user --header",
        first="-q -g --noproxy * --proto =http,https",
        target="url",
        rest=ANY,
    ),
}


def targets_in(path: str) -> list[str]:
    """What a file of targets has. Raises Refused."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise Refused(f"the targets in {path} can not be read: {error}") from None
    return [word for line in lines for word in line.partition("#")[0].split()]


def tokens(name: str, words: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """A tool's arguments as (kind, option, value); the kind is flags, values, targets or files as in Tool, or rest.

    Raises Refused for an option that is not in the table, and for one without its value.
    """
    tool = TOOLS[name]
    known = {option: kind for kind in ("flags", "values", "targets", "files") for option in getattr(tool, kind).split()}
    left = iter(words)
    for word in left:
        if not (word.isascii() and word.isprintable()):
            raise Refused(f"{word!r} has characters that are not understood")
        if not word.startswith("-") or word == "-":
            yield "rest", "", word
            continue
        option, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if option not in known and not equals and known.get(word[:2], "flags") != "flags":
            option, equals, value = word[:2], "=", word[2:]  # -p80
        kind = known.get(option, "")
        if not kind or (equals and kind == "flags"):
            understood = " ".join(sorted(known))
            raise Refused(f"{name} {option} is not understood here, so it might lead out of the lab. Understood: {understood}")
        if kind != "flags" and not equals:
            value = next(left, "")
        if kind != "flags" and (not value or not (value.isascii() and value.isprintable()) or re.match("-.", value)):
            raise Refused(f"{name} {option} needs a value, and {value!r} is none")
        yield kind, option, value


def command_line(name: str, arguments: Sequence[str], lab: Lab, folder: Path) -> list[str]:
    """What to run, every target of it checked and written as addresses. Raises Refused.

    :param folder: where files of checked targets may be put
    """
    if name not in TOOLS:
        raise Refused(f"{name} is not one of the tools that are understood here: {', '.join(sorted(TOOLS))}")
    tool = TOOLS[name]
    words = list(arguments)
    if words[: len(tool.words)] != list(tool.words):
        raise Refused(f"only {name} {' '.join(tool.words)} is understood here")
    aim: Callable[[str], str] = getattr(lab, tool.target)
    command = [name, *tool.first.split(), *tool.words]
    aims = rest = 0
    for kind, option, value in tokens(name, words[len(tool.words) :]):
        command += [option] if option else []
        if kind == "rest" and rest < tool.rest:
            rest, aims = rest + 1, aims + 1
            command.append(aim(value))
        elif kind == "rest" and not tool.rest:
            raise Refused(f"{name}: {value} is neither an option nor its value")
        elif kind == "targets":
            aims += 1
            command.append(aim(value))
        elif kind == "files":
            checked = [aim(each) for each in targets_in(value)]
            aims += len(checked)
            path = folder / f"targets-{len(command)}"
            path.write_text("".join(f"{each}\n" for each in checked), encoding="ascii")
            command.append(str(path))
        elif kind != "flags":
            lab.mentioned(value)
            command.append(value)
    if not aims:
        raise Refused(f"{name}: no target is named")
    return command


def environment(given: dict[str, str]) -> dict[str, str]:
    """Without what could send a tool another way: proxies, preloaded libraries, settings. What it keeps goes to ~/.lab."""
    kept: dict[str, str] = {name: given[name] for name in ("USER", "TERM") if name in given}
    kept["HOME"] = f"{given.get('HOME', '/tmp')}/.lab"
    return {**kept, "LC_ALL": "C.UTF-8", "PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"}


def settings(path: Path) -> tuple[IPv4Network, float]:
    """The lab's subnet, and how many minutes a proof holds. Raises Refused."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return IPv4Network(said["subnet"]), float(said["minutes"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Refused(f"{path} does not say what the lab is ({error}). Run playbooks/isolated_lab.yml") from None


def proven() -> Lab:
    """The lab, when its isolation was proven lately. Raises Refused."""
    subnet, minutes = settings(SETTINGS)
    check_proof(PROOF, subnet, minutes, time.time())
    return Lab(subnet)


def admit(address: str) -> Lab:
    """The same when the address is inside it. Raises Refused."""
    lab = proven()
    lab.host(address)
    return lab


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip() + f"\n\nTools: {', '.join(sorted(TOOLS))}", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else os.EX_USAGE
    try:
        lab = proven()
        if arguments[0] == "--proof":
            return 0
        with tempfile.TemporaryDirectory(prefix="lab-") as folder:
            command = command_line(arguments[0], arguments[1:], lab, Path(folder))
            own = environment(dict(os.environ))
            os.makedirs(own["HOME"], exist_ok=True)
            # No input: some take targets from there.
            return subprocess.run(command, env=own, stdin=subprocess.DEVNULL, check=False).returncode
    except Refused as error:
        print(f"lab: refused: {error}.", file=sys.stderr)
        return os.EX_NOPERM
    except FileNotFoundError:
        print(f"lab: {arguments[0]} is not installed: see lab_tools_groups in roles/lab_tools.", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
