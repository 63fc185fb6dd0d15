"""Pi, by several methods. Monte Carlo: count random points of the unit square that lie inside the unit circle."""
