"""Real weights inside packages of the index, as model names: ``package:NAME``."""
