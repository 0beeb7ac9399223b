"""Find, load, override and copy recipes. No torch here."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdcli.errors import UserError, did_you_mean

_NAMED_SECTIONS = ("teacher", "student", "data")


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe: its name (``image-classification/vkd-deit-ti``), file and one-line description."""

    name: str
    path: Path
    description: str


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: inside the package (wheel) or beside it (editable install)."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise UserError("The shipped recipes are missing from this installation.", "Reinstall kdcli.")


def list_recipes() -> list[Recipe]:
    """Return every shipped recipe, by name."""
    folder = recipes_folder()
    files = sorted(folder.rglob("*.yaml"))
    return [
        Recipe(
            name=file.relative_to(folder).with_suffix("").as_posix(),
            path=file,
            description=str(load_yaml(file).get("description", "")),
        )
        for file in files
    ]


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by shipped name or by path.

    Raises:
        UserError: when there is no such recipe; names the nearest.
    """
    file = Path(name)
    if file.suffix in {".yaml", ".yml"} or file.is_file():
        if file.is_file():
            return file
        raise UserError(
            f"There is no recipe file {name}.", "'kdcli recipes list' lists the recipes that come with kdcli."
        )
    shipped = {recipe.name: recipe.path for recipe in list_recipes()}
    if name in shipped:
        return shipped[name]
    by_last_part = [path for full, path in shipped.items() if full.rpartition("/")[2] == name]
    if len(by_last_part) == 1:
        return by_last_part[0]
    short_names = {full.rpartition("/")[2] for full in shipped}
    raise UserError(
        f"There is no recipe {name!r}. {did_you_mean(name, {*shipped, *short_names})}".rstrip(),
        "'kdcli recipes list' lists all; a file needs its .yaml ending.",
    )


class _StrictLoader(yaml.SafeLoader):
    """``SafeLoader`` that refuses a key given twice: YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: when it can't be read, isn't YAML or isn't a mapping.
    """
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Can't read the recipe {file}: {error}.", "A recipe is a UTF-8 text file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not valid YAML: {error}", "'kdcli recipes show quickstart' prints an example."
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(
            f"{file} is not a mapping of option names to values.", "'kdcli recipes show quickstart' prints an example."
        )
    return values


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``values`` with each ``dotted.key=value`` of ``overrides`` set; values are read as YAML.

    Raises:
        UserError: for a text without ``=``, a value that isn't YAML, or a key that goes through a value.
    """
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text!r} is not of the form key=value.", "For example: --set optim.lr=0.002")
        try:
            value = yaml.load(raw, Loader=_StrictLoader)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UserError(
                f"--set {key}: the value {raw!r} is not valid YAML.", "Quote it: --set 'key=\"text\"'"
            ) from None
        values = set_key(values, key.strip().split("."), value)
    return values


def set_key(values: Any, path: list[str], value: Any) -> Any:
    """Return a copy of nested ``values`` with the entry at ``path`` replaced; list entries go by number."""
    head, *rest = path
    if isinstance(values, list):
        if not head.isdigit() or int(head) >= len(values):
            raise UserError(
                f"{head!r} is not an entry of a list of {len(values)}.", "Entries count from 0: methods.0.weight"
            )
        copy = list(values)
        copy[int(head)] = set_key(copy[int(head)], rest, value) if rest else value
        return copy
    if not isinstance(values, dict):
        raise UserError(f"{head!r} can't be set inside the value {values!r}.", "Set the whole entry instead.")
    if not rest:
        return {**values, head: value}
    inner = values.get(head)
    if inner is None:
        inner = {}
    elif isinstance(inner, str) and head in _NAMED_SECTIONS:
        inner = {"name": inner}
    return {**values, head: set_key(inner, rest, value)}


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a recipe to ``destination`` (a folder or a new file) and return the new file.

    Raises:
        UserError: when the file exists already or can't be written.
    """
    source = find_recipe(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise UserError(f"{target} exists already.", "Give another file name.")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(
            f"Can't write {target}: {error.strerror}.", "Give a folder that exists and is writable."
        ) from None
    return target
