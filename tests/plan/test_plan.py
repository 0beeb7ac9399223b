"""The plan follows the design's table; every override that can't work is refused with the reason."""

import dataclasses

import pytest

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ModelFacts, Preprocessing
from kdcli.base.text import human_count
from kdcli.config.methods.defaults import OTHER_CLASSES, SEEN
from kdcli.config.parse import parse_config
from kdcli.plan.decide import make_plan
from kdcli.plan.describe import describe_costs
from kdcli.plan.relation import find_relation, situation_of

PREPROCESSING = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LABELS = ("cat", "dog", "tree frog")
DATA = DataFacts("photos", "image-classification", LABELS, 90, 90, 10, 20)
STUDENT = ModelFacts(
    name="timm:resnet18", library="timm", task="image-classification", pretrained=False, weights="untrained",
    num_classes=3, label_names=LABELS, feature_dims={"pooled": 64, "embedding": 96}, preprocessing=PREPROCESSING,
    num_parameters=1000, macs=10_000, activation_bytes=2**20,
)  # fmt: skip
TEACHER = dataclasses.replace(
    STUDENT,
    name="timm:resnet50.a1_in1k",
    pretrained=True,
    weights="hub",
    feature_dims={"pooled": 128, "embedding": 128},
)


def config(**values):
    return parse_config({"teacher": "resnet50", "student": "resnet18", "data": "photos", **values}, source="test")


def plan(teacher=TEACHER, data=DATA, student=STUDENT, **values):
    if teacher is None:
        values = {"teacher": "none", **values}
    return make_plan(situation_of(config(**values), teacher=teacher, student=student, data=data))


def method(plan, name):
    return next((options for options in plan.methods if options.method == name), None)


def test_same_labels_take_the_orthogonal_projector_and_logits():
    made = plan()
    assert made.relation == "same"
    projection = method(made, "projection")
    assert (projection.projector, projection.normalize, projection.distance) == (
        "orthogonal",
        "layer_norm",
        "smooth_l1",
    )
    assert method(made, "logit_kd") is not None
    assert made.label_map == (0, 1, 2)


def test_another_label_space_takes_the_orthogonal_projector_and_no_logits():
    teacher = dataclasses.replace(TEACHER, num_classes=1000, label_names=None)
    made = plan(teacher)
    assert made.relation == "cross"
    projection = method(made, "projection")
    assert (projection.projector, projection.normalize, projection.distance) == ("orthogonal", "standardize", "mse")
    assert projection.normalize_student == "standardize"
    assert method(made, "logit_kd") is None
    assert any(d.name == "logit KD" and d.value == "off" for d in made.decisions)


def test_another_task_is_cross():
    made = plan(dataclasses.replace(TEACHER, task="image-embedding", num_classes=0))
    assert made.relation == "cross"
    assert method(made, "projection").projector == "inverted"


def test_an_untrained_teacher_is_random_whatever_its_labels():
    made = plan(dataclasses.replace(TEACHER, pretrained=False))
    assert made.relation == "random"
    assert method(made, "projection").projector == "inverted"
    assert method(made, "logit_kd") is None


def test_without_a_teacher_the_labels_are_alone():
    made = plan(None)
    assert made.relation == "none"
    assert [m.method for m in made.methods] == ["supervised"]
    (off,) = [decision for decision in made.decisions if decision.name == "spectral regularisation"]
    assert off.value == "off"
    assert "--method spectral_regularization" in off.reason


@pytest.mark.parametrize(
    ("teacher", "relation"),
    [
        (TEACHER, "same"),
        (dataclasses.replace(TEACHER, num_classes=1000, label_names=None), OTHER_CLASSES),
        (dataclasses.replace(TEACHER, task="image-embedding", num_classes=0), "cross"),
        (dataclasses.replace(TEACHER, pretrained=False), "random"),
    ],
)
def test_what_its_defaults_came_to_in_the_bench_is_said(teacher, relation):
    (seen,) = (decision for decision in plan(teacher).decisions if decision.name == "seen in our bench")
    assert seen.value == f"{SEEN[relation].lowest:+.1f} to {SEEN[relation].highest:+.1f} points"
    assert f"in {SEEN[relation].settings} pairs" in seen.reason


@pytest.mark.parametrize(
    "values",
    [
        {"feature_weight": 2},
        {"projector": "linear"},
        {"normalize": "whiten"},
        {"method": "logit_kd"},
        {"relation": "same"},
    ],
)
def test_of_other_plans_than_the_default_nothing_was_seen(values):
    assert "seen in our bench" not in [decision.name for decision in plan(**values).decisions]


