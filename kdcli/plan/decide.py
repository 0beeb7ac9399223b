"""Config, models and data -> plan: every decision of a run and its reason. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.facts import (
    DataFacts,
    LayerScores,
    ModelFacts,
)
from kdcli.base.names import NormalizeName, ProjectorName, Relation
from kdcli.base.tasks import TASKS
from kdcli.config.methods import FeaturePair, LayerOptions, MethodOptions, ProjectionOptions, find_method
from kdcli.config.methods.base import INVERTED_RATE
from kdcli.config.methods.defaults import (
    COMMON_LOGITS,
    FEATURES,
    LABELS,
    LOG_SUM,
    OTHER_CLASSES,
    REFILLED,
    REFILLED_REASONS,
    STANDARDIZE_REASON,
    TEACHER_FREE,
    TEACHER_FREE_REASON,
    WEIGHTING_REASON,
)
from kdcli.config.run import RunConfig
from kdcli.config.training import EmbeddingConfig
from kdcli.plan.checks import (
    check_label_free,
    check_methods,
    check_projector,
    check_stages,
    feature_options,
    refuse_overrides,
)
from kdcli.plan.describe import (
    NEAREST_MEANS,
    describe_extent,
    describe_layers,
    describe_method,
    describe_models,
    describe_refilled,
    describe_stage,
    describe_taps,
    is_unread,
)
from kdcli.plan.plan import Decision, Plan
from kdcli.plan.relation import RelationEvidence, describe_shared, find_relation


def make_plan(
    config: RunConfig,
    *,
    teacher: ModelFacts | None,
    student: ModelFacts,
    data: DataFacts,
    latencies: tuple[float, float] | None = None,
    layers: LayerScores | None = None,
) -> Plan:
    """Decide relation, losses, projector and normalisation.

    Args:
        config: of the run.
        teacher: None without one.
        student: what is trained.
        data: what it is trained on.
        latencies: of teacher and student, in milliseconds for one image on this machine, where they were measured.
        layers: what the teacher's layers know of the classes, where one of them is to be chosen.

    Raises:
        UserError: for an override that can't work; it says why.
    """
    evidence = find_relation(teacher, data)
    relation, relation_reason = _settle_relation(config, evidence, teacher, data)
    label_map = evidence.label_map
    has_classes = data.label_kind in ("class", "words")
    if relation == "same" and evidence.relation == "cross" and has_classes and _same_width(teacher, data):
        label_map = tuple(range(len(data.class_names)))
        relation_reason += " The teacher's classes are taken to be yours, in this order, because you say so."
    if relation == "cross" and has_classes and TASKS[data.task].target == "label":
        option = "" if data.noun == "image" else f" --task {data.task}"
        relation_reason += f" 'kdcli models probe{option}' compares what the features of this teacher and of others know of your classes."
    check_label_free(relation, relation_reason, teacher, data)
    decisions = [Decision("relation", relation, relation_reason)]
    reasons: dict[str, str] = {}
    if config.method == "refilled":
        config = _choose_refilled(config, teacher)
        decisions.append(describe_refilled(relation, teacher, data))
        reasons = REFILLED_REASONS
    stage = config.embedding
    if config.methods is not None:
        refuse_overrides(config)
        methods = _with_taps(config.methods, teacher, student)
        method_decisions = [describe_method(m, reasons.get(m.method, "Asked for by the config.")) for m in methods]
    elif config.method is not None:
        methods, method_decisions = _one_method(config, config.method, relation, teacher, student, data, layers)
    else:
        methods, method_decisions = _choose_methods(config, relation, label_map, teacher, student, data, layers)
    stages = {"methods": methods}
    if stage is not None:
        stage = stage.model_copy(update={"methods": _with_taps(stage.methods, teacher, student)})
        stages["embedding.methods"] = stage.methods
    for key, losses in stages.items():
        check_methods(key, losses, config, teacher, student, data, label_map, evidence)
    check_stages(stages, teacher)
    if stage is not None:
        decisions += describe_stage(config, stage, reasons, teacher, student)
    decisions += method_decisions
    for options in methods:
        decisions += describe_taps(options, teacher, student)
    if data.label_kind != "none" and not any(options.trains_classifier for options in methods):
        decisions.append(NEAREST_MEANS)
    decisions += describe_extent(methods)
    decisions += describe_models(config, teacher, student, data, latencies)
    unread = [pair.student for options in methods for pair in options.pairs if is_unread(options, pair, student)]
    return Plan(relation, label_map, methods, stage, tuple(decisions), unread=tuple(dict.fromkeys(unread)))


def _settle_relation(
    config: RunConfig, evidence: RelationEvidence, teacher: ModelFacts | None, data: DataFacts
) -> tuple[Relation, str]:
    asked = config.relation
    if asked == "auto" or asked == evidence.relation:
        return evidence.relation, evidence.reason
    if (asked == "none") != (teacher is None):
        raise UserError(
            f"--relation {asked} does not fit --teacher {config.teacher.name}.",
            "The relation is 'none' exactly when the teacher is 'none'.",
        )
    if asked == "same" and data.label_kind != "none" and not _same_width(teacher, data):
        raise UserError(
            f"--relation same needs one label space for both. {evidence.reason}",
            "Drop --relation; to force the projector alone, use --projector orthogonal.",
        )
    return asked, f"Asked for; found on its own: {evidence.relation}. {evidence.reason}"


def _same_width(teacher: ModelFacts | None, data: DataFacts) -> bool:
    return teacher is not None and teacher.num_classes == len(data.class_names)


def _choose_methods(
    config: RunConfig,
    relation: Relation,
    label_map: tuple[int, ...] | None,
    teacher: ModelFacts | None,
    student: ModelFacts,
    data: DataFacts,
    layers: LayerScores | None,
) -> tuple[tuple[MethodOptions, ...], list[Decision]]:
    methods, decisions = _supervised(data)
    if teacher is None:
        for option, value in (("projector", config.projector), ("normalize", config.normalize)):
            if value not in ("auto", "none"):
                raise UserError(
                    f"--{option} {value} needs a teacher, and --teacher is none.", f"Drop --{option} or name a teacher."
                )
        for option, given in feature_options(config):
            raise UserError(f"{option} {given} needs a teacher, and --teacher is none.", "Drop it or name a teacher.")
        methods.append(TEACHER_FREE)
        decisions.append(describe_method(TEACHER_FREE, TEACHER_FREE_REASON))
        return tuple(methods), decisions

    if config.projector == "none":
        if config.normalize not in ("auto", "none"):
            raise UserError(
                f"--normalize {config.normalize} acts on projected features, and --projector is none.",
                "Drop one of them.",
            )
        for option, given in feature_options(config):
            raise UserError(f"{option} {given} is about features, and --projector is none.", "Drop one of them.")
        decisions.append(Decision("projector", "none", "Asked for: no feature distillation."))
    else:
        projection, reasons = _choose_projection(config, relation, teacher, data)
        pairs = config.feature_layers or (_default_pair(student, data, layers),)
        methods += _by_pair(projection, pairs)
        decisions += reasons
        if config.feature_layers is None:
            decisions += describe_layers(data, layers)
    if relation == "same" and label_map is not None:
        methods.append(COMMON_LOGITS)
        asserted = " (you say so)" if config.relation == "same" else ""
        decisions.append(describe_method(COMMON_LOGITS, f"Both models have logits over the same labels{asserted}."))
    else:
        if data.label_kind == "none":
            why = "there are no labels"
        elif relation == "same" and data.label_kind not in ("class", "words"):
            why = "it is for samples with one class each"
        elif relation == "cross" and label_map is not None:
            why = "you say so, although all labels are the teacher's too"
        elif relation == "cross" and teacher.task == data.task:
            why = f"it needs all labels. {describe_shared(teacher, data)}".removesuffix(".")
        elif relation in ("same", "cross"):
            why = "there are no common labels"
        else:
            why = "an untrained teacher's logits say nothing"
        decisions.append(Decision("logit KD", "off", f"The relation is {relation}: {why}."))
        if config.projector == "none":
            raise UserError(
                f"With --projector none nothing is left to distil: the relation is {relation}, so logits can't be used.",
                "Drop --projector none, or use --teacher none.",
            )
    return tuple(methods), decisions


def _choose_refilled(config: RunConfig, teacher: ModelFacts | None) -> RunConfig:
    """Return ``config`` with REFILLED's two stages written out."""
    if teacher is None:
        raise UserError("--method refilled needs a teacher, and --teacher is none.", "Name one with --teacher.")
    if config.methods is not None:
        raise UserError(
            "--method refilled has no effect: this config writes out its own methods.",
            "Drop --method, or the methods key.",
        )
    given = [(f"--{name}", getattr(config, name)) for name in ("projector", "normalize")]
    for option, value in [*(pair for pair in given if pair[1] != "auto"), *feature_options(config)]:
        raise UserError(f"{option} {value} has no effect: REFILLED has no projector.", f"Drop {option}, or --method.")
    stage = config.embedding or EmbeddingConfig(epochs=config.train.epochs)
    return config.model_copy(update={"method": None, "methods": REFILLED, "embedding": stage})


