"""timm's registry by the names that users write, with the networks of kdcli and of other packages in it."""

from __future__ import annotations

import timm

from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.models.libraries import find_extension
from kdcli.models.library import HubSource
from kdcli.models.place import Place
from kdcli.models.spec import ModelName
from kdcli.models.timm import kdcli_networks


def find(name: ModelName) -> Place | None:
    """Return the registered architecture that ``name`` means; None where there is none.

    Raises:
        UserError: it is a network of CIFAR or of another package, or a tag, that there is not.
    """
    target = name.target
    if target.startswith("cifar:"):
        return _cifar(name)
    if ":" in target and (entry := find_extension(target.partition(":")[0])) is not None:
        return _of_extension(entry, name)
    if _is_registered(target):
        return Place("timm", f"timm:{target}", architecture=target)
    return None


def source(target: str) -> HubSource | None:
    """Return the hub's model that the weights of a name of timm's are from; None where timm knows none."""
    found = timm.models.get_pretrained_cfg(target) if _is_registered(target) else None
    return HubSource(found.hf_hub_id, found.license) if found is not None and found.hf_hub_id else None


def names(*, tagged: bool) -> list[str]:
    """Return all that is registered, with the tags of published weights or without."""
    return timm.list_models(include_tags=True) if tagged else timm.list_models()


def extension_of_architecture(architecture: str) -> extensions.Extension | None:
    """Return the installed package that has this architecture; None for timm's own, and kdcli's."""
    entries = (entry for entry in extensions.installed("models") if architecture.startswith(f"{entry.name}_"))
    return max(entries, key=lambda entry: len(entry.name), default=None)


def load_architectures(entry: extensions.Extension) -> None:
    """Import the module of another package that puts its architectures into timm's registry.

    Raises:
        UserError: that fails, or it puts none there under its own name.
    """
    entry.load()
    if not timm.list_models(f"{entry.name}_*"):
        raise entry.unfit(f"a module that registers models called {entry.name}_... with timm.models.register_model")


def _cifar(name: ModelName) -> Place:
    architecture = name.target.replace(":", "_", 1)
    valid = [network.replace("_", ":", 1) for network in kdcli_networks.NAMES if network.startswith("cifar_")]
    if name.target not in valid:
        raise UserError(
            f"There is no model {name.text!r}. {did_you_mean(name.target, valid)}".rstrip(),
            f"Valid: {', '.join(valid)}.",
        )
    return Place("timm", name.target, architecture=architecture)


def _of_extension(entry: extensions.Extension, name: ModelName) -> Place:
    load_architectures(entry)
    architecture = name.target.replace(":", "_", 1)
    valid = [other.replace("_", ":", 1) for other in timm.list_models(f"{entry.name}_*")]
    if name.target not in valid and not _is_registered(architecture):
        raise UserError(
            f"There is no model {name.text!r} in {entry.package}. {did_you_mean(name.target, valid)}".rstrip(),
            f"Valid: {', '.join(valid)}.",
        )
    return Place("timm", name.target, architecture=architecture)


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
