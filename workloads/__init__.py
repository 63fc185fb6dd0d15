"""The workloads of the cluster. This file makes their tests `workloads.tests`, beside the repository's own `tests`."""