def _with_taps(
    methods: Sequence[MethodOptions], teacher: ModelFacts | None, student: ModelFacts
) -> tuple[MethodOptions, ...]:
    """Write out the layers that were left to the models.

    REFILLED takes the classifier's input where there is a classifier.
    """
    written: list[MethodOptions] = []
    for options in methods:
        taps = {
            f"{side}_tap": "embedding" if "embedding" in facts.feature_dims else "pooled"
            for side, facts in (("student", student), ("teacher", teacher))
            if facts is not None and getattr(options, f"{side}_tap", "") is None
        }
        written.append(_with_rate(_with_layers(options.model_copy(update=taps), (), teacher, student)))
    return tuple(written)


def _supervised(data: DataFacts) -> tuple[list[MethodOptions], list[Decision]]:
    """Return the loss on the labels, where there are any."""
    if data.label_kind == "none":
        return [], []
    is_smooth = data.label_kind not in ("number", "tokens")
    options = LABELS if is_smooth else LABELS.model_copy(update={"label_smoothing": 0.0})
    reason = f"{data.num_labelled} of {data.num_train} training {data.noun}s have labels."
    if data.label_kind == "tokens":
        reason = "The texts' own tokens are what is predicted."
    return [options], [describe_method(options, reason)]


def _one_method(
    config: RunConfig,
    name: str,
    relation: Relation,
    teacher: ModelFacts | None,
    student: ModelFacts,
    data: DataFacts,
    layers: LayerScores | None,
) -> tuple[tuple[MethodOptions, ...], list[Decision]]:
    """Return the supervised loss and the method that was asked for, with its defaults or the options about features."""
    labels, decisions = _supervised(data)
    section: Any = find_method(name)  # None for "none" and "log_sum"
    check_projector(config, name, section)
    needs_teacher = name == "log_sum" or (section is not None and section.needs_teacher)
    if needs_teacher != (teacher is not None):
        wants = "needs a teacher, and --teacher is none" if needs_teacher else "uses no teacher, and one is named"
        raise UserError(
            f"--method {name} {wants}.", "Name one with --teacher." if needs_teacher else "Use --teacher none."
        )
    takes_layers = name in ("projection", "log_sum") or (section is not None and issubclass(section, LayerOptions))
    for option, given in feature_options(config) if not takes_layers or not needs_teacher else ():
        raise UserError(
            f"{option} {given} has no effect: --method {name} reads no layers of a teacher.", f"Drop {option}."
        )
    pairs = config.feature_layers or ()
    chosen: list[MethodOptions] = []
    asked = f"Asked for by --method {name}."
    if name == "projection":
        projection, reasons = _choose_projection(config, relation, teacher, data)
        chosen = _by_pair(projection, pairs or (_default_pair(student, data, layers),))
        decisions += reasons
        if not pairs:
            decisions += describe_layers(data, layers)
    elif name == "log_sum":
        projection = _weighted(LOG_SUM, config)
        if config.projector == "inverted":
            projection = projection.model_copy(update={"projector": "inverted", "lr_scale": INVERTED_RATE})
        elif config.projector != "auto":
            projection = projection.model_copy(update={"projector": config.projector})
        chosen = _by_pair(projection, pairs)
        decisions.append(describe_method(projection, f"{asked} {STANDARDIZE_REASON}"))
    elif section is not None:
        options = section()
        if config.projector != "auto":  # the paper's weight is for other features than the standardised ones
            weight = FEATURES[_setting(relation, teacher, data)].options.weight
            ratio = {"weight": weight, "weighting": "gradient"} if labels else {}
            options = section(projector=config.projector, **ratio)
            asked += f" {STANDARDIZE_REASON}"
        options = _with_rate(_with_layers(_weighted(options, config), pairs, teacher, student))
        if options.weighting == "gradient":
            asked += WEIGHTING_REASON.format(weight=options.weight)
        chosen = [options]
        decisions.append(describe_method(options, asked))
    return (*labels, *chosen), decisions


