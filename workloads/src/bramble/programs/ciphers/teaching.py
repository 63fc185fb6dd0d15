"""Caesar's cipher and how it is broken; RSA with numbers that fit on a line.

R. L. Rivest, A. Shamir and L. Adleman, "A method for obtaining digital signatures and public-key cryptosystems",
Communications of the ACM 21(2), 1978. This is RSA as in the paper, without padding and with keys that a Raspberry Pi can
factor: it is a demonstration and not secure.
"""

import math
import random
from collections import Counter

from bramble import UsageError

ENGLISH = (
    8.2,
    1.5,
    2.8,
    4.3,
    12.7,
    2.2,
    2.0,
    6.1,
    7.0,
    0.15,
    0.77,
    4.0,
    2.4,
    6.7,
    7.5,
    1.9,
    0.095,
    6.0,
    6.3,
    9.1,
    2.8,
    0.98,
    2.4,
    0.15,
    2.0,
    0.074,
)
"""Percent of the letters A to Z in English texts (H. Beker and F. Piper, "Cipher Systems", 1982)."""
EXPONENT = 65537


def shift(text: str, key: int) -> str:
    """Return a text with the letters A to Z and a to z shifted by `key` and all other characters unchanged."""
    return "".join(
        chr((ord(letter) - base + key) % 26 + base) if letter.isascii() and letter.isalpha() else letter
        for letter in text
        for base in [ord("A" if letter.isupper() else "a")]
    )


def guess_key(text: str) -> tuple[int, str]:
    """Return the key with which an English text was enciphered, and the deciphered text.

    This is the key whose letter frequencies are nearest to ENGLISH, by Pearson's chi-squared. Raises UsageError if the
    text has no letters.
    """

    def distance(plain: str) -> float:
        observed = Counter(letter for letter in plain.upper() if "A" <= letter <= "Z")
        total = observed.total()
        expected = {chr(65 + index): total * share / 100 for index, share in enumerate(ENGLISH)}
        return sum((observed[letter] - count) ** 2 / count for letter, count in expected.items())

    if not any("A" <= letter <= "Z" for letter in text.upper()):
        raise UsageError(f"{text!r} has no letters from A to Z to guess the key by; give the key with --key")
    key = min(range(26), key=lambda key: distance(shift(text, -key)))
    return key, shift(text, -key)


def make_key(bits: int, seed: int) -> tuple[int, int, int]:
    """Return two primes of half of the bits each, and the private exponent for EXPONENT. The same seed gives the same key."""
    # Imported here because numba loads slowly and the other ciphers do not need it.
    from bramble.programs.primality.kernel import is_prime

    generator = random.Random(seed)

    def draw_prime() -> int:
        while True:
            # The two highest bits are set, so that the product has the full number of bits.
            candidate = generator.getrandbits(bits // 2) | 3 << (bits // 2 - 2) | 1
            if is_prime(candidate) and math.gcd(candidate - 1, EXPONENT) == 1:
                return candidate

    p, q = draw_prime(), draw_prime()
    while q == p:
        q = draw_prime()
    return p, q, pow(EXPONENT, -1, math.lcm(p - 1, q - 1))


def explain_rsa(text: str, bits: int, seed: int) -> list[str]:
    """Return lines of text: a key pair, and a message that is enciphered with one key and deciphered with the other.

    Raises UsageError if the number of bits is odd.
    """
    if bits % 2:
        raise UsageError(f"--bits must be even, but is {bits}")
    p, q, private = make_key(bits, seed)
    n = p * q
    size = (n.bit_length() - 1) // 8
    data = text.encode()
    blocks = [int.from_bytes(data[index : index + size], "big") for index in range(0, len(data), size)]
    enciphered = [pow(block, EXPONENT, n) for block in blocks]
    deciphered = [pow(block, private, n) for block in enciphered]
    sizes = [min(size, len(data) - index) for index in range(0, len(data), size)]
    message = b"".join(block.to_bytes(length, "big") for block, length in zip(deciphered, sizes, strict=True)).decode()
    return [
        f"two secret primes        {p} and {q}",
        f"public key               n = {n} ({n.bit_length()} bits), e = {EXPONENT}",
        f"private key              d = {private}, from e d = 1 modulo {math.lcm(p - 1, q - 1)}",
        f"message as numbers       {' '.join(map(str, blocks))}",
        f"enciphered, m^e mod n    {' '.join(map(str, enciphered))}",
        f"deciphered, c^d mod n    {' '.join(map(str, deciphered))}",
        f"as text                  {message}",
        f"Not secure: `bramble factor {n}` finds the primes, and with them d. Keys in use have 2048 bits or more.",
    ]