def test_labels_in_another_order_and_spelling_are_mapped():
    evidence = find_relation(dataclasses.replace(TEACHER, label_names=("Tree_Frog", "cat", "DOG")), DATA)
    assert evidence.relation == "same"
    assert evidence.label_map == (1, 2, 0), "class 0 'cat' is the teacher's class 1, and so on"


def test_as_many_but_other_labels_are_cross_and_named():
    evidence = find_relation(dataclasses.replace(TEACHER, label_names=("cat", "dog", "car")), DATA)
    assert (evidence.relation, evidence.label_map) == ("cross", None)
    assert "tree frog" in evidence.reason


def test_labels_that_are_not_unique_are_not_mapped():
    data = dataclasses.replace(DATA, class_names=("a b", "a_b", "c"))
    assert find_relation(dataclasses.replace(TEACHER, label_names=("c", "a b", "a-b")), data).label_map is None


def test_unnamed_labels_of_the_same_number_are_taken_in_order_and_said_so():
    evidence = find_relation(dataclasses.replace(TEACHER, label_names=None), DATA)
    assert evidence.label_map == (0, 1, 2)
    assert "no label names" in evidence.reason


@pytest.mark.parametrize("teacher", [TEACHER, dataclasses.replace(TEACHER, num_classes=9), None])
def test_every_decision_has_a_one_sentence_reason(teacher):
    made = plan(teacher)
    for decision in made.decisions:
        assert decision.name
        assert decision.value
        if decision.name != "data":
            assert decision.reason, decision


def test_a_wider_student_is_said_to_lose_something():
    made = plan(student=dataclasses.replace(STUDENT, feature_dims={"pooled": 256}))
    assert "only the projector's columns are orthonormal" in " ".join(d.reason for d in made.decisions)


def test_projector_and_normalisation_can_be_overridden():
    projection = method(plan(projector="linear", normalize="whiten"), "projection")
    assert (projection.projector, projection.normalize) == ("linear", "whiten")
    assert method(plan(projector="none"), "projection") is None


def test_another_projector_brings_its_own_settings():
    crossed = dataclasses.replace(TEACHER, task="image-embedding", num_classes=0)
    linear = method(plan(crossed, projector="linear"), "projection")
    assert (linear.normalize, linear.normalize_student, linear.lr_scale, linear.weight) == (
        "layer_norm",
        "none",
        1,
        0.3,
    )
    other_classes = dataclasses.replace(TEACHER, num_classes=1000, label_names=None)
    linear = method(plan(other_classes, projector="linear"), "projection")
    assert (linear.normalize, linear.normalize_student) == ("standardize", "standardize")
    inverted = method(plan(projector="inverted"), "projection")
    assert (inverted.normalize, inverted.normalize_student, inverted.lr_scale) == ("standardize", "standardize", 0.01)


def test_relation_same_can_be_asserted_over_other_names():
    teacher = dataclasses.replace(TEACHER, label_names=("chat", "chien", "rainette"))
    made = plan(teacher, relation="same")
    assert made.label_map == (0, 1, 2)
    assert method(made, "logit_kd") is not None


WIDE_TEACHER = dataclasses.replace(TEACHER, num_classes=1000, label_names=None)
PROJECTION = {"method": "projection", "projector": "inverted"}
SUPERVISED = {"method": "supervised"}


@pytest.mark.parametrize(
    ("teacher", "values", "problem"),
    [
        (WIDE_TEACHER, {"relation": "same"}, "1000 classes, the data have 3"),
        (WIDE_TEACHER, {"projector": "none"}, "nothing is left to distil"),
        (WIDE_TEACHER, {"methods": [{"method": "logit_kd"}]}, "same labels"),
        (TEACHER, {"relation": "none"}, "does not fit"),
        (None, {"relation": "cross"}, "does not fit"),
        (None, {"projector": "linear"}, "needs a teacher"),
        (None, {"normalize": "whiten"}, "needs a teacher"),
        (None, {"methods": [PROJECTION]}, "needs a teacher"),
        (TEACHER, {"methods": [{"method": "supervised"}]}, "would not be used"),
        (TEACHER, {"methods": []}, "nothing to train on"),
        (TEACHER, {"methods": [PROJECTION]}, "nothing trains the student's classifier"),
        (TEACHER, {"methods": [PROJECTION], "projector": "linear"}, "has no effect"),
        (TEACHER, {"methods": [PROJECTION], "normalize": "whiten"}, "has no effect"),
        (TEACHER, {"projector": "none", "normalize": "whiten"}, "--projector is none"),
        (TEACHER, {"methods": [SUPERVISED, {**PROJECTION, "student_tap": "poled"}]}, "Did you mean pooled"),
        (TEACHER, {"methods": [SUPERVISED, {**PROJECTION, "teacher_tap": "layer9"}]}, "no features 'layer9'"),
    ],
)
def test_overrides_that_cannot_work_are_refused_with_the_reason(teacher, values, problem):
    with pytest.raises(UserError, match=problem) as error:
        plan(teacher, **values)
    assert error.value.hint


