"""Names to models with one interface. Importing this package imports no torch; its functions do, when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdcli.models.spec import ModelName, parse_name

if TYPE_CHECKING:
    from kdcli.models.base import Model
    from kdcli.models.loading import build_student, load_saved, load_teacher
    from kdcli.models.outputs import ModelOutput

_LOADING = {"build_student", "load_saved", "load_teacher"}

__all__ = [
    "Model",
    "ModelName",
    "ModelOutput",
    "build_student",
    "load_saved",
    "load_teacher",
    "parse_name",
]


def __getattr__(name: str) -> Any:
    if name == "Model":
        from kdcli.models.base import Model

        return Model
    if name == "ModelOutput":
        from kdcli.models.outputs import ModelOutput

        return ModelOutput
    if name in _LOADING:
        from kdcli.models import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
