"""The tasks masked-lm and causal-lm: loss and metrics, by hand."""

import math

import pytest
import torch

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts
from kdcli.data import TokenBatch
from kdcli.losses import OutputHead, VocabularyLogits
from kdcli.tasks import build_task
from kdcli.tasks.language.task import CausalLM, MaskedLM

# Three positions over a vocabulary of four: probabilities a power of two each.
PROBS = torch.tensor([[1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 8, 1 / 2, 1 / 4, 1 / 8], [1 / 4, 1 / 4, 1 / 4, 1 / 4]])
TARGETS = torch.tensor([0, 2, 3])
LOSSES = torch.tensor([1.0, 2.0, 2.0]) * math.log(2)


def dense(rows=slice(None)):
    return PROBS[rows].log() + 3  # a softmax doesn't see what is added to all


def vocabulary(rows=slice(None)):
    """The same logits, never all there at once."""
    return VocabularyLogits(dense(rows), OutputHead(torch.eye(4)), chunk=3)


def batch_of(targets):
    length = max(len(targets), 1)
    predicted = torch.arange(length)[None] < len(targets)
    ones = torch.ones(1, length, dtype=torch.int64)
    return TokenBatch(
        input_ids=ones,
        attention_mask=ones,
        predicted=predicted,
        targets=targets,
        samples=torch.zeros(1, dtype=torch.int64),
    )


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_the_task_is_known_by_its_name(task):
    built = build_task(DataFacts("d", task, (), 3, 3, 1, 1, label_kind="tokens"), reference=lambda batch: torch.ones(1))
    assert type(built) is {"masked-lm": MaskedLM, "causal-lm": CausalLM}[task]
    assert (built.name, built.monitor) == (task, "log_likelihood")


@pytest.mark.parametrize("logits", [dense, vocabulary])
def test_the_loss_is_the_mean_cross_entropy(logits):
    task = CausalLM()
    loss = task.supervised_loss(logits(), TARGETS, label_smoothing=0.0)
    torch.testing.assert_close(loss, LOSSES.mean())
    # Smoothed: -log p averaged over the vocabulary is 9/4, 9/4 and 2 times log 2.
    smoothed = 0.8 * LOSSES + 0.2 * torch.tensor([9 / 4, 9 / 4, 2]) * math.log(2)
    loss = task.supervised_loss(logits(), TARGETS, label_smoothing=0.2)
    torch.testing.assert_close(loss, smoothed.mean())


@pytest.mark.parametrize("logits", [dense, vocabulary])
def test_metrics_are_means_over_tokens_and_not_over_batches(measure, logits):
    parts = [slice(0, 1), slice(1, 3)]
    batches = [batch_of(TARGETS[part]) for part in parts]
    outputs = iter([logits(part) for part in parts])
    found = measure(MaskedLM(), lambda batch: next(outputs), batches)
    mean = 5 / 3 * math.log(2)
    expected = {"log_likelihood": -mean, "perplexity": 2 ** (5 / 3), "accuracy": 1 / 3, "loss": mean}
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_hopeless_model_has_a_perplexity_all_the_same(measure):
    logits = torch.tensor([[0.0, 2000.0]])
    found = measure(CausalLM(), lambda batch: logits, [batch_of(torch.tensor([0]))])
    assert found["loss"] == 2000
    assert math.isfinite(found["perplexity"])


def test_nothing_to_evaluate_on_is_said(measure):
    with pytest.raises(UserError, match="no tokens to evaluate on"):
        measure(CausalLM(), lambda batch: dense(), [])
