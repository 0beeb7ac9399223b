"""Config, models and data -> plan: every decision of a run and its reason. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.facts import ModelFacts, Preprocessing
from kdcli.config.methods import FeaturePair, MethodOptions, find_choice
from kdcli.config.methods.defaults import (
    COMMON_LOGITS,
    DENSE_FEATURES,
    FEATURES,
    LABELS,
    MATCHED_REASON,
    MATCHED_SAMPLES,
    OTHER_CLASSES,
    PREDICTIONS_REASON,
    PROGRAMMES,
    SAME_DEPTH,
    SAME_IMAGE,
    SAMPLES,
    SAMPLES_REASON,
    SEEN,
    SEEN_DENSE,
    STANDARDIZE_REASON,
    TEACHER_FREE_REASON,
    UNPAIRED,
    UNSMOOTHED_LABELS,
    WEIGHTING_REASON,
    FeatureDefault,
    Programme,
)
from kdcli.config.run import RunConfig
from kdcli.config.situation import Situation
from kdcli.config.training import EmbeddingConfig
from kdcli.plan.checks import (
    check_choice,
    check_label_free,
    check_mixing,
    check_no_features,
    check_no_teacher,
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
    describe_programme,
    describe_stage,
    describe_taps,
    is_unread,
)
from kdcli.plan.plan import Decision, Plan
from kdcli.plan.relation import describe_shared, settle_relation, show_relation

Methods = tuple[tuple[MethodOptions, ...], list[Decision]]
"""What is trained on, with the decisions on it."""


def make_plan(situation: Situation) -> Plan:
    """Decide relation, losses, projector and normalisation.

    Raises:
        UserError: for an override that can't work; it says why.
    """
    situation, relation_reason = settle_relation(situation)
    check_label_free(situation, relation_reason)
    check_mixing(situation.config, situation.data.label_kind)
    decisions = [Decision("relation", show_relation(situation), relation_reason)]
    reasons: Mapping[str, str] = {}
    programme = PROGRAMMES.get(situation.config.method or "")
    if programme is not None:
        situation = replace(situation, config=_written_out(situation, programme))
        decisions.append(describe_programme(situation, programme))
        reasons = programme.reasons
    methods, method_decisions = _decide_methods(situation, reasons)
    stages, stage = {situation.key: methods}, situation.config.embedding
    if stage is not None:
        stage = stage.model_copy(update={"methods": _settled(stage.methods, situation)})
        stages["embedding.methods"] = stage.methods
    check_stages(situation, stages)
    if stage is not None:
        decisions += describe_stage(situation, stage, reasons)
    decisions += method_decisions
    for options in methods:
        decisions += describe_taps(options, situation)
    if situation.data.label_kind != "none" and not any(options.trains_classifier for options in methods):
        decisions.append(NEAREST_MEANS)
    decisions += describe_extent(methods)
    decisions += describe_models(situation)
    student = situation.student
    unread = [pair.student for options in methods for pair in options.pairs if is_unread(options, pair, student)]
    evidence = situation.evidence
    return Plan(
        evidence.relation, evidence.label_map, methods, stage, tuple(decisions), unread=tuple(dict.fromkeys(unread))
    )


def takes_default_layers(config: RunConfig) -> bool:
    """Return whether the plan chooses which features are distilled."""
    if config.methods is not None or config.feature_layers is not None or config.projector == "none":
        return False
    return config.method is None or find_choice(config.method).by_relation


def _decide_methods(situation: Situation, reasons: Mapping[str, str]) -> Methods:
    config = situation.config
    if config.methods is not None:
        refuse_overrides(config)
        methods = _settled(config.methods, situation)
        asked = "Asked for by the config."
        return methods, [describe_method(m, reasons.get(m.method, asked), situation) for m in methods]
    if config.method is not None:
        return _one_method(situation, config.method)
    methods, decisions = _choose_methods(situation)
    return methods, [*decisions, *_what_to_expect(situation)]


_NOTHING = ("auto", "auto", None, None)


def _asked_for(config: RunConfig) -> tuple[Any, ...]:
    """Return what the config says of the loss on features; ``_NOTHING`` where it leaves all to the plan."""
    return config.projector, config.normalize, config.feature_weight, config.feature_layers


def _what_to_expect(situation: Situation) -> list[Decision]:
    """Return what our measurements showed, where the plan is about what was measured: nothing is asked for."""
    config, kind = situation.config, situation.data.label_kind
    if _asked_for(config) != _NOTHING or config.relation != "auto":
        return []
    if kind == "class" and (seen := SEEN.get(_setting(situation))) is not None:
        return [Decision("seen in our bench", seen.value, seen.reason)]
    dense = SEEN_DENSE.get((kind, _setting(situation)))
    return [] if dense is None else [Decision("seen in our claims", dense.value, dense.reason)]


def _choose_methods(situation: Situation) -> Methods:
    """Return the methods that the relation calls for."""
    config, evidence = situation.config, situation.evidence
    if situation.data.label_kind == "samples" and situation.teacher is not None:
        return _matched_samples(situation)
    methods, decisions = _labels(situation)
    if situation.teacher is None and situation.data.label_kind == "samples":
        check_no_teacher(config)
        return tuple(methods), decisions
    if situation.teacher is None:
        check_no_teacher(config)
        return tuple(methods), [*decisions, Decision("spectral regularisation", "off", TEACHER_FREE_REASON)]
    if config.projector == "none":
        check_no_features(config)
        decisions.append(Decision("projector", "none", "Asked for: no feature distillation."))
    elif _predictions_suffice(situation):
        decisions.append(Decision("projector", "none", PREDICTIONS_REASON))
    else:
        features, reasons = _default_features(situation)
        methods += features
        decisions += reasons
    if evidence.relation == "same" and evidence.label_map is not None:
        methods.append(COMMON_LOGITS)
        asserted = " (you say so)" if config.relation == "same" else ""
        reason = f"Both models have logits over the same labels{asserted}."
        return tuple(methods), [*decisions, describe_method(COMMON_LOGITS, reason, situation)]
    if evidence.relation == "same" and situation.data.label_kind == "depth":
        options = SAME_DEPTH.settled(situation)
        methods.append(options)
        return tuple(methods), [*decisions, describe_method(options, "Both models give depth.", situation)]
    if evidence.relation == "same" and situation.data.label_kind in ("image", "unpaired"):
        methods.append(SAME_IMAGE)
        return tuple(methods), [*decisions, describe_method(SAME_IMAGE, "Both models make images.", situation)]
    why = f"The relation is {evidence.relation}: {_why_no_logits(situation)}."
    if config.projector == "none":
        raise UserError(
            f"With --projector none nothing is left to distil: the relation is {evidence.relation}, so logits can't be"
            " used.",
            "Drop --projector none, or use --teacher none.",
        )
    return tuple(methods), [*decisions, Decision("logit KD", "off", why)]


def _predictions_suffice(situation: Situation) -> bool:
    """Return whether a teacher answers at every pixel what the student is asked, and nobody asks for its features."""
    config, evidence, kind = situation.config, situation.evidence, situation.data.label_kind
    if _asked_for(config) != _NOTHING or evidence.relation != "same" or not situation.data.labels.is_dense:
        return False
    return kind == "depth" or evidence.label_map is not None


def _matched_samples(situation: Situation) -> Methods:
    """Return the loss of a task that makes samples, with the teacher's features in the discriminator."""
    config = situation.config
    if config.projector == "none":
        check_no_features(config)
        raise UserError(
            "With --projector none nothing is left to distil: the discriminator's features are what is matched to the"
            " teacher's.",
            "Drop --projector none, or use --teacher none.",
        )
    if config.feature_layers is not None:
        raise UserError(
            "--feature-layers names layers of the student, and the features that are matched are the discriminator's.",
            "Set teacher_tap of the method in a recipe.",
        )
    options = MATCHED_SAMPLES
    if config.projector != "auto":
        options = options.with_projector(config.projector, ratio=None)
    changes = {"normalize": config.normalize if config.normalize != "auto" else options.normalize}
    weight = {} if config.feature_weight is None else {"feature_weight": config.feature_weight}
    options = options.model_copy(update=changes | weight).settled(situation)
    return (options,), [describe_method(options, f"{SAMPLES_REASON} {MATCHED_REASON}", situation)]


