"""From the arguments of a call to a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.api.objects import name_of_data, name_of_model
from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.tasks import DEFAULT_TASK, TASKS
from kdcli.base.text import redact_all, short_repr

if TYPE_CHECKING:
    from kdcli.config.run import RunConfig

Named = str | Path | Mapping[str, Any]
"""A name as the command line takes it, a path, or a section of the config as a mapping."""

OPTIONS: Mapping[str, str] = {
    "task": "task",
    "method": "method",
    "relation": "relation",
    "projector": "projector",
    "normalize": "normalize",
    "feature_layers": "feature_layers",
    "feature_weight": "feature_weight",
    "baseline": "baseline",
    "test": "test",
    "output": "output",
    "seed": "seed",
    "teacher_weights": "teacher.weights",
    "unchecked_teacher": "teacher.unchecked",
    "student_pretrained": "student.pretrained",
    "data_root": "data.root",
    "classes": "data.classes",
    "strict_data": "data.strict",
    "eval_data": "eval_data.name",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "mixed_precision": "train.mixed_precision",
    "device": "train.device",
    "num_processes": "train.num_processes",
    "checkpoint_every": "train.checkpoint_every",
    "track": "train.track",
    "cache_teacher": "train.cache_teacher",
    "cache_views": "train.cache_views",
    "cache_dtype": "train.cache_dtype",
    "lr": "optim.lr",
}
"""Keyword -> the config's key that it sets: those of the command line; a test holds both together."""


def config_of(
    teacher: Any,
    student: Any,
    data: Any,
    recipe: str | Path | None,
    settings: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> tuple[RunConfig, bool]:
    """Return the config that a call means, and whether its data are the task's demo.

    Raises:
        UserError: an option that there is not, or a value that it can't have.
    """
    from kdcli.config.parse import parse_config
    from kdcli.config.recipes import find_recipe, load_recipe, set_key
    from kdcli.config.run import RunConfig
    from kdcli.config.words import keys_meant, shown

    values: dict[str, Any] = {} if recipe is None else load_recipe(find_recipe(str(recipe)))
    models = {"teacher": name_of_model(teacher), "student": name_of_model(student)}
    named = name_of_data(data)
    for key, value in {**models, "data": named}.items():
        if value is not None:
            values = {**values, key: dict(value) if isinstance(value, Mapping) else {"name": str(value)}}
    for key, value in options.items():
        if value is None:
            continue
        if key in OPTIONS:
            values = set_key(values, OPTIONS[key].split("."), str(value) if isinstance(value, Path) else value)
        elif key in RunConfig.model_fields:
            is_part = isinstance(value, Mapping) and isinstance(values.get(key), dict)
            values = {**values, key: {**values[key], **value} if is_part else value}
        else:
            meant, names = keys_meant(key), {of: keyword for keyword, of in OPTIONS.items()}
            ours = [names[of] for of in meant if of in names]
            near = (
                f"Did you mean {', '.join(ours) or shown(meant)}?"
                if meant
                else did_you_mean(key, [*OPTIONS, *RunConfig.model_fields])
            )
            raise UserError(
                f"There is no option {short_repr(key)}. {near}".rstrip(),
                "Options are those of kdcli distill, and sections as mappings; settings={'optim.lr': 0.01} takes any"
                " key.",
            )
    for key, value in (settings or {}).items():
        values = set_key(values, key.split("."), value)
    task = values.get("task", DEFAULT_TASK)
    demo = TASKS[task].demo if isinstance(task, str) and task in TASKS else ""
    is_demo = recipe is None and not {"data", "eval_data"} & values.keys() and bool(demo)
    if is_demo:
        values["data"] = {"name": demo}
    if any(extensions.is_lent(str(given)) for given in (*models.values(), named)):
        train = values.get("train") or {}
        if (train.get("num_processes") or 1) != 1:
            raise UserError("Modules and data of this process can't be had by others.", "Set num_processes=1.")
        values["train"] = {**train, "num_processes": 1}
    return parse_config(values, source="the options"), is_demo


def folder_name(config: RunConfig, recipe: str | Path | None) -> str:
    """Return what the folder of a run is called that no place was named for."""
    from kdcli.experiments.variants import safe_name

    if recipe is not None:
        return safe_name(Path(recipe).stem)
    return safe_name(f"{config.student.name}-from-{config.teacher.name}-on-{config.data.name}")


def as_call(config: RunConfig) -> str:
    """Return what the records say in place of a command line."""
    told = redact_all({key: getattr(config, key).name for key in ("teacher", "student", "data")})
    return f"kdcli.distill({', '.join(f'{key}={name!r}' for key, name in told.items())}, ...)"


def as_arguments(config: RunConfig, folder: Path, *, quiet: bool, has_callbacks: bool) -> list[str]:
    """Return the arguments of ``kdcli`` by which other processes make the same run, from a recipe in ``folder``.

    Raises:
        UserError: several processes are wanted, and callbacks, which are in this one.
    """
    import yaml

    if has_callbacks and (config.train.num_processes or 1) > 1:
        raise UserError("Callbacks are called in this process, and several train.", "Set num_processes=1.")
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")
    return ["distill", "--recipe", str(file), *(["--quiet"] if quiet else [])]
