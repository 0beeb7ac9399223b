"""Every key of a config in words: what it takes, its default, what it does; and as a JSON schema. No torch."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema

from kdcli.base import extensions
from kdcli.base.tasks import TASKS
from kdcli.config.keys import Option, options_of
from kdcli.config.methods import METHODS, FeaturePair, MethodSection, find_method
from kdcli.config.run import RunConfig
from kdcli.config.section import Section

_METHODS, _PAIR = "methods", "STUDENT:TEACHER"
_REFERENCE = "#/$defs/"
_KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "object": "keys"}
_ENDS = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below"))
_ROUND = {2**31: "exclusiveMaximum"}
"""Ends that are there for the machine's sake, and tell a reader nothing."""


@dataclass(frozen=True)
class Described:
    """A key of the config as it is told.

    Attributes:
        name: dotted; of a method ``methods.NAME.KEY``, which in a file is a key of an entry of ``methods``.
        values: what it takes, in words, with its range.
        choices: the values, where there are only some.
        default: as YAML has it; empty where there is none, and ``null`` where it is left to the plan.
        text: what it does; a section's is what the section is.
        tasks: that read it; empty for all.
        is_section: whether it has keys of its own.
    """

    name: str
    values: str
    choices: tuple[str, ...]
    default: str
    text: str
    tasks: tuple[str, ...]
    is_section: bool


def texts_of(section: type[Section]) -> dict[str, str]:
    """Return what stands below each field of a section, and of those that it is made of, in plain text."""
    texts: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, Section) and base is not Section:
            texts |= _texts_in(base)
    return {name: text for name, text in texts.items() if name in section.model_fields}


