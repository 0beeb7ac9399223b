"""The guide ``config``: every key by section, made of the config's own classes when it is asked for. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from kdcli.base.tasks import TASKS
from kdcli.config.described import Described, describe_keys

CONFIG_TITLE = "Every key of a config"

_ABOUT = f"""# {CONFIG_TITLE}

A recipe is a YAML file of these keys, and `--set KEY=VALUE` sets one of them. Only what differs from the defaults has
to be there. `kdcli config keys WORD` finds a key by what it is about, or by its name in other packages; `kdcli config
check FILE` checks a recipe; `kdcli config schema` is for editors. An entry of the list `methods` has the keys of its
method, without `methods.NAME` before them.
"""


def config_guide() -> str:
    """Return the guide in Markdown: a heading for each section, and a table of its keys in the config's order."""
    parts = [_ABOUT]
    for section, keys in _by_section(describe_keys()):
        parts.append(f"## {section or 'At the top'}\n")
        parts.append("\n".join(_lines(keys)) + "\n")
    return "\n".join(parts)


def _by_section(keys: list[Described]) -> Iterator[tuple[str, list[Described]]]:
    """Yield the sections in the order of their first keys, those of methods last."""
    order: dict[str, int] = {}
    for key in keys:
        order.setdefault(_section(key), len(order))
    ranked = sorted(keys, key=lambda key: (_section(key).startswith("methods."), order[_section(key)]))
    for section, found in groupby(ranked, key=_section):
        yield section, list(found)


def _section(key: Described) -> str:
    return key.name.rpartition(".")[0]


def _lines(keys: list[Described]) -> Iterator[str]:
    yield "| key | takes | default | what it does |"
    yield "| --- | --- | --- | --- |"
    for key in keys:
        default = f"`{key.default}`" if key.default else ("its keys'" if key.is_section else "-")
        cells = (f"`{key.name}`", key.values, default, f"{key.text}{_readers(key)}")
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _readers(key: Described) -> str:
    """Return which tasks read the key, where not all do; the fewer are told."""
    if not key.tasks:
        return ""
    others = [task for task in TASKS if task not in key.tasks]
    if len(others) < len(key.tasks):
        return f" Not for {', '.join(others)}." if others else ""
    return f" For {', '.join(key.tasks)}."
