"""What does not go together, refused before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ModelFacts
from kdcli.base.names import Relation
from kdcli.base.reads import DISTILLATION
from kdcli.base.tasks import TASKS
from kdcli.config.methods import (
    CRDOptions,
    DKDOptions,
    LayerOptions,
    MethodOptions,
    ProjectionOptions,
    ReviewKDOptions,
    SupervisedOptions,
)
from kdcli.config.run import RunConfig
from kdcli.plan.relation import RelationEvidence


def check_label_free(relation: Relation, reason: str, teacher: ModelFacts | None, data: DataFacts) -> None:
    """Refuse a task without labels that has no embedding space to reproduce."""
    if data.label_kind != "none":
        return
    if teacher is None:
        raise UserError(
            f"The task {data.task} has no labels: all there is to learn from is a teacher, and --teacher is none.",
            "Name a teacher, or choose another --task.",
        )
    if relation != "same":
        raise UserError(
            f"The task {data.task} is to reproduce the teacher's embedding space, but the relation is {relation}: {reason}",
            "Name a pretrained teacher, or choose another --task; --relation same takes the space as it is.",
        )


def check_projector(config: RunConfig, name: str, section: Any) -> None:
    """Refuse --projector and --normalize where ``--method name``, whose options are of ``section``, has no use for them."""
    takes_projector = name in ("projection", "log_sum") or (section is not None and issubclass(section, LayerOptions))
    if config.projector == "none" or (config.projector != "auto" and not takes_projector):
        why = getattr(section, "why_no_projector", "") or ("reads the labels alone" if section is None else "")
        if takes_projector:
            why = "is a loss on features, with a projector or without"
        raise UserError(
            f"--projector {config.projector} has no effect: --method {name} {why or 'has no projector to choose'}.",
            "Drop --projector, or use a method on features, such as projection or fitnet.",
        )
    if name != "projection" and config.normalize != "auto":
        raise UserError(
            f"--normalize {config.normalize} has no effect: --method {name} has no normalisation to choose.",
            "Drop --normalize, or use --method projection.",
        )


def feature_options(config: RunConfig) -> list[tuple[str, str]]:
    """Return the options about features that were given, with their values."""
    pairs = " ".join(f"{pair.student}:{pair.teacher}" for pair in config.feature_layers or ())
    given = [("--feature-layers", pairs)] if pairs else []
    return given + ([("--feature-weight", f"{config.feature_weight:g}")] if config.feature_weight is not None else [])


def refuse_overrides(config: RunConfig) -> None:
    """Refuse what would change the plan's own methods, where the config writes out its methods."""
    if config.method is not None:
        raise UserError(
            f"--method {config.method} has no effect: this config writes out its own methods.",
            "Change them there, or drop the methods key.",
        )
    for option, value in (("projector", config.projector), ("normalize", config.normalize)):
        if value != "auto":
            raise UserError(
                f"--{option} {value} has no effect: this config writes out its own methods.",
                f"Change it there, for example --set methods.1.{option}={value}, or drop the methods key.",
            )
    for option, given in feature_options(config):
        raise UserError(
            f"{option} {given} has no effect: this config writes out its own methods.",
            "Set weight and layers (of a projection student_tap and teacher_tap) there, or drop the methods key.",
        )


def check_stages(stages: Mapping[str, Sequence[MethodOptions]], teacher: ModelFacts | None) -> None:
    """Check that the teacher is used, and that a stage before the others leaves them the classifier."""
    if teacher is not None and not any(options.needs_teacher for methods in stages.values() for options in methods):
        raise UserError(
            f"The teacher {teacher.name} would not be used by any of the methods.",
            "Use --teacher none, or add a method such as projection.",
        )
    for options in stages.get("embedding.methods", ()):
        if options.trains_classifier:
            raise UserError(
                f"embedding.methods: {options.method} trains the classifier, and this stage is for features alone.",
                "Put it under methods.",
            )


