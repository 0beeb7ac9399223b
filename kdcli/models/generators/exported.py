"""What saved generators have in common: a Python file beside the weights that loads them without kdcli."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CODE = "generator.py"
"""The file beside the weights that makes the network without kdcli."""


def code_of(folder: Path) -> Any:
    """Return the module in a saved folder's own Python file."""
    spec = importlib.util.spec_from_file_location("exported_generator", folder / CODE)
    assert spec is not None
    assert spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    return alone


def filled(lines: str, words: Mapping[str, str]) -> str:
    """Return lines of Python with values in place of words."""
    for word, value in words.items():
        lines = lines.replace(word, value)
    return lines