def test_the_resolved_config_gives_the_same_plan_again():
    asked = config(projector="linear", normalize="whiten")
    made = make_plan(situation_of(asked, teacher=TEACHER, student=STUDENT, data=DATA))
    again = make_plan(situation_of(made.resolve(asked), teacher=TEACHER, student=STUDENT, data=DATA))
    assert (again.relation, again.methods, again.label_map) == (made.relation, made.methods, made.label_map)


def test_memory_estimate_by_hand():
    """Teacher 1000 x 4 bytes, trainable 1500 x 16 bytes, activations 1 MiB x 128 images."""
    costs = {"trainable_parameters": 1500, "mixed_precision": "no", "num_samples": 20}
    _, memory, computation = describe_costs(config(), teacher=TEACHER, student=STUDENT, **costs)
    assert memory.value == f"about {(4000 + 24000 + 128 * 2**20) / 2**30:.2f} GiB"
    share = TEACHER.macs / (TEACHER.macs + 3 * STUDENT.macs)
    assert (
        computation.value
        == f"{human_count(20 * (TEACHER.macs + 3 * STUDENT.macs))} MACs an epoch, {share:.0%} of them the teacher's"
    )


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (1500, "1.50K"), (2.5e6, "2.50M"), (4.1e9, "4.10G")])
def test_human_count(number, text):
    assert human_count(number) == text


def test_feature_layers_are_distilled_pair_by_pair_with_the_weight_shared():
    teacher = dataclasses.replace(
        TEACHER, num_classes=1000, label_names=None, feature_dims={"pooled": 128, "blocks.4": 48}
    )
    made = plan(teacher, feature_layers=["pooled:blocks.4", {"student": "embedding", "teacher": "blocks.4"}])
    pairs = [options for options in made.methods if options.method == "projection"]
    assert [(options.student_tap, options.teacher_tap) for options in pairs] == [
        ("pooled", "blocks.4"),
        ("embedding", "blocks.4"),
    ]
    (one,) = [options for options in plan(teacher).methods if options.method == "projection"]
    assert [options.weight for options in pairs] == [one.weight / 2] * 2
    assert [d.value for d in made.decisions if d.name == "teacher runs"] == ["up to blocks.4"]
    assert not [d for d in plan(teacher).decisions if d.name == "teacher runs"]  # pooled is the last
    resolved = made.resolve(config(feature_layers=["pooled:blocks.4"]))
    assert resolved.feature_layers is None
    assert make_plan(situation_of(resolved, teacher=teacher, student=STUDENT, data=DATA)).methods == made.methods


def test_a_feature_weight_replaces_the_plans_and_says_so():
    made = plan(feature_weight=20)
    assert method(made, "projection").weight == 20
    (decision,) = [d for d in made.decisions if d.name == "loss: projection"]
    assert "The weight was asked for; otherwise it would be 0.5." in decision.reason
    assert make_plan(situation_of(made.resolve(config(feature_weight=20)), teacher=TEACHER, student=STUDENT, data=DATA))


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--feature-layers pooled:pooled", {"feature_layers": ["pooled:pooled"]}),
        ("--feature-weight 3", {"feature_weight": 3}),
    ],
)
@pytest.mark.parametrize(
    ("teacher", "values"),
    [
        (None, {}),
        (TEACHER, {"projector": "none"}),
        (TEACHER, {"methods": [{"method": "supervised"}, {"method": "projection", "projector": "linear"}]}),
    ],
)
def test_options_about_features_without_a_projection_of_the_plan_are_refused(option, given, teacher, values):
    with pytest.raises(UserError, match=option):
        plan(teacher, **given, **values)


