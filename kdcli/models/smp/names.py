"""From ``smp:ARCHITECTURE/ENCODER`` to a class of the library and the name that it has for the encoder."""

from __future__ import annotations

import inspect
from functools import cache
from types import ModuleType
from typing import Any

import timm

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import expand_user
from kdcli.models.place import Place
from kdcli.models.spec import ModelName

_OF_TIMM = "tu-"
"""What the library puts before timm's names."""
_SETTLED = {"self", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs"}
"""Arguments of its classes that are not for users: kdcli knows them."""


@cache
def package() -> ModuleType:
    """Return the library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise UserError(
            "Models called smp:ARCHITECTURE/ENCODER need the package segmentation-models-pytorch.",
            "pip install 'kdcli[dense]'",
        ) from None
    found: ModuleType = smp
    return found


def architectures() -> dict[str, Any]:
    """Return the classes by their names in small letters."""
    return dict(package().MODEL_ARCHITECTURES_MAPPING)


def find(name: ModelName) -> Place | None:
    """Return the architecture and encoder that are meant; None for a folder, a run, or a model on the hub.

    Raises:
        UserError: it can only be meant for an architecture, and there is none, or no such encoder.
    """
    known = architectures()
    architecture, slash, encoder = name.target.partition("/")
    if architecture.lower() in known and slash and encoder:
        found = f"{architecture.lower()}/{encoder_called(encoder, name)}"
        return Place("segmentation-models-pytorch", f"smp:{found}", architecture=found)
    if expand_user(name.target).exists():
        return None
    if architecture.lower() in known:
        raise UserError(
            f"Model {name.text!r} names no encoder.", f"For example smp:{architecture.lower()}/mobilenetv3_small_050."
        )
    nearest = did_you_mean(architecture.lower(), known)
    if nearest or not slash:
        raise UserError(
            f"There is no architecture {architecture!r} in segmentation-models-pytorch. {nearest}".rstrip(),
            f"Names are smp:ARCHITECTURE/ENCODER; architectures: {', '.join(known)}.",
        )
    return None


def encoder_called(encoder: str, name: ModelName) -> str:
    """Return what the library calls an encoder: a name of its own, or ``tu-`` and timm's.

    Raises:
        UserError: neither has it.
    """
    own = package().encoders.encoders
    if encoder in own:
        return encoder
    plain = encoder.removeprefix(_OF_TIMM)
    if timm.is_model(plain.partition(".")[0]):
        return _OF_TIMM + plain
    nearest = did_you_mean(encoder, [*own, *timm.list_models()])
    raise UserError(
        f"Model {name.text!r}: there is no encoder {encoder!r}. {nearest}".rstrip(),
        "An encoder is one of segmentation-models-pytorch's, such as resnet18, mobilenet_v2 or mit_b0, or any model of"
        " timm's, such as mobilenetv3_small_050.",
    )


def timm_name(encoder: str) -> str | None:
    """Return timm's name of an encoder; None for one of the library's own."""
    return encoder.removeprefix(_OF_TIMM) if encoder.startswith(_OF_TIMM) else None


def defaults_of(architecture: str) -> dict[str, Any]:
    """Return the arguments of a class that users may set, with their defaults."""
    parameters = inspect.signature(architectures()[architecture.lower()].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in _SETTLED}


def check_arguments(place: Place, architecture: str) -> None:
    """Refuse arguments that the architecture does not have.

    Raises:
        UserError: with the nearest, and all there are.
    """
    valid = defaults_of(architecture)
    for key in place.arguments:
        if key not in valid:
            raise UserError(
                f"{place.name}: {architecture} has no argument {key!r}. {did_you_mean(key, valid)}".rstrip(),
                f"Its arguments: {', '.join(valid)}.",
            )
