"""How fast the workloads' kernels are on one core, side by side in one run with what else there is.

    make bench-workloads      writes reports/bench/workloads.json

  pi_montecarlo_vs_octapi          points per second against a plain Python loop, as OctaPi's script has one
  pi_digits_vs_flint               seconds for ten million digits against python-flint's
  primes_vs_primesieve             primes up to 3e10, against the primesieve command with one thread, of the same library
  md5_vs_gcc                       links of rainbow chains per second against the same in C, by gcc -O3 -march=native
  surrogates_per_second_per_core   of 5104 days with 4 thresholds
  efficiency_8_...                 of a workload on eight stand-ins of a small part of a core: the speed-up, divided by 8

Kernels are compared by processor seconds, the best of some rounds taken in turns, so that a busy machine disturbs little. That
needs gcc, primesieve and python-flint (scripts/bootstrap --test) and two minutes; the nodes a Docker engine, a quiet machine of
two cores or more and half an hour. --only kernels or --only nodes is one half of it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import ROOT, standins

NAME, SUBNET = "bench-workloads", "10.77.113.0/24"
CPUS = min(standins.CPUS, 0.075 * len(os.sched_getaffinity(0)))
"""Cores of a stand-in. All nine take two thirds of the machine: with more, eight are in each other's way, and one is not."""
ON_NODES = {
    "pi": ("pi --points 1.5e10", 0.95),
    "primes": ("primes 0 5e10", 0.95),
    "rainbow": ("rainbow build --tables 1 --starts 2e5 --chain 8000 --folder /tmp/rainbow-{take}-{nodes}", 0.95),
    "quantum": ("quantum bell --shots 5e5", 0.9),
    "fibonacci": ("fibonacci --surrogates 6e4 --no-controls", 0.9),
}
"""What runs on one node and on eight, a minute or more on one; and the efficiency it should have."""
ROUNDS = 3
"""Of runs on eight nodes and on one, in turns; the best of each counts, as machines have slow minutes."""

AT_LEAST = {
    **{f"efficiency_8_{name}": least for name, (_, least) in ON_NODES.items()},
    "pi_montecarlo_vs_octapi": 100,
    "primes_vs_primesieve": 0.95,
    "md5_vs_gcc": 0.8,
    "surrogates_per_second_per_core": 1500,
}
AT_MOST = {"pi_digits_vs_flint": 1.2}

LINKS = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>
#define LANES 256
#define TURN(x, n) ((x) << (n) | (x) >> (32 - (n)))
#define STEP(f, k, s, t) { uint32_t x = TURN(a + (f) + (k) + (t), s); a = d; d = c; c = b; b += x; }
/* LENGTH lowercase letters each: spell them, hash them (RFC 1321), reduce; so many columns. */
void links(uint64_t *fractions, int64_t columns, uint64_t stride) {
    static uint32_t w0[LANES], w1[LANES], ra[LANES], rb[LANES];
    for (int64_t column = 0; column < columns; column++) {
        uint64_t left[LANES];
        memcpy(left, fractions, sizeof left);
        memset(w0, 0, sizeof w0);
        memset(w1, 0, sizeof w1);
        for (int place = 0; place < LENGTH; place++) {
            uint32_t *word = place < 4 ? w0 : w1;
            for (int lane = 0; lane < LANES; lane++) {
                uint64_t upper = (left[lane] >> 32) * 26 + ((left[lane] & 0xffffffff) * 26 >> 32);
                left[lane] *= 26;
                word[lane] |= (uint32_t)((upper >> 32) + 'a') << 8 * (place & 3);
            }
        }
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t w[16] = {w0[lane], w1[lane] | (uint32_t)0x80 << 8 * (LENGTH & 3), [14] = 8 * LENGTH};
            uint32_t a = 0x67452301, b = 0xefcdab89, c = 0x98badcfe, d = 0x10325476;
            STEPS
            ra[lane] = a + 0x67452301;
            rb[lane] = b + 0xefcdab89;
        }
        for (int lane = 0; lane < LANES; lane++)
            fractions[lane] = (ra[lane] | (uint64_t)rb[lane] << 32) + (uint64_t)column * stride;
    }
}
"""


def processor_seconds(work: Callable[[], Any], children: bool = False) -> float:
    """What some work takes of a processor, here or in the processes it starts."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    before = resource.getrusage(who)
    work()
    after = resource.getrusage(who)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turns(*works: tuple[Callable[[], Any], bool], rounds: int = 3) -> list[float]:
    """The least seconds of each; the bool says whether it is a process of its own that works."""
    taken = [[processor_seconds(*work) for work in works] for _ in range(rounds)]
    return [min(column) for column in zip(*taken, strict=True)]


