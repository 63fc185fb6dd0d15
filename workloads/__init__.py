"""The workloads of the cluster. This file makes their tests the package `workloads.tests`, beside the repository's `tests`."""
