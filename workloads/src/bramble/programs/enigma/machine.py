"""The machine: its wirings, how it enciphers a letter, and the search over all start positions of a rotor order.

Wirings and turnovers: F. L. Bauer, "Decrypted Secrets", 4th edition 2007, and the machines in museums; D. H. Hamer, "Enigma:
actions involved in the 'double stepping' of the middle rotor", Cryptologia 21(1), 1997.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
from numba import int64
from numpy.typing import NDArray

from bramble.arithmetic.jit import compiled

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ROTORS = {
    "I": ("EKMFLGDQVZNTOWYHXUSPAIBRCJ", "Q"),
    "II": ("AJDKSIRUXBLHWTMCQGZNPYFVOE", "E"),
    "III": ("BDFHJLCPRTXVZNYEIWGAKMUSQO", "V"),
    "IV": ("ESOVPZJAYQUIRHXLNFTGKDCMWB", "J"),
    "V": ("VZBRGITYUPSDNHLXAWMJQOFECK", "Z"),
}
"""The wiring, and the letter in the window at which the next keypress also turns the rotor to the left of this one."""
REFLECTORS = {
    "A": "EJMZALYXVBWFCRQUONTSPIKHGD",
    "B": "YRUHQSLDPXNGOKMIEBFZCWVJAT",
    "C": "FVPJIAOYEDRZXWGCTKUQSBNMHL",
}
ORDERS = tuple(permutations(ROTORS, 3))
"""All 60 ways to choose three of five rotors, left to right."""


class Setting(NamedTuple):
    """The settings on a key sheet: rotors and rings (1 to 26) from left to right, plugs such as `AV BS CG`, the reflector."""

    rotors: tuple[str, ...]
    rings: tuple[int, ...] = (1, 1, 1)
    plugs: str = ""
    reflector: str = "B"


class Job(NamedTuple):
    """A search of all start positions of a setting for those that turn `cipher`, from its letter number `at` on, into `crib`.

    `every_ring` also tries every ring of the middle and the right rotor; the ring of the left one only shifts the start.
    """

    setting: Setting
    cipher: str
    crib: str
    at: int
    every_ring: bool


class Hit(NamedTuple):
    """A setting that fits: the rotors, their rings and the letters in the windows before the first keypress."""

    rotors: tuple[str, ...]
    rings: tuple[int, ...]
    start: str


def letters_to_numbers(text: str) -> NDArray[np.uint8]:
    """Return the letters of a text as numbers from 0 to 25."""
    return (np.frombuffer(text.encode(), np.uint8) - ord("A")).astype(np.uint8)


def plugboard(plugs: str) -> NDArray[np.uint8]:
    """Return the letter (0 to 25) that the plugboard makes of each letter."""
    board = np.arange(26, dtype=np.uint8)
    for one, other in map(letters_to_numbers, plugs.split()):
        board[one], board[other] = other, one
    return board


def wiring(setting: Setting) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Return the wirings of the rotors and the reflector, forward and inverse, of shape (4, 26), and the turnovers."""
    forward_wiring = np.stack(
        [letters_to_numbers(ROTORS[name][0]) for name in setting.rotors] + [letters_to_numbers(REFLECTORS[setting.reflector])]
    )
    backward_wiring = np.argsort(forward_wiring, axis=1).astype(np.uint8)
    return forward_wiring, backward_wiring, np.array([ALPHABET.index(ROTORS[name][1]) for name in setting.rotors])


@compiled("int64(uint8[:, :], uint8[:, :], int64[:], uint8[:], int64[:], int64[:], uint8[:], uint8[:], int64, uint8[:])")
def _type_letters(forward_wiring, backward_wiring, turnover, board, rings, start, cipher, crib, at, out):  # type: ignore[no-untyped-def]
    """Type `cipher` and return the index of the first letter, from `at` on, that differs from the crib, or the length.

    If `out` is not empty, it gets the typed letters, and nothing is compared.
    """
    left, middle, right = start[0], start[1], start[2]
    for index in range(len(cipher)):
        if middle == turnover[1]:  # the middle rotor steps a second time when it turns the left one
            left, middle = (left + 1) % 26, (middle + 1) % 26
        elif right == turnover[2]:
            middle = (middle + 1) % 26
        right = (right + 1) % 26
        if index < at and not len(out):
            continue
        a, b, c = (left - rings[0]) % 26, (middle - rings[1]) % 26, (right - rings[2]) % 26
        letter = int64(board[cipher[index]])
        letter = (forward_wiring[2, (letter + c) % 26] - c) % 26
        letter = (forward_wiring[1, (letter + b) % 26] - b) % 26
        letter = (forward_wiring[0, (letter + a) % 26] - a) % 26
        letter = int64(forward_wiring[3, letter])
        letter = (backward_wiring[0, (letter + a) % 26] - a) % 26
        letter = (backward_wiring[1, (letter + b) % 26] - b) % 26
        letter = (backward_wiring[2, (letter + c) % 26] - c) % 26
        plain = board[letter]
        if len(out):
            out[index] = plain
        elif plain != crib[index - at]:
            return index
    return len(cipher)


@compiled("int64(uint8[:, :], uint8[:, :], int64[:], uint8[:], int64[:], uint8[:], uint8[:], int64, int64[:])")
def _search(forward_wiring, backward_wiring, turnover, board, rings, cipher, crib, at, hits):  # type: ignore[no-untyped-def]
    """Try all start positions, write the numbers of those that fit to `hits`, and return how many there are."""
    nothing = np.empty(0, np.uint8)
    start = np.empty(3, np.int64)
    found = 0
    for number in range(26**3):
        start[0], start[1], start[2] = number // 676, number // 26 % 26, number % 26
        if _type_letters(forward_wiring, backward_wiring, turnover, board, rings, start, cipher, crib, at, nothing) == len(
            cipher
        ):
            if found < len(hits):
                hits[found] = number
            found += 1
    return found


def encipher(setting: Setting, start: str, text: str) -> str:
    """Return the enciphered text. Enciphering the result from the same start returns the text."""
    forward_wiring, backward_wiring, turnover = wiring(setting)
    typed, out = letters_to_numbers(text), np.empty(len(text), np.uint8)
    rings, windows = np.array(setting.rings) - 1, letters_to_numbers(start).astype(np.int64)
    _type_letters(forward_wiring, backward_wiring, turnover, plugboard(setting.plugs), rings, windows, typed, typed[:0], 0, out)
    return "".join(ALPHABET[letter] for letter in out)


def search(job: Job) -> list[Hit]:
    """Return the settings that fit, in the order of the rings and of the start positions."""
    forward_wiring, backward_wiring, turnover = wiring(job.setting)
    board, crib = plugboard(job.setting.plugs), letters_to_numbers(job.crib)
    cipher = letters_to_numbers(job.cipher)[: job.at + len(crib)]
    first, middle, right = job.setting.rings
    rings = [(first, i, j) for i in range(1, 27) for j in range(1, 27)] if job.every_ring else [(first, middle, right)]
    starts = np.empty(26**3, np.int64)
    found = []
    for ring in rings:
        hits = _search(forward_wiring, backward_wiring, turnover, board, np.array(ring) - 1, cipher, crib, job.at, starts)
        for number in starts[:hits]:
            letters = "".join(ALPHABET[digit] for digit in (number // 676, number // 26 % 26, number % 26))
            found.append(Hit(job.setting.rotors, ring, letters))
    return found