def _why_no_logits(situation: Situation) -> str:
    relation, label_map = situation.evidence.relation, situation.evidence.label_map
    teacher, data = situation.teacher, situation.data
    assert teacher is not None
    if data.label_kind == "none":
        return "there are no labels"
    if relation == "same" and not data.has_classes:
        return "it is for samples with one class each"
    if relation == "cross" and label_map is not None:
        return "you say so, although all labels are the teacher's too"
    if relation == "cross" and teacher.task == data.task:
        return f"it needs all labels. {describe_shared(teacher, data)}".removesuffix(".")
    if relation in ("same", "cross"):
        return "there are no common labels"
    return "an untrained teacher's logits say nothing"


def _written_out(situation: Situation, programme: Programme) -> RunConfig:
    """Return the config with the programme's two stages written out."""
    config = situation.config
    if situation.teacher is None:
        raise UserError(f"--method {config.method} needs a teacher, and --teacher is none.", "Name one with --teacher.")
    if config.methods is not None:
        raise UserError(
            f"--method {config.method} has no effect: this config writes out its own methods.",
            "Drop --method, or the methods key.",
        )
    given = [(f"--{name}", getattr(config, name)) for name in ("projector", "normalize")]
    for option, value in [*(pair for pair in given if pair[1] != "auto"), *feature_options(config)]:
        raise UserError(
            f"{option} {value} has no effect: {programme.title} has no projector.", f"Drop {option}, or --method."
        )
    stage = config.embedding or EmbeddingConfig(epochs=config.train.epochs)
    return config.model_copy(update={"method": None, "methods": programme.methods, "embedding": stage})


