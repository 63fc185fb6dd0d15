"""What the cluster computes: a folder for each workload, which `bramble.programs.registry` finds.

A folder has pure kernels (in its `__init__` or in modules of their own), which import no engine and no study, and a module
`workload`, whose WORKLOAD says which commands and comparisons there are.
"""
