"""MD5 of many short strings at once (RFC 1321), and the chains of a rainbow table (P. Oechslin, 2003).

A string of a charset and a fixed length is one of N = len(charset)^length. It is given by a *fraction*, a uint64 f: the
string's number is floor(f N / 2^64), and its characters are the digits of f in base len(charset), the first being the
highest; so no division is needed. A hash reduces to a string by taking its first 64 bits, plus a number that depends on
table and column, as a fraction.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from bramble.arithmetic.jit import compiled, generated, mulhi

LANES = 256
"""Strings abreast: the vector units of every processor have enough to do, and all fits into the fastest cache."""
MAX_LENGTH = 15
"""Characters: four words of the block."""
STRIDE = np.uint64(0x9E3779B97F4A7C15)
"""From one column's reduction to the next one's: 2^64 over the golden ratio, odd."""

_SHIFTS = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
_WORDS = (lambda i: i, lambda i: (5 * i + 1) % 16, lambda i: (3 * i + 5) % 16, lambda i: 7 * i % 16)


@generated
def digests(typing_context: Any, words: Any, bits: Any) -> Any:
    """The first two words of the hash of each of two blocks, in compiled code. (RFC 1321, 3.4, step by step.)

    `words` are the first four of one block and the first four of the other, uint32; both are of so many `bits`. Each step needs
    the one before it: while those of one block wait for their results, those of the other are done.
    """
    word = ir.IntType(32)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        given, length = arguments
        firsts = [builder.extract_value(given, place) for place in range(8)]
        blocks = [[*firsts[at : at + 4], *[word(0)] * 10, length, word(0)] for at in (0, 4)]
        begin = [word(value) for value in (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)]
        states = [begin, begin]
        for step in range(64):
            turn = step // 16
            constant = word(int(abs(math.sin(step + 1)) * 2**32))
            left = _SHIFTS[turn][step % 4]
            for which, block in enumerate(blocks):
                a, b, c, d = states[which]
                if turn == 0:
                    mixed = builder.xor(d, builder.and_(b, builder.xor(c, d)))
                elif turn == 1:
                    mixed = builder.xor(c, builder.and_(d, builder.xor(b, c)))
                elif turn == 2:
                    mixed = builder.xor(builder.xor(b, c), d)
                else:
                    mixed = builder.xor(c, builder.or_(b, builder.not_(d)))
                total = builder.add(builder.add(a, mixed), builder.add(block[_WORDS[turn](step)], constant))
                turned = builder.or_(builder.shl(total, word(left)), builder.lshr(total, word(32 - left)))
                states[which] = [d, builder.add(b, turned), b, c]
        hashes = [builder.add(state[at], begin[at]) for state in states for at in (0, 1)]
        return context.make_tuple(builder, signature.return_type, hashes)

    return types.UniTuple(types.uint32, 4)(types.UniTuple(types.uint32, 8), types.uint32), generate


@compiled("void(uint64[::1], int64, uint32[::1], int64, uint32[:,::1])")
def _spell(fractions, active, charset, length, block):  # type: ignore[no-untyped-def]
    """Write the strings of the first `active` fractions into the blocks' words, with the bit that ends them."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    base = np.uint64(len(charset))
    left = fractions.copy()
    digits = np.empty(LANES, np.uint32)
    block[:4] = 0
    for place in range(length):
        word, shift = block[place >> 2], np.uint32(8 * (place & 3))
        for lane in range(active):
            upper = (left[lane] >> half) * base + ((left[lane] & low) * base >> half)
            left[lane] = left[lane] * base
            digits[lane] = upper >> half
        for lane in range(active):
            word[lane] |= charset[digits[lane]] << shift
    block[length >> 2] |= np.uint32(0x80) << np.uint32(8 * (length & 3))


