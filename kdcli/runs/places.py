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


RUNS = Path("runs")
"""Where runs are that no place was named for."""
_DEPTH = 4
"""Folders below :data:`RUNS` that a run's may be: ``sweeps/NAME/VARIANT/seed-S``."""
_PARTS = ("baseline", "embedding")
TRIALS = "trials"
"""The folder of a tuning that its runs are in."""


def newest_run(root: Path = RUNS) -> Path:
    """Return the run below ``root`` that was finished last; its parts, such as a baseline, are none, nor are trials.

    Raises:
        UserError: there is none.
    """
    with reading(root):
        found = [file for depth in range(1, _DEPTH + 1) for file in root.glob("*/" * depth + "result.json")]
        runs = {file.parent: file.stat().st_mtime_ns for file in found if not _is_part(file.parent)}
    if not runs:
        raise UserError(
            f"No run is named, and there is no finished one under {root}/.",
            "Name a run's folder, or make one: kdcli distill --recipe quickstart",
        )
    return max(runs, key=lambda run: (runs[run], str(run)))


def _is_part(run: Path) -> bool:
    return run.name in _PARTS or run.parent.name == TRIALS


def free_folder(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    number, free = 2, path
    with reading(path):
        while free.exists():
            free = path.with_name(f"{path.name}-{number}")
            number += 1
    return free
