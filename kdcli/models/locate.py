"""What a model name means: an architecture of a library, or a folder in a library's native format."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

from kdcli.base.errors import UserError, did_you_mean, reading
from kdcli.base.files import utf8_path
from kdcli.base.tasks import Modality
from kdcli.base.text import expand_user
from kdcli.models import hub
from kdcli.models.libraries import libraries_for, library_of
from kdcli.models.place import Place
from kdcli.models.spec import ModelName
from kdcli.models.weights import inside_package
from kdcli.runs.folder import RunFolder

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def locate(name: ModelName, *, weights: bool, modality: Modality = "image") -> Place:
    """Find ``name``, with its arguments: the libraries' own names first, then a local folder, then the hub.

    A run folder stands for its student.

    Args:
        name: a parsed name.
        weights: also fetch the weights of a model on the hub.
        modality: what the model reads; of the hub what belongs to such a model is fetched.

    Raises:
        UserError: there is no such model, with the nearest names, a run has no student yet, or the hub can't be
            reached.
    """
    return _locate(name, weights=weights, modality=modality).with_arguments(name.arguments)


def _locate(name: ModelName, *, weights: bool, modality: Modality) -> Place:
    target = name.target
    if "weights" in name.arguments:
        raise UserError(
            f"Model {name.text!r}: weights=FILE is for a model that is loaded with them.",
            "For a teacher, and in 'kdcli evaluate' and 'kdcli models probe'; elsewhere name the architecture alone.",
        )
    libraries = list(libraries_for(name.library, modality))
    for library in libraries:
        if (place := library.find(name, weights=weights, modality=modality)) is not None:
            return place
    if (place := _local(name, weights=weights)) is not None:
        return place
    if HUB_ID.fullmatch(target) or any(library.is_of_hub for library in libraries if name.library is not None):
        companions = chain.from_iterable(library.companions(target, modality) for library in libraries)
        return _folder(hub.snapshot(target, weights=weights, others=companions), target, name)
    if modality == "text":
        raise UserError(
            f"There is no model of text {name.text!r}.", "A name is a hub id such as hf:org/name, or a local folder."
        )
    # Tags only where the user wrote one: else every tag of the nearest architecture would crowd out the others.
    nearest = did_you_mean(target, list(chain.from_iterable(library.similar(name) for library in libraries)))
    raise UserError(
        f"There is no model {name.text!r}. {nearest}".rstrip(),
        "A name is one of timm.list_models(), a hub id such as org/name, or a local folder: a model's or a run's.",
    )


def _local(name: ModelName, *, weights: bool) -> Place | None:
    """Return the folder that ``name`` is, of a model or of a run; None where there is none.

    Raises:
        UserError: it is meant for a folder, and is none of these.
    """
    target = name.target
    folder = inside_package(target) if target.startswith("package:") else expand_user(target)
    with reading(target):
        is_folder, is_file = folder.is_dir(), folder.is_file()
        is_model = (folder / "config.json").is_file()
        is_run = not is_model and (folder / "config.yaml").is_file()
    if is_run:
        return _student_of_run(folder, name, weights=weights)
    if is_file and name.library is None and not target.startswith("package:"):
        raise UserError(
            f"Model {name.text!r} is a file, and a name or a folder is wanted here.",
            f"Weights of a teacher are named beside its architecture: --teacher ARCH --teacher-weights {target}",
        )
    if is_folder and not is_model:
        raise UserError(
            f"Model {name.text!r}: {folder} is neither a model (no config.json) nor a run folder (no config.yaml).",
            "Give a folder that timm or transformers saved, or one that 'kdcli distill' made.",
        )
    if is_folder:
        return _folder(folder, target, name)
    if target.startswith((".", "/", "~", "package:")):
        raise UserError(f"Model {name.text!r}: there is no folder {target}.", "Give the folder that has config.json.")
    if name.library is None and HUB_ID.fullmatch(target) and folder.parent.is_dir():
        beside = (f"{folder.parent.name}/{other.name}" for other in folder.parent.iterdir() if other.is_dir())
        raise UserError(
            f"Model {name.text!r}: there is no folder {target}. {did_you_mean(target, beside)}".rstrip(),
            f"Name a folder in {folder.parent}, or write hf:{target} for the hub's model.",
        )
    return None


def _student_of_run(folder: Path, name: ModelName, *, weights: bool) -> Place:
    with reading(name.target):
        has_student = (folder / "student" / "config.json").is_file()
        is_of_episodes = (folder / "episodes.jsonl").is_file()
    if is_of_episodes:
        raise UserError(
            f"Model {name.text!r}: the run {folder} is of episodes: it has trained many students and kept none.",
            "Name a run that was made without --ways and --shots.",
        )
    if not has_student:
        raise UserError(
            f"Model {name.text!r}: the run {folder} has no student yet.",
            f"Wait for its first validation; if it was stopped: kdcli distill --resume {folder}",
        )
    _check_run(folder, weights=weights)
    return replace(_folder(folder / "student", name.target, name), run=folder)


def _check_run(folder: Path, *, weights: bool) -> None:
    """Refuse a run whose config or student is not as the run left it."""
    run = RunFolder(folder)
    try:
        run.read_config()
        run.check_student(weights=weights)
    except UserError as error:
        raise UserError(error.message, f"Put it back from a copy; {folder}/student is taken as it is.") from None


def _folder(folder: Path, target: str, name: ModelName) -> Place:
    library = library_of(folder)
    if name.library and name.library != library.name:
        raise UserError(
            f"Model {name.text!r} is a model of {library.name}.", f"Write {library.prefix}:{target}, or {target} alone."
        )
    return Place(library.name, f"{library.prefix}:{target}", folder=utf8_path(folder))
