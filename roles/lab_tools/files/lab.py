#!/usr/bin/python3 -I
"""Run a security tool against the lab, and against nothing else.

    lab TOOL ARGUMENTS    run the tool, if all its targets are in the lab's subnet and the isolation proof is recent
    lab --proof           only check the isolation proof (targets do this before they start)

Only for machines that you own, in this network. The wrapper refuses every tool, option and form of target that its tables do not
have. It resolves names itself and gives the tool only addresses. Exit codes (sysexits.h): 77 (EX_NOPERM) when it refuses, 64
(EX_USAGE) for a wrong command line, otherwise that of the tool.
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
"""Seconds by which a proof may be in the future, because the clocks of nodes differ."""


class Refused(Exception):
    """A tool is not run or a target not started; the message tells why, and what to do."""


# The proof


def check_proof(path: Path, subnet: IPv4Network, minutes: float, now: float, owner: int = 0) -> None:
    """Check that there is an isolation proof, that it passed, is of this subnet and is recent. Raises Refused.

    :param minutes: the greatest age of the proof
    :param now: the time in seconds since 1970
    :param owner: the numeric id of the only user who can write the file
    """
    again = "Run the isolation proof again: ansible-playbook playbooks/isolated_lab.yml --tags verify"
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            data = file.read(1 << 20)
    except OSError as error:
        raise Refused(f"there is no isolation proof ({path}: {error.strerror}). {again}") from None
    if path.is_symlink() or not stat.S_ISREG(facts.st_mode) or facts.st_uid != owner or facts.st_mode & 0o022:
        raise Refused(
            f"others than root could have written {path}. It must be a regular file of root that only root can write. {again}"
        )
    try:
        proof = json.loads(data)
        at = datetime.fromisoformat(str(proof["at"]).replace("Z", "+00:00"))
        age = now - (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        proof_subnet = IPv4Network(proof["subnet"])
        counts = {name: proof[name] for name in ("forbidden", "reached", "allowed", "failed")}
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts.values()):
            raise ValueError("its counts are not numbers")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Refused(f"{path} is not an isolation proof: {error}. {again}") from None
    if proof_subnet != subnet:
        raise Refused(f"the isolation proof is for {proof_subnet}, and this lab is {subnet}. {again}")
    if counts["reached"] or counts["failed"] or not counts["forbidden"] or not counts["allowed"]:
        raise Refused(
            f"the last isolation proof failed: {counts['reached']} of {counts['forbidden']} forbidden probes got through, "
            f"{counts['failed']} of {counts['allowed']} allowed ones did not. {again}"
        )
    if age < -SKEW:
        raise Refused(f"the isolation proof is of {proof['at']}, which is in the future. Set the clock. {again}")
    if age > minutes * 60:
        raise Refused(f"the isolation proof is {age / 60:.0f} minutes old, and at most {minutes:g} are allowed. {again}")


# Targets


Resolver = Callable[[str], Iterable[str]]
_OCTET = r"(?:[0-9]{1,3}(?:-[0-9]{0,3})?|-[0-9]{1,3}|-|\*)"
_OCTETS = rf"{_OCTET}(?:,{_OCTET})*"
_NAME = re.compile(r"(?=[A-Za-z0-9.-]*[A-Za-z])[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_URL = re.compile(r"(https?)://([A-Za-z0-9.-]+)(:[0-9]{1,5})?((?:[/?][!-\[\]-~]*)?)")


def resolve(name: str) -> list[str]:
    """Return all addresses of a name. Raises OSError."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


