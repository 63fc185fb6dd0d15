"""The classical half of Shor's algorithm, and the theoretical distribution of what the quantum half measures."""

import math
from fractions import Fraction

import numpy as np

from bramble import UsageError


def width(number: int) -> int:
    """Return n, the number of bits of a number. The circuit has 2n + 3 qubits and measures 2n bits."""
    return number.bit_length()


def check_number(number: int) -> None:
    """Raise UsageError for numbers that need no quantum computer: even numbers, primes, powers, and those below 15."""
    if number < 15:
        raise UsageError(f"--number {number} is too small: the smallest number that needs Shor's algorithm is 15")
    if number % 2 == 0:
        raise UsageError(f"--number {number} is even, so 2 is a factor; use an odd number with two different prime factors")
    for exponent in range(2, number.bit_length()):
        root = round(number ** (1 / exponent))
        if root**exponent == number:
            raise UsageError(f"--number {number} is {root}^{exponent}, which needs no quantum computer; try 15, 21 or 35")
    if all(number % divisor for divisor in range(3, math.isqrt(number) + 1, 2)):
        raise UsageError(f"--number {number} is prime; try 15, 21 or 35")


def bases(number: int) -> list[int]:
    """Return the numbers that have no factor in common with `number`: their order can reveal its factors."""
    return [base for base in range(2, number - 1) if math.gcd(base, number) == 1]


def order(base: int, number: int) -> int:
    """Return the least r > 0 with base^r = 1 modulo number: what the circuit finds. It is computed here for the theory only."""
    r, power = 1, base
    while power != 1:
        r, power = r + 1, power * base % number
    return r


def factors(measured: int, base: int, number: int) -> tuple[int, int] | None:
    """Return two factors from a measured number y, or None: a convergent of y / 2^2n may have the order as its denominator."""
    phase = Fraction(measured, 1 << 2 * width(number))
    numerator, denominator = phase.numerator, phase.denominator
    previous, current = 1, 0  # denominators of the convergents
    while denominator:
        quotient = numerator // denominator
        numerator, denominator = denominator, numerator - quotient * denominator
        previous, current = current, quotient * current + previous
        if current >= number:
            return None
        if current % 2 == 0 and pow(base, current, number) == 1:
            root = pow(base, current // 2, number)
            for sign in (-1, 1):
                factor = math.gcd(root + sign, number)
                if 1 < factor < number:
                    return min(factor, number // factor), max(factor, number // factor)
    return None


def phase_probabilities(phase: float, bits: int) -> np.ndarray:
    """Return P(y) of phase estimation with `bits` qubits.

    P(y) = (sin(2^bits pi d) / (2^bits sin(pi d)))^2, with d = phase - y / 2^bits.
    """
    size = 1 << bits
    d = phase - np.arange(size) / size
    bottom = size * np.sin(np.pi * d)
    exact = np.abs(bottom) < 1e-9
    return np.where(exact, 1.0, (np.sin(size * np.pi * d) / np.where(exact, 1.0, bottom)) ** 2)


def probabilities(base: int, number: int) -> np.ndarray:
    """Return P(y) of the circuit: |1> is the uniform superposition of the r eigenstates, whose phases are s/r."""
    r = order(base, number)
    mean: np.ndarray = np.mean([phase_probabilities(s / r, 2 * width(number)) for s in range(r)], axis=0)
    return mean


def peaks(base: int, number: int) -> set[int]:
    """Return the numbers next to a multiple of 4^n / r, on both sides: nearly all measurements give one of them."""
    r, size = order(base, number), 4 ** width(number)
    return {(s * size + offset) // r % size for s in range(r) for offset in (0, r - 1)}
