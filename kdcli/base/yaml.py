"""YAML as recipes have it: strict, and bounded in size and depth."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kdcli.base.text import short_repr

MAX_BYTES = 2**20
"""Of a recipe; the shipped ones have a thousand."""


_MAX_VALUES = 10_000
"""Likewise; a few lines of aliases of aliases make billions."""


MAX_DEPTH = 16
"""Of a dotted key, of which the deepest of the config has three parts; and of recipes that extend one another."""


class _StrictLoader(yaml.SafeLoader):
    """``SafeLoader`` that refuses a key given twice, of which YAML would silently keep the last, and merge keys.

    A few merge keys (``<<``) that merge one another make a mapping of billions of entries.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not a single word", problem_mark=key_node.start_mark)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="merge keys are not supported", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                problem = f"key {short_repr(key_node.value)} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def check_printable(self, data: str) -> None:
        """Let the bytes of names that are not UTF-8 pass."""
        super().check_printable(re.sub("[\udc80-\udcff]", "", data))


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML document, made of plain values alone.

    Raises:
        ValueError: it isn't YAML, asks for anything but plain values, gives a key twice, or has aliases that unfold to
            more values than any recipe has.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    # Besides its own errors, PyYAML raises whatever a value trips over that its tag does not fit: KeyError for
    # "!!bool x", IndexError for "!!int ''", AttributeError for "!!timestamp x", RecursionError for a deep nesting, ...
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if _unfolded_size(value, {}) > _MAX_VALUES:
        raise ValueError(f"written out, its aliases make more than {_MAX_VALUES} values")
    return value


def _unfolded_size(value: Any, known: dict[int, int]) -> int:
    """Return how many values ``value`` consists of, a shared one counted each time; a list in itself has too many."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        known[id(value)] = _MAX_VALUES + 1
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded_size(part, known) for part in parts)
    return known[id(value)]
