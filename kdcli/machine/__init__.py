"""Devices, processes and signals: where, and in how many parts, a run is computed."""
