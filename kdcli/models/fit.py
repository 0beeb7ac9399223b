"""A checkpoint's tensors fitted to a model, with a report of what fitted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdcli.base.errors import UserError
from kdcli.base.text import short_repr
from kdcli.models.values import check_tensors
from kdcli.models.weights import Checkpoint, Part, Tensors, few, is_harmless

Remap = Callable[[Tensors, nn.Module], Tensors | None]

_WRAPPING = ("module.", "_orig_mod.", "model.", "timm_model.")
"""What wrappers of torch and of training scripts put before every name."""
_AVERAGED = {"ema", "averaged", "avg", "swa", "teacher", "target", "momentum", "shadow"}
"""Words in the keys of weights that are averages of others, which training scripts evaluate."""
_BEGINNERS = {"student", "online"}
"""Words in the keys of the weights that they are averages of."""
_WORTH_NAMING = 0.2
"""Share of a model's tensors from which on a prefix counts as one; a block of another network has a few of them."""


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint fitted.

    Attributes:
        by: tensors were matched by ``name``, or by ``order`` because the file names everything differently.
        matched: names in the model that got a tensor.
        missing: names in the model that got none; computed buffers only.
        unexpected: names in the file that nothing took.
        taken_from: the keys in the file, where others would have fitted too or they say that these are averages.
        others: the keys and prefixes that would have fitted too.
        prefix: what was taken off the names.
        is_headless: whether a model with a classifier of its own was built without, because the file has none.
        converted: types of the file's numbers that are not the model's.
    """

    by: Literal["name", "order"]
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    taken_from: str = ""
    others: tuple[str, ...] = ()
    prefix: str = ""
    is_headless: bool = False
    converted: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line such as ``296 of 296 tensors matched by name``."""
        total = len(self.matched) + len(self.missing)
        line = f"{len(self.matched)} of {total} tensors matched by {self.by}"
        if self.by == "order":
            line += " (the file names them differently; count, kinds and shapes agree)"
        if self.prefix:
            line += f" without the prefix '{self.prefix}'"
        if self.taken_from:
            line += f"; the averaged weights ({self.taken_from})"
        if self.others:
            line += f"; not those of {' or '.join(self.others)}, which would fit too"
        if self.is_headless:
            line += "; the file has no classifier of this model"
        if self.converted:
            line += f"; {' and '.join(self.converted)} in the file, float32 here"
        if self.unexpected:
            line += f"; {len(self.unexpected)} in the file not used ({few(self.unexpected)})"
        return line


@dataclass(frozen=True)
class _Choice:
    """Tensors that may be the model's: of one part of the file those whose names start with ``prefix``, without it."""

    part: Part
    prefix: str

    @property
    def label(self) -> str:
        return ".".join(filter(None, (self.part.where, self.prefix.removesuffix("."))))

    @property
    def tensors(self) -> Tensors:
        found = self.part.tensors.items()
        return {name.removeprefix(self.prefix): value for name, value in found if name.startswith(self.prefix)}

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(name for name in self.part.tensors if not name.startswith(self.prefix) and not is_harmless(name))

    @property
    def rank(self) -> int:
        """The lower the rather it is what the training script means by its result."""
        words = set(re.split(r"[._]", self.label.lower()))
        return 0 if words & _AVERAGED else 2 if words & _BEGINNERS else 1


@dataclass(frozen=True)
class _Fit:
    """A pairing of a model's names with a file's, before its shapes are accepted."""

    by: Literal["name", "order"]
    pairs: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    """Paired names in the model whose shapes differ."""

    def is_complete(self) -> bool:
        return not self.missing and not self.misfits


@dataclass(frozen=True)
class _Head:
    """A model's classifier: its number of classes, and the names of its parameters."""

    num_classes: int
    names: set[str]

    def width_in(self, fit: _Fit, module: nn.Module, tensors: Tensors) -> int:
        """Return the width of the file's classifier: 0 when it has none, the model's when that can't be told."""
        if fit.pairs and fit.missing and set(fit.missing) <= self.names:
            return 0
        state = module.state_dict()
        pairs = [(state[name].shape, tensors[fit.pairs[name]].shape) for name in fit.misfits if name in self.names]
        widths = {theirs[0] for ours, theirs in pairs if theirs and theirs[1:] == ours[1:]}
        return widths.pop() if len(widths) == 1 else self.num_classes

    def may_complete(self, fit: _Fit, width: int) -> bool:
        """Whether nothing but the classifier stands between ``fit`` and a complete one, and ``width`` mends that."""
        rest = {*fit.missing, *fit.misfits}
        return not rest or (width != self.num_classes and rest <= self.names)