@compiled("void(uint64[::1], int64, uint32[::1], int64, uint64, uint32[:,::1])")
def _link(fractions, active, charset, length, offset, block):  # type: ignore[no-untyped-def]
    """One link of the first `active` chains: spell, hash, reduce. The hashing loop has only 32-bit words: more are abreast."""
    _spell(fractions, active, charset, length, block)
    bits = np.uint32(8 * length)
    half = (active + 1) // 2
    for lane in range(half):
        other = lane + half  # one too many, where their number is odd
        one = block[0, lane], block[1, lane], block[2, lane], block[3, lane]
        two = block[0, other], block[1, other], block[2, other], block[3, other]
        block[4, lane], block[5, lane], block[4, other], block[5, other] = digests(one + two, bits)
    for lane in range(active):
        fractions[lane] = (np.uint64(block[4, lane]) | np.uint64(block[5, lane]) << np.uint64(32)) + offset


@compiled("void(uint64[::1], uint32[::1], int64, uint64, uint64, int64, uint64[::1])")
def follow_chains(starts, charset, length, size, offset, columns, ends):  # type: ignore[no-untyped-def]
    """Follow chains from their first fractions through all columns; write the numbers of the strings at their ends."""
    block = np.empty((6, LANES), np.uint32)
    fractions = np.empty(LANES, np.uint64)
    for begin in range(0, len(starts), LANES):
        active = min(LANES, len(starts) - begin)
        fractions[:active] = starts[begin : begin + active]
        for column in range(columns):
            _link(fractions, active, charset, length, offset + np.uint64(column) * STRIDE, block)
        for lane in range(active):
            ends[begin + lane] = mulhi(fractions[lane], size)


@compiled("void(uint64, uint32[::1], int64, uint64, uint64, int64, int64, uint64[::1])")
def finish_chains(start, charset, length, size, offset, first, columns, ends):  # type: ignore[no-untyped-def]
    """Where the chains end that have a hash (its first 64 bits) in columns `first`, `first` + 1...: one for each of `ends`."""
    block = np.empty((6, LANES), np.uint32)
    fractions = np.empty(LANES, np.uint64)
    for begin in range(0, len(ends), LANES):
        active = min(LANES, len(ends) - begin)
        column = first + begin
        for lane in range(active):
            fractions[lane] = start + offset + np.uint64(column + lane) * STRIDE
        for at in range(column + 1, columns):  # lane 0 is under way first
            _link(fractions, min(at - column, active), charset, length, offset + np.uint64(at) * STRIDE, block)
        for lane in range(active):
            ends[begin + lane] = mulhi(fractions[lane], size)


@compiled("void(uint64[::1], int64[::1], uint32[::1], int64, uint64, uint64[::1])")
def reach_columns(starts, columns, charset, length, offset, found):  # type: ignore[no-untyped-def]
    """The fractions in given columns of the chains with given first fractions; the columns descend."""
    block = np.empty((6, LANES), np.uint32)
    fractions = np.empty(LANES, np.uint64)
    for begin in range(0, len(starts), LANES):
        number = active = min(LANES, len(starts) - begin)
        fractions[:number] = starts[begin : begin + number]
        for at in range(columns[begin]):
            while columns[begin + active - 1] <= at:  # these are there
                active -= 1
            _link(fractions, active, charset, length, offset + np.uint64(at) * STRIDE, block)
        found[begin : begin + number] = fractions[:number]


@compiled("int64(uint64, uint64, uint64, uint64, uint64, int64, uint32[::1], int64, uint64)")
def search(fraction, remainder, step, rest, size, count, charset, length, wanted):  # type: ignore[no-untyped-def]
    """Which of `count` strings in order has a hash that begins with these 64 bits; -1 if none.

    (fraction, remainder) is divmod(2^64 times the number of the first, N), and (step, rest) is divmod(2^64, N).
    """
    block = np.empty((6, LANES), np.uint32)
    fractions = np.empty(LANES, np.uint64)
    for begin in range(0, count, LANES):
        active = min(LANES, count - begin)
        for lane in range(active):
            fractions[lane] = fraction + np.uint64(remainder != 0)
            fraction += step
            remainder += rest
            if remainder >= size:
                remainder -= size
                fraction += np.uint64(1)
        _link(fractions, active, charset, length, np.uint64(0), block)
        for lane in range(active):
            if fractions[lane] == wanted:
                return begin + lane
    return -1
