"""Runs on disk: the folder and the checkpoints."""