def build_with_weights(
    build: Callable[[int | None], nn.Module],
    checkpoint: Checkpoint,
    *,
    classifier: Callable[[nn.Module], tuple[int, set[str]]],
    remap: Remap | None = None,
) -> tuple[nn.Module, LoadReport]:
    """Build the model that ``checkpoint`` belongs to, its classifier as wide as the file's, and load it.

    Where the names in the file have one more prefix, or the file has several dictionaries, what fits the whole model is
    taken. Of several that do, one with a classifier comes before one without, then averaged weights before others.

    Args:
        build: makes the model with so many classes; None for its own number, 0 for no classifier.
        checkpoint: from :func:`kdcli.models.weights.read_checkpoint`.
        classifier: of a model, its number of classes and its classifier's parameter names.
        remap: the library's converter of older formats and sizes, tried where names or shapes don't fit.

    Raises:
        UserError: a parameter gets no tensor, one of another shape, or one that is no weight; or the file has several
            sets of weights, and nothing tells which is meant.
    """
    first = build(None)
    head = _Head(*classifier(first))
    choices, others = _choose(first, head, checkpoint)
    refusal = None
    for choice in choices:
        module, tensors = first, choice.tensors
        fit = _fit(module, tensors, head.num_classes, checkpoint.is_ordered)
        wanted = head.width_in(fit, module, tensors)
        if wanted != head.num_classes:
            module = build(wanted)
            fit = _fit(module, tensors, wanted, checkpoint.is_ordered)
        if not fit.is_complete() and remap and (remapped := _remapped(remap, tensors, module)):
            remapped_fit = _fit(module, remapped, wanted, ordered=False)
            if remapped_fit.is_complete():
                fit, tensors = remapped_fit, remapped
        if fit.is_complete():
            break
        refusal = refusal or _refusal(fit, module, checkpoint, choice)
    else:
        assert refusal is not None
        raise refusal
    state = module.state_dict()
    given = {name: tensors[other] for name, other in fit.pairs.items()}
    converted = check_tensors(checkpoint.source, state, given)
    module.load_state_dict(state | given)
    return module, LoadReport(
        by=fit.by,
        matched=tuple(fit.pairs),
        missing=tuple(name for name in state if name not in fit.pairs),
        unexpected=(*fit.unexpected, *choice.left_out),
        taken_from=choice.label if choice.rank == 0 else "",
        others=tuple(other.label for other in others),
        prefix=choice.prefix,
        is_headless=wanted == 0 < head.num_classes,
        converted=converted,
    )


def _choose(module: nn.Module, head: _Head, checkpoint: Checkpoint) -> tuple[list[_Choice], list[_Choice]]:
    """Return what is to be taken of a file, and what would fit the whole model too.

    Where nothing fits by name these are what fits best, and the first part, for the library's converter, for their
    order and for the refusal.

    Raises:
        UserError: several that differ fit, and their names do not say which is meant.
    """
    state = module.state_dict()
    complete: list[tuple[tuple[bool, int], _Choice]] = []
    for part in checkpoint.parts:
        for prefix in _prefixes_of_all(state, head, part.tensors):
            choice = _Choice(part, prefix)
            fit = _fit_by_name(state, choice.tensors)
            width = head.width_in(fit, module, choice.tensors)
            if head.may_complete(fit, width):
                complete.append(((width == 0 < head.num_classes, choice.rank), choice))
    if not complete:
        return _nearest(state, checkpoint), []
    complete.sort(key=lambda entry: entry[0])
    (best, choice), *rest = complete
    alike = [other for key, other in rest if key == best and not _is_same(choice, other)]
    if alike:
        names = " and ".join(other.label or "the file's own tensors" for other in (choice, *alike))
        raise UserError(
            f"{checkpoint.source} has several sets of weights that fit the model, and they differ: {names}.",
            "Save the one that you mean in a file of its own.",
        )
    return [choice], [other for key, other in rest if key[0] == best[0] and not _is_same(choice, other)]


def _is_same(one: _Choice, other: _Choice) -> bool:
    ours, theirs = one.tensors, other.tensors
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _prefixes_of_all(state: Tensors, head: _Head, tensors: Tensors) -> list[str]:
    """Return the prefixes with which one certain tensor of the model, outside its classifier, is in ``tensors``."""
    anchor = next((name for name in state if name not in head.names and not is_harmless(name)), None)
    if anchor is None:
        return [""]
    found = [name.removesuffix(anchor) for name in tensors if name == anchor or name.endswith(f".{anchor}")]
    return sorted(found, key=len)


