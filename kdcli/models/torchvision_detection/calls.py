"""How a network is made, as a value: it can be made, and it can be written as lines of Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Name:
    """What a module has by a name.

    Attributes:
        module: to import.
        attribute: of it.
    """

    module: str
    attribute: str

    def make(self) -> Any:
        """Return what it names."""
        return getattr(import_module(self.module), self.attribute)

    def written(self) -> str:
        """Return it as Python, once it is imported."""
        return self.attribute

    def names(self) -> Iterator[Name]:
        """Yield the names that have to be imported."""
        yield self


@dataclass(frozen=True)
class Call:
    """A function with its arguments, out of which some may be names and calls too.

    Attributes:
        function: what is called.
        positional: its first arguments.
        keywords: the others.
    """

    function: Name
    positional: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        """Return what the function returns."""
        keywords = {key: _made(value) for key, value in self.keywords.items()}
        return self.function.make()(*map(_made, self.positional), **keywords)

    def written(self) -> str:
        """Return it as Python, once its names are imported."""
        arguments = [*map(_written, self.positional), *(f"{key}={_written(v)}" for key, v in self.keywords.items())]
        return f"{self.function.written()}({', '.join(arguments)})"

    def names(self) -> Iterator[Name]:
        """Yield the names that have to be imported."""
        yield from self.function.names()
        for value in (*self.positional, *self.keywords.values()):
            if isinstance(value, (Name, Call)):
                yield from value.names()


def call(module: str, attribute: str, *positional: Any, **keywords: Any) -> Call:
    """Return the call of ``module.attribute`` with these arguments."""
    return Call(Name(module, attribute), positional, keywords)


def imports_of(made: Call) -> list[str]:
    """Return the lines that import what a call names, a line a module."""
    found: dict[str, dict[str, None]] = {}
    for name in made.names():
        found.setdefault(name.module, {})[name.attribute] = None
    return [f"from {module} import {', '.join(sorted(attributes))}" for module, attributes in sorted(found.items())]


def _made(value: Any) -> Any:
    return value.make() if isinstance(value, (Name, Call)) else value


def _written(value: Any) -> str:
    return value.written() if isinstance(value, (Name, Call)) else repr(value)
