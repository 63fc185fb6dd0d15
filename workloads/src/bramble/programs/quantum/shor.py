"""The classical half of Shor's algorithm, and what the quantum half measures, in theory."""

import math
from fractions import Fraction

import numpy as np

from bramble import UsageError


def width(number: int) -> int:
    """n, the bits of a number. The circuit has 2n + 3 qubits and measures 2n bits."""
    return number.bit_length()


def check_number(number: int) -> None:
    """Raise UsageError for what needs no quantum computer: even numbers, primes, powers, and what is too small."""
    if number < 15:
        raise UsageError(f"--number {number}: the smallest number that Shor's algorithm is needed for is 15")
    if number % 2 == 0:
        raise UsageError(f"--number {number} is even: 2 is a factor; take an odd number with two different prime factors")
    for exponent in range(2, number.bit_length()):
        root = round(number ** (1 / exponent))
        if root**exponent == number:
            raise UsageError(f"--number {number} is {root}^{exponent}: no quantum computer is needed; try 15, 21 or 35")
    if all(number % divisor for divisor in range(3, math.isqrt(number) + 1, 2)):
        raise UsageError(f"--number {number} is prime; try 15, 21 or 35")


def bases(number: int) -> list[int]:
    """The numbers whose order tells factors: those without a factor in common with it (that would be luck, not physics)."""
    return [base for base in range(2, number - 1) if math.gcd(base, number) == 1]


def order(base: int, number: int) -> int:
    """The least r > 0 with base^r = 1 modulo number: what the circuit is built to find. Here for the theory only."""
    r, power = 1, base
    while power != 1:
        r, power = r + 1, power * base % number
    return r


def factors(measured: int, base: int, number: int) -> tuple[int, int] | None:
    """Two factors, from y = measured: a convergent of y / 2^2n has the order as its denominator, with luck."""
    phase = Fraction(measured, 1 << 2 * width(number))
    numerator, denominator = phase.numerator, phase.denominator
    before, now = 1, 0  # denominators of the convergents
    while denominator:
        quotient = numerator // denominator
        numerator, denominator = denominator, numerator - quotient * denominator
        before, now = now, quotient * now + before
        if now >= number:
            return None
        if now % 2 == 0 and pow(base, now, number) == 1:
            root = pow(base, now // 2, number)
            for sign in (-1, 1):
                factor = math.gcd(root + sign, number)
                if 1 < factor < number:
                    return min(factor, number // factor), max(factor, number // factor)
    return None


def phase_probabilities(phase: float, bits: int) -> np.ndarray:
    """P(y) of phase estimation with `bits` qubits: (sin(2^bits pi d) / (2^bits sin(pi d)))^2, d = phase - y / 2^bits."""
    size = 1 << bits
    d = phase - np.arange(size) / size
    bottom = size * np.sin(np.pi * d)
    exact = np.abs(bottom) < 1e-9
    return np.where(exact, 1.0, (np.sin(size * np.pi * d) / np.where(exact, 1.0, bottom)) ** 2)


def probabilities(base: int, number: int) -> np.ndarray:
    """P(y) of the circuit: |1> is the even superposition of the r eigenstates, with phases s/r."""
    r = order(base, number)
    found: np.ndarray = np.mean([phase_probabilities(s / r, 2 * width(number)) for s in range(r)], axis=0)
    return found


def peaks(base: int, number: int) -> set[int]:
    """The numbers beside a multiple of 4^n / r: what is measured nearly always."""
    r, size = order(base, number), 4 ** width(number)
    return {(s * size + more) // r % size for s in range(r) for more in (0, r - 1)}
