"""The supervised loss by plain loops, and metrics by counting."""

import math

import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.data import Batch
from kdcli.tasks.classification.one_label import ImageClassification

TASK = ImageClassification(["a", "b", "c"])


def by_loops(logits, soft, smoothing):
    """``-Σ_i Σ_c t_ic log p_ic`` over the labelled mass; ``soft`` are lists whose last entry is the unlabelled share."""
    total, mass = 0.0, 0.0
    for row, target in zip(logits.tolist(), soft, strict=True):
        normaliser = math.log(sum(math.exp(x) for x in row))
        labelled = 1 - target[-1]
        mass += labelled
        for x, t in zip(row, target[:-1], strict=True):
            total -= ((1 - smoothing) * t + smoothing * labelled / len(row)) * (x - normaliser)
    return total / max(mass, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_and_soft_targets_against_loops(smoothing):
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float()
    hard = torch.tensor([0, 2, UNLABELLED, 1, UNLABELLED])
    soft = [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1.0]]
    expected = by_loops(logits, soft, smoothing)
    assert float(TASK.supervised_loss(logits, hard, label_smoothing=smoothing)) == pytest.approx(expected, rel=1e-5)
    assert float(TASK.supervised_loss(logits, torch.tensor(soft), label_smoothing=smoothing)) == pytest.approx(
        expected, rel=1e-5
    )
    mixed = [[0.7, 0, 0.3, 0], [0, 0.4, 0.2, 0.4], [0, 0, 0, 1], [0, 1, 0, 0], [0.5, 0, 0, 0.5]]
    assert float(TASK.supervised_loss(logits, torch.tensor(mixed), label_smoothing=smoothing)) == pytest.approx(
        by_loops(logits, mixed, smoothing), rel=1e-5
    )


def test_metrics_by_counting(measure):
    logits = torch.tensor([[2.0, 1, 0], [0, 3, 1], [5, 0, 0], [0, 0, 1]])
    batches = [
        Batch(images=logits[:3, :, None, None], targets=torch.tensor([0, 1, 2]), samples=torch.arange(3)),
        Batch(images=logits[:0, :, None, None], targets=torch.tensor([], dtype=torch.long), samples=torch.arange(0)),
        Batch(images=logits[3:, :, None, None], targets=torch.tensor([2]), samples=torch.arange(1)),
    ]
    metrics = measure(TASK, lambda batch: batch.images[:, :, 0, 0], batches)
    assert metrics["accuracy"] == 0.75
    rows = [(logits[i].tolist(), t) for i, t in enumerate([0, 1, 2, 2])]
    expected = sum(math.log(sum(map(math.exp, row))) - row[t] for row, t in rows) / 4
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert "top5" not in metrics


def test_nothing_to_evaluate_on_is_a_user_error(measure):
    with pytest.raises(UserError, match="can be read"):
        measure(TASK, lambda batch: batch.images, [])


def test_the_last_student_is_reported_where_the_best_is_chosen_by_a_distance():
    from kdcli.tasks.translation.task import ImageTranslation

    assert ImageTranslation(is_paired=False).reports_last
    assert not ImageTranslation(is_paired=True).reports_last