@cache
def _texts_in(section: type[Section]) -> Mapping[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts, field = {}, ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = node.target.id
        elif field and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts[field], field = _plain(str(node.value.value)), ""
        else:
            field = ""
    return texts


def _plain(text: str) -> str:
    """Return a docstring without marks: one line a paragraph."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n".join(re.sub(r"``?|\*", "", re.sub(r"\s+", " ", paragraph.strip())) for paragraph in paragraphs)


def _text_of_class(section: type[Section]) -> str:
    return _plain(section.__doc__ or "").partition("\nAttributes:")[0]


def all_methods() -> dict[str, type[MethodSection]]:
    """Return the options of every method by its name: kdcli's, and those of installed packages."""
    found = {name: find_method(name) for name in extensions.names("methods")}
    return {**METHODS, **{name: section for name, section in found.items() if section is not None}}


def describe_keys() -> list[Described]:
    """Return every key: those of a run in the order of the config, then those of every method."""
    schema = json_schema()
    return [*_described(RunConfig, "", schema), *_of_methods(schema)]


def choices(name: str) -> tuple[str, ...]:
    """Return the values that a run's key takes, where there are only some; none for a key that there is not."""
    option = options_of(RunConfig).get(name)
    if option is None:
        return ()
    schema = json_schema()
    node = _node(schema, "", name)
    return ("true", "false") if node.get("type") == "boolean" else _values(schema, node)[1]


def _of_methods(schema: Mapping[str, Any]) -> Iterator[Described]:
    for name, section in all_methods().items():
        yield Described(f"{_METHODS}.{name}", "", (), "", _text_of_class(section), (), True)
        yield from (
            key for key in _described(section, f"{_METHODS}.{name}.", schema) if not key.name.endswith(".method")
        )


def _described(section: type[Section], prefix: str, schema: Mapping[str, Any]) -> Iterator[Described]:
    root = section.__name__ if prefix else ""
    options = options_of(section)
    first: dict[type[Section], str] = {}
    for name in sorted(options, key=lambda name: name.count(".")):
        if (kind := options[name].section) is not None:
            first.setdefault(kind, name)
    copies = tuple(f"{name}." for name, option in options.items() if option.section and first[option.section] != name)
    for name, option in options.items():
        if name.startswith(copies):
            continue
        node, kind = _node(schema, root, name), option.section
        values, choices = _values(schema, node)
        text = str(node.get("description", ""))
        if kind is not None and first[kind] != name:
            text = f"{text} It has the keys of {first[kind]}.".strip()
        yield Described(
            f"{prefix}{name}", values, choices, _default(option), text, _tasks(option), is_section=kind is not None
        )


def _tasks(option: Option) -> tuple[str, ...]:
    modality = option.says(lambda key: key.modality)
    reads = option.says(lambda key: key.tasks)
    of_labels = option.says(lambda key: key.of_labels)
    found = tuple(
        task.name
        for task in TASKS.values()
        if modality in (None, task.modality)
        and (reads is None or reads(task))
        and not (of_labels and task.reads_images and task.is_label_free)
    )
    return () if len(found) == len(TASKS) else found


def _default(option: Option) -> str:
    if option.field.is_required() or (option.section is not None and option.field.default is not None):
        return ""
    value = option.field.get_default(call_default_factory=True)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        items = (f"{item:.4g}" if isinstance(item, float) else getattr(item, "method", item) for item in value)
        return f"[{', '.join(map(str, items))}]"
    return f"{value:g}" if isinstance(value, float) else f"{value}" or '""'


def _node(schema: Mapping[str, Any], root: str, name: str) -> Mapping[str, Any]:
    node: Mapping[str, Any] = schema["$defs"][root] if root else schema
    for part in name.split("."):
        inner = node if "properties" in node else schema["$defs"][_section_at(schema, node)]
        node = inner["properties"][part]
    return node


def _section_at(schema: Mapping[str, Any], node: Mapping[str, Any]) -> str | None:
    """Return the name of the definition that a key is, where that has keys."""
    for part in (node, *node.get("anyOf", ())):
        reference = str(part.get("$ref", "")).removeprefix(_REFERENCE)
        if reference and "properties" in schema["$defs"][reference]:
            return reference
    return None


def _values(schema: Mapping[str, Any], node: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return what a key takes, in words, and the values where there are only some."""
    if "anyOf" in node:
        parts = [_values(schema, part) for part in node["anyOf"] if not _is_nothing(part)]
        found = tuple(choice for _, of_part in parts for choice in of_part)
        kinds = dict.fromkeys(words for words, _ in parts)
        return _PAIR if _PAIR in kinds else " or ".join(kinds), found
    if "enum" in node or "const" in node:
        choices = tuple(map(str, node.get("enum", [node.get("const")])))
        return ", ".join(choices), choices
    if "$ref" in node:
        return _PAIR if node["$ref"] == f"{_REFERENCE}{FeaturePair.__name__}" else "keys", ()
    kind = node.get("type")
    if kind == "array":
        if "prefixItems" in node:
            return f"[{', '.join(_values(schema, part)[0] for part in node['prefixItems'])}]", ()
        words, choices = _values(schema, node.get("items", {}))
        return f"list of {words or 'methods'}", choices
    words = "a path" if node.get("format") == "path" else _KINDS.get(str(kind), "")
    ends = [f"{word} {node[key]:g}" for key, word in _ENDS if key in node and _ROUND.get(node[key]) != key]
    return f"{words} {' and '.join(ends)}".strip(), ()


def _is_nothing(part: Mapping[str, Any]) -> bool:
    """Whether a reader need not be told of this one: that a key may be null, or what YAML makes of a bare ``no``."""
    return part.get("type") == "null" or part.get("const") is False


@cache
def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe: for editors, and for ``kdcli config keys``."""
    methods = all_methods()
    all_models: list[type[Section]] = [RunConfig, *methods.values()]
    _, whole = models_json_schema([(section, "validation") for section in all_models])
    definitions = whole["$defs"]
    sections = {section.__name__: section for section in _all_sections(methods)}
    for name, definition in definitions.items():
        if (section := sections.get(name)) is None:
            continue
        definition["description"] = _text_of_class(section)
        texts = texts_of(section)
        for key, node in definition["properties"].items():
            node.pop("title", None)
            inner = _section_at(whole, node)
            text = texts.get(key) or (_text_of_class(sections[inner]) if inner is not None else "")
            if text:
                node["description"] = text
            _widen(node, section.model_fields[key])
            if key == _METHODS:
                _take_methods(node, methods)
        definition.pop(
            "required", None
        )  # what a recipe lacks can be in the one that it extends, or on the command line
        if issubclass(section, MethodSection):
            definition["required"] = ["method"]
    root = definitions.pop(RunConfig.__name__)
    root["properties"]["extends"] = {
        "type": "string",
        "description": "A recipe beside this one, whose values are taken where this one has none.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "title": "A recipe of kdcli", **whole}


def _all_sections(methods: Mapping[str, type[MethodSection]]) -> Iterator[type[Section]]:
    waiting: list[type[Section]] = [RunConfig, *methods.values()]
    seen: set[type[Section]] = set()
    while waiting:
        section = waiting.pop()
        if section in seen:
            continue
        seen.add(section)
        yield section
        waiting.extend(option.section for option in options_of(section).values() if option.section is not None)
        waiting.extend(_in_lists(section))


def _in_lists(section: type[Section]) -> Iterator[type[Section]]:
    """Return the sections that a list among the section's own keys is made of."""
    for field in section.model_fields.values():
        yield from (kind for kind in _parts(field.annotation) if isinstance(kind, type) and issubclass(kind, Section))


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _parts(inner)


def _readers(annotation: Any) -> Iterator[str]:
    """Return the names of the functions that read a value before it is validated."""
    for part in _parts(annotation):
        for item in getattr(part, "__metadata__", ()):
            if isinstance(item, BeforeValidator):
                yield getattr(item.func, "__name__", "")


def _widen(node: dict[str, Any], field: FieldInfo) -> None:
    """Let a key take what is read as something else: a name alone for a section, a value for a list of one."""
    readers = {*_readers(field.annotation)}
    readers |= {getattr(item.func, "__name__", "") for item in field.metadata if isinstance(item, BeforeValidator)}
    also: list[dict[str, Any]] = []
    if readers & {"from_name", "_from_name"}:
        also.append({"type": "string"})
    if "as_text" in readers:
        also.append({"type": "integer"})
    if "yaml_no" in readers:
        also.append({"const": False})
    arrays = [part for part in node.get("anyOf", [node]) if part.get("type") == "array"]
    lists = [part for part in arrays if "items" in part]  # others are of so many values, each with its own type
    if "as_texts" in readers:
        for part in arrays:
            part["prefixItems"] = [{"anyOf": [one, {"type": "integer"}]} for one in part.get("prefixItems", [])]
            if not part["prefixItems"]:
                del part["prefixItems"]
    if readers & {"as_list", "as_texts"}:
        also += [part["items"] for part in lists]
    if "as_texts" in readers:
        also.append({"type": "integer"})
        for part in lists:
            part["items"] = {"anyOf": [part["items"], {"type": "integer"}]}
    if "pair" in readers:
        for part in lists:
            part["items"] = {"anyOf": [{"type": "string"}, part["items"]]}
    if also:
        own = {key: node.pop(key) for key in list(node) if key not in ("description", "default")}
        node["anyOf"] = [*also, *own.get("anyOf", [own])]


def _take_methods(node: dict[str, Any], methods: Mapping[str, type[MethodSection]]) -> None:
    listed = next(part for part in node.get("anyOf", [node]) if part.get("type") == "array")
    listed["items"] = {"anyOf": [{"$ref": f"{_REFERENCE}{section.__name__}"} for section in methods.values()]}
