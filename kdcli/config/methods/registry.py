"""All methods by name, and how their options are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import PlainValidator, SerializeAsAny, ValidatorFunctionWrapHandler
from pydantic_core import PydanticCustomError

from kdcli.base import extensions
from kdcli.config.methods.base import MethodSection
from kdcli.config.methods.defaults import CHOICES, PROGRAMMES, Choice
from kdcli.config.methods.dense import (
    CIRKDOptions,
    CWDLogitsOptions,
    CWDOptions,
    FGDOptions,
    IFVDOptions,
    MGDOptions,
    PKDOptions,
    SKDOptions,
)
from kdcli.config.methods.depth import DenseRegressionOptions
from kdcli.config.methods.features import ProjectionOptions, SpectralOptions
from kdcli.config.methods.generation import GanOptions
from kdcli.config.methods.images import AdversarialOptions, CycleGANOptions, ImageRegressionOptions
from kdcli.config.methods.labels import SupervisedOptions
from kdcli.config.methods.layers import (
    AttentionTransferOptions,
    CorrelationCongruenceOptions,
    CRDOptions,
    FitNetOptions,
    NSTOptions,
    PKTOptions,
    ReviewKDOptions,
    RKDAngleOptions,
    RKDDistanceOptions,
    SimilarityPreservingOptions,
    VIDOptions,
)
from kdcli.config.methods.logits import DeiTOptions, DISTOptions, DKDOptions, LogitKDOptions
from kdcli.config.methods.refilled import LocalClassifierOptions, StochasticTripletOptions

METHODS: dict[str, type[MethodSection]] = {
    section.model_fields["method"].default: section
    for section in (
        SupervisedOptions,
        ProjectionOptions,
        SpectralOptions,
        LogitKDOptions,
        DKDOptions,
        DISTOptions,
        DeiTOptions,
        DenseRegressionOptions,
        FitNetOptions,
        AttentionTransferOptions,
        NSTOptions,
        VIDOptions,
        SimilarityPreservingOptions,
        ReviewKDOptions,
        PKTOptions,
        CorrelationCongruenceOptions,
        RKDDistanceOptions,
        RKDAngleOptions,
        CRDOptions,
        StochasticTripletOptions,
        LocalClassifierOptions,
        CWDOptions,
        CWDLogitsOptions,
        SKDOptions,
        IFVDOptions,
        CIRKDOptions,
        PKDOptions,
        FGDOptions,
        MGDOptions,
        GanOptions,
        ImageRegressionOptions,
        AdversarialOptions,
        CycleGANOptions,
    )
}
"""The options of every method of kdcli by its name; :func:`find_method` also knows those of other packages."""


_FORMER = {
    "needs_teacher": "needs = Needs(teacher=...)",
    "reads_logits": "needs = Needs(common_labels=...)",
    "takes_vocabulary": "needs = Needs(all_logits=...)",
    "reads_unlabelled": "needs = Needs(labels=...)",
    "takes_mixed": "needs = Needs(whole_images=...)",
    "needs_distillation_head": "needs = Needs(distillation_head=...)",
    "by_stage": "needs = Needs(stages=...)",
    "reads": "the property reads_layers",
}
"""Class attributes of options in earlier versions, and what says the same."""


def _method_extension(name: str) -> extensions.Extension | None:
    return extensions.find("methods", name, own={*METHODS, *CHOICES, *PROGRAMMES})


def find_method(name: str) -> type[MethodSection] | None:
    """Return the options of a method by its name, of kdcli's own or of an installed package's; None for neither.

    Raises:
        UserError: another package's method can't be had.
    """
    entry = _method_extension(name)
    if entry is None:
        return METHODS.get(name)
    section = entry.load()
    if not (isinstance(section, type) and issubclass(section, MethodSection)):
        raise entry.unfit("a subclass of kdcli.config.MethodSection")
    entry.refuse_former(section, _FORMER)
    if section.build is MethodSection.build:
        raise entry.unfit("whole: its method build(context) is missing")
    if section.model_fields["method"].default != name:
        raise entry.unfit(f"made for this name: its option 'method' must have the default {name!r}")
    if required := [key for key, field in section.model_fields.items() if field.is_required()]:
        raise entry.unfit(f"usable by its name alone: {', '.join(required)} must have a default")
    return section


def _read_method(value: Any) -> MethodSection:
    """Read the options of the method that ``value`` names."""
    if isinstance(value, MethodSection):
        return value
    name = value.get("method") if isinstance(value, dict) else value
    if isinstance(value, dict) and isinstance(name, str) and (section := find_method(name)) is not None:
        return section.model_validate(value)
    raise PydanticCustomError("unknown_method", "Input should be a mapping with a method")


MethodOptions = Annotated[SerializeAsAny[MethodSection], PlainValidator(_read_method)]
"""The options of any method, read by its name."""


_ASKED_FOR = (*CHOICES, *(name for name, section in METHODS.items() if name not in CHOICES and section.is_asked_for))
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[(*_ASKED_FOR, *PROGRAMMES)]
"""What ``--method`` takes of kdcli's own."""


def find_choice(name: str) -> Choice:
    """Return what ``--method name`` stands for; a programme has no options here, but methods of its own.

    Raises:
        UserError: another package's method can't be had.
    """
    if name in CHOICES:
        return CHOICES[name]
    section = find_method(name)
    return Choice(None if section is None else section(method=name))


def or_extension(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Accept the names of installed methods beside kdcli's own."""
    return value if isinstance(value, str) and _method_extension(value) is not None else handler(value)


def any_reads_unlabelled(methods: Sequence[MethodOptions]) -> bool:
    """Return whether any of the methods reads samples without a label."""
    return any(not options.needs.labels for options in methods)


def named_methods(methods: Sequence[MethodOptions]) -> dict[str, MethodOptions]:
    """Return the methods by name: their kind, numbered from the second of a kind."""
    named: dict[str, MethodOptions] = {}
    for options in methods:
        same_kind = sum(name.partition("-")[0] == options.method for name in named)
        named[f"{options.method}-{same_kind + 1}" if same_kind else options.method] = options
    return named
