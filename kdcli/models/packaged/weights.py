"""A package's file, found and read; its names, shapes and a known output checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.models.packaged.rows import Packaged
from kdcli.models.values import check_tensors
from kdcli.models.weights import Tensors, few, inside_package, load_raw

_SIDE = 64
_TOLERANCE = 1e-3
"""Of the largest known value: kernels of another machine differ by less, another file by more."""
_REINSTALL = "Reinstall the package: {install}"


def find_file(row: Packaged) -> Path:
    """Return the file of a package, which is not imported.

    Raises:
        UserError: the package or the file is not there; it says how to install it.
    """
    try:
        return inside_package(row.path)
    except UserError as error:
        what = error.message.removeprefix(f"{row.path}: ")
        raise UserError(f"package:{row.name}: {what}", row.install) from None


def read_pickled(row: Packaged) -> Tensors:
    """Return the tensors of a checkpoint of torch, by their names in the file.

    Raises:
        UserError: there is no such file, or it is damaged or holds other things.
    """
    found = load_raw(find_file(row))
    if odd := [str(name) for name, value in found.items() if not isinstance(value, Tensor)]:
        raise refusal(row, f"{len(odd)} of its entries are no tensors ({few(tuple(odd))})")
    return dict(found)


def check_names(row: Packaged, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not exactly those wanted: every name, every shape, finite numbers.

    Raises:
        UserError: naming what differs.
    """
    missing = tuple(name for name in wanted if name not in given)
    unexpected = tuple(name for name in given if name not in wanted)
    misfits = tuple(
        f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    )
    found = {"missing": missing, "that it should not have": unexpected, "of another shape": misfits}
    if said := "; ".join(f"{len(names)} {what} ({few(names)})" for what, names in found.items() if names):
        raise refusal(row, f"its tensors: {said}")
    check_tensors(row.path, wanted, given)


def pattern(preprocessing: Preprocessing) -> Tensor:
    """Return the made-up image that known outputs are of, (1, 3, 64, 64), as a model with this preprocessing takes it.

    Red, green and blue are waves of different lengths and directions between 0 and 1, by a formula alone.
    """
    rows = torch.arange(_SIDE, dtype=torch.float64).view(1, -1, 1)
    columns = torch.arange(_SIDE, dtype=torch.float64).view(1, 1, -1)
    channel = torch.arange(1, 4, dtype=torch.float64).view(3, 1, 1)
    image = 0.5 + 0.5 * torch.sin(0.11 * channel * rows + 0.07 * (channel + 2) * columns)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    normalised = ((image - mean) / std).float()[None]
    return normalised.flip(1) if preprocessing.channels == "BGR" else normalised


def spread_of(output: Tensor) -> tuple[float, ...]:
    """Return 8 values of an output, evenly spread over it from its first to its last."""
    values = output.flatten()
    return tuple(values[torch.linspace(0, len(values) - 1, 8).long()].tolist())


@torch.no_grad()
def check_known(row: Packaged, module: nn.Module, run: Callable[[Tensor], Tensor] | None = None) -> None:
    """Refuse weights with which the network does not say of :func:`pattern` what it is known to say.

    Args:
        row: whose ``known`` it is compared with.
        module: with the weights, on the CPU.
        run: in place of the module's own call.

    Raises:
        UserError: it says something else.
    """
    was_training = module.training
    module.eval()
    found = spread_of((run or module)(pattern(row.preprocessing)))
    module.train(was_training)
    largest = max(map(abs, row.known))
    off = max(abs(ours - theirs) for ours, theirs in zip(found, row.known, strict=True))
    if not off <= _TOLERANCE * largest:  # nor where it is no number
        raise refusal(
            row, f"with it the network is off by {off:.2g} on a known image, whose values go up to {largest:.2g}"
        )


def refusal(row: Packaged, what: str) -> UserError:
    """Return the error for a file that is not the one that this name means."""
    return UserError(f"{row.path} is not the file of {row.package}: {what}.", _REINSTALL.format(install=row.install))
