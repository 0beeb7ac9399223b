"""Architectures that fit into a budget."""
