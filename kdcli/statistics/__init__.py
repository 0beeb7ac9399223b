"""Intervals, and what chance alone would give."""