def _weighted(options: Any, config: RunConfig) -> Any:
    """Return ``options`` with the weight that was asked for."""
    return options if config.feature_weight is None else options.model_copy(update={"weight": config.feature_weight})


def _by_pair(projection: ProjectionOptions, pairs: Sequence[FeaturePair]) -> list[MethodOptions]:
    """Return a projection for each pair of features, the last ones without any; they share the weight."""
    return [
        projection.model_copy(
            update={
                "weight": projection.weight / max(len(pairs), 1),
                "student_tap": pair.student,
                "teacher_tap": pair.teacher,
            }
        )
        for pair in pairs or (FeaturePair(),)
    ]


def _with_layers(
    options: MethodOptions, pairs: Sequence[FeaturePair], teacher: ModelFacts | None, student: ModelFacts
) -> MethodOptions:
    """Return ``options`` with ``pairs`` for its layers, or its default ones, where it has layers and none are given."""
    if not isinstance(options, LayerOptions) or options.layers is not None:
        return options
    if not pairs and options.by_stage and teacher is not None:
        count = min(len(student.stages), len(teacher.stages))
        ends = zip(student.stages[-count:], teacher.stages[-count:], strict=True)
        pairs = [FeaturePair(student=ours, teacher=theirs) for ours, theirs in ends]
    return options.model_copy(update={"layers": tuple(pairs) or (FeaturePair(),)})


