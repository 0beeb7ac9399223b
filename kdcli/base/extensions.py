"""What other packages add, by Python entry points. No torch: an extension is imported when it is asked for by name."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from kdcli.base.errors import UserError

Kind = Literal["models", "tasks", "data", "methods"]
"""The group of its entry point is ``kdcli.KIND``."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Extension:
    """An installed entry point.

    Attributes:
        kind: what it adds.
        name: what users write.
        package: with its version: ``kdcli-toy 1.0``.
        target: ``module`` or ``module:attribute``.
    """

    kind: Kind
    name: str
    package: str
    target: str

    @property
    def module(self) -> str:
        """The module that is imported."""
        return self.target.partition(":")[0]

    def load(self) -> Any:
        """Import the package and return what it adds.

        Raises:
            UserError: that fails.
        """
        try:
            return EntryPoint(self.name, self.target, f"kdcli.{self.kind}").load()
        except Exception as error:  # another package's code raises what it likes
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"{self}: importing {self.target} failed: {reason}",
                f"Mend or remove the package: pip uninstall {self.package.partition(' ')[0]}",
            ) from error

    def unfit(self, expected: str) -> UserError:
        """Return the error for an entry point that is not what kdcli expects."""
        return UserError(f"{self}: {self.target} is not {expected}.", "See 'Extending' in kdcli's README.")

    def refuse_former(self, thing: Any, former: Mapping[str, str]) -> None:
        """Refuse what was made for an earlier version of kdcli, and would be taken for something else now.

        Args:
            thing: a class, or an object.
            former: name of an attribute that nothing reads any more, and what is said in its place.

        Raises:
            UserError: it has such attributes.
        """
        places = [*(thing if isinstance(thing, type) else type(thing)).__mro__, thing]
        has = {name for place in places for name in getattr(place, "__dict__", ())}
        found = [f"{name} is {now} now" for name, now in former.items() if name in has]
        if found:
            raise UserError(
                f"{self}: it was made for an earlier version of kdcli: {'; '.join(found)}.",
                f"Mend the package, or get a later version of {self.package.partition(' ')[0]}.",
            )

    def __str__(self) -> str:
        return f"The extension {self.name!r} of {self.package} ({self.kind})"


@dataclass(frozen=True)
class Lent(Extension):
    """Something that this process itself adds, as long as it runs.

    Attributes:
        thing: what is added.
    """

    thing: Any = None

    def load(self) -> Any:
        """Return what was lent."""
        return self.thing


_LENT: dict[tuple[Kind, str], Lent] = {}


def lend(kind: Kind, thing: Any, *, what: str) -> str:
    """Add something to this process as an installed package would, and return its name; :func:`find` finds it.

    Args:
        kind: of the extension.
        thing: what the entry point would give.
        what: a word for it, which is in its name.
    """
    name = f"python{sum(of == kind for of, _ in _LENT) + 1}"
    _LENT[kind, name] = Lent(kind, name, "this process", what, thing)
    return name


def is_lent(name: str) -> bool:
    """Whether ``PREFIX:REST`` names something that this process alone has."""
    return any(prefix == name.partition(":")[0] for _, prefix in _LENT)


def installed(kind: Kind | None = None) -> list[Extension]:
    """Return what is installed, of one kind or of all, by kind and name; nothing of it is imported."""
    return [entry for entry in _all_installed(tuple(map(_as_of, sys.path))) if kind in (None, entry.kind)]


def _as_of(folder: str) -> tuple[str, int | None]:
    """Return a folder and when something was last installed into it."""
    try:
        return folder, Path(folder or ".").stat().st_mtime_ns
    except OSError:
        return folder, None


@lru_cache(maxsize=1)
def _all_installed(_: tuple[tuple[str, int | None], ...]) -> tuple[Extension, ...]:
    """Return all that is installed; a run asks a dozen times, and every package's metadata is read for it."""
    found = {
        Extension(kind, entry.name, f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?", entry.value)
        for kind in KINDS
        for entry in entry_points(group=f"kdcli.{kind}")
    }
    return tuple(sorted(found, key=lambda entry: (KINDS.index(entry.kind), entry.name, entry.package)))


def names(kind: Kind) -> list[str]:
    """Return the names of the installed extensions of a kind."""
    return [entry.name for entry in installed(kind)]


def find(kind: Kind, name: str, *, own: Iterable[str]) -> Extension | None:
    """Return the extension of this name; None where there is none.

    Args:
        kind: of the extension.
        name: as the user wrote it.
        own: kdcli's own names of this kind.

    Raises:
        UserError: the name is taken, by kdcli itself or by another package.
    """
    if (kind, name) in _LENT:
        return _LENT[kind, name]
    found = [entry for entry in installed(kind) if entry.name == name]
    if not found:
        return None
    takers = [entry.package for entry in found] + (["kdcli itself"] if name in own else [])
    if len(takers) > 1:
        raise UserError(
            f"{name!r} means several things (kdcli.{kind}): {' and '.join(takers)} have that name.",
            f"Uninstall {found[0].package.partition(' ')[0]}, or ask its author for another name.",
        )
    return found[0]
