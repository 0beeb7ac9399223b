"""Whether the numbers of a file can be a model's weights: their types, and that they are finite."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kdcli.base.errors import UserError
from kdcli.base.files import utf8_path
from kdcli.models.weights import few, is_harmless, load_raw

_FLOATS = ("float64", "float32", "float16", "bfloat16")
"""The types that hold weights; eight bits need a scale that no state dict has."""
_LETTERS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex"}
"""How safetensors shortens the names of types."""
_HINT = "Take float weights: quantised ones, and those of a training run that diverged, are of no use here."


def check_tensors(source: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Refuse tensors that can't be a model's weights.

    A floating parameter or buffer takes floating numbers of 16 bits or more, finite once they are converted; a buffer
    may hold infinity where a new model's does. Any other buffer takes what its own type holds exactly.

    Args:
        source: what to call the file.
        wanted: name in the model -> its tensor there, as it is new.
        given: the same names -> the file's tensors, of the same shapes.

    Returns:
        The types of the file, such as ``float16``, that are converted to the model's.

    Raises:
        UserError: naming the tensors.
    """
    wrong_type: list[str] = []
    not_finite: list[str] = []
    converted: dict[str, None] = {}
    for name, theirs in given.items():
        ours = wanted[name]
        if ours.is_floating_point():
            if _name_of(theirs.dtype) not in _FLOATS:
                wrong_type.append(f"{name} is {_name_of(theirs.dtype)}")
            elif not _is_finite(theirs.to(ours.dtype), ours):
                not_finite.append(name)
            elif theirs.dtype != ours.dtype:
                converted[_name_of(theirs.dtype)] = None
        elif not is_harmless(name) and not torch.equal(theirs.to(ours.dtype).to(theirs.dtype), theirs):
            wrong_type.append(f"{name} is {_name_of(theirs.dtype)} and not {_name_of(ours.dtype)}")
    _refuse(source, wrong_type, not_finite)
    return tuple(converted)


def check_module(source: str, module: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Refuse a model whose loaded weights are not finite.

    Args:
        source: what to call the files.
        module: with its weights.
        build: makes the same model untrained, to see which buffers hold infinity as they are meant.

    Raises:
        UserError: naming the tensors.
    """
    suspects = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    }
    if not suspects:
        return
    new = build().state_dict()
    _refuse(source, [], [name for name, tensor in suspects.items() if not _is_finite(tensor, new.get(name))])


def check_types(source: str, types: Mapping[str, str], module: nn.Module) -> None:
    """Refuse files that hold other than floating numbers for a model's floating tensors, before they were converted.

    Args:
        source: what to call the files.
        types: name -> type, from :func:`types_in`.
        module: that was loaded from them; names may differ by what comes before its backbone's.

    Raises:
        UserError: naming the tensors.
    """
    floating = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    base = f"{getattr(module, 'base_model_prefix', '')}."
    wrong = [
        f"{name} is {kind}"
        for name, kind in types.items()
        if kind not in _FLOATS and {name, base + name, name.removeprefix(base)} & floating
    ]
    _refuse(source, wrong, [])


def types_in(folder: Path) -> dict[str, str]:
    """Return the type of every tensor in a model's folder, out of the files that its library reads."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))
    if files:
        return {name: kind for file in files for name, kind in _types_of_safetensors(file)}
    return {
        name: kind
        for file in sorted(folder.glob("pytorch_model*.bin"))
        for name, kind in types_of(load_raw(file)).items()
    }


def types_of(state: Mapping[str, object]) -> dict[str, str]:
    """Return the type of every tensor in a state dict."""
    return {name: _name_of(value.dtype) for name, value in state.items() if isinstance(value, Tensor)}


def _types_of_safetensors(file: Path) -> Iterable[tuple[str, str]]:
    with safe_open(utf8_path(file), framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            found = re.fullmatch(r"(\D+)(\d*)(.*)", opened.get_slice(name).get_dtype())
            assert found is not None
            letters, bits, rest = found.groups()
            yield name, _LETTERS.get(letters, letters.lower()) + bits + rest.lower()


def _is_finite(tensor: Tensor, new: Tensor | None) -> bool:
    finite = torch.isfinite(tensor)
    if finite.all():
        return True
    if new is None or new.shape != tensor.shape or torch.isnan(tensor).any():
        return False
    return bool((finite | ~torch.isfinite(new)).all())


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refuse(source: str, wrong_type: list[str], not_finite: list[str]) -> None:
    problems = []
    if wrong_type:
        problems.append(f"{len(wrong_type)} of another type than weights have ({few(tuple(wrong_type))})")
    if not_finite:
        problems.append(f"{len(not_finite)} with infinite or undefined values ({few(tuple(not_finite))})")
    if problems:
        raise UserError(f"{source} holds what can't be weights: {'; '.join(problems)}.", _HINT)
