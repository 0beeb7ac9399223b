"""A teacher's architecture with fewer layers and less width, and what of its weights fits there.

Works on names: of the arguments of timm's constructors and of the keys of transformers' configs, which call the depth
and the width of their networks by a few words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.models.weights import is_harmless

# Of several the first counts: in staged networks of transformers the later ones are derived from it.
_DEPTHS = (
    *("depths", "depth", "layers", "num_blocks", "serial_depths", "stages", "num_hidden_layers", "n_layers"),
    *("n_layer", "num_layers"),
)
_WIDTHS = (
    *("embed_dim", "embed_dims", "dims", "channels", "hidden_sizes", "hidden_size", "dim", "base_dims", "base_dim"),
    *("n_embd", "d_model"),
)
_MULTIPLIERS = ("width_mult", "width_factor", "width")
_HEADS = ("num_attention_heads", "num_key_value_heads", "n_heads", "num_heads", "heads", "n_head")
_WITH_THE_WIDTH = (
    *("intermediate_size", "hidden_dim", "embedding_size", "stem_width"),
    *("n_inner", "d_ff", "ffn_dim", "word_embed_proj_dim"),
)
"""Further widths, scaled by as much as the first."""
_STEP = 8
"""Widths of a head, or of a layer without heads, stay multiples of this where they are ones."""


@dataclass(frozen=True)
class Shrinking:
    """What ``teacher?layers=4&width=0.5`` asks for.

    Attributes:
        layers: of a uniform stack, or of every stage at most so many; a list has one number for each stage. None for
            the teacher's.
        width: fraction of the teacher's.
    """

    layers: int | tuple[int, ...] | None
    width: float


def parse_shrinking(text: str, arguments: Mapping[str, Any]) -> Shrinking:
    """Read the arguments of the model name ``text``.

    Raises:
        UserError: they are not ``layers`` and ``width``, or impossible values.
    """
    hint = "For example: teacher?layers=4&width=0.5, or teacher?layers=[1,1,2,1] for the stages of a staged network."
    for key in arguments:
        if key not in ("layers", "width"):
            nearest = did_you_mean(key, ("layers", "width"))
            raise UserError(f"Student {text}: there is no argument {key!r}. {nearest}".rstrip(), hint)
    layers, width = arguments.get("layers"), arguments.get("width", 1.0)
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if not all(type(number) is int and number >= 1 for number in numbers) or layers == []:
        raise UserError(f"Student {text}: layers is a whole number from 1, or a list of these.", hint)
    if type(width) not in (int, float) or not 0 < width <= 1:
        raise UserError(f"Student {text}: width is a fraction of the teacher's, above 0 and at most 1.", hint)
    return Shrinking(tuple(layers) if isinstance(layers, list) else layers, float(width))


def shrink(values: Mapping[str, Any], wanted: Shrinking, *, teacher: str) -> dict[str, Any]:
    """Return which of an architecture's values have to change, and to what.

    Widths are rounded so that heads divide them. There are fewer heads of the same width where every number of heads
    stays a whole one, else as many narrower heads.

    Args:
        values: of a constructor or config.
        wanted: how much smaller.
        teacher: its name, for errors.

    Raises:
        UserError: the family has no such value; it says which can be changed.
    """
    depth = _find(values, _DEPTHS, whole=True)
    width = _find(values, _WIDTHS, whole=True) or _find(values, _MULTIPLIERS, whole=False)
    can = [name for name, key in (("layers", depth), ("width", width)) if key]
    hint = (
        f"For this architecture kdcli can change: {', '.join(can)}."
        if can
        else "Name a smaller architecture as the student, or give arguments of its own (NAME?option=value)."
    )
    changed: dict[str, Any] = {}
    if wanted.layers is not None:
        if depth is None:
            raise UserError(f"{teacher}: its library offers no argument for the number of layers.", hint)
        changed[depth] = _fewer(values[depth], wanted.layers, teacher)
    if wanted.width < 1:
        if width is None:
            raise UserError(f"{teacher}: its library offers no argument for the width.", hint)
        changed |= _narrower(values, width, wanted.width)
    return changed


def _find(values: Mapping[str, Any], names: Sequence[str], *, whole: bool) -> str | None:
    """Return the first of ``names`` whose value is a number, or a list of numbers, of the kind that is wanted."""
    kinds = (int,) if whole else (int, float)

    def fits(value: Any) -> bool:
        parts = value if isinstance(value, (list, tuple)) else [value]
        return bool(parts) and all(type(part) in kinds for part in parts)

    return next((name for name in names if fits(values.get(name))), None)


def _fewer(own: int | Sequence[int], layers: int | tuple[int, ...], teacher: str) -> int | list[int]:
    if isinstance(own, int):
        if not isinstance(layers, int):
            raise UserError(f"{teacher} is one stack of {own} layers.", "Give layers one number.")
        if layers > own:
            raise UserError(f"{teacher} has {own} layers, not {layers} to take.", f"Give layers 1 to {own}.")
        return layers
    if isinstance(layers, int):
        if layers > max(own):
            raise UserError(
                f"{teacher} has stages of {', '.join(map(str, own))} layers, and none of {layers}.",
                f"Give layers 1 to {max(own)}, or a list of one number for each stage.",
            )
        return [min(layers, depth) for depth in own]
    if len(layers) != len(own) or any(few > many for few, many in zip(layers, own, strict=True)):
        raise UserError(
            f"{teacher} has stages of {', '.join(map(str, own))} layers, not {', '.join(map(str, layers))} to take.",
            "Give one number for each stage, no larger than the teacher's.",
        )
    return list(layers)


def _narrower(values: Mapping[str, Any], key: str, factor: float) -> dict[str, Any]:
    if key in _MULTIPLIERS:
        return {key: values[key] * factor}
    heads = {name: values[name] for name in _HEADS if _find(values, (name,), whole=True)}
    counts = [count for value in heads.values() for count in _listed(value)]
    changed: dict[str, Any] = {}
    if all(math.isclose(count * factor, round(count * factor)) and round(count * factor) for count in counts):
        heads = {name: _mapped(value, lambda count: round(count * factor)) for name, value in heads.items()}
        changed |= heads
    own = values[key]
    by_place = [_listed(value) for value in heads.values()]

    def narrower(place: int, width: int) -> int:
        step = math.lcm(*(counts[min(place, len(counts) - 1)] for counts in by_place)) if by_place else 1
        step *= _STEP if width * factor >= step * _STEP and width % _STEP == 0 else 1
        return max(1, math.floor(width * factor / step + 0.5)) * step

    widths = [narrower(place, width) for place, width in enumerate(_listed(own))]
    changed[key] = widths if isinstance(own, (list, tuple)) else widths[0]
    for name in _WITH_THE_WIDTH:
        if _find(values, (name,), whole=True) and isinstance(values[name], int):
            share = widths[0] / _listed(own)[0]
            changed[name] = max(_STEP, round(values[name] * share / _STEP) * _STEP)
    return changed


def _listed(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _mapped(value: int | Sequence[int], change: Any) -> int | list[int]:
    return change(value) if isinstance(value, int) else [change(part) for part in value]


@dataclass(frozen=True)
class CopyReport:
    """Which of a student's tensors came from its teacher.

    Attributes:
        copied: names in the student.
        fresh: names in the student that stay as initialised.
        layers: stack -> the numbers of the teacher's layers that the student's have come from, where it has fewer.
    """

    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    layers: Mapping[str, tuple[int, ...]]

    def summary(self) -> str:
        """Return one line such as ``26 of 28 tensors copied from the teacher (blocks: layers 0, 2, 5)``."""
        line = f"{len(self.copied)} of {len(self.copied) + len(self.fresh)} tensors copied from the teacher"
        stacks = "; ".join(f"{name}: layers {', '.join(map(str, chosen))}" for name, chosen in self.layers.items())
        return f"{line}{f' ({stacks})' if stacks else ''}{'; the others untrained' if self.fresh else ''}"


def evenly_spaced(many: int, few: int) -> tuple[int, ...]:
    """Return ``few`` of the numbers below ``many``, evenly spaced, with the first and the last.

    Six of twelve are 0 2 4 7 9 11.

    As in DistilBERT (Sanh et al., arXiv 1910.01108), whose student has every other layer of its teacher.
    """
    return tuple(round(number * (many - 1) / (few - 1)) for number in range(few)) if few > 1 else (0,)


@torch.no_grad()
def copy_tensors(teacher: nn.Module, student: nn.Module, *, leave: set[str]) -> CopyReport:
    """Copy parameters and buffers into ``student`` by name, where shapes are equal.

    Where a stack of layers, a ``Sequential`` or ``ModuleList``, has fewer in the student, these get evenly spaced ones
    of the teacher's.

    Args:
        teacher: has the same names, with longer stacks.
        student: is written to.
        leave: names in the student that are left as they are.
    """
    stacks = {
        name: evenly_spaced(len(stack), len(module))
        for name, module in student.named_modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList))
        and isinstance(stack := _child(teacher, name), (nn.Sequential, nn.ModuleList))
        and 0 < len(module) < len(stack)
    }
    theirs = teacher.state_dict()
    ours = {name: tensor for name, tensor in student.state_dict().items() if not is_harmless(name)}
    copied = []
    for name, tensor in ours.items():
        source = theirs.get(_name_in_teacher(name, stacks))
        if source is not None and source.shape == tensor.shape and name not in leave:
            tensor.copy_(source)
            copied.append(name)
    return CopyReport(tuple(copied), tuple(ours.keys() - set(copied)), stacks)


def _child(module: nn.Module, name: str) -> nn.Module | None:
    return dict(module.named_modules()).get(name)


def _name_in_teacher(name: str, stacks: Mapping[str, tuple[int, ...]]) -> str:
    parts = name.split(".")
    return ".".join(
        str(stacks[stack][int(part)]) if (stack := ".".join(parts[:place])) in stacks and part.isdigit() else part
        for place, part in enumerate(parts)
    )
