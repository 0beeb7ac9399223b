"""The teacher's layer is chosen by what it tells of the classes, on labelled training images alone."""

import pytest
import torch

from kdcli.config.parse import parse_config
from kdcli.machine.team import ALONE
from kdcli.training.prepare import prepare_job
from kdcli.training.teachers.features import nearest_other_means
from kdcli.training.teachers.layers import score_layers


def test_nearest_other_means_is_the_loop_over_samples():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 4, (40,), generator=generator)
    features = torch.randn(40, 6, generator=generator) + torch.nn.functional.one_hot(targets, 6) * torch.tensor(2.0)
    scaled = (features - features.mean(0)) / features.std(0, correction=0)
    right = 0
    for sample in range(40):
        others = torch.arange(40) != sample
        means = [scaled[others & (targets == label)].mean(0) for label in range(4)]
        right += int(torch.stack([(scaled[sample] - mean).norm() for mean in means]).argmin() == targets[sample])
    assert nearest_other_means(features * 100 + 7, targets) == right / 40
    assert 0.4 < right / 40 < 1


def test_noise_is_at_chance_and_damaged_features_at_nothing():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(1000) % 5
    noise = torch.randn(1000, 50, generator=generator)
    assert nearest_other_means(noise, targets) == pytest.approx(0.2, abs=0.05)
    assert nearest_other_means(noise.fill_(torch.nan), targets) == 0


def test_a_class_of_one_sample_and_a_missing_class_are_never_right():
    features = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]])
    assert nearest_other_means(features, torch.tensor([0, 0, 2, 2, 3])) == 4 / 5


TEACHER = {"name": "random:test_efficientnet", "image_size": 32}


def job(**values):
    config = {
        "teacher": TEACHER,
        "student": {"name": "test_resnet", "image_size": 32},
        "data": {"name": "demo:digits", "workers": 0},
        "train": {"device": "cpu", "epochs": 1},
    }
    return prepare_job(parse_config({**config, **values}, source="test"))


def decision(job, name):
    return next((found for found in job.plan.decisions if found.name == name), None)


def test_the_plan_takes_the_best_layer_and_says_by_what():
    made = job()
    told = decision(made, "teacher's layer")
    projection = next(options for options in made.plan.methods if options.method == "projection")
    assert projection.teacher_tap == told.value
    assert projection.student_tap == "embedding"
    scores = score_layers(made.config.model_copy(update={"methods": None}), made.teacher, made.data, ALONE)
    assert scores.best == told.value
    assert scores.accuracies[scores.best] == max(scores.accuracies.values())
    assert scores.num_samples == 256
    assert "256 labelled training images" in told.reason
    assert scores.guessing == pytest.approx(0.1, abs=0.01)


def test_the_same_run_again_chooses_nothing_anew():
    """What the plan decided is written out: a run that goes on, or is looked at later, keeps its layer."""
    made = job()
    again = prepare_job(made.config)
    assert decision(again, "teacher's layer") is None
    assert again.plan.methods == made.plan.methods


@pytest.mark.parametrize(
    "values",
    [
        {"feature_layers": ["pooled:pooled"]},
        {"teacher": "none"},
        {"method": "rkd_distance"},
        {"data": {"name": "demo:digits", "workers": 0, "labels_per_class": 1}},
    ],
    ids=["layers", "no teacher", "method", "one label a class"],
)
def test_nothing_is_chosen_where_it_is_said_or_cannot_be_told(values):
    assert decision(job(**values), "teacher's layer") is None
