"""Run a program in one place, or the same program in several places, and compare the answers and the times.

A workload provides a Program. It computes through `Run.map`, so it does not depend on the place:

    def compute(run):
        return sum(run.map(count_inside, chunks(points, size, seed)))

    answer, record = runs.perform(Program("pi", [count_inside], compute), request, screen)
"""
