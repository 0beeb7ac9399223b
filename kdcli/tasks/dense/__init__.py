"""Tasks with an answer at every pixel."""
