"""Quantum programs in Q#, simulated: each is run many times, and what is measured is compared with quantum theory."""
