"""A run in memory: what it is made of, its steps, its measurements."""
