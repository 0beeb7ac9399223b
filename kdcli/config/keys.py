"""What keys are for, as the options themselves say: who reads them, which may change on resume, which make a recipe."""

from __future__ import annotations

import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic.fields import FieldInfo

from kdcli.base.errors import UserError
from kdcli.base.tasks import TaskFacts
from kdcli.base.text import redact_all
from kdcli.config.data import DataConfig
from kdcli.config.run import RunConfig
from kdcli.config.section import Key, Section


@dataclass(frozen=True)
class Option:
    """A key of the config with what it is for.

    Attributes:
        name: dotted.
        field: its type and default.
        keys: what it says, after the sections that it stands in, from outside to inside.
    """

    name: str
    field: FieldInfo
    keys: tuple[Key, ...]

    @property
    def section(self) -> type[Section] | None:
        """The section that it is, where it has keys of its own."""
        return _section_in(self.field.annotation)

    def says(self, read: Callable[[Key], Any]) -> Any:
        """Return what the first of ``keys`` that says something says; None where none does."""
        return next((value for key in self.keys if (value := read(key)) is not None), None)

    def is_set(self, section: Section) -> bool:
        """Whether it has another value than its default in the section where names begin."""
        *sections, last = self.name.split(".")
        for part in sections:
            section = getattr(section, part)
            if section is None:
                return False
        default = self.field.get_default(call_default_factory=True)
        return not self.field.is_required() and bool(getattr(section, last) != default)

    def settles_evaluation(self, task: TaskFacts) -> bool:
        """Whether runs that differ in it are validated or tested on something else."""
        is_of_training = self.says(lambda key: key.of_training)
        return not is_of_training and any(key.evaluates is not None and key.evaluates(task) for key in self.keys)


@cache
def options_of(section: type[Section]) -> Mapping[str, Option]:
    """Return every option of a section and of the sections in it, by dotted name; lists are not gone into."""
    return {option.name: option for option in _walk(section, "", ())}


def _walk(section: type[Section], prefix: str, outer: tuple[Key, ...]) -> Iterator[Option]:
    for name, field in section.model_fields.items():
        keys = (*outer, *(item for item in field.metadata if isinstance(item, Key)))
        yield Option(f"{prefix}{name}", field, keys)
        if (inner := _section_in(field.annotation)) is not None:
            yield from _walk(inner, f"{prefix}{name}.", keys)


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that an option is, where it is one or none at all."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _section_in(inner[0])
    if origin in (types.UnionType, typing.Union):
        return next((found for part in inner if (found := _section_in(part)) is not None), None)
    return None


def find_option(name: str) -> Option | None:
    """Return the run's option of this dotted name, or the nearest section that it would stand in; None without one."""
    options = options_of(RunConfig)
    while name not in options:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return options[name]


def beside_the_recipe() -> frozenset[str]:
    """Return the keys that make no other recipe: seed, name, where it computes, what is tested, logged and saved."""
    return frozenset(
        name for name, option in options_of(RunConfig).items() if option.says(lambda k: k.of_recipe) is False
    )


def written_out() -> frozenset[str]:
    """Return the keys out of which the plan makes the methods, which the resolved config has beside them."""
    return frozenset({"relation", "method", "projector", "normalize", "feature_layers", "feature_weight"})


def check_domain(config: RunConfig) -> None:
    """Refuse options about images where the task is about texts, the other way round, and about labels it has not.

    Not those of the models that a student is made of, ``student.source`` and ``student.tokenizer``: runs of earlier
    versions that have some go on.
    """
    task = config.task_facts
    given = [
        option
        for name, option in options_of(RunConfig).items()
        if not name.startswith(("eval_data.", "student.source.", "student.tokenizer.")) and option.is_set(config)
    ]
    for option in given:
        if (modality := option.says(lambda key: key.modality)) not in (None, task.modality):
            raise UserError(
                f"{option.name} is set, which is about {modality}s, but the task is {config.task}.",
                "Leave it out, or choose another --task.",
            )
    for option in given:
        reads_it = option.says(lambda key: key.tasks)
        if reads_it is not None and not reads_it(task):
            why = option.says(lambda key: key.why_not)
            raise UserError(f"{option.name} is set, but the task is {config.task}: {why}.", "Leave it out.")
    if not (task.reads_images and task.is_label_free):
        if config.eval_data is not None:
            raise UserError(
                f"eval_data is for the task image-embedding, and the task is {config.task}.", "Leave --eval-data out."
            )
        return
    if config.eval_data is not None:
        _check_eval_data(config.eval_data)
    for option in given:
        if option.says(lambda key: key.of_labels):
            raise UserError(f"{option.name} is about labels, and the task {config.task} reads none.", "Leave it out.")


def _check_eval_data(data: DataConfig) -> None:
    for option in options_of(DataConfig).values():
        is_of_texts = option.says(lambda key: key.modality) == "text"
        if (is_of_texts or option.says(lambda key: key.of_eval_data) is False) and option.is_set(data):
            raise UserError(
                f"eval_data.{option.name} has no effect: features are measured on labelled images.", "Leave it out."
            )


def comparable(config: RunConfig) -> dict[str, Any]:
    """Return every setting by its dotted name, without tokens of hubs and trackers."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            flat[prefix] = value
        else:
            for key, item in items:
                walk(f"{prefix}.{key}" if prefix else str(key), item)

    walk("", redact_all(config.with_absolute_paths().model_dump(mode="json", exclude={"output"})))
    return flat


def check_same_run(stored: RunConfig, config: RunConfig, path: Path) -> None:
    """Check that a run that was configured by ``stored`` (in the file ``path``) may go on with ``config``.

    Raises:
        UserError: something differs that may not; it says what.
    """
    refuse_differences(comparable(stored), config, path)


def without_later_keys(saved: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return ``saved`` with what this version knows besides: a checkpoint of an earlier one did not have the option."""
    return comparable(config) | saved


def refuse_differences(saved: dict[str, Any], config: RunConfig, path: Path) -> None:
    """Refuse to resume where keys that may not change differ from the saved ones."""
    now = comparable(config)
    keys = sorted(key for key in saved.keys() | now.keys() if not may_change(key))
    differences = [f"{key} {saved.get(key)!r} -> {now.get(key)!r}" for key in keys if saved.get(key) != now.get(key)]
    if differences:
        raise UserError(
            f"{path} was written with other settings: {'; '.join(differences)}.",
            "A run goes on with its own settings, but for epochs and what the machine needs; start a new run for"
            " others.",
        )


def may_change(name: str) -> bool:
    """Whether a run may go on with another value: where data and weights lie is up to the machine."""
    option = find_option(name)
    return option is not None and bool(option.says(lambda key: key.may_change))


def flatten_settings(config: RunConfig) -> dict[str, Any]:
    """Return every option of ``config`` by its dotted key, without those :func:`beside_the_recipe`.

    Methods go by name, numbered from the second of a kind: ``methods.projection.weight``,
    ``methods.projection-2.weight``.
    """
    values = config.model_dump(mode="json")
    for stage in (values, values["embedding"] or {}):
        methods: dict[str, Any] = {}
        kinds: Counter[str] = Counter()
        for options in stage.get("methods") or ():
            kind = options.pop("method")
            kinds[kind] += 1
            methods[kind if kinds[kind] == 1 else f"{kind}-{kinds[kind]}"] = options
        stage["methods"] = methods
    beside = beside_the_recipe()
    return {key: value for key, value in _flatten(values) if key not in beside}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