def _default_pair(student: ModelFacts, data: DataFacts, layers: LayerScores | None) -> FeaturePair:
    """Return the features to bring together: what the classifier reads, and what the teacher knows most by."""
    reads = "embedding" if data.label_kind != "none" and "embedding" in student.feature_dims else "pooled"
    return FeaturePair(student=reads, teacher="pooled" if layers is None else layers.best)


def _with_rate(options: MethodOptions) -> MethodOptions:
    """Return ``options`` with the learning rate of its projector written out, where it is left to the plan."""
    if not isinstance(options, LayerOptions) or options.projector is None or options.lr_scale is not None:
        return options
    return options.model_copy(update={"lr_scale": INVERTED_RATE if options.projector == "inverted" else 1.0})


def _setting(relation: Relation, teacher: ModelFacts | None, data: DataFacts) -> str:
    """Return the key of ``FEATURES``."""
    return OTHER_CLASSES if relation == "cross" and teacher is not None and teacher.task == data.task else relation


def _choose_projection(
    config: RunConfig, relation: Relation, teacher: ModelFacts | None, data: DataFacts
) -> tuple[ProjectionOptions, list[Decision]]:
    setting = _setting(relation, teacher, data)
    default = FEATURES[setting].options
    if data.label_kind == "none":  # nothing to be in proportion to
        default = default.model_copy(update={"weighting": "loss", "weight": 1.0})
    chosen, reason, normalize_reason = default, FEATURES[setting].reason, FEATURES[setting].normalize_reason
    if config.projector not in ("auto", default.projector):
        projector: ProjectorName = config.projector  # type: ignore[assignment]  # "none" is handled by the caller
        # Weight, rate and normalisation belong to the projector that they were found for.
        family = "cross" if projector == "inverted" else OTHER_CLASSES if setting == OTHER_CLASSES else "same"
        chosen = FEATURES[family].options.model_copy(
            update={"projector": projector, "weight": default.weight, "weighting": default.weighting}
        )
        normalize_reason = FEATURES[family].normalize_reason
        reason = f"Asked for; the relation {relation} would take {default.projector}."
    if config.normalize not in ("auto", chosen.normalize):
        normalize: NormalizeName = config.normalize  # type: ignore[assignment]  # nor is "auto" left
        normalize_reason = f"Asked for; otherwise it would be {chosen.normalize}."
        chosen = chosen.model_copy(update={"normalize": normalize})
    if config.feature_weight is not None:
        reason += f" The weight was asked for; otherwise it would be {chosen.weight:g}."
        chosen = chosen.model_copy(update={"weight": config.feature_weight})
    if chosen.weighting == "gradient":
        reason += WEIGHTING_REASON.format(weight=chosen.weight)
    sides = f"teacher {chosen.normalize}, student {chosen.normalize_student}"
    return chosen, [describe_method(chosen, reason), Decision("normalisation", sides, normalize_reason)]
