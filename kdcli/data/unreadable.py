"""How many samples of a split that is measured on may be unreadable."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.base.errors import UserError

_NAMED = 5


def most_unreadable(size: int) -> int:
    """Return how many of ``size`` samples may be left out of a measurement: three, or a hundredth of them."""
    return max(3, size // 100)


def check_readable(names: Sequence[str], size: int, *, what: str) -> None:
    """Refuse a measurement that leaves out more than a few of its samples: its numbers would be of other data.

    Args:
        names: of the samples that can't be read, or are gone.
        size: of all, with those.
        what: they are, such as ``validation images``.

    Raises:
        UserError: they are more than :func:`most_unreadable`.
    """
    if len(names) <= most_unreadable(size):
        return
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    raise UserError(
        f"{len(names)} of {size} {what} can't be read, or are gone: {shown}. Metrics of the rest would be of other"
        " data.",
        f"Put them back or mend them; a run then goes on with --resume. Of these {size}, {most_unreadable(size)} may be"
        " left out, and are counted beside the metrics.",
    )
