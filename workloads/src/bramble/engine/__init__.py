"""Map a kernel over arguments: on one core, on every core of this machine, or on the cluster, with the same results.

A kernel is a module-level function of one argument in this package: it is sent to the nodes by name, not as code.
dask (or concurrent.futures) distributes the jobs; the engine makes sure that **every job ends exactly once**, either
finished or named as lost.

    with places.connect("cluster") as engine:
        engine.warm_up(kernel)
        for outcome in engine.map(kernel, arguments):
            ...

Large packages are imported only where they are needed: on a small node every import takes noticeable time.
"""
