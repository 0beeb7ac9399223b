"""The plan in words: models, layers, methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kdcli.base.facts import (
    DataFacts,
    LayerScores,
    ModelFacts,
    num_tokens,
)
from kdcli.base.names import Quantization
from kdcli.base.reads import IMAGE
from kdcli.base.tasks import TASKS
from kdcli.base.text import human_count
from kdcli.config.methods import FeaturePair, MethodOptions
from kdcli.config.methods.defaults import Programme
from kdcli.config.run import RunConfig
from kdcli.config.situation import Situation
from kdcli.config.training import EmbeddingConfig
from kdcli.plan.plan import Decision
from kdcli.plan.relation import num_shared_labels

NEAREST_MEANS = Decision(
    "best student",
    "by the accuracy of nearest class means (ncm_accuracy)",
    "No method trains the classifier, which stays as it is at the start: each validation image goes to the class whose"
    " mean embedding over the labelled training images, without augmentation, is nearest.",
)


def describe_programme(situation: Situation, programme: Programme) -> Decision:
    """Return the decision for a method that is a whole."""
    teacher, data = situation.teacher, situation.data
    reason = f"Asked for: {programme.reason}"
    if teacher is not None and teacher.label_names is not None:
        shared = num_shared_labels(teacher, data)
        reason += f"; {shared} of your {len(data.class_names)} are among its {teacher.num_classes}"
    if situation.evidence.relation == "random":
        reason += f". This teacher is untrained: {programme.if_untrained}"
    return Decision("method", f"{programme.title}: {programme.summary}", f"{reason}.")


def describe_stage(situation: Situation, stage: EmbeddingConfig, reasons: Mapping[str, str]) -> list[Decision]:
    """Return the decisions on the embedding stage; ``reasons`` are those of its methods, by name."""
    optim = stage.optim or situation.config.optim
    decisions = [
        Decision(
            "embedding stage",
            f"{_epochs(stage.epochs)} before the others, {optim.optimizer}, learning rate {optim.lr:g}",
            "Features come before the classifier: the student with the best nearest class means on the validation"
            " images is what the next stage starts from.",
        )
    ]
    for options in stage.methods:
        described = describe_method(options, reasons.get(options.method, "Asked for by the config."), situation)
        told = [described, *describe_taps(options, situation)]
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


def describe_method(options: MethodOptions, reason: str, situation: Situation) -> Decision:
    """Return the decision on a method, with all its settings that mean something."""
    unread = options.meaningless(situation)
    settings = ", ".join(f"{key} {value}" for key, value in options.shown().items() if key not in unread)
    return Decision(f"loss: {options.method.replace('_', ' ')}", settings, f"{reason} {options.remark}".rstrip())


def describe_taps(options: MethodOptions, situation: Situation) -> list[Decision]:
    """Return which features a method compares, once it is checked."""
    teacher, student = situation.teacher, situation.student
    decisions = []
    for pair in options.pairs:
        sides = [_describe_tap(options, "student", pair.student, student)] if options.reads_student else []
        if options.needs.teacher and teacher is not None:
            sides.append(_describe_tap(options, "teacher", pair.teacher, teacher))
        value = " -> ".join(reversed(sides) if options.projector_name == "inverted" else sides)
        reason, warning = _tap_reason(options, pair, situation)
        name = f"features: {options.method.replace('_', ' ')}"
        decisions.append(Decision(name, value, f"{reason} {warning}".rstrip(), warning=warning))
    return decisions


def _tap_reason(options: MethodOptions, pair: FeaturePair, situation: Situation) -> tuple[str, str]:
    """Return what is to be said of the features, and what a user must not miss."""
    teacher, student = situation.teacher, situation.student
    reason = f"Width in brackets; {student.preprocessing.features_of(TASKS[student.task].target)}."
    if options.reads_layers == "maps":
        reason = "Channels and grid in brackets; not averaged over positions."
    if options.projector_name == "orthogonal" and options.projects_layers and teacher is not None:
        student_dim, teacher_dim = student.feature_dims[pair.student], teacher.feature_dims[pair.teacher]
        if student_dim > teacher_dim:
            return "", (
                f"The student is wider ({student_dim} > {teacher_dim}), so only the projector's columns are"
                " orthonormal and the part of the student's features outside them is not preserved."
                f"{f' {_told_unread(pair)}' if is_unread(options, pair, student) else ''}"
            )
    return reason, _told_unread(pair) if is_unread(options, pair, student) else ""


def _told_unread(pair: FeaturePair) -> str:
    return (
        f"The student's classifier reads embedding, not {pair.student}: layers lie between the two, or they are"
        f" of other positions. --feature-layers embedding:{pair.teacher} distils what it reads."
    )


def is_unread(options: MethodOptions, pair: FeaturePair, student: ModelFacts) -> bool:
    """Whether the student's classifier reads other last features than the ones that are distilled."""
    is_vector = options.reads_layers == "features" and options.needs.teacher and options.reads_student
    return is_vector and pair.student == "pooled" and student.reads_pooled is False


