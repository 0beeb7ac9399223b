"""Metrics and losses of the tasks about texts, against numbers derived by hand or by plain loops."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.data import TextBatch
from kdcli.tasks import build_task
from kdcli.tasks.classification.values import SeveralLabels, TextClassification, TextRegression
from kdcli.tasks.embedding.texts import SentenceEmbedding, compare_spaces


def batches(spaces, sizes):
    start = 0
    for size in sizes:
        indices = torch.arange(start, start + size)
        yield TextBatch(texts=[f"text {index}" for index in indices], targets=torch.zeros(size), samples=indices)
        start += size


def test_spaces_are_compared_as_by_loops():
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.functional.normalize(torch.randn(14, 6, generator=generator).double(), dim=1)
    ours = torch.nn.functional.normalize(theirs[:, :4] + torch.randn(14, 4, generator=generator) / 2, dim=1)
    pairs = [(i, j) for i in range(14) for j in range(i)]
    student = [float(ours[i] @ ours[j]) for i, j in pairs]
    teacher = [float(theirs[i] @ theirs[j]) for i, j in pairs]
    hits = 0
    for i in range(14):
        nearest = [
            set(sorted((j for j in range(14) if j != i), key=lambda j: -float(space[i] @ space[j]))[:10])
            for space in (ours, theirs)
        ]
        hits += len(nearest[0] & nearest[1])
    assert compare_spaces(ours, theirs) == pytest.approx(
        {
            "spearman": spearmanr(student, teacher).statistic,
            "recall_at_10": hits / 140,
            "loss": sum((a - b) ** 2 for a, b in zip(student, teacher, strict=True)) / len(pairs),
        }
    )


@pytest.mark.parametrize("constant", [0, 1])
def test_a_space_without_differences_has_no_order(constant):
    """Not NaN, which no later epoch would be better than."""
    spaces = [torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1) for _ in range(2)]
    spaces[constant] = torch.zeros(5, 3, dtype=torch.float64)
    assert compare_spaces(*spaces)["spearman"] == 0.0


def test_features_that_are_not_finite_are_said_to_be(measure):
    task = SentenceEmbedding(lambda batch: torch.ones(len(batch), 3))
    with pytest.raises(UserError, match="not finite"):
        measure(task, lambda batch: torch.full((len(batch), 3), torch.nan), batches(None, [4]))


def test_a_rotated_and_scaled_space_is_the_same_space(measure):
    space = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(8, 5, generator=torch.Generator().manual_seed(2))).Q
    asked = []

    def reference(batch):
        asked.append(len(batch))
        return space[batch.samples]

    task = SentenceEmbedding(reference)
    for _ in range(2):
        metrics = measure(task, lambda batch: 3 * space[batch.samples] @ rotation.T, batches(space, (5, 5, 2)))
        assert metrics == pytest.approx({"spearman": 1.0, "recall_at_10": 1.0, "loss": 0.0}, abs=1e-6)
    assert asked == [5, 5, 2]  # the teacher is asked once for each text
    with pytest.raises(UserError, match="2 texts are too few"):
        measure(task, lambda batch: space[batch.samples], batches(space, (2,)))


def test_several_labels_by_hand(measure):
    """Two texts with labels, one without: the loss is the mean of four terms of log(1 + exp(-z))."""
    task = SeveralLabels(["a", "b"])
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0], [9.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [math.nan, math.nan]])
    terms = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log1p(math.exp(0.5)), math.log1p(math.exp(-3))]
    assert float(task.supervised_loss(logits, targets, label_smoothing=0.0)) == pytest.approx(sum(terms) / 4)
    batch = TextBatch(texts=["x", "y"], targets=targets[:2], samples=torch.arange(2))
    metrics = measure(task, lambda batch: logits[:2], [batch])
    # 2 of the 3 predicted labels are right, and both true ones are found
    assert metrics["micro_f1"] == pytest.approx(0.8)
    assert metrics["loss"] == pytest.approx(sum(terms) / 4)


def test_numbers_by_hand(measure):
    """In units of the variance 4: errors 1 and 3 cost 1/4 and 9/4."""
    task = TextRegression(["stars"], deviation=2.0)
    logits, targets = torch.tensor([[1.0], [5.0], [7.0]]), torch.tensor([[2.0], [2.0], [math.nan]])
    assert float(task.supervised_loss(logits, targets, label_smoothing=0.0)) == pytest.approx((0.25 + 2.25) / 2)
    numbers = torch.tensor([[1.0], [2.0], [4.0]])
    batch = TextBatch(texts=["x", "y", "z"], targets=numbers, samples=torch.arange(3))
    metrics = measure(task, lambda batch: 2 * numbers + 1, [batch])
    assert metrics["pearson"] == pytest.approx(1.0)
    assert metrics["mean_absolute_error"] == pytest.approx((2 + 3 + 5) / 3)


def test_the_data_say_which_task_it_is():
    def task(name, kind, scale=None):
        facts = DataFacts("x", name, ("a", "b"), 4, 4, 2, 2, label_kind=kind, label_scale=scale)
        return type(build_task(facts, reference=lambda batch: torch.zeros(0)))

    assert task("text-classification", "class") is TextClassification
    assert task("text-classification", "classes") is SeveralLabels
    assert task("text-classification", "number", (0.0, 1.0)) is TextRegression
    assert task("sentence-embedding", "none") is SentenceEmbedding
