"""The one exception that speaks to the user."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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


def did_you_mean(name: str, valid: Iterable[str], *, limit: int = 3) -> str:
    """Return ``"Did you mean a, b?"`` for the names in ``valid`` nearest to ``name``, or ``""``."""
    matches = get_close_matches(name, list(valid), n=limit, cutoff=0.5)
    return f"Did you mean {', '.join(matches)}?" if matches else ""
