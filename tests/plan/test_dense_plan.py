"""The plan for dense labels: maps at every position, the teacher's nearest grid, a level each for two detectors."""

import dataclasses
from pathlib import Path

import pytest

from kdcli.base.errors import UserError
from kdcli.base.reads import DEPTH
from kdcli.config.methods.defaults import SEEN_DENSE
from kdcli.config.parse import parse_config
from kdcli.plan.decide import make_plan
from kdcli.plan.relation import situation_of
from tests.plan.test_plan import DATA, STUDENT, TEACHER, method

PIXELS = dataclasses.replace(DATA, task="semantic-segmentation", label_kind="pixels")
BOXES = dataclasses.replace(DATA, task="object-detection", label_kind="boxes")
OURS = dataclasses.replace(
    STUDENT, task=PIXELS.task, feature_dims={"pooled": 64, "low": 16}, grids={"pooled": (4, 4), "low": (8, 8)}
)
THEIRS = dataclasses.replace(
    TEACHER,
    feature_dims={"pooled": 128, "low": 32, "mid": 64},
    grids={"pooled": (2, 2), "low": (16, 16), "mid": (5, 4)},
    stages=("low", "mid"),
)


def plan(data, *, teacher=THEIRS, student=OURS, **values):
    name = "none" if teacher is None else "resnet50"
    config = parse_config(
        {"teacher": name, "student": "resnet18", "data": "photos", "task": data.task, **values}, source="test"
    )
    return make_plan(situation_of(config, teacher=teacher, student=student, data=data))


def features(made):
    return method(made, "projection")


def test_a_classifier_teaches_a_segmenter_through_the_inverted_projector_on_the_nearest_grid():
    made = plan(PIXELS)
    options = features(made)
    assert made.relation == "cross"
    assert (options.projector, options.reads, options.normalize, options.normalize_student) == (
        "inverted", "maps", "standardize", "standardize",
    )  # fmt: skip
    assert (options.student_tap, options.teacher_tap) == ("pooled", "mid")
    assert method(made, "logit_kd") is None
    told = next(decision for decision in made.decisions if decision.name == "layers")
    assert "4x4" in told.reason
    assert "5x4" in told.reason


SAME = dataclasses.replace(THEIRS, task=PIXELS.task)


def test_a_segmenter_of_the_same_classes_teaches_by_its_pixels():
    made = plan(PIXELS, teacher=SAME)
    assert features(made) is None
    assert method(made, "logit_kd") is not None
    assert next(decision for decision in made.decisions if decision.name == "projector").value == "none"


def test_a_depth_model_teaches_by_its_depth():
    depth = dataclasses.replace(DATA, task="depth-estimation", label_kind="depth", class_names=("depth",))
    student, teacher = (dataclasses.replace(facts, task=depth.task, heads=(DEPTH,)) for facts in (OURS, THEIRS))
    made = plan(depth, teacher=teacher, student=student)
    assert features(made) is None
    assert method(made, "dense_regression") is not None


@pytest.mark.parametrize(
    "asked",
    [
        {"projector": "orthogonal"},
        {"normalize": "standardize"},
        {"feature_weight": 0.5},
        {"feature_layers": ["low:low"]},
    ],
)
def test_features_of_a_segmenter_are_there_for_the_asking(asked):
    made = plan(PIXELS, teacher=SAME, **asked)
    assert (features(made).projector, features(made).reads) == ("orthogonal", "maps")
    assert method(made, "logit_kd") is not None


@pytest.mark.parametrize("teacher", [THEIRS, SAME])
def test_the_last_map_with_a_sixteenth_of_the_sides_takes_part(teacher):
    square = STUDENT.preprocessing.at((64, 64))
    student = dataclasses.replace(
        OURS,
        preprocessing=square,
        feature_dims={"low": 16, "mid": 32, "deep": 64, "pooled": 1280},
        grids={"low": (8, 8), "mid": (4, 4), "deep": (2, 2), "pooled": (2, 2)},
        stages=("low", "mid", "deep"),
    )
    (options,) = [
        found
        for found in plan(PIXELS, teacher=teacher, student=student, relation="cross").methods
        if found.method == "projection"
    ]
    assert (options.student_tap, options.teacher_tap) == ("mid", "mid")
    wide = dataclasses.replace(student, preprocessing=square.at((64, 96)))
    assert features(plan(PIXELS, teacher=teacher, student=wide, relation="cross")).student_tap == "low"
    dilated = dataclasses.replace(
        student, grids={"low": (8, 8), "mid": (4, 4), "pooled": (4, 4)}, stages=("low", "mid")
    )
    assert features(plan(PIXELS, teacher=teacher, student=dilated, relation="cross")).student_tap == "pooled"


def test_without_a_teacher_labels_are_alone_and_spectra_of_maps_for_the_asking():
    made = plan(PIXELS, teacher=None)
    assert [options.method for options in made.methods] == ["supervised"]
    assert next(decision for decision in made.decisions if decision.name == "spectral regularisation").value == "off"
    assert (
        method(plan(PIXELS, teacher=None, method="spectral_regularization"), "spectral_regularization").reads == "maps"
    )


def test_two_detectors_of_the_same_classes_meet_at_each_level():
    student, teacher = (
        dataclasses.replace(facts, task=BOXES.task, stages=("low", "pooled")) for facts in (OURS, THEIRS)
    )
    made = plan(BOXES, teacher=teacher, student=student)
    found = [options for options in made.methods if options.method == "projection"]
    assert [(options.student_tap, options.teacher_tap) for options in found] == [("low", "low"), ("pooled", "pooled")]
    assert {options.projector for options in found} == {"orthogonal"}


def test_layers_that_are_named_are_taken():
    made = plan(PIXELS, feature_layers=["low:low"])
    assert (features(made).student_tap, features(made).teacher_tap) == ("low", "low")


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_models_without_maps_are_refused(side):
    facts = {"student": OURS, "teacher": THEIRS}
    facts[side] = dataclasses.replace(facts[side], grids={})
    with pytest.raises(UserError, match="no map of features"):
        plan(PIXELS, **facts)


def test_what_was_seen_is_told_where_nothing_is_asked_for():
    def seen(made):
        return [decision.value for decision in made.decisions if decision.name.startswith("seen in our")]

    assert seen(plan(PIXELS, teacher=SAME)) == ["+0.8 to +1.1 points of mean IoU"]
    assert seen(plan(PIXELS)) == ["-0.2 to +1.1 points of mean IoU"]
    assert seen(plan(PIXELS, teacher=SAME, projector="linear")) == []
    assert seen(plan(PIXELS, teacher=None)) == []


def test_what_was_seen_is_what_the_claims_have():
    text = (Path(__file__).parents[2] / "recipes" / "claims" / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## 9. Dense tasks") : text.index("## 10. ")]
    cells = {
        row[0]: row[1:]
        for row in (
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in section.splitlines()
            if line.startswith("| ")
        )
    }

    def differences(*arms, places):
        return [float(cells[arm][place].partition(" ")[0]) for arm in arms for place in places]

    arms = {
        "same": ("same task, predictions",),
        "cross": ("ImageNet, inverted", "HED edges, inverted"),
        "random": ("untrained, inverted",),
    }
    for kind, places in (("pixels", (0, 1)), ("depth", (2, 3))):
        for relation, names in arms.items():
            found = differences(*names, places=places)
            seen = SEEN_DENSE[kind, relation]
            assert (seen.lowest, seen.highest) == (min(found), max(found)), (kind, relation)
    assert {SEEN_DENSE["boxes", "same"].lowest} == set(differences("orthogonal", places=(1,)))
