"""Config, models and data -> plan: every decision of a run and its reason. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import (
    LANGUAGE_MODELING,
    PROBE_TOKENS,
    DataFacts,
    LayerScores,
    ModelFacts,
    Preprocessing,
    TextPreprocessing,
    num_tokens,
)
from kdcli.base.result import finite
from kdcli.base.text import short_repr
from kdcli.config.run import (
    CRDOptions,
    DeiTOptions,
    DKDOptions,
    EmbeddingConfig,
    FeaturePair,
    LayerOptions,
    LocalClassifierOptions,
    LogitKDOptions,
    MethodOptions,
    NormalizeName,
    ProjectionOptions,
    ProjectorName,
    Relation,
    ReviewKDOptions,
    RunConfig,
    SpectralOptions,
    StochasticTripletOptions,
    SupervisedOptions,
    find_method,
)
from kdcli.plan.relation import RelationEvidence, describe_shared, find_relation, num_shared_labels

_OTHER_CLASSES = "other classes"
"""The relation cross where teacher and student both classify the same kind of samples."""
# The weights are ratios of gradients, chosen on the development settings of tests/benchmarks/pairs.py.
# The hundredth of the student's learning rate comes from small trials, in which a projector as fast as the student soon
# mapped the teacher onto a few directions that are easy to match.
_INVERTED = ProjectionOptions(
    projector="inverted",
    normalize="standardize",
    normalize_student="standardize",
    distance="mse",
    weight=0.3,
    weighting="gradient",
    lr_scale=0.01,
)
_ORTHOGONAL = ProjectionOptions(
    projector="orthogonal",
    normalize="standardize",
    normalize_student="standardize",
    distance="mse",
    weighting="gradient",
)
_DEFAULT_PROJECTION: dict[str, ProjectionOptions] = {
    "same": ProjectionOptions(
        projector="orthogonal", normalize="layer_norm", distance="smooth_l1", weight=0.5, weighting="gradient"
    ),
    "cross": _INVERTED,
    _OTHER_CLASSES: _ORTHOGONAL,
    "random": _INVERTED.model_copy(update={"weight": 0.1}),
}
_WEIGHTING_REASON = (
    " Its weight is a ratio: where the student's features are taken, its gradient is kept at {weight:g} of the labels'."
)
_LOG_SUM = ProjectionOptions(
    projector="linear", normalize="standardize", normalize_student="standardize", distance="log_sum"
)
_PROJECTOR_REASON: dict[str, str] = {
    "same": "Teacher and student solve the same task: an orthogonal map preserves every inner product of the student's"
    " features, so nothing they learn is lost to the projector (VkD).",
    "cross": "The teacher knows another task: the map acts on the teacher, so training can drop what the student's task"
    " does not need (Learning to Project).",
    _OTHER_CLASSES: "The teacher knows other classes: of inverted, orthogonal and REFILLED the orthogonal map was the best"
    " when an ImageNet teacher met new classes (recipes/claims).",
    "random": "The teacher is untrained: the map acts on the teacher and training can drop its useless directions"
    " (Learning to Project).",
}
_STANDARDIZE_REASON = (
    "Every channel gets mean 0 and variance 1 over the batch: none of the teacher's dominates by scale, and the student's"
    " can't shrink to the trivial optimum at zero."
)
_NORMALIZE_REASON: dict[str, str] = {
    "same": "LayerNorm on pooled teacher features is the discriminative setting of VkD.",
    "cross": _STANDARDIZE_REASON,
    _OTHER_CLASSES: _STANDARDIZE_REASON,
    "random": _STANDARDIZE_REASON,
}


@dataclass(frozen=True)
class Decision:
    """One thing that was decided: what, its value, and one sentence why."""

    name: str
    value: str
    reason: str


_PROBED = ("image-classification", "text-classification")
"""Tasks for which 'kdcli models probe' ranks teachers, where each sample has one class."""
_SUPERVISED_OF_REFILLED = SupervisedOptions(label_smoothing=0)  # the authors' code smooths no labels
# The authors' factor of 100 lets the student collapse where data are few (recipes/claims); a ratio is safe.
_LOCAL_CLASSIFIER = LocalClassifierOptions(weight=1.0, weighting="gradient")
_REFILLED_REASONS = {
    "stochastic_triplet_kl": "The teacher's comparisons of the triplets that are hard for the student shape its features;"
    " no label's name is read, only which images are of one class.",
    "supervised": "The labels of the data, beside the teacher's view of them.",
    "local_classifier_kl": "The teacher's similarities to the centres of the classes in a batch take the place of logits"
    " that it may not have. Its gradient is as large as that of the labels at the student's logits; the authors' factor of"
    " 100 can be too much for few images.",
}
_NEAREST_MEANS = Decision(
    "best student",
    "by the accuracy of nearest class means (ncm_accuracy)",
    "No method trains the classifier, which stays as it is at the start: each validation image goes to the class whose"
    " mean embedding over the labelled training images, without augmentation, is nearest.",
)


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before training starts.

    Attributes:
        relation: the teacher's task against the student's.
        label_map: the teacher's class of each of the student's classes, or None.
        methods: the losses with their weights and options.
        embedding: the stage before, with its own; None without one.
        decisions: in the order in which they are shown.
        unread: features of the student's that are distilled although its classifier reads others.
        teacher_metrics: of the teacher itself on validation samples, before the first step; None where it was not measured.
        teacher_samples: on how many, where it is not the whole split.
        teacher_probe: what its features tell of the classes, see :mod:`kdcli.training.teachers.probe`; None where that was not asked.
    """

    relation: Relation
    label_map: tuple[int, ...] | None
    methods: tuple[MethodOptions, ...]
    embedding: EmbeddingConfig | None
    decisions: tuple[Decision, ...]
    unread: tuple[str, ...] = ()
    teacher_metrics: Mapping[str, float] | None = None
    teacher_samples: int | None = None
    teacher_probe: Mapping[str, Any] | None = None

    def with_decisions(self, decisions: Sequence[Decision]) -> Plan:
        """Return the plan with more decisions at its end."""
        return replace(self, decisions=(*self.decisions, *decisions))

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return ``config`` with the plan's methods written out: it gives the same plan again."""
        chosen: dict[str, Any] = {"methods": self.methods, "projector": "auto", "normalize": "auto"}
        chosen |= {"feature_layers": None, "feature_weight": None, "method": None, "embedding": self.embedding}
        return config.model_copy(update=chosen)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``plan.json``."""
        return {
            "relation": self.relation,
            "label_map": self.label_map,
            "methods": [options.model_dump(mode="json") for options in self.methods],
            "embedding": None if self.embedding is None else self.embedding.model_dump(mode="json"),
            "unread": list(self.unread),
            "teacher_metrics": None if self.teacher_metrics is None else finite(self.teacher_metrics),
            "teacher_samples": self.teacher_samples,
            "teacher_probe": None if self.teacher_probe is None else dict(self.teacher_probe),
            "decisions": [asdict(decision) for decision in self.decisions],
        }


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
    if relation == "cross" and has_classes and data.task in _PROBED:
        option = "" if data.noun == "image" else f" --task {data.task}"
        relation_reason += f" 'kdcli models probe{option}' compares what the features of this teacher and of others know of your classes."
    _check_label_free(relation, relation_reason, teacher, data)
    decisions = [Decision("relation", relation, relation_reason)]
    reasons: dict[str, str] = {}
    if config.method == "refilled":
        config = _choose_refilled(config, teacher)
        decisions.append(_describe_refilled(relation, teacher, data))
        reasons = _REFILLED_REASONS
    stage = config.embedding
    if config.methods is not None:
        _refuse_overrides(config)
        methods = _with_taps(config.methods, teacher, student)
        method_decisions = [_describe_method(m, reasons.get(m.method, "Asked for by the config.")) for m in methods]
    elif config.method is not None:
        methods, method_decisions = _one_method(config, config.method, relation, teacher, student, data, layers)
    else:
        methods, method_decisions = _choose_methods(config, relation, label_map, teacher, student, data, layers)
    stages = {"methods": methods}
    if stage is not None:
        stage = stage.model_copy(update={"methods": _with_taps(stage.methods, teacher, student)})
        stages["embedding.methods"] = stage.methods
    for key, losses in stages.items():
        _check_methods(key, losses, config, teacher, student, data, label_map, evidence)
    _check_stages(stages, teacher)
    if stage is not None:
        decisions += _describe_stage(config, stage, reasons, teacher, student)
    decisions += method_decisions
    for options in methods:
        decisions += _describe_taps(options, teacher, student)
    if data.label_kind != "none" and not any(options.trains_classifier for options in methods):
        decisions.append(_NEAREST_MEANS)
    decisions += _describe_extent(methods)
    decisions += _describe_models(config, teacher, student, data, latencies)
    unread = [pair.student for options in methods for pair in options.pairs if _is_unread(options, pair, student)]
    return Plan(relation, label_map, methods, stage, tuple(decisions), unread=tuple(dict.fromkeys(unread)))


def _check_label_free(relation: Relation, reason: str, teacher: ModelFacts | None, data: DataFacts) -> None:
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
        for option, given in _feature_options(config):
            raise UserError(f"{option} {given} needs a teacher, and --teacher is none.", "Drop it or name a teacher.")
        spectral = SpectralOptions()
        methods.append(spectral)
        decisions.append(
            _describe_method(spectral, "Without a teacher the student's least significant directions are suppressed.")
        )
        return tuple(methods), decisions

    if config.projector == "none":
        if config.normalize not in ("auto", "none"):
            raise UserError(
                f"--normalize {config.normalize} acts on projected features, and --projector is none.",
                "Drop one of them.",
            )
        for option, given in _feature_options(config):
            raise UserError(f"{option} {given} is about features, and --projector is none.", "Drop one of them.")
        decisions.append(Decision("projector", "none", "Asked for: no feature distillation."))
    else:
        projection, reasons = _choose_projection(config, relation, teacher, data)
        pairs = config.feature_layers or (_default_pair(student, data, layers),)
        methods += _by_pair(projection, pairs)
        decisions += reasons
        if config.feature_layers is None:
            decisions += _describe_layers(data, layers)
    if relation == "same" and label_map is not None:
        logit_kd = LogitKDOptions()
        methods.append(logit_kd)
        asserted = " (you say so)" if config.relation == "same" else ""
        decisions.append(_describe_method(logit_kd, f"Both models have logits over the same labels{asserted}."))
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
    for option, value in [*(pair for pair in given if pair[1] != "auto"), *_feature_options(config)]:
        raise UserError(f"{option} {value} has no effect: REFILLED has no projector.", f"Drop {option}, or --method.")
    stage = config.embedding or EmbeddingConfig(epochs=config.train.epochs)
    return config.model_copy(
        update={"method": None, "methods": (_SUPERVISED_OF_REFILLED, _LOCAL_CLASSIFIER), "embedding": stage}
    )


def _describe_refilled(relation: Relation, teacher: ModelFacts | None, data: DataFacts) -> Decision:
    reason = (
        "Asked for: it compares images and classes with one another, so the teacher's classes may be yours or others"
    )
    if teacher is not None and teacher.label_names is not None:
        shared = num_shared_labels(teacher, data)
        reason += f"; {shared} of your {len(data.class_names)} are among its {teacher.num_classes}"
    if relation == "random":
        reason += ". This teacher is untrained: its relations are those of random features, so expect little of it"
    return Decision("method", "REFILLED: features by triplets, then the classifier by class centres", f"{reason}.")


def _describe_stage(
    config: RunConfig,
    stage: EmbeddingConfig,
    reasons: Mapping[str, str],
    teacher: ModelFacts | None,
    student: ModelFacts,
) -> list[Decision]:
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
        described = _describe_method(options, reasons.get(options.method, "Asked for by the config."))
        told = [described, *_describe_taps(options, teacher, student)]
        decisions += [replace(decision, name=f"embedding {decision.name}") for decision in told]
    return decisions


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
    options = SupervisedOptions() if is_smooth else SupervisedOptions(label_smoothing=0.0)
    reason = f"{data.num_labelled} of {data.num_train} training {data.noun}s have labels."
    if data.label_kind == "tokens":
        reason = "The texts' own tokens are what is predicted."
    return [options], [_describe_method(options, reason)]


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
    _check_projector(config, name, section)
    needs_teacher = name == "log_sum" or (section is not None and section.needs_teacher)
    if needs_teacher != (teacher is not None):
        wants = "needs a teacher, and --teacher is none" if needs_teacher else "uses no teacher, and one is named"
        raise UserError(
            f"--method {name} {wants}.", "Name one with --teacher." if needs_teacher else "Use --teacher none."
        )
    takes_layers = name in ("projection", "log_sum") or (section is not None and issubclass(section, LayerOptions))
    for option, given in _feature_options(config) if not takes_layers or not needs_teacher else ():
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
            decisions += _describe_layers(data, layers)
    elif name == "log_sum":
        projection = _weighted(_LOG_SUM, config)
        if config.projector == "inverted":
            projection = projection.model_copy(update={"projector": "inverted", "lr_scale": _INVERTED.lr_scale})
        elif config.projector != "auto":
            projection = projection.model_copy(update={"projector": config.projector})
        chosen = _by_pair(projection, pairs)
        decisions.append(_describe_method(projection, f"{asked} {_STANDARDIZE_REASON}"))
    elif section is not None:
        options = section()
        if config.projector != "auto":  # the paper's weight is for other features than the standardised ones
            weight = _DEFAULT_PROJECTION[_setting(relation, teacher, data)].weight
            ratio = {"weight": weight, "weighting": "gradient"} if labels else {}
            options = section(projector=config.projector, **ratio)
            asked += f" {_STANDARDIZE_REASON}"
        options = _with_rate(_with_layers(_weighted(options, config), pairs, teacher, student))
        if options.weighting == "gradient":
            asked += _WEIGHTING_REASON.format(weight=options.weight)
        chosen = [options]
        decisions.append(_describe_method(options, asked))
    return (*labels, *chosen), decisions


def _check_projector(config: RunConfig, name: str, section: Any) -> None:
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


def _describe_layers(data: DataFacts, layers: LayerScores | None) -> list[Decision]:
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


def _with_rate(options: MethodOptions) -> MethodOptions:
    """Return ``options`` with the learning rate of its projector written out, where it is left to the plan."""
    if not isinstance(options, LayerOptions) or options.projector is None or options.lr_scale is not None:
        return options
    return options.model_copy(update={"lr_scale": _INVERTED.lr_scale if options.projector == "inverted" else 1.0})


def _feature_options(config: RunConfig) -> list[tuple[str, str]]:
    """Return the options about features that were given, with their values."""
    pairs = " ".join(f"{pair.student}:{pair.teacher}" for pair in config.feature_layers or ())
    given = [("--feature-layers", pairs)] if pairs else []
    return given + ([("--feature-weight", f"{config.feature_weight:g}")] if config.feature_weight is not None else [])


def _setting(relation: Relation, teacher: ModelFacts | None, data: DataFacts) -> str:
    """Return the key of ``_DEFAULT_PROJECTION``."""
    return _OTHER_CLASSES if relation == "cross" and teacher is not None and teacher.task == data.task else relation


def _choose_projection(
    config: RunConfig, relation: Relation, teacher: ModelFacts | None, data: DataFacts
) -> tuple[ProjectionOptions, list[Decision]]:
    setting = _setting(relation, teacher, data)
    default = _DEFAULT_PROJECTION[setting]
    if data.label_kind == "none":  # nothing to be in proportion to
        default = default.model_copy(update={"weighting": "loss", "weight": 1.0})
    chosen, reason, normalize_reason = default, _PROJECTOR_REASON[setting], _NORMALIZE_REASON[setting]
    if config.projector not in ("auto", default.projector):
        projector: ProjectorName = config.projector  # type: ignore[assignment]  # "none" is handled by the caller
        # Weight, rate and normalisation belong to the projector that they were found for.
        family = "cross" if projector == "inverted" else _OTHER_CLASSES if setting == _OTHER_CLASSES else "same"
        chosen = _DEFAULT_PROJECTION[family].model_copy(
            update={"projector": projector, "weight": default.weight, "weighting": default.weighting}
        )
        normalize_reason = _NORMALIZE_REASON[family]
        reason = f"Asked for; the relation {relation} would take {default.projector}."
    if config.normalize not in ("auto", chosen.normalize):
        normalize: NormalizeName = config.normalize  # type: ignore[assignment]  # nor is "auto" left
        normalize_reason = f"Asked for; otherwise it would be {chosen.normalize}."
        chosen = chosen.model_copy(update={"normalize": normalize})
    if config.feature_weight is not None:
        reason += f" The weight was asked for; otherwise it would be {chosen.weight:g}."
        chosen = chosen.model_copy(update={"weight": config.feature_weight})
    if chosen.weighting == "gradient":
        reason += _WEIGHTING_REASON.format(weight=chosen.weight)
    sides = f"teacher {chosen.normalize}, student {chosen.normalize_student}"
    return chosen, [_describe_method(chosen, reason), Decision("normalisation", sides, normalize_reason)]


def _refuse_overrides(config: RunConfig) -> None:
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
    for option, given in _feature_options(config):
        raise UserError(
            f"{option} {given} has no effect: this config writes out its own methods.",
            "Set weight and layers (of a projection student_tap and teacher_tap) there, or drop the methods key.",
        )


def _check_stages(stages: Mapping[str, Sequence[MethodOptions]], teacher: ModelFacts | None) -> None:
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


def _check_methods(
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
        if options.needs_distillation_head and not student.distillation_head:
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
        elif data.label_kind == "tokens" and data.task == "causal-lm" and options.reads_logits:
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


def _describe_method(options: MethodOptions, reason: str) -> Decision:
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


def _describe_taps(options: MethodOptions, teacher: ModelFacts | None, student: ModelFacts) -> list[Decision]:
    decisions = []
    for pair in options.pairs:
        sides = [_describe_tap(options, "student", pair.student, student)] if options.reads_student else []
        if options.needs_teacher and teacher is not None:
            sides.append(_describe_tap(options, "teacher", pair.teacher, teacher))
        reason = "Width in brackets; averaged over positions, but for embedding, the classifier's input."
        if isinstance(student.preprocessing, TextPreprocessing):
            reason = "Width in brackets; pooled is each model's own embedding of a text, layers are averaged over its tokens."
            if student.preprocessing.pooling == "none":
                of = "each word's first token" if student.task == "token-classification" else "each token"
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
        if _is_unread(options, pair, student):
            reason += (
                f" The student's classifier reads embedding, not {pair.student}: layers lie between the two, or they are of other"
                f" positions. --feature-layers embedding:{pair.teacher} distils what it reads."
            )
        value = " -> ".join(reversed(sides) if getattr(options, "projector", "") == "inverted" else sides)
        decisions.append(Decision(f"features: {options.method.replace('_', ' ')}", value, reason))
    return decisions


def _is_unread(options: MethodOptions, pair: FeaturePair, student: ModelFacts) -> bool:
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


def _describe_extent(methods: Sequence[MethodOptions]) -> list[Decision]:
    """Say that the teacher stops at its last tapped layer, where it does."""
    taps = {pair.teacher for options in methods if options.needs_teacher for pair in options.pairs}
    if not taps or taps & {"pooled", "embedding"} or any(options.reads_logits for options in methods):
        return []
    return [
        Decision("teacher runs", f"up to {', '.join(sorted(taps))}", "Nothing after its last tapped layer is read.")
    ]


def _describe_models(
    config: RunConfig,
    teacher: ModelFacts | None,
    student: ModelFacts,
    data: DataFacts,
    latencies: tuple[float, float] | None,
) -> list[Decision]:
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
    unit = "tokens" if facts.task in LANGUAGE_MODELING else "classes"
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