class Lab:
    """The network that tools may reach."""

    def __init__(self, subnet: IPv4Network, resolver: Resolver = resolve) -> None:
        self.subnet = subnet
        self._resolve = resolver

    def _outside_error(self, text: str) -> Refused:
        return Refused(f"{text} is outside the lab, {self.subnet}. Use only machines that you own, in this network")

    def resolve_host(self, text: str) -> str:
        """Return the address of one host in the lab. Raises Refused."""
        if re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+", text):
            try:
                address = IPv4Address(text)
            except ValueError as error:
                raise Refused(f"{text} is not an address: {error}") from None
            if address not in self.subnet:
                raise self._outside_error(text)
            return str(address)
        if ":" in text:
            raise Refused(f"{text} is refused, because the lab has no IPv6. Use an IPv4 address")
        if not _NAME.fullmatch(text):
            raise Refused(f"{text} is neither an IPv4 address nor a host name")
        try:
            found = sorted(set(self._resolve(text)))
        except OSError as error:
            raise Refused(f"the name {text} cannot be resolved ({error}). Use the address") from None
        for number in found:
            if ":" in number or IPv4Address(number) not in self.subnet:
                raise self._outside_error(f"{text} ({number})")
        if not found:
            raise Refused(f"the name {text} has no address. Use the address")
        return found[0]

    def resolve_hosts(self, text: str) -> str:
        """Return a target of nmap if it is in the lab: an address, a name, a network, or ranges in octets. Raises Refused."""
        if re.search(r"[-,*]", text) and re.fullmatch(rf"{_OCTETS}(?:\.{_OCTETS}){{3}}", text):
            self._check_ranges(text)
            return text
        return self.resolve_network(text)

    def resolve_networks(self, text: str) -> str:
        """Return a target of masscan if it is in the lab: an address, a name, a network, or FIRST-LAST. Raises Refused."""
        if found := re.fullmatch(r"([0-9.]+)-([0-9.]+)", text):
            return f"{self.resolve_host(found[1])}-{self.resolve_host(found[2])}"
        return self.resolve_network(text)

    def resolve_network(self, text: str) -> str:
        """Return a network or a host if it is in the lab. Raises Refused."""
        if re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+/[0-9]{1,2}", text):
            try:
                network = IPv4Network(text, strict=False)
            except ValueError as error:
                raise Refused(f"{text} is not a network: {error}") from None
            if not network.subnet_of(self.subnet):
                raise self._outside_error(text)
            return str(network)
        return self.resolve_host(text)

    def _check_ranges(self, text: str) -> None:
        """Check that all ranges are in the lab: each octet between those of the first and the last address. Raises Refused."""
        lowest, highest = self.subnet.network_address.packed, self.subnet.broadcast_address.packed
        for octet, low, high in zip(text.split("."), lowest, highest, strict=True):
            for part in octet.split(","):
                first, dash, last = ("0", "-", "255") if part == "*" else part.partition("-")
                begin = int(first or 0)
                end = int(last or 255) if dash else begin
                if not low <= begin <= end <= high:
                    raise self._outside_error(text)

    def resolve_url(self, text: str) -> str:
        """Return a URL in the lab, with the address of its host. Raises Refused."""
        found = _URL.fullmatch(text)
        if not found:
            raise Refused(f"{text} is not a URL like http://ADDRESS:PORT/PATH, without a user and in printable ASCII")
        scheme, host, port, rest = found.groups()
        self.check_mentions(rest)
        return f"{scheme}://{self.resolve_host(host)}{port or ''}{rest}"

    def resolve_service(self, text: str) -> str:
        """Return a service in the lab, in the form of hydra and ncrack: ssh://ADDRESS:PORT. Raises Refused."""
        found = re.fullmatch(r"(?:([a-z][a-z0-9-]*)://)?([A-Za-z0-9.-]+)(:[0-9]{1,5})?(/(?![0-9])[!-~]*)?", text)
        if not found:  # hydra reads a number after the slash as a network
            raise Refused(f"{text} is not a service like ssh://ADDRESS:PORT")
        scheme, host, port, rest = found.groups()
        self.check_mentions(rest or "")
        return f"{scheme + '://' if scheme else ''}{self.resolve_host(host)}{port or ''}{rest or ''}"

    def check_mentions(self, text: str) -> None:
        """Check that a value, which should have no target, mentions no address or URL outside the lab. Raises Refused."""
        for address in re.findall(r"(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.])", text):
            self.resolve_host(address)
        for host in re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://([^/:?#\s]*)", text):
            self.resolve_host(host)


