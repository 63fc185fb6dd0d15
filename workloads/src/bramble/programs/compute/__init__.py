"""Sixteen jobs that sleep: the first thing to run on a new cluster."""
