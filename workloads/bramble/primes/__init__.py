"""Primes of an interval: how many, which, twins and gaps."""