def _settled(methods: Sequence[MethodOptions], situation: Situation) -> tuple[MethodOptions, ...]:
    """Return the methods with all written out that was left to the models."""
    return tuple(options.settled(situation) for options in methods)


def _labels(situation: Situation) -> tuple[list[MethodOptions], list[Decision]]:
    """Return the loss on the labels, where there are any."""
    data = situation.data
    if data.label_kind == "none":
        return [], []
    if data.label_kind == "samples":
        return [SAMPLES], [describe_method(SAMPLES, SAMPLES_REASON, situation)]
    if data.label_kind == "unpaired":
        unpaired = UNPAIRED.settled(situation)
        reason = "Images of two kinds without pairs: what is made has to look like the other kind, and to come back."
        return [unpaired], [describe_method(unpaired, reason, situation)]
    options = LABELS if data.labels.is_smoothed else UNSMOOTHED_LABELS
    reason = f"{data.num_labelled} of {data.num_train} training {data.noun}s have labels."
    if data.label_kind == "tokens":
        reason = "The texts' own tokens are what is predicted."
    options = options.settled(situation)
    return [options], [describe_method(options, reason, situation)]


def _one_method(situation: Situation, name: str) -> Methods:
    """Return the loss on the labels and the method that was asked for."""
    config, choice = situation.config, find_choice(name)
    check_choice(situation, name, choice)
    methods, decisions = _labels(situation)
    if choice.by_relation:
        features, reasons = _default_features(situation)
        return (*methods, *features), [*decisions, *reasons]
    if choice.options is None:
        return tuple(methods), decisions
    options, asked = choice.options, choice.reason
    if situation.data.labels.is_dense and "reads" in type(options).model_fields:
        options = options.model_copy(update={"reads": "maps"})  # labels say where in an image something is
    if config.projector != "auto" and config.projector != "none":
        # The paper's weight is for other features than the standardised ones.
        ratio = _defaults(situation)[_setting(situation)].options.weight if methods else None
        options = options.with_projector(config.projector, ratio=ratio)
        asked = STANDARDIZE_REASON
    reason = " ".join(filter(None, (f"Asked for by --method {name}.", asked)))
    options = options.with_weight(config.feature_weight)
    if options.weighting == "gradient":
        reason += WEIGHTING_REASON.format(weight=options.weight)
    decisions.append(describe_method(options.settled(situation), reason, situation))
    return (*methods, *_settled(options.with_pairs(config.feature_layers or ()), situation)), decisions


def _default_features(situation: Situation) -> Methods:
    """Return the loss on features that the relation calls for."""
    config, data = situation.config, situation.data
    chosen = _choose_features(situation)
    options = chosen.options
    sides = f"teacher {options.normalize}, student {options.normalize_student}"
    decisions = [
        describe_method(options, chosen.reason, situation),
        Decision("normalisation", sides, chosen.normalize_reason),
    ]
    if config.feature_layers is not None:
        return options.with_pairs(config.feature_layers), decisions
    if data.labels.is_dense:
        pairs, reason = _dense_pairs(situation)
        decisions.append(Decision("layers", ", ".join(f"{pair.student}:{pair.teacher}" for pair in pairs), reason))
        return options.with_pairs(pairs), decisions
    return options.with_pairs((_default_pair(situation),)), [*decisions, *describe_layers(data, situation.layers)]


def _default_pair(situation: Situation) -> FeaturePair:
    """Return the features to bring together: what the classifier reads, and what the teacher knows most by."""
    layers, has_labels = situation.layers, situation.data.label_kind != "none"
    reads = "embedding" if has_labels and "embedding" in situation.student.feature_dims else "pooled"
    return FeaturePair(student=reads, teacher="pooled" if layers is None else layers.best)


