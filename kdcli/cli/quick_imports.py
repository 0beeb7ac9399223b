"""What a command imports costs less: torch's compiler, a third of a start's CPU time, is left out until it is used.

torchvision and timm import ``torch._dynamo`` for two things: a function that ``torchvision.ops`` asks, and marks on
some of their own functions that the compiler is to leave them alone.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"
_IMPORTING_IT = ("torchvision", "torchvision.tv_tensors", "timm")


def is_compile_supported(device_type: str) -> bool:
    """Return what torch's own function of this name does, and import it only now."""
    return bool(importlib.import_module(_COMPILER).is_compile_supported(device_type))


class _Postponed(ModuleType):
    """Stands for a module; whoever asks it for anything that it has not gets that of the real one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _give_way(self)
        return getattr(importlib.import_module(_COMPILER), name)


def _give_way(postponed: ModuleType) -> None:
    if sys.modules.get(_COMPILER) is postponed:
        del sys.modules[_COMPILER]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Within it importing these modules imports no compiler; after it nothing of torch's is replaced."""
    import torch
    from torch._compile import _disable_dynamo

    if _COMPILER in sys.modules:
        yield
        return
    postponed = _Postponed(_COMPILER)
    postponed.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    sys.modules[_COMPILER], disable = postponed, torch.compiler.disable

    def disable_later(fn: Callable[..., Any] | None = None, recursive: bool = True, **_: Any) -> Any:
        return _disable_dynamo(fn, recursive)  # torch's own way: the mark is made when the function is called

    torch.compiler.disable = disable_later
    try:
        yield
    finally:
        torch.compiler.disable = disable
        _give_way(postponed)


class _WithoutCompiler(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _without_compiler():
            self._loader.exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _IMPORTING_IT:
            return None
        place = sys.meta_path.index(self)
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path[place + 1 :])
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _WithoutCompiler(spec.loader)
        return spec


def postpone_compiler() -> None:
    """Let torchvision and timm import no compiler when they are imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def without_collections() -> Iterator[None]:
    """Import within it: what modules are made of is no garbage, and looking for some costs a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
