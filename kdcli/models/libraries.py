"""The libraries of models, one line each, and how one is found: by a prefix, by its name or by a folder's config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from kdcli.base import extensions
from kdcli.base.errors import UserError, check_are_files, did_you_mean, reading
from kdcli.base.tasks import Modality
from kdcli.models.generators.library import Generators
from kdcli.models.library import Library
from kdcli.models.packaged.library import PackagedModels
from kdcli.models.smp.library import Smp
from kdcli.models.timm.library import Timm
from kdcli.models.torchvision_detection.library import TorchvisionDetectors
from kdcli.models.transformers.library import Transformers

LIBRARIES: tuple[Library, ...] = (Timm(), Transformers(), TorchvisionDetectors(), Smp(), Generators(), PackagedModels())
"""A bare name is looked up in the first that has it."""
_WORDS = ("package", "random")
"""What stands before a colon and is no library's."""
PREFIXES = tuple(prefix for library in LIBRARIES for prefix in (library.prefix, *library.families)) + _WORDS

_SAVED = f"Give a folder that {', '.join(library.name for library in LIBRARIES[:-1])} or {LIBRARIES[-1].name} saved."


def find_extension(prefix: str) -> extensions.Extension | None:
    """Return the extension whose models are called ``PREFIX:REST``."""
    return extensions.find("models", prefix, own=PREFIXES)


def library_called(name: str) -> Library:
    """Return the library of this name; an extension's is imported now.

    Raises:
        UserError: there is none, or the extension can't be imported or is no library.
    """
    for library in LIBRARIES:
        if library.name == name:
            return library
    entry = find_extension(name)
    if entry is None:
        names = [*(library.name for library in LIBRARIES), *extensions.names("models")]
        raise UserError(
            f"There is no library of models {name!r}. {did_you_mean(name, names)}".rstrip(),
            "Install the package that adds it.",
        )
    return _library_of_extension(entry)


def _library_of_extension(entry: extensions.Extension) -> Library:
    found = entry.load()
    if isinstance(found, ModuleType):  # it has put its architectures into timm's registry
        return LIBRARIES[0]
    if isinstance(found, type) and issubclass(found, Library):
        found = found()
    if not isinstance(found, Library):
        raise entry.unfit("a kdcli.models.library.Library, or a module that registers models of timm")
    if found.name != entry.name or found.prefix != entry.name:
        raise entry.unfit(f"a library whose name and prefix are {entry.name!r}")
    return found


def libraries_for(name: str | None, modality: Modality) -> Iterator[Library]:
    """Yield the libraries that have models of ``modality``: the one called ``name``, or without a name kdcli's own."""
    for library in LIBRARIES if name is None else (library_called(name),):
        if modality in library.modalities:
            yield library


def library_of(folder: Path) -> Library:
    """Return the library in whose native format ``folder`` is.

    Raises:
        UserError: it has no ``config.json`` of any library, or something in it is no file.
    """
    path = folder / "config.json"
    with reading(path):
        check_are_files(folder)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder} has no config.json.", _SAVED) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}", _SAVED) from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no mapping.", _SAVED)
    for library in LIBRARIES:
        if library.is_own(folder, config):
            return library
    if isinstance(name := config.get("library"), str):  # of another package
        return library_called(name)
    raise UserError(
        f"{path} has neither 'architecture' (timm) nor 'model_type' (transformers), nor '_model_class' and"
        " 'encoder_name' (smp).",
        _SAVED,
    )
