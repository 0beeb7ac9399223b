"""What tasks note of each sample adds up to their metrics; the keeper puts pieces of texts and processes together."""

import numpy as np
import pytest
import torch

from kdcli.data import Batch, TextSource, TokenBatch, TokenSource, WordBatch, WordSource
from kdcli.machine.team import Team
from kdcli.statistics.intervals import metric_of
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.language.task import CausalLM
from kdcli.tasks.words.task import TokenClassification
from kdcli.training.evaluation import KeptSums, run_meter

ONE = Team.alone()
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def split(size):
    return TextSource(["x"] * size, [0] * size, split="test")


def kept(task, predict, batches, source):
    """The metrics of an evaluation, and what was kept of its samples."""
    sums = KeptSums(source)
    metrics = run_meter(task.meter(ONE), predict, batches, ONE, sums)
    return metrics, sums.gather(ONE)


def assert_adds_up(metrics, gathered, *names):
    assert gathered.keys() == {"index", *names}
    for name in names:
        assert float(metric_of(name, gathered[name].sum(dim=0).numpy())) == pytest.approx(metrics[name], abs=1e-6)


def test_samples_are_in_order():
    """Whatever the order of the batches."""
    logits, targets = draw(40, 8), torch.arange(40) % 8
    batches = [Batch(images=torch.zeros(20, 3, 1, 1), targets=targets[part], samples=torch.arange(40)[part]) for part in
               (slice(20, 40), slice(0, 20))]  # fmt: skip
    task = ImageClassification([str(label) for label in range(8)])
    metrics, gathered = kept(task, lambda batch: logits[batch.samples], batches, split(40))
    assert_adds_up(metrics, gathered, "accuracy", "top5")
    assert gathered["index"].tolist() == list(range(40))
    assert torch.equal(gathered["accuracy"][:, 0], (logits.argmax(dim=1) == targets).double())


NAMES = ("O", "B-PER", "I-PER")


def test_words_by_their_texts():
    """Three pieces, of which the first two are one text."""
    texts = WordSource([["a", "b", "c"], ["d", "e", "f"]], [[1, 2, 0], [1, -1, 0]], split="test")
    words = WordSource(
        [["a", "b"], ["c"], ["d", "e", "f"]], [[1, 2], [0], [1, -1, 0]], split="test", ids=texts.ids[[0, 0, 1]]
    )
    logits = draw(6, 3)
    batch = words.batch([0, 1, 2])
    assert isinstance(batch, WordBatch)
    metrics, gathered = kept(TokenClassification(NAMES), lambda batch: logits, [batch], texts)
    assert_adds_up(metrics, gathered, "accuracy", "entity_f1", "entity_precision", "entity_recall")
    assert gathered["index"].tolist() == [0, 1]
    assert gathered["accuracy"][:, 1].tolist() == [3, 2], "labelled words of each text"
    assert gathered["entity_recall"][:, 1].tolist() == [1, 1]


def test_tokens_by_their_texts():
    pieces = [torch.tensor(ids).numpy() for ids in ([1, 2, 3], [1, 4], [2, 2, 2, 2])]
    source = TokenSource(pieces, pad_token=0, masking=None, split="test", ids=np.array([5, 5, 7]))
    batches = [source.batch([0, 1]), source.batch([2])]
    assert isinstance(batches[0], TokenBatch)
    logits = iter([draw(3, 6), draw(3, 6)])
    metrics, gathered = kept(CausalLM(), lambda b: next(logits), batches, split(8))
    assert_adds_up(metrics, gathered, "log_likelihood", "perplexity", "accuracy")
    assert gathered["index"].tolist() == [5, 7]
    assert gathered["accuracy"][:, 1].tolist() == [3, 3], "predicted tokens of each text"


def test_nothing_is_kept_where_nothing_is_noted():
    assert KeptSums(split(1)).gather(ONE) == {}
