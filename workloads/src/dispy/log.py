"""The logger of dispy."""

import logging
import sys


class _Logger(logging.Logger):
    """dispy's logger: lines with the time on standard output, and the levels as attributes."""

    DEBUG, INFO, WARN, WARNING, ERROR, CRITICAL, FATAL = 10, 20, 30, 30, 40, 50, 50


logger = _Logger("dispy", logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s - %(message)s", "%Y-%m-%d %H:%M:%S"))
