"""The one exception that speaks to the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

_LONGEST_NAME = 200
"""No valid name is as long; comparing longer ones with all of them would take long."""


class UserError(Exception):
    """Something the user can mend: printed as one message and one hint, exit code 2, no traceback.

    Args:
        message: what was wrong, the value received and what is valid.
        hint: what to do next.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def all_of(errors: Sequence[UserError]) -> UserError:
    """Return one error that tells several, each with its own hint; the only one as it is."""
    if len(errors) == 1:
        return errors[0]
    told = "\n".join(f"  - {error.message} {error.hint}".rstrip() for error in errors)
    return UserError(f"{len(errors)} problems:\n{told}", "Mend each of them.")


def did_you_mean(name: str, valid: Iterable[str], *, limit: int = 3) -> str:
    """Return ``"Did you mean a, b?"`` for the names in ``valid`` nearest to ``name``, or ``""``."""
    matches = get_close_matches(name, dict.fromkeys(valid), n=limit, cutoff=0.5) if len(name) <= _LONGEST_NAME else []
    return f"Did you mean {', '.join(matches)}?" if matches else ""


def hint_of_moved(name: str) -> str:
    """Return what to do about data that are not where a run's config has them, by their whole path; else ``""``."""
    return "If they have moved, --data names their new place." if Path(name).is_absolute() else ""


def beside(name: str) -> str:
    """Return ``"Did you mean photos/?"`` for what lies where ``name`` would, and is called nearly so; else ``""``."""
    try:
        path = Path(name).expanduser()
        entries = {entry.name: "/" if entry.is_dir() else "" for entry in path.parent.iterdir()}
    except (OSError, ValueError, RuntimeError):
        return ""
    near = get_close_matches(path.name, entries, n=3, cutoff=0.75) if len(path.name) <= _LONGEST_NAME else []
    return f"Did you mean {', '.join(f'{path.with_name(other)}{entries[other]}' for other in near)}?" if near else ""


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn the file system's refusal to read ``what`` into one message for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Can't read {what}: {error.strerror or error}.", "Check that it exists and that you may read it."
        ) from error


def is_special(path: Path) -> bool:
    """Whether ``path`` is a pipe, socket or device: reading it may last for ever, and works once."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_are_files(folder: Path) -> None:
    """Raise a UserError where a reader of a model's or a run's folder would wait for ever: see :func:`is_special`."""
    for path in sorted(folder.rglob("*")):
        if is_special(path):
            raise UserError(f"{path} is a pipe, socket or device, not a file.", "Remove it, or name another folder.")
