"""Primes by libprimesieve if it is installed (Debian: libprimesieve-dev), else by this module's sieve, several times slower."""

import ctypes
import ctypes.util
import math
from collections.abc import Iterator
from functools import cache

import numpy as np

from bramble.arithmetic.jit import compiled

SEGMENT = 1 << 19
"""Odd numbers that are sieved at a time, one byte each, so that they fit into the cache."""
MAX_END_LIBRARY = 2**64 - 2**33
"""The largest end for libprimesieve: its own limit, less a margin for numbers slightly beyond the end."""
MAX_END_OWN = 10**16
"""The largest end for this module's sieve, which then has 46 MB of primes up to the square root."""
UINT64_PRIMES = 13  # primesieve.h


@cache
def library() -> ctypes.CDLL | None:
    """Return libprimesieve if it is installed, else None; its functions release the GIL."""
    try:
        # find_library() reads a cache of ldconfig, which a container may lack; the development package has the second name.
        library = ctypes.CDLL(ctypes.util.find_library("primesieve") or "libprimesieve.so")
    except OSError:
        return None
    number = ctypes.c_uint64
    for function in (library.primesieve_count_primes, library.primesieve_count_twins):
        function.restype, function.argtypes = number, [number, number]
    library.primesieve_generate_primes.restype = ctypes.c_void_p
    library.primesieve_generate_primes.argtypes = [number, number, ctypes.POINTER(ctypes.c_size_t), ctypes.c_int]
    library.primesieve_free.restype, library.primesieve_free.argtypes = None, [ctypes.c_void_p]
    library.primesieve_set_num_threads(1)  # a job uses one core
    return library


def max_end() -> int:
    """Return the largest end of an interval on this machine."""
    return MAX_END_LIBRARY if library() else MAX_END_OWN


def count(begin: int, end: int) -> int:
    """Return the number of primes begin <= p < end."""
    return _count_by_library("primesieve_count_primes", begin, end) if library() else _count_own(begin, end)[0]


def twins(begin: int, end: int) -> int:
    """Return the number of pairs of primes p, p + 2 with begin <= p and p + 2 < end."""
    return _count_by_library("primesieve_count_twins", begin, end) if library() else _count_own(begin, end)[1]


def primes(begin: int, end: int) -> np.ndarray:
    """Return the primes begin <= p < end, as uint64."""
    found = library()
    if end <= begin:
        return np.empty(0, np.uint64)
    if found is None:
        return np.concatenate([np.array([2][: begin <= 2 < end], np.uint64), *(odd for *_, odd in _segments(begin, end, True))])
    size = ctypes.c_size_t()
    memory = found.primesieve_generate_primes(begin, end - 1, ctypes.byref(size), UINT64_PRIMES)
    if not size.value:
        return np.empty(0, np.uint64)
    try:
        pointer = ctypes.cast(memory, ctypes.POINTER(ctypes.c_uint64))
        return np.ctypeslib.as_array(pointer, (size.value,)).copy()
    finally:
        found.primesieve_free(memory)


def _count_by_library(function: str, begin: int, end: int) -> int:
    """Return the count of a function of libprimesieve for the range from `begin` up to, not including, `end`.

    Raises ArithmeticError when the library fails.
    """
    if end <= begin:
        return 0
    counted = int(getattr(library(), function)(begin, end - 1))
    if counted == 2**64 - 1:  # PRIMESIEVE_ERROR
        raise ArithmeticError(f"libprimesieve cannot count from {begin} to {end}")
    return counted


def _count_own(begin: int, end: int) -> tuple[int, int]:
    """Return the number of primes and of twins, by this module's sieve."""
    found = list(_segments(begin, end, False))
    return (begin <= 2 < end) + sum(segment[0] for segment in found), sum(segment[1] for segment in found)


def _segments(begin: int, end: int, listed: bool) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield for each segment the number of odd primes, the number of twins, and the primes (empty unless `listed`).

    A pair belongs to the segment of its first prime, so each segment is sieved one odd number further.
    """
    small = _small_primes(1 << math.isqrt(end).bit_length())
    for first in range(max(begin, 3) | 1, end, 2 * SEGMENT):
        flags = np.ones((min(2 * SEGMENT + 2, end - first) + 1) // 2, np.uint8)
        _strike_multiples(flags, first, small)
        own = flags[:SEGMENT]
        odd = np.flatnonzero(own).astype(np.uint64) * np.uint64(2) + np.uint64(first) if listed else np.empty(0, np.uint64)
        yield int(np.count_nonzero(own)), int(np.count_nonzero(flags[:-1] & flags[1:])), odd


@cache
def _small_primes(end: int) -> np.ndarray:
    """Return the odd primes below `end`, by Eratosthenes' sieve; `end` is a power of two, so that few results are cached."""
    flags = np.ones(end // 2, np.bool_)  # of 1, 3, 5...
    flags[:1] = False
    for p in range(3, math.isqrt(end) + 1, 2):
        if flags[p // 2]:
            flags[p * p // 2 :: p] = False
    return np.flatnonzero(flags) * 2 + 1


@compiled("void(uint8[::1], int64, int64[::1])")
def _strike_multiples(flags, first, small):  # type: ignore[no-untyped-def]
    """Clear the flags of the multiples of small primes among the odd numbers that begin with `first`."""
    last = first + 2 * (len(flags) - 1)
    for p in small:
        if p * p > last:
            break
        multiple = max(p, (first + p - 1) // p | 1) * p
        for index in range((multiple - first) // 2, len(flags), p):
            flags[index] = 0
