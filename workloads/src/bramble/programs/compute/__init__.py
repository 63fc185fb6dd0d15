"""Sixteen jobs that sleep: the first workload to run on a new cluster."""
