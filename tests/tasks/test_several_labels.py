"""Images with any number of labels: loss, distillation, metrics, report and answers."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.config.methods import LogitKDOptions
from kdcli.data import Batch
from kdcli.methods.base import Context
from kdcli.methods.logit_kd import LogitKD
from kdcli.models.outputs import ModelOutput
from kdcli.tasks import build_task
from kdcli.tasks.answers import Asked, Choice
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.classification.values import ImageLabels

NAMES = ("a", "b", "c")
FACTS = DataFacts("made-up", "image-classification", NAMES, 8, 8, 8, 8, label_kind="classes")
LOGITS = torch.tensor([[2.0, -1, 0.5], [-3, 1, 1], [0.2, 0.1, -4], [-1, -2, -3]])
TRUTH = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])


@pytest.fixture
def task():
    return build_task(FACTS, reference=None)


def batch_of(targets):
    count = len(targets)
    return Batch(images=torch.zeros(count, 3, 2, 2), targets=targets, samples=torch.arange(count), skipped=[])


def test_the_task_is_chosen_by_the_kind_of_labels(task):
    assert isinstance(task, ImageLabels)
    assert task.row().name == "image-classification"

    class Mine(ImageClassification):
        name = "mine"
        like = "image-classification"

    with pytest.raises(UserError, match="one class an image"):
        Mine.from_facts(FACTS, reference=None)


def test_the_loss_is_of_labelled_images_alone(task):
    targets = TRUTH.clone()
    targets[1] = math.nan
    kept = [0, 2, 3]
    smooth = TRUTH[kept] * 0.9 + 0.05
    expected = F.binary_cross_entropy_with_logits(LOGITS[kept], smooth)
    torch.testing.assert_close(task.supervised_loss(LOGITS, targets, label_smoothing=0.1), expected)
    assert int(task.count_labels(targets)) == 9


def test_distillation_is_of_every_labels_own_probability(task):
    class Facts:
        num_classes, heads, task = 3, ("logits",), "image-classification"

    method = LogitKD(LogitKDOptions(temperature=2.0), Context(task, Facts, Facts, (2, 0, 1)))
    theirs = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    found = method.loss(
        ModelOutput(heads={"logits": LOGITS}), ModelOutput(heads={"logits": theirs}), TRUTH, torch.arange(4)
    )
    p, q = theirs[:, [2, 0, 1]].div(2).sigmoid().double(), LOGITS.div(2).sigmoid().double()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert float(found) == pytest.approx(4 * float(divergence.mean()), rel=1e-5)


def test_meter_and_report_are_scikit_learns(task, measure):
    guesses, truth = (LOGITS > 0).int().numpy(), TRUTH.int().numpy()
    micro, macro = (f1_score(truth, guesses, average=how, zero_division=0) for how in ("micro", "macro"))
    precision = average_precision_score(truth, LOGITS.numpy(), average="macro")
    metrics = measure(task, lambda batch: LOGITS[batch.samples], [batch_of(TRUTH)])
    expected = {"micro_f1": micro, "macro_f1": macro, "mean_average_precision": precision}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    report = task.report()
    report.update(LOGITS, batch_of(TRUTH))
    report.update(LOGITS[:1], batch_of(torch.full((1, 3), math.nan)))
    found = report.compute()
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["exact_match"] == 0.75
    assert found["per_class_recall"] == [1.0, 1.0, 1.0]
    assert found["per_class_precision"] == [1.0, 0.5, 1.0]
    assert report.counts() == [2, 1, 2]
    assert set(found) == set(task.layout.keys)
    other = task.report()
    other.update(-LOGITS, batch_of(TRUTH))
    assert report.agreement(other) == 0.0


def test_all_labels_above_a_half_are_told(task):
    names = tuple("abcdefgh")
    answers = ImageLabels(names).answers([], Choice())
    logits = torch.tensor([[1.0] * 7 + [-1], [-1.0] * 7 + [1]])
    asked = Asked(None, names, FACTS)
    seven, one = list(answers.of(asked, logits, None))
    assert [record["predicted"] for record in seven.records] == [True] * 7
    assert [record["predicted"] for record in one.records] == [True] + [False] * 4
