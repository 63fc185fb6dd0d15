"""Map a kernel over arguments: on one core, on every core here, or on the cluster. The same kernel, the same results.

A kernel is a module-level function of one argument in this package: it travels to the nodes as a name, not as code.
dask (or concurrent.futures) does the distributing; the engine keeps the account: **every job ends exactly once**,
either finished or named as lost.

    with places.connect("cluster") as engine:
        engine.warm_up(kernel)
        for outcome in engine.map(kernel, arguments):
            ...

Nothing heavy is imported before it is needed: a small node pays for every import.
"""
