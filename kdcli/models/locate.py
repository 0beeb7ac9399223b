"""What a model name means: a timm architecture, or a folder in a library's native format."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import timm
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from kdcli.base.errors import UserError, did_you_mean, reading
from kdcli.base.extensions import Extension
from kdcli.base.files import utf8_path
from kdcli.base.text import expand_user
from kdcli.models import hub
from kdcli.models.place import Place, library_of
from kdcli.models.spec import ModelName, find_extension
from kdcli.models.timm import kdcli_networks
from kdcli.models.transformers import sentence, tokenizer
from kdcli.models.weights import inside_package
from kdcli.runs.folder import RunFolder

TEXT_KINDS = {
    *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    *MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    *MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
"""Kinds of network of transformers that read text."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def locate(name: ModelName, *, weights: bool, is_text: bool = False) -> Place:
    """Find ``name``, with its arguments: timm's registry first, then a local folder, then the hub.

    A run folder stands for its student.

    Args:
        name: a parsed name.
        weights: also fetch the weights of a model on the hub.
        is_text: fetch what belongs to a model of text; it is never one of timm's.

    Raises:
        UserError: there is no such model, with the nearest names, a run has no student yet, or the hub can't be
            reached.
    """
    return _locate(name, weights=weights, is_text=is_text).with_arguments(name.arguments)


def _locate(name: ModelName, *, weights: bool, is_text: bool) -> Place:
    target = name.target
    if "weights" in name.arguments:
        raise UserError(
            f"Model {name.text!r}: weights=FILE is for a model that is loaded with them.",
            "For a teacher, and in 'kdcli evaluate' and 'kdcli models probe'; elsewhere name the architecture alone.",
        )
    if target.startswith("cifar:"):
        return _cifar(name)
    if ":" in target and not is_text and (entry := find_extension(target.partition(":")[0])) is not None:
        return _of_extension(entry, name)
    if name.library != "transformers" and not is_text and _is_registered(target):
        return Place("timm", f"timm:{target}", architecture=target)
    folder = inside_package(target) if target.startswith("package:") else expand_user(target)
    with reading(target):
        is_folder, is_file = folder.is_dir(), folder.is_file()
        is_model = (folder / "config.json").is_file()
        is_run = not is_model and (folder / "config.yaml").is_file()
        has_student = (folder / "student" / "config.json").is_file()
        is_of_episodes = is_run and (folder / "episodes.jsonl").is_file()
    if is_of_episodes:
        raise UserError(
            f"Model {name.text!r}: the run {folder} is of episodes: it has trained many students and kept none.",
            "Name a run that was made without --ways and --shots.",
        )
    if is_run and not has_student:
        raise UserError(
            f"Model {name.text!r}: the run {folder} has no student yet.",
            f"Wait for its first validation; if it was stopped: kdcli distill --resume {folder}",
        )
    if is_run:
        _check_run(folder, weights=weights)
        return replace(_folder(folder / "student", target, name), run=folder)
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
    kinds = TEXT_KINDS if is_text else MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if name.library == "transformers" and target in kinds:
        if weights:
            raise UserError(
                f"{name.text} is a kind of network of transformers: it has no published weights.",
                f"Name a model on the hub (hf:ORG/NAME), or take random:hf:{target} for it untrained.",
            )
        return Place("transformers", f"hf:{target}", architecture=target)
    if name.library is None and HUB_ID.fullmatch(target) and folder.parent.is_dir():
        beside = (f"{folder.parent.name}/{other.name}" for other in folder.parent.iterdir() if other.is_dir())
        raise UserError(
            f"Model {name.text!r}: there is no folder {target}. {did_you_mean(target, beside)}".rstrip(),
            f"Name a folder in {folder.parent}, or write hf:{target} for the hub's model.",
        )
    if HUB_ID.fullmatch(target) or name.library == "transformers":
        if is_text:
            return _folder(_text_snapshot(target, weights=weights), target, name)
        return _folder(hub.snapshot(target, weights=weights), target, name)
    if is_text:
        raise UserError(
            f"There is no model of text {name.text!r}.", "A name is a hub id such as hf:org/name, or a local folder."
        )
    raise _unknown(name)


