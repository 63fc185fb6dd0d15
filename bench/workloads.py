"""Compare the workloads' kernels with other programs on one core, and measure the workloads' efficiency on eight nodes.

    make bench-workloads      writes reports/bench/workloads.json

  pi_montecarlo_vs_octapi          points per second, relative to a plain Python loop as in OctaPi's script
  pi_digits_vs_flint               seconds for ten million digits, relative to python-flint
  primes_vs_primesieve             speed for the primes up to 3e10, relative to the command primesieve with one thread
  md5_vs_gcc                       links of rainbow chains per second, relative to the same in C by gcc -O3 -march=native
  surrogates_per_second_per_core   surrogates of 5104 days with 4 thresholds
  efficiency_8_...                 speed-up of a workload on eight stand-ins with a small part of a core each, divided by 8

Kernels are compared by processor seconds. The programs run in turns and the best round of each counts, so that a busy machine
has little effect. This needs gcc, primesieve and python-flint (scripts/bootstrap --test) and takes two minutes. The nodes need a
Docker engine and an idle machine of two cores or more, and take half an hour. --only kernels or --only nodes runs one part.
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
"""Cores of a stand-in. All nine use two thirds of the machine: with more, eight stand-ins would compete for the cores."""
ON_NODES = {
    "pi": ("pi --points 1.5e10", 0.95),
    "primes": ("primes 0 5e10", 0.95),
    "rainbow": ("rainbow build --tables 1 --starts 2e5 --chain 8000 --folder /tmp/rainbow-{take}-{nodes}", 0.95),
    "quantum": ("quantum bell --shots 5e5", 0.9),
    "fibonacci": ("fibonacci --surrogates 6e4 --no-controls", 0.9),
}
"""The command that runs on one node and on eight, a minute or more on one, and the efficiency that it must have."""
ROUNDS = 3
"""Rounds of runs on eight nodes and on one, in turns; the best of each counts, since the speed of a machine varies."""

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
/* Advance LANES strings of LENGTH lowercase letters by a number of columns: spell, hash (RFC 1321), reduce. */
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


def processor_seconds(function: Callable[[], Any], in_children: bool = False) -> float:
    """Return the processor seconds of a function in this process, or of the processes that it starts."""
    scope = resource.RUSAGE_CHILDREN if in_children else resource.RUSAGE_SELF
    before = resource.getrusage(scope)
    function()
    after = resource.getrusage(scope)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def best_seconds(*functions: tuple[Callable[[], Any], bool], rounds: int = 3) -> list[float]:
    """Run functions in turns and return the least processor seconds of each.

    The bool of each function is `in_children` of processor_seconds.
    """
    seconds = [[processor_seconds(*function) for function in functions] for _ in range(rounds)]
    return [min(column) for column in zip(*seconds, strict=True)]


def points_loop(points: int) -> int:
    """Return how many random points lie inside the circle, by a plain Python loop."""
    inside = 0
    for _ in range(points):
        x, y = random.uniform(0, 1), random.uniform(0, 1)
        if x * x + y * y <= 1:
            inside += 1
    return inside


def montecarlo() -> dict[str, float]:
    """Return the points per second of the kernel and of the Python loop."""
    from bramble.programs.pi.montecarlo import Chunk, count_inside

    ours, loop = best_seconds((lambda: count_inside(Chunk(0, 0, 10**9)), False), (lambda: points_loop(10**6), False))
    return {"points per second": 1e9 / ours, "points per second, plain Python": 1e6 / loop}


FLINT = """
import flint, sys
with flint.ctx.workprec(33_219_312):  # bits of ten million digits and some more
    sys.stdout.write(flint.arb.pi().str(10**7 + 5, radius=False))
"""


def digits() -> dict[str, float]:
    """Return the seconds for ten million digits of pi, by this program and by python-flint."""
    from bramble.programs.pi import run
    from bramble.study import runs
    from bramble.study.report import Screen

    found: dict[str, str] = {}

    def run_ours() -> None:
        found["ours"] = runs.perform(run.chudnovsky(10**7), runs.Request(on="local"), Screen("-"))[0]

    def run_flint() -> None:  # in a process of its own, because flint caches its results
        found["flint"] = subprocess.run([sys.executable, "-c", FLINT], check=True, capture_output=True, text=True).stdout

    ours, flint = best_seconds((run_ours, False), (run_flint, True), rounds=2)
    if not found["flint"].startswith("3." + found["ours"]):
        raise SystemExit("bench: the digits of pi differ from flint's, so the comparison is not valid")
    return {"seconds, 1e7 digits": ours, "seconds, 1e7 digits, flint": flint}


def primes() -> dict[str, float]:
    """Return the seconds for the primes up to 3e10, by this program and by the command primesieve."""
    from bramble.programs.primes import kernel, sieve

    if not sieve.library():
        raise SystemExit("bench: libprimesieve is not installed; run scripts/bootstrap --test")

    def run_ours() -> None:
        if sum(kernel.find_primes(job).primes for job in kernel.intervals(0, 3 * 10**10)) != 1300005926:
            raise SystemExit("bench: the number of primes up to 3e10 is wrong, so the comparison is not valid")

    def run_primesieve() -> None:
        subprocess.run(["primesieve", "3e10", "--threads=1", "--quiet", "--count"], check=True, stdout=subprocess.DEVNULL)

    ours, primesieve = best_seconds((run_ours, False), (run_primesieve, True), rounds=4)
    return {"seconds, primes to 3e10": ours, "seconds, primes to 3e10, primesieve": primesieve}


def md5() -> dict[str, float]:
    """Return the links of rainbow chains per second, by this program and by C."""
    from bramble.programs.rainbow import md5
    from bramble.programs.rainbow.kernel import Keys

    keys, columns = Keys(b"abcdefghijklmnopqrstuvwxyz", 6), 40_000
    starts = np.array([keys.start(1000 * number) for number in range(md5.LANES)], np.uint64)
    ends = np.empty_like(starts)

    def run_ours() -> None:
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
        compiled = ctypes.CDLL(str(library))

    def run_c() -> None:
        fractions[:] = starts
        compiled.links(ctypes.c_void_p(fractions.ctypes.data), ctypes.c_int64(columns), ctypes.c_uint64(int(md5.STRIDE)))

    ours, gcc = best_seconds((run_ours, False), (run_c, False), rounds=5)
    if not np.array_equal(ends, [int(fraction) * keys.size >> 64 for fraction in fractions]):
        raise SystemExit("bench: the chains differ from those of the C program, so the comparison is not valid")
    links = md5.LANES * columns
    return {"links per second": links / ours, "links per second, gcc": links / gcc}


def surrogates() -> dict[str, float]:
    """Return the surrogates per second."""
    from bramble.programs.fibonacci import prices, swings

    values = prices.random_walk(5104, 0.012, 0)
    growth = (values[1:] / values[:-1]).tobytes()
    number = 4000
    (seconds,) = best_seconds((lambda: swings.count_surrogates(swings.Batch(growth, 0, 0, number)), False))
    return {"surrogates per second": number / seconds}


def measure_kernels() -> tuple[dict[str, float], dict[str, float]]:
    """Return the ratios and figures of the kernels on one core."""
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


def measure_nodes() -> tuple[dict[str, float], dict[str, float]]:
    """Return the ratios and figures of the workloads on stand-ins."""
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
    """Measure, print the results and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["kernels", "nodes"], help="run only one of the two parts")
    options = parser.parse_args()
    begin = time.monotonic()
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for part, measure in (("kernels", measure_kernels), ("nodes", measure_nodes)):
        if options.only in (None, part):
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
