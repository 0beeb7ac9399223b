"""Making images out of random numbers."""