def _nearest(state: Tensors, checkpoint: Checkpoint) -> list[_Choice]:
    """Return what has most of the model's tensors, by name and shape, and all of the first part, without wrappings."""
    first = checkpoint.parts[0]
    plain = ""
    while prefix := next((p for p in _WRAPPING if all(name.startswith(plain + p) for name in first.tensors)), None):
        plain += prefix
    found = [
        (count, _Choice(part, prefix))
        for part in checkpoint.parts
        for prefix, count in _hits(state, part.tensors).items()
    ]
    most = max((count for count, _ in found), default=0)
    best = [choice for count, choice in found if count == most]
    whole = _Choice(first, plain)
    return [whole] if most < _WORTH_NAMING * len(state) or whole in best else [best[0], whole]


def _hits(state: Tensors, tensors: Tensors) -> Counter[str]:
    """Count for every prefix the tensors that fit without it."""
    found: Counter[str] = Counter()
    for name, tensor in tensors.items():
        for prefix in _prefixes(name):
            ours = state.get(name.removeprefix(prefix))
            if ours is not None and ours.shape == tensor.shape:
                found[prefix] += 1
    return found


def _prefixes(name: str) -> Iterator[str]:
    yield ""
    for match in re.finditer(r"\.", name):
        yield name[: match.end()]


def _fit(module: nn.Module, tensors: Tensors, num_classes: int, ordered: bool) -> _Fit:
    state = module.state_dict()
    by_name = _fit_by_name(state, tensors)
    if by_name.pairs:
        return by_name
    for skip in (lambda name: False, is_harmless):  # computed buffers count only where both sides have them
        ours = [name for name in state if not skip(name)]
        theirs = [name for name in tensors if not skip(name)]
        in_order = dict(zip(ours, theirs, strict=False))
        if (
            ordered
            and len(ours) == len(theirs)
            and all(
                _kind(name) == _kind(other) and _same_but_for_classes(state[name], tensors[other], num_classes)
                for name, other in in_order.items()
            )
        ):
            misfits = tuple(name for name, other in in_order.items() if state[name].shape != tensors[other].shape)
            return _Fit("order", in_order, (), (), misfits)
    return _Fit("name", {}, tuple(ours), tuple(theirs), ())


def _fit_by_name(state: Tensors, tensors: Tensors) -> _Fit:
    pairs = {name: name for name in state if name in tensors}
    missing = tuple(name for name in state if name not in pairs and not is_harmless(name))
    unexpected = tuple(name for name in tensors if name not in pairs and not is_harmless(name))
    misfits = tuple(name for name in pairs if state[name].shape != tensors[name].shape)
    return _Fit("name", pairs, missing, unexpected, misfits)


def _same_but_for_classes(ours: Tensor, theirs: Tensor, num_classes: int) -> bool:
    if ours.ndim and ours.shape[0] == num_classes:
        return ours.shape[1:] == theirs.shape[1:]
    return ours.shape == theirs.shape


def _remapped(remap: Remap, tensors: Tensors, module: nn.Module) -> Tensors | None:
    try:
        return remap(dict(tensors), module)
    except (KeyError, RuntimeError, AttributeError, IndexError, TypeError, ValueError, AssertionError):
        return None  # it expects a format that this is not


def _refusal(fit: _Fit, module: nn.Module, checkpoint: Checkpoint, choice: _Choice) -> UserError:
    state, tensors = module.state_dict(), choice.tensors
    problems = []
    if choice.prefix or choice.part is not checkpoint.parts[0]:
        fitting = len(fit.pairs) - len(fit.misfits)
        prefix = f"without the prefix '{choice.prefix}' " if choice.prefix else ""
        within = f"of {choice.part.where} " if choice.part.where else ""
        problems.append(f"{within}{prefix}{fitting} of {len(state)} would fit")
    if fit.misfits:
        shapes = [f"{n} {tuple(tensors[fit.pairs[n]].shape)} for {tuple(state[n].shape)}" for n in fit.misfits]
        problems.append(f"{len(fit.misfits)} of another shape ({few(tuple(shapes))})")
    if fit.missing:
        problems.append(f"{len(fit.missing)} missing ({few(fit.missing)})")
    if fit.unexpected:
        problems.append(f"{len(fit.unexpected)} that the model lacks ({few(fit.unexpected)})")
    said = checkpoint.recorded.architectures
    named = f" The file calls its architecture {short_repr(said[0])}." if said else ""
    return UserError(
        f"{checkpoint.source} does not fit the model: {len(state)} tensors wanted; {'; '.join(problems)}.{named}",
        "Name the architecture and image_size that the file was trained with.",
    )


def _kind(name: str) -> str:
    return name.rpartition(".")[2]
