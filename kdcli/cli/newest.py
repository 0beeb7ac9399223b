"""The run that a command is about where none is named: the newest finished one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_WEIGHTS = {".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors"}
"""Endings of files that are models."""


def newest_or(run: Path | None) -> Path:
    """Return ``run``; where none is named the newest finished one, and say which on standard error.

    Raises:
        UserError: none is named, and there is none.
    """
    if run is not None:
        return run
    from kdcli.runs.places import newest_run
    from kdcli.terminal.console import show_note

    found = newest_run()
    show_note(f"No run is named: taking {found}, the newest finished one.")
    return found


def run_and_inputs(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return what to ask, and about what: where the first word is no run and no model, the newest finished run.

    Raises:
        UserError: none is named, and there is none.
    """
    if words and not _is_input(words[0]):
        return words[0], list(words[1:])
    return str(newest_or(None)), list(words)


def _is_input(word: str) -> bool:
    """Whether a word can only be something that a model is asked about: a file or folder that is no model."""
    try:
        path = Path(word)
        is_model = any((path / name).is_file() for name in ("config.json", "config.yaml"))
        return word == "-" or (path.exists() and not is_model and path.suffix.lower() not in _WEIGHTS)
    except (OSError, ValueError):
        return False
