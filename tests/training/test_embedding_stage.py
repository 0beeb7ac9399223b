"""REFILLED and its embedding stage in config and plan: what is decided, written out and refused."""

import dataclasses

import pytest

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ModelFacts, Preprocessing
from kdcli.config.parse import parse_config
from kdcli.config.training import OptimConfig
from kdcli.plan.decide import make_plan
from kdcli.plan.relation import situation_of

PREPROCESSING = Preprocessing((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LABELS = ("cat", "dog", "tree frog")
DATA = DataFacts("photos", "image-classification", LABELS, 90, 90, 10, 20)
STUDENT = ModelFacts(
    name="timm:resnet18", library="timm", task="image-classification", pretrained=False, weights="untrained",
    num_classes=3, label_names=LABELS, feature_dims={"pooled": 64, "embedding": 96}, preprocessing=PREPROCESSING,
    num_parameters=1000, macs=10_000, activation_bytes=2**20,
)  # fmt: skip
TEACHER = dataclasses.replace(STUDENT, name="timm:resnet50", pretrained=True, weights="hub")
TRIPLETS = {"method": "stochastic_triplet_kl"}
CENTRES = {"method": "local_classifier_kl"}
SUPERVISED = {"method": "supervised"}


def config(**values):
    return parse_config({"teacher": "t", "student": "s", "data": "d", **values}, source="test")


def plan(teacher=TEACHER, **values):
    values = {"teacher": "none", **values} if teacher is None else values
    return make_plan(situation_of(config(**values), teacher=teacher, student=STUDENT, data=DATA))


def decision(plan, name):
    (found,) = [decision for decision in plan.decisions if decision.name == name]
    return found


TEACHERS = {
    "same": (TEACHER, "3 of your 3"),
    "partly other": (dataclasses.replace(TEACHER, label_names=("car", "dog", "Tree_Frog")), "2 of your 3"),
    "cross": (dataclasses.replace(TEACHER, num_classes=2, label_names=("car", "bus")), "0 of your 3"),
    "random": (dataclasses.replace(TEACHER, pretrained=False, label_names=None), "expect little of it"),
    "no head": (dataclasses.replace(TEACHER, num_classes=0, label_names=None, feature_dims={"pooled": 64}), "others."),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_refilled_has_two_stages_with_any_teacher(kind):
    teacher, reason = TEACHERS[kind]
    made = plan(teacher, method="refilled", train={"epochs": 7})
    assert [options.method for options in made.methods] == ["supervised", "local_classifier_kl"]
    assert [options.method for options in made.embedding.methods] == ["stochastic_triplet_kl"]
    assert made.embedding.epochs == 7
    tap = "pooled" if kind == "no head" else "embedding"
    triplets, centres = made.embedding.methods[0], made.methods[1]
    assert (triplets.student_tap, triplets.teacher_tap, centres.teacher_tap) == ("embedding", tap, tap)
    assert (triplets.temperature, triplets.weight, triplets.mining, triplets.margin) == (4, 500, "semi_hard", 0.2)
    assert (centres.temperature, centres.weight, centres.weighting, centres.centers) == (2, 1, "gradient", "local")
    assert reason in decision(made, "method").reason
    assert "as many steps as both stages" in decision(made, "training").reason
    assert "14 epochs" in decision(made, "training").reason
    assert all(found.reason for found in made.decisions if found.name != "data")
    assert decision(made, "embedding loss: stochastic triplet kl").value.startswith("weight 500")


def test_the_resolved_config_gives_the_same_plan_again():
    asked = config(method="refilled", embedding={"epochs": 3, "methods": [{**TRIPLETS, "mining": "tuples"}]})
    made = make_plan(situation_of(asked, teacher=TEACHER, student=STUDENT, data=DATA))
    resolved = made.resolve(asked)
    assert resolved.method is None
    again = make_plan(situation_of(resolved, teacher=TEACHER, student=STUDENT, data=DATA))
    assert (again.methods, again.embedding) == (made.methods, made.embedding)
    assert again.embedding.methods[0].mining == "tuples"
    assert made.to_json()["embedding"]["epochs"] == 3


def test_each_stage_can_stand_alone():
    first = plan(embedding={"epochs": 2}, methods=[SUPERVISED])
    assert [options.method for options in first.embedding.methods] == ["stochastic_triplet_kl"]
    second = plan(methods=[SUPERVISED, CENTRES])
    assert second.embedding is None
    only = plan(methods=[TRIPLETS])
    assert "ncm_accuracy" in decision(only, "best student").value
    assert not [found for found in first.decisions if found.name == "best student"]


def test_the_stage_of_a_plan_that_chooses_its_losses():
    made = plan(embedding={"epochs": 2, "methods": [{"method": "projection", "projector": "linear"}]})
    assert [options.method for options in made.methods] == ["supervised", "projection", "logit_kd"]
    assert made.embedding.methods[0].projector == "linear"


def test_a_margin_is_not_shown_where_there_is_none():
    made = plan(methods=[SUPERVISED, {**TRIPLETS, "mining": "nearest_farther"}])
    assert "margin" not in decision(made, "loss: stochastic triplet kl").value


INVERTED = {"method": "projection", "projector": "inverted"}


@pytest.mark.parametrize(
    ("teacher", "values", "problem"),
    [
        (None, {"method": "refilled"}, "--method refilled needs a teacher"),
        (None, {"embedding": {"epochs": 1}}, "embedding.methods: stochastic_triplet_kl needs a teacher"),
        (None, {"methods": [SUPERVISED, CENTRES]}, "methods: local_classifier_kl needs a teacher"),
        (TEACHER, {"method": "refilled", "methods": [SUPERVISED]}, "writes out its own methods"),
        (TEACHER, {"method": "refilled", "projector": "linear"}, "--projector linear has no effect"),
        (TEACHER, {"method": "refilled", "normalize": "whiten"}, "--normalize whiten has no effect"),
        (TEACHER, {"method": "refilled", "feature_weight": 2}, "--feature-weight 2 has no effect"),
        (TEACHER, {"method": "refilled", "feature_layers": ["pooled:pooled"]}, "--feature-layers pooled:pooled has no"),
        (
            TEACHER,
            {"method": "refilled", "augment": {"mixup": 0.2}},
            "methods: local_classifier_kl takes each image for what it is",
        ),
        (
            TEACHER,
            {"methods": [TRIPLETS], "augment": {"cutmix": 1}},
            "^methods: stochastic_triplet_kl takes each image",
        ),
        (
            TEACHER,
            {"methods": [SUPERVISED], "embedding": {"epochs": 1}, "augment": {"cutmix": 1}},
            "embedding.methods: stochastic_triplet_kl takes each image",
        ),
        (TEACHER, {"embedding": {"epochs": 1, "methods": []}}, "embedding.methods is an empty list"),
        (TEACHER, {"embedding": {"epochs": 1, "methods": [SUPERVISED]}}, "supervised trains the classifier"),
        (TEACHER, {"embedding": {"epochs": 1, "methods": [INVERTED]}}, "trivial optimum"),
        (
            TEACHER,
            {"embedding": {"epochs": 1, "methods": [{**TRIPLETS, "teacher_tap": "pooledd"}]}},
            "Did you mean pooled",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(teacher, values, problem):
    with pytest.raises(UserError, match=problem) as error:
        plan(teacher, **values)
    assert error.value.hint


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"method": "refilld"}, "method: 'refilld' is not one of"),
        ({"embedding": {"methods": []}}, "embedding.epochs: missing"),
        ({"embedding": {"epochs": -1}}, "embedding.epochs: input should be greater"),
        ({"embedding": {"epochs": 1, "epoch": 1}}, "embedding.epoch: unknown key. Did you mean epochs"),
        (
            {"embedding": {"epochs": 1, "methods": [{**TRIPLETS, "margn": 1}]}},
            "embedding.methods.0.margn: unknown key. Did you mean margin",
        ),
        (
            {"embedding": {"epochs": 1, "methods": [{"method": "stochastic_triplets"}]}},
            "embedding.methods.0.method: .*Did you mean stochastic_triplet_kl",
        ),
        ({"methods": [{**TRIPLETS, "mining": "hard"}]}, "methods.0.mining: 'hard' is not one of"),
        ({"methods": [{**CENTRES, "centers": "globl"}]}, "methods.0.centers: 'globl' .*Did you mean global"),
    ],
)
def test_a_wrong_value_is_told_by_its_key(values, problem):
    with pytest.raises(UserError, match=problem):
        config(**values)


def test_the_stage_is_a_run_of_its_own_and_a_baseline_gets_the_steps_of_both():
    whole = config(methods=[SUPERVISED], embedding={"epochs": 3, "optim": {"lr": 0.5}}, train={"epochs": 4}, seed=8)
    stage, alone = whole.embedding_stage(), whole.alone()
    assert (stage.train.epochs, stage.optim, stage.seed, stage.embedding) == (3, OptimConfig(lr=0.5), 8, None)
    assert [options.method for options in stage.methods] == ["stochastic_triplet_kl"]
    assert (alone.train.epochs, alone.embedding, alone.teacher.name) == (7, None, "none")
    assert config(methods=[SUPERVISED], embedding={"epochs": 3}, optim={"lr": 0.1}).embedding_stage().optim.lr == 0.1
