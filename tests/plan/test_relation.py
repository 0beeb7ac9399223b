"""Labels of the data among those of the teacher: how many, by which name, and where no name tells."""

import dataclasses

import pytest
from timm.data import ImageNetInfo

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, ModelFacts, Preprocessing
from kdcli.base.tasks import TASKS, TEACHERS_TASKS, find_task
from kdcli.models.imagenet import aliases_of
from kdcli.plan.decide import make_plan
from kdcli.plan.relation import describe_shared, find_relation, situation_of

IDS, WORDS = (tuple(getattr(ImageNetInfo("imagenet-1k"), kind)()) for kind in ("label_names", "label_descriptions"))


def model(label_names, *, num_classes=None):
    return ModelFacts(
        name="timm:m", library="timm", task="image-classification", pretrained=True, weights="hub",
        num_classes=num_classes or len(label_names), label_names=label_names, feature_dims={"pooled": 8, "embedding": 8},
        preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), num_parameters=1, macs=1, activation_bytes=1,
        label_aliases=aliases_of(label_names),
    )  # fmt: skip


def data(*names):
    return DataFacts("photos", "image-classification", names, 90, 90, 10, 20)


@pytest.mark.parametrize("label_names", [IDS, WORDS], ids=["ids", "words"])
@pytest.mark.parametrize(
    ("names", "places"),
    [
        (("n02123045", "n01440764"), (281, 0)),
        (("n02085620-Chihuahua", "n02123045_tabby"), (151, 281)),
        (("tabby, tabby cat", "tench, Tinca tinca"), (281, 0)),
        (("Tabby", "TENCH", "golden_retriever"), (281, 0, 207)),
        (("tabby cat", "Tinca tinca"), (281, 0)),
    ],
)
def test_labels_of_imagenet_are_found_by_id_and_by_words(label_names, names, places):
    """Whether the model carries ids, as timm's do, or words, as transformers' do; places are ImageNet's own."""
    evidence = find_relation(model(label_names), data(*names))
    assert (evidence.relation, evidence.label_map) == ("same", places)
    assert f"All your {len(names)} labels are among the teacher's 1000" in evidence.reason


@pytest.mark.parametrize("label_names", [IDS, WORDS], ids=["ids", "words"])
@pytest.mark.parametrize("name", ["crane", "cardigan", "maillot", "unicorn", "n02123045n", "n99999999"])
def test_what_is_two_things_or_none_is_not_found(label_names, name):
    """ImageNet has two cranes, two maillots, and a cardigan beside a Cardigan."""
    evidence = find_relation(model(label_names), data("tabby", name))
    assert (evidence.relation, evidence.label_map) == ("cross", None)
    assert "1 of your 2 labels is among the teacher's 1000" in evidence.reason


@pytest.mark.parametrize("names", [("-1", "1"), ("A", "a"), ("C", "C-"), ("a_b", "a b")])
def test_names_that_differ_in_signs_or_case_alone_are_put_in_order(names):
    evidence = find_relation(model(names[::-1]), data(*names))
    assert (evidence.relation, evidence.label_map) == ("same", (1, 0))
    assert find_relation(model(names), data(*names)).label_map == (0, 1)
    assert find_relation(model((f"{names[0]} ", names[1])), data(*names)).relation == "cross"


def test_two_labels_of_one_class_are_not_told_apart():
    assert find_relation(model(IDS), data("tabby", "tabby cat")).relation == "cross"


def test_names_in_another_order_are_found_whatever_their_synonyms():
    """In a label space of the same size whole names come first."""
    evidence = find_relation(model(("cat, wild", "cat")), data("cat", "cat, wild"))
    assert evidence.label_map == (1, 0)


def test_logits_of_a_part_of_the_teachers_classes_are_distilled():
    config = {"teacher": "m", "student": "s", "data": "photos"}
    from kdcli.config.parse import parse_config

    student = dataclasses.replace(model(("tench", "tabby")), pretrained=False)
    made = make_plan(
        situation_of(parse_config(config, source="t"), teacher=model(IDS), student=student, data=data("tench", "tabby"))
    )
    assert (made.relation, made.label_map) == ("same", (0, 281))
    assert "logit_kd" in [options.method for options in made.methods]
    (decision,) = (decision for decision in made.decisions if decision.name == "relation")
    assert "a softmax over them" in decision.reason


@pytest.mark.parametrize(
    ("task", "heads", "shown", "head"),
    [
        ("edge-detection", ("logits",), "cross: other task (edge detection)", "edge detection at every position"),
        ("text-detection", ("logits",), "cross: other task (text detection)", "text detection at every position"),
        ("image-embedding", (), "cross: other task (image embedding)", "no head"),
    ],
)
def test_a_teacher_of_another_task_is_called_what_it_is(task, heads, shown, head):
    from kdcli.config.parse import parse_config

    teacher = dataclasses.replace(model(None, num_classes=1), task=task, num_classes=0, heads=heads)
    student = dataclasses.replace(model(("a", "b")), pretrained=False)

    def plan(**values):
        config = parse_config({"teacher": "m", "student": "s", "data": "photos", **values}, source="t")
        return make_plan(situation_of(config, teacher=teacher, student=student, data=data("a", "b")))

    made = plan()
    told = {decision.name: decision for decision in made.decisions}
    assert (made.relation, made.label_map, told["relation"].value) == ("cross", None, shown)
    assert told["relation"].reason.startswith(
        f"The teacher is for {task.replace('-', ' ')}, the data are for image classification."
    )
    assert told["teacher"].value.endswith(head)
    with pytest.raises(UserError, match="needs one label space"):
        plan(relation="same")


def test_tasks_of_teachers_alone_are_found_and_not_listed():
    assert not set(TEACHERS_TASKS) & set(TASKS)
    for name in TEACHERS_TASKS:
        assert TASKS[name].name == name
        with pytest.raises(UserError, match="only teachers are for"):
            find_task(name)


@pytest.mark.parametrize(
    ("teacher", "names", "told"),
    [
        (model(IDS), ("tabby", "unicorn", "crane"), "1 of your 3 labels is among the teacher's 1000"),
        (model(("a", "b", "x")), ("a", "b", "c"), "2 of your 3 labels are among the teacher's 3"),
        (model(("x", "y")), ("a", "b", "c"), "None of your 3 labels are among the teacher's 2"),
        (model(None, num_classes=5), ("a", "b", "c"), "The teacher carries no label names to compare"),
    ],
)
def test_shared_labels_are_counted_where_logits_are_not_distilled(teacher, names, told):
    from kdcli.config.parse import parse_config

    student = dataclasses.replace(model(names), pretrained=False)
    config = parse_config({"teacher": "m", "student": "s", "data": "photos"}, source="t")
    made = make_plan(situation_of(config, teacher=teacher, student=student, data=data(*names)))
    assert made.relation == "cross"
    (off,) = (decision for decision in made.decisions if decision.name == "logit KD")
    assert told in off.reason
    assert told in describe_shared(teacher, data(*names))
    assert not any("no common labels" in decision.reason for decision in made.decisions)


def test_aliases_are_imagenets_alone():
    assert aliases_of(IDS) == WORDS
    assert aliases_of(WORDS) == IDS
    assert aliases_of(tuple(f"class {number}" for number in range(1000))) is None
    assert aliases_of(("n02123045", "n99999999")) is None
    assert aliases_of(None) is None
