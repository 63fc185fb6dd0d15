"""All workloads in all places, at sizes that fit the time there is, in one report that any browser opens offline."""
