"""A command of the command line that says what was meant: an unknown option, or a value of another kind."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import short_repr
from kdcli.cli.sets import keys_of

_MOST = 3


class Command(TyperCommand):
    """A command whose refusals of options are kdcli's: what was given, what it may have meant, what is valid."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Read the options.

        Raises:
            UserError: there is no such option, or a number is none.
        """
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # click's, which typer has a copy of: by their names
            if type(error).__name__ == "NoSuchOption":
                raise self._unknown(str(getattr(error, "option_name", "")), given, ctx) from None
            if type(error).__name__ == "BadParameter":
                told = self._wrong(getattr(error, "param", None), given)
                if told is not None:
                    raise told from None
            raise

    def _options(self) -> Iterator[str]:
        for param in self.params:
            if param.param_type_name == "option":
                yield from (*param.opts, *param.secondary_opts)

    def _unknown(self, name: str, given: Sequence[str], ctx: typer.Context) -> UserError:
        options = list(self._options())
        meant = self._meant(name, given) if len(name) < 60 else []
        near = f"Did you mean {' or '.join(meant)}?" if meant else did_you_mean(name, options)
        hint = f"'{ctx.command_path} --help' lists the options" + (
            "; 'kdcli config keys WORD' finds keys for --set." if "--set" in options else "."
        )
        return UserError(f"{ctx.command_path} has no option {short_repr(name)}. {near}".rstrip(), hint)

    def _meant(self, name: str, given: Sequence[str]) -> list[str]:
        """Return the options, with their values, that set the keys which ``name`` may mean, at most three."""
        from kdcli.config.methods.defaults import LABELS
        from kdcli.config.methods.words import other_method_names
        from kdcli.config.words import keys_meant

        assert self.callback is not None
        params = {param.name: param for param in self.params}
        of_keys = {
            key: max(params[param].opts, key=len) for param, key in keys_of(self.callback).items() if param in params
        }
        options, setter = set(self._options()), params.get("set_", params.get("overrides"))
        section = (getattr(setter, "metavar", None) or "").partition("KEY")[0]  # some take keys of one section alone
        value = next((word for before, word in pairwise(given) if before == name), None)
        value = "VALUE" if value is None or value.startswith("-") else value
        found, keys = [], keys_meant(name)
        for key in keys:
            if (option := of_keys.get(key) or f"--{key.rpartition('.')[2].replace('_', '-')}") in options:
                found.append(option)
            elif setter is not None and key.startswith(section) and not key.startswith("methods."):
                found.append(f"--set {key}={value}")
        if "--method" in options:
            found += [f"--method {method}" for method in other_method_names(name)]
        of_method = next((key for key in keys if key.startswith("methods.")), None)
        if of_method is not None and not found and setter is not None and not section:
            _, method, last = of_method.split(".", 2)
            found = [f"--set 'methods=[{{method: {LABELS.method}}}, {{method: {method}, {last}: {value}}}]'"]
        return list(dict.fromkeys(found))[:_MOST]

    def _wrong(self, param: Any, given: Sequence[str]) -> UserError | None:
        """Return what a number should have been; None for what is no number's."""
        assert self.callback is not None
        hint = typing.get_type_hints(self.callback, include_extras=True).get(getattr(param, "name", "") or "")
        kinds = set(_parts(hint))
        wanted = "a whole number" if int in kinds else "a number" if float in kinds else ""
        if not wanted or param.param_type_name != "option":
            return None
        value = _value_of(param.opts, given)
        info = next((item for item in getattr(hint, "__metadata__", ()) if hasattr(item, "min")), None)
        low, high = getattr(info, "min", None), getattr(info, "max", None)
        ends = f" from {low:g}" if low is not None else ""
        ends += (f" to {high:g}" if ends else f" of at most {high:g}") if high is not None else " on" if ends else ""
        name = max(param.opts, key=len)
        return UserError(f"{name} can't be {short_repr(value)}.", f"Give {wanted}{ends}.")


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _parts(inner)


def _value_of(options: Iterable[str], given: Sequence[str]) -> str:
    names = tuple(options)
    for position, word in enumerate(given):
        option, equals, value = word.partition("=")
        if option in names:
            return value if equals else given[position + 1] if position + 1 < len(given) else ""
    return ""