def points_loop(points: int) -> int:
    """Points one by one, as one first writes it."""
    inside = 0
    for _ in range(points):
        x, y = random.uniform(0, 1), random.uniform(0, 1)
        if x * x + y * y <= 1:
            inside += 1
    return inside


def montecarlo() -> dict[str, float]:
    from bramble.programs.pi.montecarlo import Chunk, count_inside

    ours, loop = in_turns((lambda: count_inside(Chunk(0, 0, 10**9)), False), (lambda: points_loop(10**6), False))
    return {"points per second": 1e9 / ours, "points per second, plain Python": 1e6 / loop}


FLINT = """
import flint, sys
with flint.ctx.workprec(33_219_312):  # bits of ten million digits and some more
    sys.stdout.write(flint.arb.pi().str(10**7 + 5, radius=False))
"""


def digits() -> dict[str, float]:
    from bramble.programs.pi import run
    from bramble.study import runs
    from bramble.study.report import Screen

    found: dict[str, str] = {}

    def ours() -> None:
        found["ours"] = runs.perform(run.chudnovsky(10**7), runs.Request(on="local"), Screen("-"))[0]

    def theirs() -> None:  # a process of its own: flint keeps what it has computed
        found["flint"] = subprocess.run([sys.executable, "-c", FLINT], check=True, capture_output=True, text=True).stdout

    one, two = in_turns((ours, False), (theirs, True), rounds=2)
    if not found["flint"].startswith("3." + found["ours"]):
        raise SystemExit("bench: the digits differ")
    return {"seconds, 1e7 digits": one, "seconds, 1e7 digits, flint": two}


def primes() -> dict[str, float]:
    from bramble.programs.primes import kernel, sieve

    if not sieve.library():
        raise SystemExit("bench: libprimesieve is not installed")

    def ours() -> None:
        if sum(kernel.find_primes(job).primes for job in kernel.intervals(0, 3 * 10**10)) != 1300005926:
            raise SystemExit("bench: the primes are not right")

    def theirs() -> None:
        subprocess.run(["primesieve", "3e10", "--threads=1", "--quiet", "--count"], check=True, stdout=subprocess.DEVNULL)

    one, two = in_turns((ours, False), (theirs, True), rounds=4)
    return {"seconds, primes to 3e10": one, "seconds, primes to 3e10, primesieve": two}


