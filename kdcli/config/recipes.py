"""Find, load, override and copy recipes. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import kdcli
from kdcli.base.checksums import breaks_off, is_of_a_run
from kdcli.base.errors import UserError, did_you_mean, is_special, reading
from kdcli.base.files import write_atomically
from kdcli.base.text import check_argument, short_repr
from kdcli.base.yaml import MAX_BYTES, MAX_DEPTH, parse_yaml

_NAMED_SECTIONS = ("teacher", "student", "data", "eval_data", "source", "tokenizer")


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe: its name (``image-classification/vkd-deit-ti``), file and one-line description."""

    name: str
    path: Path
    description: str


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: inside the package (wheel) or beside it (editable install)."""
    package = Path(kdcli.__file__).resolve().parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise UserError("The shipped recipes are missing from this installation.", "Reinstall kdcli.")


def list_recipes() -> list[Recipe]:
    """Return every shipped recipe, the quickstart first and the reruns of papers' claims last.

    A file whose name begins with ``_`` is only there to be extended.
    """
    return sorted(
        _recipes_in(recipes_folder()), key=lambda recipe: (recipe.name.startswith("claims/"), "/" in recipe.name)
    )


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes; none of them is read."""
    return list(_files_in(recipes_folder()))


def _files_in(folder: Path) -> dict[str, Path]:
    files = sorted(file for file in folder.rglob("*.yaml") if not file.name.startswith("_"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


@cache
def _recipes_in(folder: Path) -> tuple[Recipe, ...]:
    return tuple(
        Recipe(name=name, path=file, description=str(load_recipe(file).get("description", "")))
        for name, file in _files_in(folder).items()
    )


def find_recipe(name: str) -> Path:
    """Return the file of a recipe given by shipped name or by path.

    Raises:
        UserError: when there is no such recipe; names the nearest.
    """
    check_argument("A recipe", name)
    file = Path(name)
    with reading(name):
        is_file = file.is_file() or is_special(file)
    if file.suffix in {".yaml", ".yml"} or is_file:
        if is_file:
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
        f"There is no recipe {short_repr(name)}. {did_you_mean(name, {*shipped, *short_names})}".rstrip(),
        "'kdcli recipes list' lists all; a file needs its .yaml ending.",
    )


def read_recipe(file: Path) -> str:
    """Return the text of a recipe.

    Raises:
        UserError: when it can't be read, is no text or far too long.
    """
    with reading(f"the recipe {file}"):
        if is_special(file):
            raise UserError(f"{file} is a pipe, socket or device, not a recipe file.", "Write it to a file first.")
        content = file.read_bytes() if file.stat().st_size <= MAX_BYTES else None
    if content is None:
        raise UserError(f"{file} has more than {MAX_BYTES} bytes: it is no recipe.", "A recipe is a short text file.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"Can't read the recipe {file}: {error}.", "A recipe is a UTF-8 text file.") from None


def load_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: when it can't be read, is half of what kdcli wrote, isn't YAML or isn't a mapping.
    """
    text = read_recipe(file)
    if breaks_off(text):
        raise UserError(
            f"{file} breaks off: the line with its checksum is missing.",
            "Put it back from a copy; where you have removed that line, remove the first one too.",
        )
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise UserError(
            f"{file} is not valid YAML: {error}", "'kdcli recipes show quickstart' prints an example."
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(
            f"{file} is not a mapping of option names to values.", "'kdcli recipes show quickstart' prints an example."
        )
    return values


def load_recipe(file: Path) -> dict[str, Any]:
    """Return the values of a recipe, on top of those of the recipe that it ``extends``.

    ``extends`` is a file relative to the recipe's folder. Sections are merged key by key; any other value, lists among
    them, replaces the extended one, and so does a teacher, a student or data with a name: what else was said of the
    other model is not about this one.

    The ``config.yaml`` of a run repeats it as it was, also where an earlier version lacked keys that it has now.

    Raises:
        UserError: as :func:`load_yaml`; also for what can't be extended, or recipes that extend one another in a ring.
    """
    chain = [(file, _load_values(file))]
    while (base := chain[-1][1].pop("extends", None)) is not None:
        source = chain[-1][0]
        if not isinstance(base, str) or len(chain) > MAX_DEPTH:
            reason = "a file's name is wanted" if not isinstance(base, str) else "too many recipes extend one another"
            raise UserError(f"{source}: extends {short_repr(base)}: {reason}.", "For example: extends: base.yaml")
        check_argument("The recipe to extend", base)
        path = source.parent / base
        with reading(path):
            is_file = path.is_file()
        if not is_file:
            raise UserError(
                f"{source} extends {base}, and there is no such file.", "It is looked for beside the recipe."
            )
        chain.append((path, _load_values(path)))
    values: dict[str, Any] = {}
    for _, own in reversed(chain):
        values = {key: value for key, value in values.items() if key not in own} | {
            key: _merge(values.get(key), value, is_named=key in _NAMED_SECTIONS) for key, value in own.items()
        }
    return values


def _load_values(file: Path) -> dict[str, Any]:
    values = load_yaml(file)
    if not is_of_a_run(read_recipe(file)):
        return values
    from kdcli.config.parse import as_repeated

    return as_repeated(values)


def _merge(base: Any, own: Any, *, is_named: bool) -> Any:
    if is_named:
        base = {"name": base} if isinstance(base, str) else base
        if isinstance(own, dict) and "name" in own:
            return own
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    return base | own


def recipe_text(file: Path) -> str:
    """Return a recipe as one file: its text, or, where it extends another, its values written out."""
    text = read_recipe(file)
    if "extends" not in load_yaml(file):
        return text
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    return comments + yaml.safe_dump(load_recipe(file), sort_keys=False, allow_unicode=True, width=120)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``values`` with each ``dotted.key=value`` of ``overrides`` set; values are read as YAML.

    Raises:
        UserError: for a text without ``=``, a value that isn't YAML, or a key that goes through a value.
    """
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"--set {short_repr(text)} is not of the form key=value.", "For example: --set optim.lr=0.002"
            )
        try:
            value = parse_yaml(raw)
        except ValueError:
            raise UserError(
                f"--set {key}: the value {short_repr(raw)} is not valid YAML.", "Quote it: --set 'key=\"text\"'"
            ) from None
        path = key.strip().split(".")
        if len(path) > MAX_DEPTH:
            raise UserError(f"--set {short_repr(key)}: no key has {len(path)} parts.", "For example: optim.lr")
        values = set_key(values, path, value)
    return values


def set_key(values: Any, path: list[str], value: Any) -> Any:
    """Return a copy of nested ``values`` with the entry at ``path`` replaced; list entries go by number."""
    head, *rest = path
    if isinstance(values, list):
        if head not in map(str, range(len(values))):
            raise UserError(
                f"{short_repr(head)} is not an entry of a list of {len(values)}.",
                "Entries count from 0: methods.0.weight",
            )
        copy = list(values)
        copy[int(head)] = set_key(copy[int(head)], rest, value) if rest else value
        return copy
    if not isinstance(values, dict):
        raise UserError(
            f"{short_repr(head)} can't be set inside the value {short_repr(values)}.", "Set the whole entry instead."
        )
    if not rest:
        return {**values, head: value}
    inner = values.get(head)
    if inner is None:
        inner = {}
    elif isinstance(inner, str) and head in _NAMED_SECTIONS:
        inner = {"name": inner}
    return {**values, head: set_key(inner, rest, value)}


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a recipe to ``destination`` (a folder or a new file), whole, and return the new file.

    Raises:
        UserError: when the file exists already or can't be written.
    """
    source = find_recipe(name)
    check_argument("The file to write", destination)
    with reading(destination):
        target = destination / source.name if destination.is_dir() else destination
        exists = target.exists()
    if exists:
        raise UserError(f"{target} exists already.", "Give another file name.")
    text = recipe_text(source)
    write_atomically(target, lambda file: file.write_text(text, encoding="utf-8"))
    return target
