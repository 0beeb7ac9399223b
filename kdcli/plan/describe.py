"""The plan in words: models, layers, methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import (
    PROBE_TOKENS,
    DataFacts,
    LayerScores,
    ModelFacts,
    Preprocessing,
    TextPreprocessing,
    num_tokens,
)
from kdcli.base.names import Relation
from kdcli.base.tasks import TASKS
from kdcli.base.text import short_repr
from kdcli.config.methods import (
    DeiTOptions,
    FeaturePair,
    LayerOptions,
    LogitKDOptions,
    MethodOptions,
    ProjectionOptions,
    ReviewKDOptions,
    StochasticTripletOptions,
)
from kdcli.config.run import RunConfig
from kdcli.config.training import EmbeddingConfig
from kdcli.plan.plan import Decision
from kdcli.plan.relation import num_shared_labels

NEAREST_MEANS = Decision(
    "best student",
    "by the accuracy of nearest class means (ncm_accuracy)",
    "No method trains the classifier, which stays as it is at the start: each validation image goes to the class whose"
    " mean embedding over the labelled training images, without augmentation, is nearest.",
)


def describe_refilled(relation: Relation, teacher: ModelFacts | None, data: DataFacts) -> Decision:
    """Return the decision for REFILLED."""
    reason = (
        "Asked for: it compares images and classes with one another, so the teacher's classes may be yours or others"
    )
    if teacher is not None and teacher.label_names is not None:
        shared = num_shared_labels(teacher, data)
        reason += f"; {shared} of your {len(data.class_names)} are among its {teacher.num_classes}"
    if relation == "random":
        reason += ". This teacher is untrained: its relations are those of random features, so expect little of it"
    return Decision("method", "REFILLED: features by triplets, then the classifier by class centres", f"{reason}.")


def describe_stage(
    config: RunConfig,
    stage: EmbeddingConfig,
    reasons: Mapping[str, str],
    teacher: ModelFacts | None,
    student: ModelFacts,
) -> list[Decision]:
    """Return the decisions on the embedding stage."""
    optim = stage.optim or config.optim
    decisions = [
        Decision(
            "embedding stage",
            f"{_epochs(stage.epochs)} before the others, {optim.optimizer}, learning rate {optim.lr:g}",
            "Features come before the classifier: the student with the best nearest class means on the validation images"
            " is what the next stage starts from.",
        )
    ]
    for options in stage.methods:
        described = describe_method(options, reasons.get(options.method, "Asked for by the config."))
        told = [described, *describe_taps(options, teacher, student)]
        decisions += [replace(decision, name=f"embedding {decision.name}") for decision in told]
    return decisions


def describe_layers(data: DataFacts, layers: LayerScores | None) -> list[Decision]:
    """Return the decision on the teacher's layer, where one was chosen."""
    if layers is None:
        return []
    shares = ", ".join(f"{tap} {share:.0%}" for tap, share in layers.accuracies.items())
    return [
        Decision(
            "teacher's layer",
            layers.best,
            f"Of its layers it tells your classes apart best: by nearest class means, on {layers.num_samples} labelled"
            f" training {data.noun}s, {shares}; guessing gives {layers.guessing:.0%}. --feature-layers takes another.",
        )
    ]


def describe_method(options: MethodOptions, reason: str) -> Decision:
    """Return the decision on a method, with all its settings."""
    settings = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in _shown_settings(options).items()
    )
    return Decision(f"loss: {options.method.replace('_', ' ')}", settings, reason)


def _shown_settings(options: MethodOptions) -> dict[str, Any]:
    shown = options.model_dump(exclude={"method", "student_tap", "teacher_tap", "layers"})
    if options.weighting == "loss":
        del shown["weighting"]
    if isinstance(options, DeiTOptions) and options.kind == "hard":
        del shown["temperature"]
    if isinstance(options, LogitKDOptions) and options.divergence != "jensen_shannon":
        del shown["beta"]
    if isinstance(options, StochasticTripletOptions) and options.mining == "nearest_farther":
        del shown["margin"]
    projector = getattr(options, "projector", None)
    if projector is not None:
        direction = "teacher to student" if projector == "inverted" else "student to teacher"
        both = {"normalize": "standardize, both sides"} if isinstance(options, LayerOptions) else {}
        shown = {"projector": projector, "direction": direction, **both, **shown}
    if isinstance(options, LayerOptions):
        for name in ("projector", "lr_scale") if projector is None else (options.replaced_by_projector or "",):
            shown.pop(name, None)
    if isinstance(options, ProjectionOptions):
        if options.projector != "orthogonal":
            del shown["orthogonal_map"]
        if options.distance != "log_sum":
            del shown["log_sum_alpha"]
        if options.normalize_student == "none":
            del shown["normalize_student"]
    return shown