def md5() -> dict[str, float]:
    from bramble.programs.rainbow import md5
    from bramble.programs.rainbow.kernel import Keys

    keys, columns = Keys(b"abcdefghijklmnopqrstuvwxyz", 6), 40_000
    starts = np.array([keys.start(1000 * number) for number in range(md5.LANES)], np.uint64)
    ends = np.empty_like(starts)

    def ours() -> None:
        md5.follow_chains(starts, keys.alphabet(), keys.length, np.uint64(keys.size), np.uint64(0), columns, ends)

    fractions = starts.copy()

    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "links.c"), Path(folder, "links.so")
        mixed = ("d ^ (b & (c ^ d))", "c ^ (d & (b ^ c))", "b ^ c ^ d", "c ^ (b | ~d)")
        steps = "\n".join(
            f"STEP({mixed[step // 16]}, w[{md5._WORDS[step // 16](step)}], {md5._SHIFTS[step // 16][step % 4]}, "
            f"{int(abs(np.sin(step + 1)) * 2**32)}u)"
            for step in range(64)
        )
        source.write_text(LINKS.replace("STEPS", steps).replace("LENGTH", "6"))
        subprocess.run(["gcc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
        peer = ctypes.CDLL(str(library))

    def theirs() -> None:
        fractions[:] = starts
        peer.links(ctypes.c_void_p(fractions.ctypes.data), ctypes.c_int64(columns), ctypes.c_uint64(int(md5.STRIDE)))

    one, two = in_turns((ours, False), (theirs, False), rounds=5)
    if not np.array_equal(ends, [int(fraction) * keys.size >> 64 for fraction in fractions]):
        raise SystemExit("bench: the chains end differently")
    links = md5.LANES * columns
    return {"links per second": links / one, "links per second, gcc": links / two}


def surrogates() -> dict[str, float]:
    from bramble.programs.fibonacci import prices, swings

    values = prices.random_walk(5104, 0.012, 0)
    growth = (values[1:] / values[:-1]).tobytes()
    number = 4000
    (seconds,) = in_turns((lambda: swings.count_surrogates(swings.Batch(growth, 0, 0, number)), False))
    return {"surrogates per second": number / seconds}


def kernels() -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and figures of one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    figures: dict[str, float] = {}
    for measure in (montecarlo, primes, md5, surrogates, digits):
        figures |= measure()
    os.sched_setaffinity(0, cores)
    ratios = {
        "pi_montecarlo_vs_octapi": figures["points per second"] / figures["points per second, plain Python"],
        "pi_digits_vs_flint": figures["seconds, 1e7 digits"] / figures["seconds, 1e7 digits, flint"],
        "primes_vs_primesieve": figures["seconds, primes to 3e10, primesieve"] / figures["seconds, primes to 3e10"],
        "md5_vs_gcc": figures["links per second"] / figures["links per second, gcc"],
        "surrogates_per_second_per_core": figures["surrogates per second"],
    }
    return ratios, figures


def on_nodes() -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and figures of stand-ins."""
    seconds: dict[tuple[str, int], list[float]] = {}
    with standins.cluster(NAME, SUBNET, 8, CPUS) as client:
        for name, (command, _) in ON_NODES.items():
            for take, nodes in itertools.product(range(ROUNDS), (8, 1)):
                (run,) = client(f"bramble {command.format(take=take, nodes=nodes)} --nodes {nodes}")["runs"]
                seconds.setdefault((name, nodes), []).append(run["seconds"])
                print(f"{name} on {nodes}: {run['seconds']:.1f} s", flush=True)
    figures = {f"seconds, {name} on {nodes}": min(each) for (name, nodes), each in seconds.items()}
    ratios = {
        f"efficiency_8_{name}": figures[f"seconds, {name} on 1"] / figures[f"seconds, {name} on 8"] / 8 for name in ON_NODES
    }
    return ratios, figures


def main() -> int:
    """Measure, show, write it down."""
    options = argparse.ArgumentParser()
    options.add_argument("--only", choices=["kernels", "nodes"])
    chosen = options.parse_args()
    begin = time.monotonic()
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for half, measure in (("kernels", kernels), ("nodes", on_nodes)):
        if chosen.only in (None, half):
            found = measure()
            ratios |= found[0]
            figures |= found[1]
    ratios = {name: round(ratio, 3) for name, ratio in ratios.items()}
    missed = {name: most for name, most in AT_MOST.items() if ratios.get(name, most) > most}
    missed |= {name: least for name, least in AT_LEAST.items() if ratios.get(name, least) < least}
    report = {"ratios": ratios, "targets": AT_LEAST | AT_MOST, "missed": missed, "figures": figures}
    reports = ROOT / "reports/bench"
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "workloads.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, figure in figures.items():
        print(f"{name:<40}{figure:16,.2f}")
    for name, ratio in ratios.items():
        bound = f"at most {AT_MOST[name]}" if name in AT_MOST else f"at least {AT_LEAST[name]}"
        print(f"{name:<40}{ratio:16,.2f}  target {bound}{', missed' if name in missed else ''}")
    print(f"in {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
