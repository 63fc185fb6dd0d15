"""Bramble's workloads: pure kernels, and one small engine that maps them over one core, one machine or the cluster."""

__version__ = "0.1.0"


class BrambleError(Exception):
    """An error for the user: the message says what happened, where, and what to do next; `exit_code` is the command's."""

    exit_code = 1


class ResultError(BrambleError):
    """There is no valid result: a job raised an exception, jobs were lost, or a check failed. Exit code 1."""


class UsageError(BrambleError):
    """The request or the configuration is wrong, or a certificate or key cannot be used. Exit code 2."""

    exit_code = 2


class ClusterError(BrambleError):
    """The scheduler or the nodes cannot be reached, or a node cannot run the workload. Exit code 3."""

    exit_code = 3