def _describe_tap(options: MethodOptions, side: str, tap: str, facts: ModelFacts) -> str:
    if options.reads_layers != "maps":
        return f"{side} {tap} ({facts.feature_dims[tap]})"
    rows, columns = facts.grids[tap]
    return f"{side} {tap} ({facts.feature_dims[tap]}, {rows}x{columns})"


def describe_extent(methods: Sequence[MethodOptions]) -> list[Decision]:
    """Say that the teacher stops at its last tapped layer, where it does."""
    taps = {pair.teacher for options in methods if options.needs.teacher for pair in options.pairs}
    if not taps or taps & {"pooled", "embedding"} or any(options.needs.common_labels for options in methods):
        return []
    return [
        Decision("teacher runs", f"up to {', '.join(sorted(taps))}", "Nothing after its last tapped layer is read.")
    ]


def describe_models(situation: Situation) -> list[Decision]:
    """Return the decisions on both models, their inputs, sizes and costs, on the data and on training."""
    teacher, student = situation.teacher, situation.student
    is_whole = situation.config.augment.crop_scale == (1.0, 1.0)
    decisions = []
    if teacher is not None:
        decisions.append(Decision("teacher", _model_line(teacher), teacher.weights))
        if teacher.weight_bytes is not None:
            decisions.append(_describe_quantization(situation.config, teacher, teacher.weight_bytes))
        pre = teacher.preprocessing
        remarks = pre.told(is_whole=is_whole)
        decisions.append(Decision("teacher input", pre.describe(), " ".join([f"Its own {pre.kind}.", *remarks])))
    decisions.append(Decision("student", _model_line(student), student.weights))
    pre = student.preprocessing
    own = "Its own." if teacher is None else f"Its own {pre.kind}, {pre.shared_input}."
    decisions.append(Decision("student input", pre.describe(), " ".join([own, *pre.told(is_whole=is_whole)])))
    if teacher is not None:
        decisions.append(_describe_compression(situation, teacher))
    return [*decisions, _describe_data(situation.data), _describe_training(situation.config)]


_QUANTIZED: dict[Quantization | None, str] = {
    "int8": "weights and inputs in 8 bits, and channels with inputs beyond 6 in 16 (LLM.int8): so an output depends a"
    " little on what else is in the batch",
    "int4": "weights in 4 bits (NF4), multiplied in float32",
}


def _describe_quantization(config: RunConfig, teacher: ModelFacts, size: int) -> Decision:
    kept = f"{size / 2**20:.0f} MiB in place of {4 * teacher.num_parameters / 2**20:.0f}"
    quantization = config.teacher.quantization
    return Decision(
        "teacher quantised",
        f"{quantization}: {kept}",
        f"Asked for. Its linear layers have {_QUANTIZED[quantization]}. It is measured as it is now.",
    )


def _describe_compression(situation: Situation, teacher: ModelFacts) -> Decision:
    student, latencies = situation.student, situation.latencies
    value = f"{teacher.num_parameters / student.num_parameters:.1f}x parameters"
    if student.macs:  # embeddings alone have none
        value += f", {teacher.macs / student.macs:.1f}x MACs"
    reason = f"Teacher against student, {student.preprocessing.costs_of}."
    if latencies is not None:
        before, after = latencies
        value += f", latency {before:.1f} ms to {after:.1f} ms ({before / after:.1f}x)"
        noun = situation.data.noun
        reason += f" Latency of one {noun}: the fastest of a few passes, when this machine's CPU first ran them."
    return Decision("compression", value, reason)


def _describe_data(data: DataFacts) -> Decision:
    splits = f"{data.num_train} train, {data.num_validation} validation, {data.num_test} test"
    of_data = data.labels.of_data
    is_without = "{count}" in of_data and not data.class_names
    labels = data.labels.needed if is_without else of_data.format(count=len(data.class_names))
    unusual = " ".join(note for note in data.notes if not note.startswith(_USUAL))
    return Decision("data", f"{data.name}: {labels}, {splits}", " ".join(data.notes), warning=unusual)


