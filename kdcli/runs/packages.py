"""Which other packages a run is made with, and where they were: what goes on with it elsewhere may not find them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdcli.base import extensions
from kdcli.base.errors import UserError, reading
from kdcli.config.parse import parse_config
from kdcli.config.run import RunConfig

FILE = "extensions.json"
_OF_CONFIG = ("tasks", "methods")
"""Kinds without which a config can't be read."""


def record_packages(run: Path, config: RunConfig) -> None:
    """Write :data:`FILE` into a run's folder where other packages' models, tasks, data or methods are in its config."""
    methods: set[str | None] = {config.method, *(options.method for options in config.methods or ())}
    models: set[str | None] = {
        part for model in (config.teacher, config.student) for part in model.name.split(":")[:-1]
    }
    data: set[str | None] = {
        each.name.partition(":")[0] for each in (config.data, config.eval_data) if each is not None
    }
    tasks: set[str | None] = {config.task, config.task_extension}
    named = {"methods": methods, "tasks": tasks, "models": models, "data": data}
    used = [entry for entry in extensions.installed() if entry.name in named[entry.kind]]
    if used:
        rows = [
            {"kind": entry.kind, "name": entry.name, "package": entry.package, "folder": _folder_of(entry.module)}
            for entry in used
        ]
        (run / FILE).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def parse_of_run(run: Path, values: dict[str, Any], name: str) -> RunConfig:
    """Return the config of a run from its values.

    Raises:
        UserError: it is damaged, or names a task or a method of a package that is not found.
    """
    insist_found(run, _OF_CONFIG)
    return parse_config(values, source=str(run / name))


def insist_found(run: Path, kinds: Iterable[str] = extensions.KINDS) -> None:
    """Refuse to go on without the packages that a run was made with.

    Args:
        run: its folder.
        kinds: of what they add.

    Raises:
        UserError: some are not found; it says where they were.
    """
    file = run / FILE
    if not file.is_file():
        return
    with reading(file):
        text = file.read_bytes()
    try:
        rows = [(str(row["kind"]), str(row["name"]), str(row["package"]), row["folder"]) for row in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}.", "Put it back from a copy, or remove it.") from None
    there = {(entry.kind, entry.name) for entry in extensions.installed()}
    missing = [row for row in rows if row[0] in {*kinds} and row[:2] not in there]
    if not missing:
        return
    packages = ", ".join(dict.fromkeys(package for _, _, package, _ in missing))
    folders = list(dict.fromkeys(folder for *_, folder in missing if folder is not None))
    words = ", ".join(f"{name} ({kind})" for kind, name, _, _ in missing)
    was = f" It was in {', '.join(folders)}: put that into PYTHONPATH, as in" if folders else ""
    command = f" PYTHONPATH={shlex.quote(':'.join(folders))} kdcli ..." if folders else ""
    raise UserError(
        f"{run} was made with {packages}, which Python does not find here: {words}.",
        f"Install it.{was}{command}",
    )


def _folder_of(module: str) -> str | None:
    """Return the folder that Python finds a module's package in; nothing is imported."""
    spec = find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).absolute()
    return str(file.parents[1] if spec.submodule_search_locations else file.parent)
