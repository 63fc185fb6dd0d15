"""Quantum programs in Q#, simulated: each is run many times, and the measured results are compared with quantum theory."""

import os

# Set before qdk is imported, since it would send telemetry.
os.environ["QDK_PYTHON_TELEMETRY"] = "none"
