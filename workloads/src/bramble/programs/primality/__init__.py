"""Primality tests of single numbers: trial division, Fermat's test, and the test of Miller and Rabin."""