GRIDS = {"pooled": (2, 2), "layer1": (8, 8), "layer2": (4, 4)}
STAGED = dataclasses.replace(
    STUDENT,
    feature_dims={"pooled": 64, "embedding": 96, "layer1": 16, "layer2": 32, "fc": 3},
    grids=GRIDS,
    stages=("layer1", "layer2"),
)
STAGED_TEACHER = dataclasses.replace(
    STAGED, name="timm:resnet50.a1_in1k", pretrained=True, grids=GRIDS | {"layer3": (2, 2)},
    feature_dims={"pooled": 128, "layer1": 32, "layer2": 64, "layer3": 128}, stages=("layer1", "layer2", "layer3"),
)  # fmt: skip


def layers_of(options):
    return [(pair.student, pair.teacher) for pair in options.layers]


def test_one_method_comes_with_the_labels_loss_and_its_layers():
    made = plan(STAGED_TEACHER, student=STAGED, method="similarity_preserving")
    assert [options.method for options in made.methods] == ["supervised", "similarity_preserving"]
    assert layers_of(made.methods[1]) == [("pooled", "pooled")]
    (features,) = [d for d in made.decisions if d.name == "features: similarity preserving"]
    assert features.value == "student pooled (64, 2x2) -> teacher pooled (128, 2x2)"
    named = plan(STAGED_TEACHER, student=STAGED, method="vid", feature_layers=["layer2:layer1"], feature_weight=3)
    assert (layers_of(named.methods[1]), named.methods[1].weight) == ([("layer2", "layer1")], 3)
    assert [d.value for d in named.decisions if d.name == "teacher runs"] == ["up to layer1"]


@pytest.mark.parametrize("method", ["review_kd", "attention_transfer", "nst", "vid"])
def test_stages_are_paired_from_the_end(method):
    made = plan(STAGED_TEACHER, student=STAGED, method=method)
    assert layers_of(made.methods[1]) == [("layer1", "layer2"), ("layer2", "layer3")]


@pytest.mark.parametrize("asked", [{"method": "review_kd"}, {"method": "log_sum"}, {"method": "projection"}])
def test_a_resolved_method_gives_the_same_plan_again_and_is_gone_alone(asked):
    given = config(**asked)
    made = make_plan(situation_of(given, teacher=STAGED_TEACHER, student=STAGED, data=DATA))
    resolved = made.resolve(given)
    assert resolved.method is None
    assert make_plan(situation_of(resolved, teacher=STAGED_TEACHER, student=STAGED, data=DATA)).methods == made.methods
    alone = given.alone()
    assert (alone.method, [options.method for options in alone.methods]) == (None, ["supervised"])


def test_log_sum_and_projection_share_their_weight_between_pairs():
    made = plan(STAGED_TEACHER, student=STAGED, method="log_sum", feature_layers=["layer1:layer1", "pooled:layer3"])
    assert [(o.projector, o.distance, o.weight, o.student_tap) for o in made.methods[1:]] == [
        ("linear", "log_sum", 0.5, "layer1"),
        ("linear", "log_sum", 0.5, "pooled"),
    ]
    chosen = plan(STAGED_TEACHER, student=STAGED, method="projection")
    assert [options.method for options in chosen.methods] == ["supervised", "projection"], "no logits"
    assert chosen.methods[1].projector == "orthogonal"


def test_layers_of_a_written_method_are_filled_in_and_checked():
    made = plan(STAGED_TEACHER, student=STAGED, methods=[SUPERVISED, {"method": "review_kd"}, {"method": "pkt"}])
    assert layers_of(made.methods[1]) == [("layer1", "layer2"), ("layer2", "layer3")]
    assert layers_of(made.methods[2]) == [("pooled", "pooled")]
    with pytest.raises(UserError, match="'fc' of timm:resnet18 has no positions"):
        plan(STAGED_TEACHER, student=STAGED, methods=[SUPERVISED, {"method": "nst", "layers": ["fc:pooled"]}])
    assert plan(STAGED_TEACHER, student=STAGED, methods=[SUPERVISED, {"method": "pkt", "layers": ["fc:pooled"]}])


def test_review_kd_refuses_layers_from_deep_to_shallow():
    wrong = {"method": "review_kd", "layers": ["layer2:layer2", "layer1:layer1"]}
    with pytest.raises(UserError, match="from shallow to deep, and the student's are layer2, layer1"):
        plan(STAGED_TEACHER, student=STAGED, methods=[SUPERVISED, wrong])
    right = {"method": "review_kd", "layers": ["layer1:layer1", "layer2:layer2"]}
    assert plan(STAGED_TEACHER, student=STAGED, methods=[SUPERVISED, right])


