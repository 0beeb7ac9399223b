"""Where a new run may be: a free name, a free folder."""

from __future__ import annotations

from pathlib import Path

from kdcli.base.errors import UserError, reading
from kdcli.base.files import is_leftover

_REMAINS = {".lock", ".lock-owner", "plan.json", "tracking"}
"""What a killed process may leave of a run that was not one yet: its ``config.yaml`` comes last."""


def check_new_folder(path: Path) -> None:
    """Raise a UserError unless ``path`` is free: not there, empty, or no more than :func:`is_remains`."""
    with reading(path):
        if (path / "config.yaml").is_file():
            raise UserError(f"{path} holds another run already.", "Give another --output, or remove that folder.")
        if path.exists() and not (path.is_dir() and is_remains(path)):
            raise UserError(f"{path} exists already and is not an empty folder.", "Give another --output.")


def is_remains(path: Path) -> bool:
    """Whether a folder has nothing in it but what a killed process leaves of a run that was not one yet."""
    return all(entry.name in _REMAINS or is_leftover(entry) for entry in path.iterdir())


def free_folder(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    number, free = 2, path
    with reading(path):
        while free.exists():
            free = path.with_name(f"{path.name}-{number}")
            number += 1
    return free
