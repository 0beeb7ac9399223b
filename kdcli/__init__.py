"""kdcli: distil compact models from arbitrary pretrained teachers.

What programs use is here, each as the command of its name does it; nothing is imported before it is used::

    import kdcli

    run = kdcli.distill(teacher="resnet50", student="resnet18", data="photos/", epochs=20)
    run.metrics["test"], run.student, run.path
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcli import losses, projectors
    from kdcli.api import (
        Network,
        Run,
        analyze_projector,
        calibrate,
        compare,
        distill,
        evaluate,
        export,
        load,
        predict,
        probe,
        report,
    )
    from kdcli.base.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "Network",
    "Run",
    "UserError",
    "analyze_projector",
    "calibrate",
    "compare",
    "distill",
    "evaluate",
    "export",
    "load",
    "losses",
    "plan",
    "predict",
    "probe",
    "projectors",
    "report",
]

_MODULES = ("losses", "projectors")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kdcli' has no attribute {name!r}")
    if name in _MODULES:
        return import_module(f"kdcli.{name}")
    return getattr(import_module("kdcli.base.errors" if name == "UserError" else "kdcli.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Plan(ModuleType):
    """The room ``kdcli.plan``, which is also the function of that name, :func:`kdcli.api.plan`."""

    def __call__(self, **options: Any) -> Any:
        return import_module("kdcli.api").plan(**options)


import_module("kdcli.plan")
sys.modules["kdcli.plan"].__class__ = _Plan