def _dense_pairs(situation: Situation) -> tuple[tuple[FeaturePair, ...], str]:
    """Return the maps to bring together, and why: the levels of two detectors, else one with enough positions."""
    student, teacher = situation.student, situation.teacher
    assert teacher is not None, "features are of two models"
    ours, theirs = (tuple(tap for tap in facts.stages if tap in facts.grids) for facts in (student, teacher))
    levels = zip(ours, theirs, strict=False)
    is_detector = situation.data.label_kind == "boxes"
    if is_detector and situation.evidence.relation == "same" and len(ours) == len(theirs) > 1:
        return tuple(FeaturePair(student=own, teacher=other) for own, other in levels), (
            "Both predict from as many levels: each has a projector of its own, as in VkD's detectors."
            " --feature-layers takes others."
        )
    if "pooled" not in student.grids:
        raise UserError(
            f"{student.name} has no map of features to distil into by itself.", "Name layers: --feature-layers."
        )
    own, why = _dense_tap(student)
    grids = {tap: teacher.grids[tap] for tap in (*theirs, "pooled") if tap in teacher.grids}
    if not grids:
        raise UserError(
            f"{teacher.name} has no map of features that kdcli finds by itself.", "Name layers: --feature-layers."
        )
    here = student.grids[own]
    positions = {tap: abs(math.log(math.prod(grid) / math.prod(here))) for tap, grid in grids.items()}
    best = min(reversed(positions), key=lambda tap: positions[tap])
    return (FeaturePair(student=own, teacher=best),), (
        f"The student's {why} has {here[0]}x{here[1]} positions; of the teacher's this one is nearest to that, with"
        f" {grids[best][0]}x{grids[best][1]}. --feature-layers takes others."
    )


def _dense_tap(student: ModelFacts) -> tuple[str, str]:
    """Return which of the student's maps takes part, and what it is.

    That is the last stage with at least a sixteenth of the image's height and width: with a thirty-second, small images
    have next to no positions left, and networks for them widen their last maps to a thousand channels and more. It is
    the one of the measurements in recipes/claims.
    """
    assert isinstance(student.preprocessing, Preprocessing), "it reads images"
    height, width = student.preprocessing.image_size
    grids = {tap: student.grids[tap] for tap in student.stages if tap in student.grids}
    fine = [tap for tap, (rows, columns) in grids.items() if 16 * rows >= height and 16 * columns >= width]
    if fine and grids[fine[-1]] != student.grids["pooled"]:
        return fine[-1], "last map with a sixteenth of the image's sides"
    return "pooled", "last map"


def _defaults(situation: Situation) -> Mapping[str, FeatureDefault]:
    """Return the losses on features by relation, for the data's kind of labels."""
    return DENSE_FEATURES if situation.data.labels.is_dense else FEATURES


def _setting(situation: Situation) -> str:
    """Return the key of ``FEATURES``."""
    relation, teacher = situation.evidence.relation, situation.teacher
    is_other = relation == "cross" and teacher is not None and teacher.task == situation.data.task
    return OTHER_CLASSES if is_other else relation


def _choose_features(situation: Situation) -> FeatureDefault:
    """Return the projection for the relation, with what was asked for in place of its own."""
    config, setting, defaults = situation.config, _setting(situation), _defaults(situation)
    default = defaults[setting].options
    if situation.data.label_kind == "none":  # nothing to be in proportion to
        default = default.model_copy(update={"weighting": "loss", "weight": 1.0})
    chosen, reason, normalize_reason = default, defaults[setting].reason, defaults[setting].normalize_reason
    if config.projector not in ("auto", "none", default.projector):
        # Weight, rate and normalisation belong to the projector that they were found for.
        family = "cross" if config.projector == "inverted" else OTHER_CLASSES if setting == OTHER_CLASSES else "same"
        chosen = defaults[family].options.model_copy(
            update={"projector": config.projector, "weight": default.weight, "weighting": default.weighting}
        )
        normalize_reason = defaults[family].normalize_reason
        reason = f"Asked for; the relation {situation.evidence.relation} would take {default.projector}."
    if config.normalize not in ("auto", chosen.normalize):
        normalize_reason = f"Asked for; otherwise it would be {chosen.normalize}."
        chosen = chosen.model_copy(update={"normalize": config.normalize})
    if config.feature_weight is not None:
        reason += f" The weight was asked for; otherwise it would be {chosen.weight:g}."
        chosen = chosen.with_weight(config.feature_weight)
    if chosen.weighting == "gradient":
        reason += WEIGHTING_REASON.format(weight=chosen.weight)
    return FeatureDefault(chosen, reason, normalize_reason)
