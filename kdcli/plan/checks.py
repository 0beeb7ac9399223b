"""What does not go together, refused before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdcli.base.errors import UserError
from kdcli.base.facts import LabelKind, Queries
from kdcli.config.methods import MethodOptions
from kdcli.config.methods.defaults import Choice
from kdcli.config.run import RunConfig
from kdcli.config.situation import Situation


def check_label_free(situation: Situation, reason: str) -> None:
    """Refuse a task without labels that has no embedding space to reproduce; ``reason`` is the relation's."""
    data, relation = situation.data, situation.evidence.relation
    if data.label_kind != "none":
        return
    if situation.teacher is None:
        raise UserError(
            f"The task {data.task} has no labels: all there is to learn from is a teacher, and --teacher is none.",
            "Name a teacher, or choose another --task.",
        )
    if relation != "same":
        raise UserError(
            f"The task {data.task} is to reproduce the teacher's embedding space, but the relation is {relation}:"
            f" {reason}",
            "Name a pretrained teacher, or choose another --task; --relation same takes the space as it is.",
        )


def check_mixing(config: RunConfig, kind: LabelKind = "class") -> None:
    """Refuse mixup and cutmix where two samples can't be mixed."""
    several = kind == "classes"
    if config.task_facts.mixes and not several:
        return
    for key in ("mixup", "cutmix"):
        if getattr(config.augment, key):
            whose = "with several labels" if several else f"of the task {config.task}"
            raise UserError(
                f"augment.{key} is set, and samples {whose} can't be mixed.",
                f"Add --set augment.{key}=0.",
            )


def check_choice(situation: Situation, name: str, choice: Choice) -> None:
    """Refuse options that ``--method name`` has no use for, a teacher where it wants none, or none at all."""
    config = situation.config
    if config.projector == "none" or (config.projector != "auto" and not choice.takes_layers):
        why = choice.why_no_projector or "has no projector to choose"
        if choice.takes_layers:
            why = "is a loss on features, with a projector or without"
        raise UserError(
            f"--projector {config.projector} has no effect: --method {name} {why}.",
            "Drop --projector, or use a method on features, such as projection or fitnet.",
        )
    if config.normalize != "auto" and not choice.by_relation:
        raise UserError(
            f"--normalize {config.normalize} has no effect: --method {name} has no normalisation to choose.",
            "Drop --normalize, or use --method projection.",
        )
    if choice.needs_teacher != (situation.teacher is not None):
        wants = (
            "needs a teacher, and --teacher is none" if choice.needs_teacher else "uses no teacher, and one is named"
        )
        hint = "Name one with --teacher." if choice.needs_teacher else "Use --teacher none."
        raise UserError(f"--method {name} {wants}.", hint)
    for option, given in feature_options(config) if not (choice.takes_layers and choice.needs_teacher) else ():
        raise UserError(
            f"{option} {given} has no effect: --method {name} reads no layers of a teacher.", f"Drop {option}."
        )


def feature_options(config: RunConfig) -> list[tuple[str, str]]:
    """Return the options about features that were given, with their values."""
    pairs = " ".join(f"{pair.student}:{pair.teacher}" for pair in config.feature_layers or ())
    given = [("--feature-layers", pairs)] if pairs else []
    return given + ([("--feature-weight", f"{config.feature_weight:g}")] if config.feature_weight is not None else [])


def check_no_teacher(config: RunConfig) -> None:
    """Refuse options about distillation where there is no teacher."""
    for option, value in (("projector", config.projector), ("normalize", config.normalize)):
        if value not in ("auto", "none"):
            raise UserError(
                f"--{option} {value} needs a teacher, and --teacher is none.", f"Drop --{option} or name a teacher."
            )
    for option, given in feature_options(config):
        raise UserError(f"{option} {given} needs a teacher, and --teacher is none.", "Drop it or name a teacher.")


def check_no_features(config: RunConfig) -> None:
    """Refuse options about features where none are to be distilled."""
    if config.normalize not in ("auto", "none"):
        raise UserError(
            f"--normalize {config.normalize} acts on projected features, and --projector is none.",
            "Drop one of them.",
        )
    for option, given in feature_options(config):
        raise UserError(f"{option} {given} is about features, and --projector is none.", "Drop one of them.")


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


