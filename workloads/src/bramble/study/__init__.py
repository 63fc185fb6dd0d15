"""Run a program in one place, or the same program in several, and compare: equal answers, and how much faster.

A workload gives a Program. What it computes it asks of `Run.map`, and it knows nothing of places:

    def compute(run):
        return sum(run.map(count_inside, chunks(points, size, seed)))

    answer, record = runs.perform(Program("pi", [count_inside], compute), request, screen)
"""
