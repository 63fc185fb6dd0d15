"""Find the setting of an Enigma from a message and a piece of its text, by trying all 60 rotor orders with 17576 starts each."""

from typing import Any

from bramble import ResultError, UsageError
from bramble.programs.enigma.machine import ALPHABET, ORDERS, REFLECTORS, Hit, Job, Setting, encipher, search
from bramble.study.program import Program, Run

MIN_CRIB_LENGTH = 4
"""Letters. A crib of three would fit about sixty settings by chance: there are 60 x 26^3 settings and 26^3 such cribs."""


def parse_letters(option: str, text: str) -> str:
    """Return a text in capital letters without spaces. Raises UsageError if it is empty or has other characters."""
    capitals = text.replace(" ", "").upper()
    if not capitals or not set(capitals) <= set(ALPHABET):
        raise UsageError(f"{option}: {text!r} must consist of the letters A to Z and spaces")
    return capitals


def parse_plugs(text: str) -> str:
    """Return pairs of capital letters, each letter at most once. Raises UsageError."""
    pairs = text.upper().split()
    used = "".join(pairs)
    if any(len(pair) != 2 for pair in pairs) or len(set(used)) < len(used) or not set(used) <= set(ALPHABET):
        raise UsageError(f"--plugs: {text!r} is not pairs of letters, each letter once, such as 'AV BS CG'")
    return " ".join(pairs)


def parse_rings(text: str) -> tuple[tuple[int, ...], bool]:
    """Return the three ring numbers, and whether all rings are to be tried (`all`). Raises UsageError."""
    if text == "all":
        return (1, 1, 1), True
    parts = text.replace(",", " ").split()
    if len(parts) != 3 or not all(part.isdecimal() and 1 <= int(part) <= 26 for part in parts):
        raise UsageError(f"--rings: {text!r} is not three numbers from 1 to 26, such as '1 1 1', nor `all`")
    return tuple(map(int, parts)), False


def program(cipher: str, crib: str, at: int, rings: str, plugs: str, reflector: str) -> Program:
    """Return a program that finds all settings which decipher the letters from number `at` on to the crib. Raises UsageError."""
    cipher, crib, plugs = parse_letters("CIPHER", cipher), parse_letters("CRIB", crib), parse_plugs(plugs)
    ring, tries_all_rings = parse_rings(rings)
    if reflector not in REFLECTORS:
        raise UsageError(f"--reflector {reflector} is unknown; choose from {', '.join(REFLECTORS)}")
    if not MIN_CRIB_LENGTH <= len(crib) <= len(cipher) - at:
        raise UsageError(
            f"the crib has {len(crib)} letters; it must have at least {MIN_CRIB_LENGTH}, "
            "and no more than the cipher has from --at on"
        )
    if same := [index for index, (one, other) in enumerate(zip(cipher[at:], crib, strict=False)) if one == other]:
        raise UsageError(
            f"the crib cannot be at letter {at} of the cipher: letter {same[0] + 1} of the crib is the same as in the cipher, "
            "and an Enigma never enciphers a letter as itself; try another --at"
        )
    jobs = [Job(Setting(order, ring, plugs, reflector), cipher, crib, at, tries_all_rings) for order in ORDERS]

    def compute(run: Run) -> list[Hit]:
        return [Hit(*hit) for hits in run.map(search, jobs) for hit in hits]

    def decipher(hit: Hit) -> str:
        return encipher(Setting(hit.rotors, hit.rings, plugs, reflector), hit.start, cipher)

    def describe(hits: list[Hit]) -> dict[str, Any]:
        return {"settings": [hit._asdict() | {"text": decipher(hit)} for hit in hits]}

    def summarise(hits: list[Hit]) -> str:
        lines = [
            f"{' '.join(hit.rotors)}, rings {' '.join(map(str, hit.rings))}, start {hit.start}: {decipher(hit)}"
            for hit in hits[:5]
        ]
        more = [f"... and {len(hits) - 5} more"] if len(hits) > 5 else []
        return "\n".join(lines + more) or "no setting deciphers the message to this crib"

    parameters = {"crib": crib, "at": at, "orders": len(jobs), "rings": rings, "plugs": plugs, "reflector": reflector}
    return Program("enigma", [search], compute, describe, summarise, parameters=parameters, check=check)


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when a setting that was found does not yield the crib on this machine."""
    for setting in record["settings"]:
        if setting["text"][record["at"] :][: len(record["crib"])] != record["crib"]:
            raise ResultError(
                f"{setting} does not yield the crib on this machine, so a node computes wrongly; "
                "run `bramble health-check NODE` for each node"
            )
