"""Bramble's workloads: pure kernels, and one small engine that maps them over a core, a machine or the cluster."""

__version__ = "0.1.0"


class BrambleError(Exception):
    """A message for the person at the keyboard (what, where, what to do next) and the exit code that goes with it."""

    exit_code = 1


class ResultError(BrambleError):
    """There is no result, or not a good one: a job raised, jobs were lost, a check failed. Exit code 1."""


class UsageError(BrambleError):
    """The request or the configuration is wrong, a certificate or key cannot be used. Exit code 2."""

    exit_code = 2


class ClusterError(BrambleError):
    """The scheduler or the nodes cannot be reached, or are not fit to work. Exit code 3."""

    exit_code = 3
