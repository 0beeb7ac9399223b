"""A run folder names its best student."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.plan.relation import find_relation

CLASSES = ("apple", "leaf", "sky")


def same_weights(first, second) -> bool:
    ours, theirs = first.module.state_dict(), second.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("run", "prefix"), [("alone_run", "timm"), ("hf_run", "hf")])
def test_a_run_is_a_teacher(request, run, prefix):
    run = request.getfixturevalue(run)
    for name in (str(run), f"{prefix}:{run}"):
        teacher = load_teacher(TeacherConfig(name=name), seed=0)
        assert same_weights(teacher, load_saved(run / "student"))
        facts = teacher.facts
        assert facts.pretrained
        assert facts.name == f"{prefix}:{run}"
        assert facts.weights == f"trained by kdcli: the best student of the run {run}"
        assert (facts.num_classes, facts.label_names) == (3, CLASSES)


def test_a_run_of_features_alone_is_no_classifier(alone_run, tmp_path):
    """Its classifier is untrained: logits of it are not to be distilled, whatever labels it carries."""
    run = tmp_path / "run"
    shutil.copytree(alone_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"teacher": "random:test_vit", "methods": [{"method": "stochastic_triplet_kl"}]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    facts = load_teacher(TeacherConfig(name=str(run)), seed=0).facts
    assert facts.task == "image-embedding"
    assert facts.weights.endswith("; its classifier is untrained")
    data = DataFacts("photos", "image-classification", CLASSES, 9, 9, 3, 3)
    assert find_relation(facts, data).relation == "cross"
    assert find_relation(load_teacher(TeacherConfig(name=str(alone_run)), seed=0).facts, data).relation == "same"


@pytest.mark.parametrize("run", ["alone_run", "hf_run"])
def test_a_run_is_a_student_with_its_weights_or_without(request, run):
    run = request.getfixturevalue(run)
    saved = load_saved(run / "student")
    pretrained = build_student(StudentConfig(name=str(run), pretrained=True), DataFacts.of_labels(CLASSES), seed=0)
    assert same_weights(pretrained, saved)
    assert f"the best student of the run {run}" in pretrained.facts.weights
    other = build_student(StudentConfig(name=str(run), pretrained=True), DataFacts.of_labels(["a", "b"]), seed=0)
    assert (other.facts.num_classes, other.facts.label_names) == (2, ("a", "b"))
    changed = [
        name
        for name, tensor in other.module.state_dict().items()
        if not torch.equal(tensor, pretrained.module.state_dict()[name])
    ]
    assert 1 <= len(changed) <= 2  # the classifier's weight and bias
    untrained = build_student(StudentConfig(name=str(run)), DataFacts.of_labels(CLASSES), seed=0)
    assert not same_weights(untrained, saved)
    assert (untrained.facts.pretrained, untrained.facts.weights) == (False, "untrained")
    assert untrained.facts.num_parameters == saved.facts.num_parameters
    assert untrained.facts.preprocessing == saved.facts.preprocessing


def test_a_run_untrained_is_random(alone_run):
    facts = load_teacher(TeacherConfig(name=f"random:{alone_run}"), seed=0).facts
    assert (facts.pretrained, facts.label_names) == (False, None)


def test_a_run_under_way_says_so(alone_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(alone_run, run)
    (run / "result.json").unlink()
    facts = load_teacher(TeacherConfig(name=str(run)), seed=0).facts
    assert facts.weights.endswith(f"the run {run} so far; the run is not finished")


def test_a_run_without_a_student_and_a_folder_of_neither_kind(alone_run, tmp_path):
    shutil.copytree(alone_run, tmp_path / "run", ignore=shutil.ignore_patterns("student"))
    with pytest.raises(UserError, match=r"the run .*run has no student yet") as error:
        load_teacher(TeacherConfig(name=str(tmp_path / "run")), seed=0)
    assert f"kdcli distill --resume {tmp_path / 'run'}" in error.value.hint
    (tmp_path / "run" / "episodes.jsonl").touch()
    with pytest.raises(UserError, match="is of episodes"):
        load_teacher(TeacherConfig(name=str(tmp_path / "run")), seed=0)
    with pytest.raises(UserError, match=r"neither a model .* nor a run folder") as error:
        build_student(StudentConfig(name=str(tmp_path)), DataFacts.of_labels(CLASSES), seed=0)
    assert error.value.hint
    with pytest.raises(UserError, match="is a model of timm") as error:
        load_teacher(TeacherConfig(name=f"hf:{alone_run}"), seed=0)
    assert f"timm:{alone_run}" in error.value.hint
