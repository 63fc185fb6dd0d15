"""Run all workloads in all places, at sizes that fit the given time, and write one report that a browser shows offline."""