def _check_run(folder: Path, *, weights: bool) -> None:
    """Refuse a run whose config or student is not as the run left it."""
    run = RunFolder(folder)
    try:
        run.read_config()
        run.check_student(weights=weights)
    except UserError as error:
        raise UserError(error.message, f"Put it back from a copy; {folder}/student is taken as it is.") from None


def _cifar(name: ModelName) -> Place:
    architecture = name.target.replace(":", "_", 1)
    valid = [network.replace("_", ":", 1) for network in kdcli_networks.NAMES if network.startswith("cifar_")]
    if name.target not in valid:
        raise UserError(
            f"There is no model {name.text!r}. {did_you_mean(name.target, valid)}".rstrip(),
            f"Valid: {', '.join(valid)}.",
        )
    return Place("timm", name.target, architecture=architecture)


def _of_extension(entry: Extension, name: ModelName) -> Place:
    load_architectures(entry)
    architecture = name.target.replace(":", "_", 1)
    valid = [other.replace("_", ":", 1) for other in timm.list_models(f"{entry.name}_*")]
    if name.target not in valid and not _is_registered(architecture):
        raise UserError(
            f"There is no model {name.text!r} in {entry.package}. {did_you_mean(name.target, valid)}".rstrip(),
            f"Valid: {', '.join(valid)}.",
        )
    return Place("timm", name.target, architecture=architecture)


def load_architectures(entry: Extension) -> None:
    """Import the module of another package that puts its architectures into timm's registry.

    Raises:
        UserError: that fails, or it puts none there under its own name.
    """
    entry.load()
    if not timm.list_models(f"{entry.name}_*"):
        raise entry.unfit(f"a module that registers models called {entry.name}_... with timm.models.register_model")


_BESIDE_TEXT_MODELS = (
    *tokenizer.FILES,
    *sentence.TRANSFORMER_FILES,
    sentence.MODEL_FILE,
    "generation_config.json",
)


def _text_snapshot(repo: str, *, weights: bool) -> Path:
    """Return the folder of a hub's model of text with its tokenizer, and with what sentence-transformers adds to it."""
    folder = hub.snapshot(repo, weights=weights, others=_BESIDE_TEXT_MODELS)
    if (modules := hub.download(repo, "modules.json")) is not None:
        for filename in sentence.module_files(modules):
            hub.download(repo, filename)
    return folder


def _is_registered(target: str) -> bool:
    architecture, _, tag = target.partition(".")
    if not architecture.isidentifier() or not timm.is_model(architecture):
        return False
    if tag and target not in _tags(architecture):
        tags = _tags(architecture)
        raise UserError(
            f"timm's {architecture} has no weights tagged {tag!r}. {did_you_mean(target, tags)}".rstrip(),
            f"Valid: {', '.join(tags)}." if tags else f"Leave the tag out: {architecture}.",
        )
    return True


def _tags(architecture: str) -> list[str]:
    return [name for name in timm.list_models(f"{architecture}.*", include_tags=True) if "." in name]


def _folder(folder: Path, target: str, name: ModelName) -> Place:
    library = library_of(folder)
    if name.library and name.library != library:
        prefix = "timm" if library == "timm" else "hf"
        raise UserError(f"Model {name.text!r} is a model of {library}.", f"Write {prefix}:{target}, or {target} alone.")
    return Place(library, f"{'timm' if library == 'timm' else 'hf'}:{target}", folder=utf8_path(folder))


def _unknown(name: ModelName) -> UserError:
    # Tags only where the user wrote one: else every tag of the nearest architecture would crowd out the others.
    valid = timm.list_models(include_tags=True) if "." in name.target else timm.list_models()
    nearest = did_you_mean(name.target, valid)
    return UserError(
        f"There is no model {name.text!r}. {nearest}".rstrip(),
        "A name is one of timm.list_models(), a hub id such as org/name, or a local folder: a model's or a run's.",
    )