def check_stages(situation: Situation, stages: Mapping[str, Sequence[MethodOptions]]) -> None:
    """Check every stage by itself, that the teacher is used, and that a first stage leaves the classifier to the last.

    Args:
        situation: of the run.
        stages: the methods of each stage by the config's key, settled.
    """
    for key, methods in stages.items():
        for options in methods:
            options.check(situation.at(key))
            _check_queries(key, options, situation)
        _check_together(key, methods, situation)
    every = [options for methods in stages.values() for options in methods]
    if situation.teacher is not None and not any(options.needs.teacher for options in every):
        raise UserError(
            f"The teacher {situation.teacher.name} would not be used by any of the methods.",
            "Use --teacher none, or add a method such as projection.",
        )
    for options in stages.get("embedding.methods", ()):
        if options.trains_classifier:
            raise UserError(
                f"embedding.methods: {options.method} trains the classifier, and this stage is for features alone.",
                "Put it under methods.",
            )


def _check_queries(key: str, options: MethodOptions, situation: Situation) -> None:
    """Refuse to bring together, number by number, tokens of detectors that mean different things.

    Averaged features have no numbers. Two detectors that were trained apart find the same thing by tokens of different
    numbers, unless those of one come from the other.
    """
    if situation.teacher is None or options.reads_layers != "maps":
        return
    ours, theirs = situation.student.queries, situation.teacher.queries
    for pair in options.pairs if options.reads_student else ():
        is_ours, is_theirs = (
            queries is not None and tap in queries.taps
            for queries, tap in ((ours, pair.student), (theirs, pair.teacher))
        )
        if not (is_ours or is_theirs):
            continue
        reason = _why_not_matched(ours, theirs) if is_ours and is_theirs else "the other side has none"
        if reason:
            raise UserError(
                f"{key}: {options.method} would bring together {pair.student!r} of the student and {pair.teacher!r} of"
                f" the teacher number by number. These are tokens that boxes are read from, and {reason}.",
                "Pair maps or patch tokens in their place, such as pooled:pooled.",
            )


def _why_not_matched(ours: Queries | None, theirs: Queries | None) -> str:
    """Return why tokens of the same number have nothing in common; empty where they have."""
    assert ours is not None
    assert theirs is not None
    if ours.family != theirs.family:
        return f"tokens of {ours.family} and of {theirs.family} have nothing in common but their number"
    if ours.number != theirs.number:
        return f"the student has {ours.number} of them and the teacher {theirs.number}"
    if ours.origin == "chosen":
        return "they are chosen anew for each image, by each model's own scores"
    if not ours.keep_places and (not ours.source or ours.source != theirs.source):
        return f"{ours.family} learns them by itself: the student's would have to come from the teacher's weights"
    return ""


def _check_together(key: str, methods: Sequence[MethodOptions], situation: Situation) -> None:
    """Check that the methods of a stage train the student, all of them together."""
    if not methods:
        raise UserError(f"{key} is an empty list: there is nothing to train on.", "Drop the key, or name a method.")
    if situation.data.label_kind == "samples":
        _check_samples(key, methods)
    trains_classifier = any(options.trains_classifier for options in methods)
    parts = situation.data.labels.parts
    if parts and not trains_classifier:
        raise UserError(
            f"{key}: nothing trains what predicts the {parts}.",
            "Add supervised or logit_kd; there is no other stage.",
        )
    # Features alone are fit for nearest class means, as long as they are held by something.
    trains_features = any(options.needs.teacher for options in methods) and not any(
        options.needs.common_labels or options.can_vanish for options in methods
    )
    if not trains_features and not trains_classifier:
        raise UserError(
            f"{key}: nothing trains the student's classifier, and these features alone have a trivial optimum at zero.",
            "Add supervised or logit_kd, or standardise the student's side (normalize_student: standardize).",
        )
    if all(options.weighting == "gradient" for options in methods):
        raise UserError(
            f"{key}: the weight of {methods[0].method} is a ratio of gradients, and there is no loss that it could"
            " be in proportion to.",
            "Set weighting to loss, or add a method whose weight is a factor.",
        )


def _check_samples(key: str, methods: Sequence[MethodOptions]) -> None:
    """Refuse what compares both models on one image, and a list without anything that trains a generator."""
    for options in methods:
        if options.reads_student and options.needs.teacher:
            raise UserError(
                f"{key}: {options.method} compares what student and teacher make of one image, and a generator is given"
                " none.",
                "Match the discriminator's features instead: projector, normalize and distance of gan.",
            )
    if sum(options.trains_classifier for options in methods) != 1:
        raise UserError(f"{key}: a generator is trained by one discriminator.", "Name gan once.")