def describe_taps(options: MethodOptions, teacher: ModelFacts | None, student: ModelFacts) -> list[Decision]:
    """Return which features a method compares, or why it can't."""
    decisions = []
    for pair in options.pairs:
        sides = [_describe_tap(options, "student", pair.student, student)] if options.reads_student else []
        if options.needs_teacher and teacher is not None:
            sides.append(_describe_tap(options, "teacher", pair.teacher, teacher))
        reason = "Width in brackets; averaged over positions, but for embedding, the classifier's input."
        if isinstance(student.preprocessing, TextPreprocessing):
            reason = "Width in brackets; pooled is each model's own embedding of a text, layers are averaged over its tokens."
            if student.preprocessing.pooling == "none":
                of = "each word's first token" if TASKS[student.task].target == "words" else "each token"
                reason = f"Width in brackets; pooled is the last hidden state of {of}, layers are those of {of}."
        if options.reads == "maps":
            reason = "Channels and grid in brackets; not averaged over positions."
        is_orthogonal = getattr(options, "projector", None) == "orthogonal" and not isinstance(options, ReviewKDOptions)
        if is_orthogonal and teacher is not None:
            student_dim, teacher_dim = student.feature_dims[pair.student], teacher.feature_dims[pair.teacher]
            if student_dim > teacher_dim:
                reason = (
                    f"The student is wider ({student_dim} > {teacher_dim}), so only the projector's columns are"
                    " orthonormal and the part of the student's features outside them is not preserved."
                )
        if is_unread(options, pair, student):
            reason += (
                f" The student's classifier reads embedding, not {pair.student}: layers lie between the two, or they are of other"
                f" positions. --feature-layers embedding:{pair.teacher} distils what it reads."
            )
        value = " -> ".join(reversed(sides) if getattr(options, "projector", "") == "inverted" else sides)
        decisions.append(Decision(f"features: {options.method.replace('_', ' ')}", value, reason))
    return decisions


def is_unread(options: MethodOptions, pair: FeaturePair, student: ModelFacts) -> bool:
    """Whether the student's classifier reads other last features than the ones that are distilled."""
    is_vector = options.reads == "features" and options.needs_teacher and options.reads_student
    return is_vector and pair.student == "pooled" and student.reads_pooled is False


def _describe_tap(options: MethodOptions, side: str, tap: str, facts: ModelFacts) -> str:
    if tap not in facts.feature_dims:
        valid = ", ".join(facts.feature_dims)
        raise UserError(
            f"{options.method}: {facts.name} has no features {tap!r}. {did_you_mean(tap, facts.feature_dims)}".rstrip(),
            f"It offers: {valid}.",
        )
    if options.reads != "maps":
        return f"{side} {tap} ({facts.feature_dims[tap]})"
    if tap not in facts.grids:
        raise UserError(
            f"{options.method} reads maps, and {tap!r} of {facts.name} has no positions.",
            "Name another layer (--feature-layers STUDENT:TEACHER, or layers in a recipe).",
        )
    rows, columns = facts.grids[tap]
    return f"{side} {tap} ({facts.feature_dims[tap]}, {rows}x{columns})"


def describe_extent(methods: Sequence[MethodOptions]) -> list[Decision]:
    """Say that the teacher stops at its last tapped layer, where it does."""
    taps = {pair.teacher for options in methods if options.needs_teacher for pair in options.pairs}
    if not taps or taps & {"pooled", "embedding"} or any(options.reads_logits for options in methods):
        return []
    return [
        Decision("teacher runs", f"up to {', '.join(sorted(taps))}", "Nothing after its last tapped layer is read.")
    ]


def describe_models(
    config: RunConfig,
    teacher: ModelFacts | None,
    student: ModelFacts,
    data: DataFacts,
    latencies: tuple[float, float] | None,
) -> list[Decision]:
    """Return the decisions on both models, their inputs, sizes and costs."""
    decisions = []
    if teacher is not None:
        decisions.append(Decision("teacher", _model_line(teacher), teacher.weights))
        pre = teacher.preprocessing
        own = "tokenizer" if isinstance(pre, TextPreprocessing) else "preprocessing"
        decisions.append(Decision("teacher input", _input_line(pre), f"Its own {own}.{_caveat(pre)}"))
    decisions.append(Decision("student", _model_line(student), student.weights))
    decisions.append(
        Decision(
            "student input",
            _input_line(student.preprocessing),
            _input_reason(student.preprocessing, has_teacher=teacher is not None),
        )
    )
    if teacher is not None:
        value = f"{teacher.num_parameters / student.num_parameters:.1f}x parameters"
        if student.macs:  # embeddings alone have none
            value += f", {teacher.macs / student.macs:.1f}x MACs"
        reason = _compression_reason(student.preprocessing)
        if latencies is not None:
            before, after = latencies
            value += f", latency {before:.1f} ms to {after:.1f} ms ({before / after:.1f}x)"
            reason += f" Latency of one {data.noun}, measured just now on this machine's CPU."
        decisions.append(Decision("compression", value, reason))
    splits = f"{data.num_train} train, {data.num_validation} validation, {data.num_test} test"
    labels = {
        "class": f"{len(data.class_names)} classes",
        "classes": f"{len(data.class_names)} labels, any number a sample",
        "number": "a number a sample",
        "words": f"{len(data.class_names)} classes of words",
        "tokens": "its own tokens",
        "none": "no labels",
    }
    decisions.append(Decision("data", f"{data.name}: {labels[data.label_kind]}, {splits}", " ".join(data.notes)))
    train = config.train
    budget = ""
    if config.embedding is not None:
        budget = f" A baseline trains for {_epochs(config.alone().train.epochs)}: as many steps as both stages."
    tested = "used once, at the end." if config.test else "left alone (test: false)."
    decisions.append(
        Decision(
            "training",
            f"{_epochs(train.epochs)}, batch {train.batch_size}"
            + (f" x {train.accumulation}" if train.accumulation > 1 else "")
            + f", {config.optim.optimizer}, learning rate {config.optim.lr:g}",
            f"The best student by validation is kept; the test split is {tested}" + budget
            if config.episodes is None
            else "Of each student; its last weights answer the queries.",
        )
    )
    return decisions


