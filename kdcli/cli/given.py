"""What config the options of ``kdcli distill`` mean, and those of commands that take the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kdcli.base.errors import UserError
from kdcli.base.tasks import DEFAULT_TASK, TASKS

if TYPE_CHECKING:
    from kdcli.config.run import RunConfig


def config_given(
    given: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    recipe: str | None,
    resume: Path | None = None,
    force: bool = False,
) -> tuple[RunConfig, bool]:
    """Return the config that options mean, and whether its data are the task's demo because nothing was said of data.

    Args:
        given: what options set, by the config's key.
        overrides: ``KEY=VALUE`` of ``--set``.
        recipe: by name or file, or None.
        resume: the folder of a run that goes on, or None.
        force: take changed files of that run.

    Raises:
        UserError: an option has a value that it can't have, or something is missing.
    """
    from kdcli.config.parse import parse_config
    from kdcli.config.recipes import apply_overrides, set_key

    values, source = _stored_values(recipe, resume, force=force)
    if "teacher.name" in given:  # another teacher: the recipe's weights are not its own
        values = {**values, "teacher": {"name": given["teacher.name"]}}
    values = apply_overrides(values, list(overrides))
    for key, value in given.items():
        values = set_key(values, key.split("."), value)
    is_stored = recipe is not None or resume is not None
    is_demo = not is_stored and _wants_demo(values)
    if is_demo:
        values = {**values, "data": TASKS[values.get("task", DEFAULT_TASK)].demo}
    _check_complete(values, is_stored=is_stored)
    return parse_config(values, source=source), is_demo


def _stored_values(recipe: str | None, resume: Path | None, *, force: bool) -> tuple[dict[str, Any], str]:
    """Return the values of the recipe, or of the run that goes on, and what to call them in messages."""
    if resume is not None:
        from kdcli.runs.folder import RunFolder
        from kdcli.runs.packages import insist_found

        run = RunFolder.started(resume, force=force)
        insist_found(run.path)
        return run.read_values(), str(resume / "config.yaml")
    if recipe is not None:
        from kdcli.config.recipes import find_recipe, load_recipe

        file = find_recipe(recipe)
        return load_recipe(file), str(file)
    return {}, "the options"


def _wants_demo(values: dict[str, Any]) -> bool:
    """Whether models are named and nothing at all is said of data, for a task of kdcli's that has some embedded."""
    task = values.get("task", DEFAULT_TASK)
    named = all(values.get(name) for name in ("teacher", "student"))
    return (
        named
        and not {"data", "eval_data"} & values.keys()
        and isinstance(task, str)
        and task in TASKS
        and bool(TASKS[task].demo)
    )


def tell_demo(config: RunConfig, *, log_format: str, quiet: bool) -> None:
    """Say on the first line that the data are the task's demo; in JSON as an event."""
    from kdcli.machine.launch import rank
    from kdcli.terminal.console import show_lines, show_note

    told = f"No --data: taking {config.data.name}, the demo data of {config.task}. Name yours with --data."
    if rank() != 0:
        return
    if log_format == "json":
        typer.echo(json.dumps({"event": "demo", "data": config.data.name, "note": told}))
    elif quiet:
        show_note(told)
    else:
        show_lines([told])


def _check_complete(values: dict[str, Any], *, is_stored: bool) -> None:
    """Refuse half of the options of episodes, and a run of no recipe that lacks a model or data."""
    drawn = values.get("episodes")
    absent = [option for option in ("ways", "shots") if isinstance(drawn, dict) and option not in drawn]
    if absent:
        raise UserError(
            f"episodes.{absent[0]}: missing. Episodes have so many classes (--ways) of so many labelled images"
            " (--shots).",
            "For example: --ways 5 --shots 10",
        )
    said = {name: values.get(name) for name in ("teacher", "student", "data")}
    missing = [name for name, value in said.items() if not value or (isinstance(value, dict) and "name" not in value)]
    if missing and not is_stored:
        raise UserError(
            f"Say what to distil: {', '.join('--' + name for name in missing)} is missing.",
            "For example: kdcli distill --teacher resnet50 --student mobilenetv3_small_050 --data photos/"
            " (or: kdcli distill --recipe quickstart)",
        )