# Tools


class Tool(NamedTuple):
    """The part of a tool's command line that the wrapper knows.

    flags: options without a value. values: options with a value that is not a target. targets, files: options whose value is a
    target, or a file of targets. words: the first arguments (a subcommand). first: options that every call gets first. target:
    the form of a target, resolve_TARGET of Lab. rest: how many of the other arguments are targets; further ones are values.
    """

    flags: str = ""
    values: str = ""
    targets: str = ""
    files: str = ""
    words: tuple[str, ...] = ()
    first: str = ""
    target: str = "host"
    rest: int = 0


ALL = sys.maxsize
TOOLS = {
    # -n: the wrapper resolves names. Of the scripts only the default ones (-sC), which send nothing to other hosts.
    "nmap": Tool(
        flags="-sS -sT -sU -sV -sC -sn -A -O -Pn -F -v -vv -d -T0 -T1 -T2 -T3 -T4 -T5 --open --reason -r --version-light",
        values="-p --top-ports -oN -oX -oG -oA --min-rate --max-rate --max-retries --host-timeout --scan-delay",
        files="-iL",
        first="-n",
        target="hosts",
        rest=ALL,
    ),
    "masscan": Tool(flags="--banners", values="-p --ports --rate --wait -oL -oJ -oX", files="-iL", target="networks", rest=ALL),
    "ncrack": Tool(
        flags="-v -vv -d -f -T0 -T1 -T2 -T3 -T4 -T5",
        values="-p -U -P --user --pass -g -oN",
        files="-iL",
        target="service",
        rest=ALL,
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
        flags="-v -q", values="-a --max-threads", first="--follow-redirect=never --color=never", target="url", rest=ALL
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
    # -q: without the settings of the user, which may name a proxy. -g: without globs, so that a URL has one host.
    "curl": Tool(
        flags="-s -S -sS -i -I -v -k -f -G --compressed",
        values="-u -d --data --data-urlencode -H -X -o -m --max-time -A -b -c --cacert --user --header",
        first="-q -g --noproxy * --proto =http,https",
        target="url",
        rest=ALL,
    ),
}


def read_targets(path: str) -> list[str]:
    """Return the targets in a file. Raises Refused."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise Refused(f"the targets in {path} cannot be read: {error}") from None
    return [word for line in lines for word in line.partition("#")[0].split()]


def parse_arguments(name: str, words: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the arguments of a tool as (kind, option, value). The kind is flags, values, targets or files as in Tool, or rest.

    Raises Refused for an option that is not in the table, and for one without its value.
    """
    tool = TOOLS[name]
    kinds = {option: kind for kind in ("flags", "values", "targets", "files") for option in getattr(tool, kind).split()}
    remaining_words = iter(words)
    for word in remaining_words:
        if not (word.isascii() and word.isprintable()):
            raise Refused(f"{word!r} has characters other than printable ASCII")
        if not word.startswith("-") or word == "-":
            yield "rest", "", word
            continue
        option, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if option not in kinds and not equals and kinds.get(word[:2], "flags") != "flags":
            option, equals, value = word[:2], "=", word[2:]  # -p80
        kind = kinds.get(option, "")
        if not kind or (equals and kind == "flags"):
            understood = " ".join(sorted(kinds))
            raise Refused(
                f"{name} {option} is not among the known options, so it might lead out of the lab. Known options: {understood}"
            )
        if kind != "flags" and not equals:
            value = next(remaining_words, "")
        if kind != "flags" and (not value or not (value.isascii() and value.isprintable()) or re.match("-.", value)):
            raise Refused(f"{name} {option} needs a value, and {value!r} is not one")
        yield kind, option, value


def command_line(name: str, arguments: Sequence[str], lab: Lab, folder: Path) -> list[str]:
    """Return the command to run, with all targets checked and resolved to addresses. Raises Refused.

    :param folder: a folder for files of checked targets
    """
    if name not in TOOLS:
        raise Refused(f"{name} is not one of the known tools: {', '.join(sorted(TOOLS))}")
    tool = TOOLS[name]
    words = list(arguments)
    if words[: len(tool.words)] != list(tool.words):
        raise Refused(f"{name} may only be run as {name} {' '.join(tool.words)}")
    resolve_target: Callable[[str], str] = getattr(lab, f"resolve_{tool.target}")
    command = [name, *tool.first.split(), *tool.words]
    target_count = rest = 0
    for kind, option, value in parse_arguments(name, words[len(tool.words) :]):
        command += [option] if option else []
        if kind == "rest" and rest < tool.rest:
            rest, target_count = rest + 1, target_count + 1
            command.append(resolve_target(value))
        elif kind == "rest" and not tool.rest:
            raise Refused(f"{value} is neither an option of {name} nor the value of one")
        elif kind == "targets":
            target_count += 1
            command.append(resolve_target(value))
        elif kind == "files":
            checked = [resolve_target(target) for target in read_targets(value)]
            target_count += len(checked)
            path = folder / f"targets-{len(command)}"
            path.write_text("".join(f"{target}\n" for target in checked), encoding="ascii")
            command.append(str(path))
        elif kind != "flags":
            lab.check_mentions(value)
            command.append(value)
    if not target_count:
        raise Refused(f"the arguments of {name} name no target")
    return command


def tool_environment(given: dict[str, str]) -> dict[str, str]:
    """Return the environment of a tool: without proxies, preloaded libraries and settings that could redirect it.

    The home folder is ~/.lab, so that a tool keeps its files there.
    """
    environment: dict[str, str] = {name: given[name] for name in ("USER", "TERM") if name in given}
    environment["HOME"] = f"{given.get('HOME', '/tmp')}/.lab"
    return {**environment, "LC_ALL": "C.UTF-8", "PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"}


def read_settings(path: Path) -> tuple[IPv4Network, float]:
    """Return the lab's subnet, and the greatest age of an isolation proof in minutes. Raises Refused."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return IPv4Network(settings["subnet"]), float(settings["minutes"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Refused(f"{path} does not define the lab ({error}). Run playbooks/isolated_lab.yml") from None


def load_proven_lab() -> Lab:
    """Return the lab, if its isolation proof is recent. Raises Refused."""
    subnet, minutes = read_settings(SETTINGS)
    check_proof(PROOF, subnet, minutes, time.time())
    return Lab(subnet)


def require_proof(address: str) -> Lab:
    """Return the lab, if its isolation proof is recent and the address is in it. Raises Refused."""
    lab = load_proven_lab()
    lab.resolve_host(address)
    return lab


def main(arguments: Sequence[str]) -> int:
    """Run the command `lab`; return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip() + f"\n\nTools: {', '.join(sorted(TOOLS))}", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else os.EX_USAGE
    try:
        lab = load_proven_lab()
        if arguments[0] == "--proof":
            return 0
        with tempfile.TemporaryDirectory(prefix="lab-") as folder:
            command = command_line(arguments[0], arguments[1:], lab, Path(folder))
            env = tool_environment(dict(os.environ))
            os.makedirs(env["HOME"], exist_ok=True)
            # Without standard input, from which some tools read targets.
            return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=False).returncode
    except Refused as error:
        print(f"lab: refused: {error}.", file=sys.stderr)
        return os.EX_NOPERM
    except FileNotFoundError:
        print(f"lab: {arguments[0]} is not installed. Its group belongs in lab_tools_groups (roles/lab_tools).", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