@pytest.mark.parametrize(
    ("teacher", "values", "problem"),
    [
        (None, {"method": "crd"}, "--method crd needs a teacher"),
        (TEACHER, {"method": "spectral_regularization"}, "uses no teacher"),
        (WIDE_TEACHER, {"method": "dist"}, "dist needs teacher and student to have the same labels"),
        (TEACHER, {"method": "deit"}, "deit needs a student with a distillation token"),
        (TEACHER, {"method": "crd", "augment": {"mixup": 0.2}}, "mixup or cutmix is on"),
        (TEACHER, {"methods": [SUPERVISED, {"method": "dkd"}], "augment": {"cutmix": 1}}, "mixup or cutmix is on"),
        (TEACHER, {"methods": [SUPERVISED, {"method": "pkt"}], "method": "pkt"}, "writes out its own methods"),
        (None, {"method": "none", "feature_weight": 2}, "reads no layers of a teacher"),
    ],
)
def test_methods_that_do_not_fit_are_refused(teacher, values, problem):
    with pytest.raises(UserError, match=problem) as error:
        plan(teacher, **values)
    assert error.value.hint


def test_a_distillation_token_is_not_the_classifier():
    with pytest.raises(UserError, match="nothing trains the student's classifier"):
        plan(student=dataclasses.replace(STUDENT, heads=("logits", "distillation")), methods=[{"method": "deit"}])


def test_hard_distillation_shows_no_temperature():
    student = dataclasses.replace(STUDENT, heads=("logits", "distillation"))
    for kind, shown in (("hard", False), ("soft", True)):
        made = plan(student=student, methods=[SUPERVISED, {"method": "deit", "kind": kind}])
        (decision,) = [d for d in made.decisions if d.name == "loss: deit"]
        assert ("temperature" in decision.value) == shown


def test_only_jensen_shannon_shows_its_beta():
    for divergence, shown in (("forward_kl", False), ("reverse_kl", False), ("jensen_shannon", True)):
        options = {"method": "logit_kd", "divergence": divergence} | ({"beta": 0.25} if shown else {})
        made = plan(methods=[SUPERVISED, options])
        (decision,) = [d for d in made.decisions if d.name == "loss: logit kd"]
        assert f"divergence {divergence}" in decision.value
        assert ("beta 0.25" in decision.value) == ("beta" in decision.value) == shown
    with pytest.raises(UserError, match="beta is for divergence: jensen_shannon"):
        plan(methods=[SUPERVISED, {"method": "logit_kd", "beta": 0.25}])


def test_compression_shows_the_latencies_that_were_measured():
    made = make_plan(situation_of(config(), teacher=TEACHER, student=STUDENT, data=DATA, latencies=(12.04, 3.0)))
    (line,) = (decision for decision in made.decisions if decision.name == "compression")
    assert "latency 12.0 ms to 3.0 ms (4.0x)" in line.value
    assert "this machine" in line.reason
    (line,) = (decision for decision in plan().decisions if decision.name == "compression")
    assert "latency" not in line.value


def test_a_student_of_embeddings_alone_has_no_operations_to_compare():
    made = plan(student=dataclasses.replace(STUDENT, macs=0))
    (line,) = (decision for decision in made.decisions if decision.name == "compression")
    assert line.value == "1.0x parameters"


def test_refilled_is_that_of_the_authors_newest_code_with_a_safe_weight():
    """No label smoothing; as many epochs for the features as for the classifier; a ratio to the labels for its factor."""
    made = plan(method="refilled", train={"epochs": 7})
    assert [(options.method, options.weight, options.weighting) for options in made.methods] == [
        ("supervised", 1, "loss"),
        ("local_classifier_kl", 1, "gradient"),
    ]
    assert made.methods[0].label_smoothing == 0
    assert (made.embedding.epochs, made.embedding.methods[0].weight) == (7, 500)


def test_what_a_teachers_library_does_and_training_does_not_is_said():
    """Squashing is for evaluation; a note stands beside it; nothing is said of a centre crop."""
    own = dataclasses.replace(PREPROCESSING, geometry="squash", note="Not as its X would: so.")
    (decision,) = (
        d for d in plan(dataclasses.replace(TEACHER, preprocessing=own)).decisions if d.name == "teacher input"
    )
    assert decision.value == "32x32 bicubic, squashed, mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)"
    assert decision.reason == (
        "Its own preprocessing. Not squashed in training, where images are random crops. Not as its X would: so."
    )
    (decision,) = (d for d in plan().decisions if d.name == "teacher input")
    assert decision.reason == "Its own preprocessing."
