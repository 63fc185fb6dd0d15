"""Quantum programs in Q#, simulated: each is run many times, and what is measured is compared with quantum theory."""

import os

# Before anything imports qdk: it would report to its maker.
os.environ["QDK_PYTHON_TELEMETRY"] = "none"