def check_methods(
    key: str,
    methods: Sequence[MethodOptions],
    config: RunConfig,
    teacher: ModelFacts | None,
    student: ModelFacts,
    data: DataFacts,
    label_map: tuple[int, ...] | None,
    evidence: RelationEvidence,
) -> None:
    """Check that the methods of a stage go together with one another, the models, the labels and the data."""
    if not methods:
        raise UserError(f"{key} is an empty list: there is nothing to train on.", "Drop the key, or name a method.")
    needs_teacher = [m.method for m in methods if m.needs_teacher]
    if teacher is None and needs_teacher:
        raise UserError(f"{key}: {needs_teacher[0]} needs a teacher, and teacher is none.", "Name one with --teacher.")
    _check_labels(key, methods, data)
    if data.label_kind in ("tokens", "words") and not any(options.trains_classifier for options in methods):
        raise UserError(
            f"{key}: nothing trains what predicts the {data.label_kind}.",
            "Add supervised or logit_kd; there is no other stage.",
        )
    # Features alone are fit for nearest class means, as long as they are held by something.
    trains_features = bool(needs_teacher) and not any(
        options.reads_logits or _can_vanish(options) for options in methods
    )
    if not trains_features and not any(options.trains_classifier for options in methods):
        raise UserError(
            f"{key}: nothing trains the student's classifier, and these features alone have a trivial optimum at zero.",
            "Add supervised or logit_kd, or standardise the student's side (normalize_student: standardize).",
        )
    if all(options.weighting == "gradient" for options in methods):
        raise UserError(
            f"{key}: the weight of {methods[0].method} is a ratio of gradients, and there is no loss that it could be in"
            " proportion to.",
            "Set weighting to loss, or add a method whose weight is a factor.",
        )
    for options in methods:
        if options.reads_logits and label_map is None:
            raise UserError(
                f"{key}: {options.method} needs teacher and student to have the same labels. {evidence.reason}",
                f"Remove {options.method}; a projection works across label spaces.",
            )
        if isinstance(options, ReviewKDOptions):
            _check_order(key, options, student)
        if options.needs_distillation_head and DISTILLATION not in student.heads:
            raise UserError(
                f"{key}: {options.method} needs a student with a distillation token, and {student.name} has none.",
                "Use one that has, such as deit_tiny_distilled_patch16_224 or levit_128s, or logit_kd for any student.",
            )
        if not options.takes_mixed and (config.augment.mixup or config.augment.cutmix):
            raise UserError(
                f"{key}: {options.method} takes each image for what it is, and mixup or cutmix is on.",
                "Add --set augment.mixup=0 --set augment.cutmix=0.",
            )
        if isinstance(options, DKDOptions) and len(data.class_names) < 2:
            raise UserError(f"{key}: dkd compares a class with the others, and the data have one.", "Remove dkd.")


def _check_labels(key: str, methods: Sequence[MethodOptions], data: DataFacts) -> None:
    """Check that the methods can do with the kind of labels that there are."""
    for options in methods:
        reads_labels = options.trains_classifier or not options.reads_unlabelled
        if data.label_kind == "none" and reads_labels:
            raise UserError(f"{key}: {options.method} needs labels, and the task {data.task} has none.", "Remove it.")
        if data.label_kind == "tokens" and isinstance(options, (DKDOptions, CRDOptions)):
            raise UserError(
                f"{key}: {options.method} needs one class a sample, and the labels are tokens.",
                f"Remove {options.method}.",
            )
        if isinstance(options, SupervisedOptions):
            if data.label_kind == "number" and options.label_smoothing:
                raise UserError(
                    f"{key}: label_smoothing is for classes, and the labels are numbers.", "Set label_smoothing to 0."
                )
        elif data.label_kind == "tokens" and TASKS[data.task].head == "causal" and options.reads_logits:
            if not options.takes_vocabulary:
                raise UserError(
                    f"{key}: {options.method} wants all logits of a vocabulary at once, which would not fit in memory.",
                    "Use logit_kd, whose divergence can be chosen.",
                )
        elif isinstance(options, CRDOptions) and data.label_kind == "words":
            raise UserError(
                f"{key}: crd keeps an embedding of every sample, and here samples are the words of texts.",
                "Remove crd.",
            )
        elif data.label_kind in ("classes", "number", "words", "tokens") and reads_labels and not options.reads_logits:
            raise UserError(
                f"{key}: {options.method} needs one class a sample, and the labels are others.",
                f"Remove {options.method}.",
            )


def _check_order(key: str, options: ReviewKDOptions, student: ModelFacts) -> None:
    """Refuse layers that are not given from shallow to deep, as far as their grids tell."""
    taps = [pair.student for pair in options.pairs if pair.student in student.grids]
    areas = [math.prod(student.grids[tap]) for tap in taps]
    if areas != sorted(areas, reverse=True):
        raise UserError(
            f"{key}: review_kd takes layers from shallow to deep, and the student's are {', '.join(taps)}.",
            "Give the layer with the largest grid first.",
        )


def _can_vanish(options: MethodOptions) -> bool:
    """Whether the loss is zero where both sides of it are."""
    return (
        isinstance(options, ProjectionOptions)
        and options.projector == "inverted"
        and options.normalize_student == "none"
    )
