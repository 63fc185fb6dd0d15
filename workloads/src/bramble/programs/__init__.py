"""The workloads: one folder each, which `bramble.programs.registry` finds.

A folder has pure kernels (in its `__init__` or in modules of their own), which do not import engine or study, and a module
`workload`, whose WORKLOAD lists the commands and comparisons.
"""