def describe_costs(
    config: RunConfig,
    *,
    teacher: ModelFacts | None,
    student: ModelFacts,
    trainable_parameters: int,
    mixed_precision: str,
) -> list[Decision]:
    """Return the decisions about trainable parameters and memory.

    The memory estimate adds float32 weights of both models, gradients and two optimiser moments of everything
    trainable, and the student's stored activations for one batch (measured for one image, halved under mixed
    precision). The libraries' own workspace comes on top.
    """
    projectors = trainable_parameters - student.num_parameters
    frozen = 0 if teacher is None else teacher.num_parameters
    activations = student.activation_bytes * config.train.batch_size / (1 if mixed_precision == "no" else 2)
    memory = 4 * frozen + 16 * trainable_parameters + activations
    return [
        Decision(
            "trainable parameters",
            f"{human_count(trainable_parameters)}: student {human_count(student.num_parameters)},"
            f" projectors {human_count(projectors)}",
            "Projectors are trained with the student and are not part of what is exported.",
        ),
        Decision(
            "memory",
            f"about {memory / 2**30:.2f} GiB",
            f"Weights, gradients, two moments, and {activations / 2**30:.2f} GiB of activations for a batch.",
        ),
    ]


def human_count(number: float) -> str:
    """Return ``number`` as 1.23K, 4.56M or 7.89G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.2f}{unit}"
    return f"{number:.0f}"


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


def _model_line(facts: ModelFacts) -> str:
    unit = "tokens" if TASKS[facts.task].is_language_model else "classes"
    padding = facts.num_classes - (num_tokens(facts) or facts.num_classes)
    head = f"{facts.num_classes - padding} {unit}" if facts.num_classes else "no head"
    head += f" and {padding} rows of padding" if padding else ""
    return f"{facts.name}: {human_count(facts.num_parameters)} parameters, {human_count(facts.macs)} MACs, {head}"


def _input_reason(pre: Preprocessing | TextPreprocessing, *, has_teacher: bool) -> str:
    own = "Its own."
    if has_teacher and isinstance(pre, TextPreprocessing):
        own = "Its own tokenizer, of the same text as the teacher's."
    elif has_teacher:
        own = "Its own preprocessing, from the same augmented image as the teacher's."
    return own + _caveat(pre)


_GEOMETRIES = {"crop": "", "squash": "squashed", "border": "bordered"}


def _caveat(pre: Preprocessing | TextPreprocessing) -> str:
    """Return what is not as the model's library does it."""
    if isinstance(pre, TextPreprocessing):
        return "".join(f" {remark}" for remark in pre.remarks)
    cut = _GEOMETRIES[pre.geometry]
    caveats = ([f"Not {cut} in training, where images are random crops."] if cut else []) + [pre.note] * bool(pre.note)
    return "".join(f" {caveat}" for caveat in caveats)


def _compression_reason(pre: Preprocessing | TextPreprocessing) -> str:
    if isinstance(pre, TextPreprocessing):
        return f"Teacher against student, for a text of {PROBE_TOKENS} tokens each, or as many as it takes."
    return "Teacher against student, each at its own input size."


def _input_line(pre: Preprocessing | TextPreprocessing) -> str:
    if isinstance(pre, TextPreprocessing):
        pooled = "each for itself" if pre.pooling == "none" else f"pooled by {pre.pooling}"
        prompt = f", after the prompt {short_repr(pre.prompt)}" if pre.prompt else ""
        return f"{pre.max_length} tokens, {pre.tokenizer} ({human_count(pre.vocab_size)}), {pooled}{prompt}"
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (pre.mean, pre.std))
    order = ", BGR" if pre.channels == "BGR" else ""
    geometry = f", {_GEOMETRIES[pre.geometry]}" if _GEOMETRIES[pre.geometry] else ""
    return f"{pre.image_size[0]}x{pre.image_size[1]} {pre.interpolation}{geometry}, mean ({mean}), std ({std}){order}"
