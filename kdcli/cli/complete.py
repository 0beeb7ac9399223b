"""What the shell offers at the tab key: known values, keys, recipes, data, models and run folders. Nothing heavy is
imported: what the shell waits for is here in less than half a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from glob import escape
from pathlib import Path

from kdcli.base import extensions
from kdcli.base.files import cache_folder, write_atomically
from kdcli.base.tasks import TASKS

Complete = Callable[[str], list[str]]
"""From what is typed so far to the values that go on from there."""

DEVICES = ("auto", "cpu", "cuda", "mps")


def one_of(*values: str) -> Complete:
    """Complete these values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


devices = one_of(*DEVICES)
splits = one_of("test", "validation", "train")


def choices_of(key: str) -> Complete:
    """Complete the values that a key of the config takes."""

    def complete(incomplete: str) -> list[str]:
        from kdcli.config.described import choices

        return [value for value in choices(key) if value.startswith(incomplete)]

    return complete


def tasks(incomplete: str) -> list[str]:
    """Complete the tasks, other packages' too."""
    return [name for name in (*TASKS, *extensions.names("tasks")) if name.startswith(incomplete)]


def methods(incomplete: str) -> list[str]:
    """Complete the methods, other packages' too."""
    return [*choices_of("method")(incomplete), *one_of(*extensions.names("methods"))(incomplete)]


def recipes(incomplete: str) -> list[str]:
    """Complete the shipped recipes, and recipe files."""
    from kdcli.config.recipes import recipe_names

    names = [name for name in recipe_names() if name.startswith(incomplete)]
    return [*names, *_paths(incomplete, lambda path: path.is_dir() or path.suffix in (".yaml", ".yml"))]


def runs(incomplete: str) -> list[str]:
    """Complete run folders, the newest first; at first those under ``runs/``."""
    found = _paths(incomplete or "runs/", Path.is_dir)
    return sorted(found, key=lambda path: Path(path).stat().st_mtime, reverse=True)


def models(incomplete: str) -> list[str]:
    """Complete run folders and folders of models, and the names that ``kdcli models search`` has found."""
    return [*_paths(incomplete, Path.is_dir), *one_of(*_names())(incomplete)]


def data(incomplete: str) -> list[str]:
    """Complete data by name, and folders and files of data."""
    names = dict.fromkeys(row.demo for row in TASKS.values() if row.demo)
    if incomplete.startswith("torchvision:"):  # takes a moment, as torch is imported
        from kdcli.data.images.torchvision_sets import SETS

        names |= dict.fromkeys(f"torchvision:{name}" for name in SETS)
    others = [f"{name}:" for name in extensions.names("data")]
    return [*one_of(*names, *others, "torchvision:", "hf:")(incomplete), *_paths(incomplete, Path.exists)]


def settings(incomplete: str) -> list[str]:
    """Complete ``KEY=`` and, after it, the value."""
    from kdcli.config.described import choices
    from kdcli.config.keys import options_of
    from kdcli.config.run import RunConfig

    key, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in choices(key) if f"{key}={value}".startswith(incomplete)]
    return [f"{name}=" for name, option in options_of(RunConfig).items() if option.section is None]


def keys(incomplete: str) -> list[str]:
    """Complete the keys of a run."""
    from kdcli.config.keys import options_of
    from kdcli.config.run import RunConfig

    return [name for name in options_of(RunConfig) if name.startswith(incomplete)]


def remember_models(task: str, names: Iterable[str]) -> None:
    """Keep the architectures of a task for :func:`models`, where there is a place for them."""
    file = _file()
    known = {**_read(file), task: sorted(names)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda new: new.write_text(json.dumps(known), encoding="utf-8"))
    except Exception:  # it is a convenience: without it nothing is completed
        return


def _file() -> Path:
    return cache_folder() / "model-names.json"


def _names() -> list[str]:
    return list(dict.fromkeys(name for names in _read(_file()).values() for name in names))


def _read(file: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    """Return the paths that begin so, written as they were begun; folders end in a slash."""
    folder, slash, start = incomplete.rpartition("/")
    try:
        found = sorted(Path(f"{folder}{slash}" or ".").glob(f"{escape(start)}*"))
        return [
            f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}"
            for path in found
            if wanted(path) and (start or not path.name.startswith("."))
        ]
    except (OSError, ValueError):
        return []
