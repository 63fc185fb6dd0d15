"""Pi by three methods: random points (Monte Carlo), all decimal digits (Chudnovsky), hexadecimal digits at a position (BBP)."""
