"""The runs of a sweep: recipes, each with every choice of the varied keys, named as folders may be. No torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError, reading
from kdcli.base.text import check_argument, short_repr
from kdcli.base.yaml import parse_yaml
from kdcli.config.parse import parse_config
from kdcli.config.recipes import apply_overrides, find_recipe, load_recipe, set_key
from kdcli.config.run import RunConfig

_MAX_RUNS = 10_000
"""Of a sweep; more are a slip of the pen."""
_LONGEST = 150
"""Bytes of a folder's name."""
_OF_THE_SWEEP = {"seed": "--seeds", "output": "--output", "train.num_processes": "--jobs", "test": "--no-test"}
"""Keys that the sweep sets itself, and the options by which it is told."""


@dataclass(frozen=True)
class Variant:
    """A recipe with one choice of each varied key.

    Attributes:
        name: of the folder of its runs, below the sweep's.
        recipe: name of the recipe.
        config: without seed and output folder.
    """

    name: str
    recipe: str
    config: RunConfig


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``5`` (the seeds 0 to 4) or ``3,7,9``; ``3,`` is the seed 3 alone.

    Raises:
        UserError: for anything else, a seed given twice, or more than a sweep has.
    """
    parts = text.removesuffix(",").split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and len(part.strip()) <= 10 for part in parts):
        raise UserError(
            f"--seeds {short_repr(text)} is neither a number of seeds nor a list of them.",
            "For example: --seeds 5 for the seeds 0 to 4, or --seeds 3,7,9",
        )
    numbers = [int(part) for part in parts]
    if "," not in text:
        if not 1 <= numbers[0] <= _MAX_RUNS:
            raise UserError(f"--seeds {numbers[0]} is not from 1 to {_MAX_RUNS}.", "For one seed S: --seeds S,")
        return tuple(range(numbers[0]))
    for seed, count in Counter(numbers).items():
        if count > 1:
            raise UserError(f"--seeds has the seed {seed} {count} times.", "Give each seed once.")
        if seed >= 2**31:
            raise UserError(f"--seeds has {seed}, and seeds are below {2**31}.", "Give smaller seeds.")
    return tuple(numbers)


def find_recipes(names: Sequence[str]) -> dict[str, Path]:
    """Return the files of recipes by the names of their folders, which depend on nothing but the files' paths.

    Args:
        names: shipped recipes, files, or folders, of which every ``.yaml`` is taken, by name, but for those that begin
            with ``_`` and are there to be extended. Files of the same name are told apart by the folders above them.

    Raises:
        UserError: there is no such recipe, a folder has none, or one is given twice.
    """
    files: list[Path] = []
    for name in names:
        check_argument("A recipe", name)
        folder = Path(name)
        with reading(name):
            found = sorted(folder.glob("[!_]*.yaml")) if folder.is_dir() else [find_recipe(name)]
        if not found:
            raise UserError(f"The folder {name} has no .yaml file.", "Give recipes, or a folder of them.")
        files += found
    whole = [file.resolve() for file in files]
    for file, count in Counter(whole).items():
        if count > 1:
            raise UserError(f"The recipe {file} is given {count} times.", "Give each recipe once.")
    given = [_name_among(file, whole) for file in whole]
    same = Counter(name.casefold() for name in given)
    given = [
        f"{name}-{_digest(str(file))}" if same[name.casefold()] > 1 else name
        for name, file in zip(given, whole, strict=True)
    ]
    return dict(zip(given, files, strict=True))


def _name_among(file: Path, files: Sequence[Path]) -> str:
    """Return the file's stem, with as many folders before it as tell it from the other ``files``."""

    def tail(path: Path, folders: int) -> tuple[str, ...]:
        return (*path.parts[:-1][len(path.parts) - 1 - folders :], path.stem)

    others = [other for other in files if other.with_suffix("") != file.with_suffix("")]
    folders = 0
    while folders < len(file.parts) - 2 and tail(file, folders) in [tail(other, folders) for other in others]:
        folders += 1
    return safe_name("-".join(tail(file, folders)))


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``KEY=V1,V2,...``; the values are YAML, so that one with a comma is quoted or bracketed.

    Raises:
        UserError: for another form, a value or key given twice, or a key that the sweep sets itself.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(
                f"--vary {short_repr(text)} is not of the form KEY=V1,V2.", "For example: --vary optim.lr=0.001,0.01"
            )
        refuse_own_keys("--vary", [text])
        try:
            values = parse_yaml(f"[{raw}]")
        except ValueError:
            values = None
        if not isinstance(values, list):
            raise UserError(
                f"--vary {short_repr(key)}: the values {short_repr(raw)} are no YAML, parted by commas.",
                "Quote a text with special characters: --vary 'key=\"a: b\",c'",
            )
        if not values:
            raise UserError(f"--vary {short_repr(key)} has no values.", "For example: --vary optim.lr=0.001,0.01")
        if key in found:
            raise UserError(f"--vary {short_repr(key)} is given twice.", "Give a key once, with all its values.")
        found[key] = values
    return found


