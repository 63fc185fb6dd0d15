"""Find the setting of an Enigma from a message and a piece of its text: all 60 rotor orders and all 17576 starts of each."""

from typing import Any

from bramble import ResultError, UsageError
from bramble.programs.enigma.machine import ALPHABET, ORDERS, REFLECTORS, Hit, Job, Setting, encipher, search
from bramble.study.program import Program, Run

MIN_CRIB_LENGTH = 4
"""A crib of three letters fits sixty times by chance: 26^3 times 60 settings, and as many texts of three letters."""


def parse_letters(option: str, text: str) -> str:
    """A text as the machine has it: capital letters and nothing else. Raises UsageError."""
    found = text.replace(" ", "").upper()
    if not found or not set(found) <= set(ALPHABET):
        raise UsageError(f"{option}: {text!r} has other things than letters, or none")
    return found


def parse_plugs(text: str) -> str:
    """Pairs of letters, each letter at most once. Raises UsageError."""
    pairs = text.upper().split()
    used = "".join(pairs)
    if any(len(pair) != 2 for pair in pairs) or len(set(used)) < len(used) or not set(used) <= set(ALPHABET):
        raise UsageError(f"--plugs: {text!r} is not pairs of letters, each letter once, such as 'AV BS CG'")
    return " ".join(pairs)


def parse_rings(text: str) -> tuple[tuple[int, ...], bool]:
    """`1 1 1`, or `all`; and whether it is `all`. Raises UsageError."""
    if text == "all":
        return (1, 1, 1), True
    parts = text.replace(",", " ").split()
    if len(parts) != 3 or not all(part.isdecimal() and 1 <= int(part) <= 26 for part in parts):
        raise UsageError(f"--rings: {text!r} is not three numbers from 1 to 26, such as '1 1 1', nor `all`")
    return tuple(map(int, parts)), False


def program(cipher: str, crib: str, at: int, rings: str, plugs: str, reflector: str) -> Program:
    """All settings that make the crib of the cipher's letters from number `at` on. Raises UsageError."""
    cipher, crib, plugs = parse_letters("CIPHER", cipher), parse_letters("CRIB", crib), parse_plugs(plugs)
    ring, every = parse_rings(rings)
    if reflector not in REFLECTORS:
        raise UsageError(f"--reflector {reflector} is not known; there are {', '.join(REFLECTORS)}")
    if not MIN_CRIB_LENGTH <= len(crib) <= len(cipher) - at:
        raise UsageError(f"the crib must have from {MIN_CRIB_LENGTH} letters to as many as the cipher has from --at on, has {len(crib)}")
    if same := [index for index, (one, other) in enumerate(zip(cipher[at:], crib, strict=False)) if one == other]:
        raise UsageError(
            f"the crib can not be there: its letter {same[0] + 1} is the cipher's own, and no Enigma leaves a letter as it is"
        )
    work = [Job(Setting(order, ring, plugs, reflector), cipher, crib, at, every) for order in ORDERS]

    def compute(run: Run) -> list[Hit]:
        return [Hit(*hit) for hits in run.map(search, work) for hit in hits]

    def read(hit: Hit) -> str:
        return encipher(Setting(hit.rotors, hit.rings, plugs, reflector), hit.start, cipher)

    def describe(hits: list[Hit]) -> dict[str, Any]:
        return {"settings": [hit._asdict() | {"text": read(hit)} for hit in hits]}

    def summarise(hits: list[Hit]) -> str:
        lines = [
            f"{' '.join(hit.rotors)}, rings {' '.join(map(str, hit.rings))}, start {hit.start}: {read(hit)}" for hit in hits[:5]
        ]
        more = [f"... and {len(hits) - 5} more"] if len(hits) > 5 else []
        return "\n".join(lines + more) or "no setting makes that crib of that cipher"

    parameters = {"crib": crib, "at": at, "orders": len(work), "rings": rings, "plugs": plugs, "reflector": reflector}
    return Program("enigma", [search], compute, describe, summarise, parameters=parameters, check=check)


def check(record: dict[str, Any]) -> None:
    """Raise ResultError when a setting that was found does not give the crib here."""
    for setting in record["settings"]:
        if setting["text"][record["at"] :][: len(record["crib"])] != record["crib"]:
            raise ResultError(f"{setting} does not give the crib here: a node computes wrongly")
