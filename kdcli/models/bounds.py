"""Networks of absurd size are refused before memory or time is spent on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from kdcli.base.errors import UserError

MOST_MODULES = 20_000
"""Parts of a network. The deepest that are published have some thousands; this many take a second or two to build."""
_HINT = "Give smaller values, or choose another model."


def total_memory() -> int:
    """Return the bytes of this machine's memory."""
    return int(psutil.virtual_memory().total)


@contextmanager
def bounded(label: str, *, is_trial: bool = False) -> Iterator[None]:
    """Stop the building of a network at its ``MOST_MODULES``-th part, or where its weights would fill the memory.

    A network that is only counted, on torch's meta device, takes no memory.

    Args:
        label: what to call the model.
        is_trial: the meta device stands for the machine's own.

    Raises:
        UserError: it got that far.
    """
    memory, parts, numbers = total_memory(), 0, 0

    def count_part(parent: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal parts
        parts += 1
        if parts > MOST_MODULES:
            raise UserError(f"{label} would have more than {MOST_MODULES} parts: no network is as deep.", _HINT)

    def count_numbers(parent: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal numbers
        if parameter is not None and (is_trial or parameter.device.type != "meta"):
            numbers += parameter.numel()
        if 4 * numbers > memory:
            raise UserError(
                f"{label} would have {numbers:,} parameters or more: in float32 they take"
                f" {4 * numbers / 2**30:,.1f} GiB,"
                f" and this machine has {memory / 2**30:,.1f} GiB of memory.",
                _HINT,
            )

    handles = [
        register_module_module_registration_hook(count_part),
        register_module_parameter_registration_hook(count_numbers),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def building(label: str) -> Iterator[None]:
    """Build a network of a user's arguments: one that is :func:`bounded`, and all that goes wrong told in a sentence.

    Args:
        label: what to call the model.

    Raises:
        UserError: the arguments don't fit the network, or it is too large.
    """
    try:
        with bounded(label):
            yield
    except UserError:
        raise
    except Exception as error:  # on values that don't fit a network raises whatever it trips over
        reason = str(error) or type(error).__name__
        raise UserError(f"{label} can't be built: {reason}", "Give other arguments, or none.") from error


class _Undrawn(TorchFunctionMode):
    """Draws no weights: none are there, and on the meta device the first draw imports torch's compiler."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


_checked: set[tuple[str, int]] = set()


def check_extent(label: str, build: Callable[[], Any], *, values: object) -> None:
    """Build a network without memory, within :func:`bounded`; once in a process for the same values.

    Args:
        label: what to call the model.
        build: makes it; what else fails there fails again, and is told, where it is built in earnest.
        values: what it is built from, all that its size depends on; told apart by their ``repr``.

    Raises:
        UserError: it is too large.
    """
    key = repr(values), total_memory()
    if key in _checked or torch.get_default_device().type == "meta":
        return  # on the meta device it is only counted
    with bounded(label, is_trial=True), torch.device("meta"), _Undrawn(), torch.random.fork_rng(devices=[]):
        try:
            build()
        except UserError:
            raise
        except Exception:
            return
    _checked.add(key)