_USUAL = (
    *("Test: ", "Validation: ", "Columns: ", "Classes: ", "Labels: ", "Direction: ", "Training images: "),
    "Channels: ",
)
"""How notes begin that say what was asked for, or what is always done; every other one is a thing to look at."""


def _describe_training(config: RunConfig) -> Decision:
    train = config.train
    value = f"{_epochs(train.epochs)}, batch {train.batch_size}"
    value += f" x {train.accumulation}" if train.accumulation > 1 else ""
    value += f", {config.optim.optimizer}, learning rate {config.optim.lr:g}"
    if config.episodes is not None:
        return Decision("training", value, "Of each student; its last weights answer the queries.")
    tested = "used once, at the end." if config.test else "left alone (test: false)."
    reason = f"The best student by validation is kept; the test split is {tested}"
    if config.embedding is not None:
        epochs = _epochs(config.alone().train.epochs)
        reason += f" A baseline trains for {epochs}: as many steps as both stages."
    return Decision("training", value, reason)


def describe_costs(
    config: RunConfig,
    *,
    teacher: ModelFacts | None,
    student: ModelFacts,
    trainable_parameters: int,
    mixed_precision: str,
    num_samples: int,
) -> list[Decision]:
    """Return the decisions about trainable parameters, memory and computation.

    The memory estimate adds float32 weights of both models, gradients and two optimiser moments of everything
    trainable, and the student's stored activations for one batch (measured for one image, halved under mixed
    precision). The libraries' own workspace comes on top.
    """
    projectors = trainable_parameters - student.num_parameters
    has_adversary = any(options.has_adversary for options in config.methods or ())
    beside = "discriminators, projectors and the like" if has_adversary else "projectors"
    frozen = 0
    if teacher is not None:
        frozen = 4 * teacher.num_parameters if teacher.weight_bytes is None else teacher.weight_bytes
    activations = student.activation_bytes * config.train.batch_size / (1 if mixed_precision == "no" else 2)
    memory = frozen + 16 * trainable_parameters + activations
    again = (
        " The others are computed again in the backward pass, one block's at a time (train.activation_checkpointing)."
        if config.train.activation_checkpointing
        else ""
    )
    return [
        Decision(
            "trainable parameters",
            f"{human_count(trainable_parameters)}: student {human_count(student.num_parameters)},"
            f" {beside} {human_count(projectors)}",
            f"{beside.capitalize()} are trained with the student and are not part of what is exported.",
        ),
        Decision(
            "memory",
            f"about {memory / 2**30:.2f} GiB",
            f"Weights, gradients, two moments, and {activations / 2**30:.2f} GiB of activations for a batch.{again}",
        ),
        *_describe_computation(teacher, student, num_samples),
    ]


def _describe_computation(teacher: ModelFacts | None, student: ModelFacts, num_samples: int) -> list[Decision]:
    """Return the decision on the operations of an epoch: the teacher's pass, and the student's with its backward pass.

    A backward pass multiplies twice as much as the forward pass: with the weights, and with the features.
    """
    own, other = 3 * student.macs * num_samples, 0 if teacher is None else teacher.macs * num_samples
    if not own + other:
        return []
    share = f", {other / (own + other):.0%} of them the teacher's" if teacher is not None else ""
    reason = "Of every sample at both models' input sizes, three passes of the student's for forward and backward."
    return [
        Decision(
            "computation",
            f"{human_count(own + other)} MACs an epoch{share}",
            f"{reason} 'kdcli bench' measures how long they take here.",
        )
    ]


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


def _model_line(facts: ModelFacts) -> str:
    unit = "tokens" if TASKS[facts.task].is_language_model else "classes"
    padding = facts.num_classes - (num_tokens(facts) or facts.num_classes)
    head = f"{facts.num_classes - padding} {unit}" if facts.num_classes else "no head"
    if IMAGE in facts.predictions:
        head = f"images of {facts.num_classes} classes" if facts.num_classes else "images"
    elif not facts.num_classes and facts.predictions:  # maps of something that has no classes
        head = f"{TASKS[facts.task].words} at every position"
    elif TASKS[facts.task].target == "depth":
        head = "depth at every position"
    if IMAGE in facts.predictions:
        head = "an image"
    head += f" and {padding} rows of padding" if padding else ""
    return f"{facts.name}: {human_count(facts.num_parameters)} parameters, {human_count(facts.macs)} MACs, {head}"