def refuse_own_keys(option: str, texts: Sequence[str], by: Mapping[str, str] = _OF_THE_SWEEP) -> None:
    """Raise a UserError where ``KEY=VALUE`` of an option is for the command's own options to say.

    Args:
        option: whose values they are.
        texts: of the form ``KEY=VALUE``.
        by: the keys, and the options by which they are told.
    """
    for text in texts:
        key = text.partition("=")[0].strip()
        if key in by:
            raise UserError(f"{option} {key} is for the command to set.", f"Use {by[key]}.")


def make_variants(
    recipes: dict[str, Path],
    *,
    overrides: Sequence[str],
    vary: dict[str, list[Any]],
    no_test: bool,
    num_seeds: int,
) -> tuple[Variant, ...]:
    """Return every recipe with every choice of the varied keys.

    Args:
        recipes: files by name, as of :func:`find_recipes`.
        overrides: ``KEY=VALUE`` for all of them.
        vary: values by key, as of :func:`parse_vary`.
        no_test: leave the test split alone.
        num_seeds: of each variant, to bound the number of runs.

    Raises:
        UserError: a config is wrong, two variants are the same, or there are too many.
    """
    refuse_own_keys("--set", overrides)
    num_runs = len(recipes) * math.prod(map(len, vary.values())) * num_seeds
    if num_runs > _MAX_RUNS:
        raise UserError(f"The sweep would have {num_runs} runs.", f"Sweep over {_MAX_RUNS} runs at most.")
    variants: list[Variant] = []
    by_config: dict[str, str] = {}
    for recipe, file in recipes.items():
        values = apply_overrides(load_recipe(file), overrides)
        for choice in itertools.product(*vary.values()):
            chosen, told = values, ""
            for key, value in zip(vary, choice, strict=True):
                chosen = set_key(chosen, key.split("."), value)
                told += f"-{key}={value if isinstance(value, str) else json.dumps(value, default=str)}"
            parsed = parse_config(chosen, source=f"{file} with {told[1:]}" if told else str(file))
            update = {
                "seed": 0,
                "output": None,
                "test": parsed.test and not no_test,
                "train": parsed.train.model_copy(update={"num_processes": 1}),
            }
            variant = Variant(safe_name(recipe + told), recipe, parsed.model_copy(update=update))
            whole = variant.config.with_absolute_paths().model_copy(update={"description": ""})
            content = json.dumps(whole.model_dump(mode="json"))
            if content in by_config:
                raise UserError(
                    f"{recipe}{told} and {by_config[content]} are the same config.", "Give each variant once."
                )
            by_config[content] = recipe + told
            variants.append(variant)
    for name, count in Counter(variant.name.casefold() for variant in variants).items():
        if count > 1:
            raise UserError(f"{count} variants would have the folder {name}.", "Rename a recipe.")
    return tuple(variants)


def safe_name(text: str) -> str:
    """Return ``text`` as the name of a folder: letters, digits and ``._=-``.

    A digest of the text follows where anything had to be replaced or cut off: other texts have other names.
    """
    name = "".join(c if c.isalnum() or c in "._=" else "-" for c in text).lstrip("-.")
    short = name.encode()[:_LONGEST].decode(errors="ignore")
    return short if short == text != "" else f"{short}-{_digest(text)}".lstrip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
