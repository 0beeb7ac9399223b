"""The task of words with labels: its metrics by hand, its loss, and what the plan makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.data import WordBatch
from kdcli.tasks import build_task
from kdcli.tasks.words.task import TokenClassification, find_entities, tell_entities

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("I-PER I-PER B-PER O I-LOC", {("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 5)}),
        ("S-PER B-LOC I-LOC E-LOC E-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 4), ("LOC", 4, 5), ("LOC", 5, 6)}),
        ("U-PER B-LOC L-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)}),
        ("B-a-b I-a-b I-a", {("a-b", 0, 2), ("a", 2, 3)}),
    ],
)
def test_entities_as_conlleval_finds_them(labels, expected):
    assert find_entities(labels.split()) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (NAMES, True),
        (("I-PER", "O"), True),
        (("S-PER", "B-PER", "E-PER", "I-PER", "O"), True),
        (("NOUN", "VERB", "O"), False),
        (("B-PER", "VERB"), False),
        (("S-PER", "O"), False),
        (("B-", "O"), False),
    ],
)
def test_labels_that_tell_of_entities(names, expected):
    assert tell_entities(names) is expected
    assert TokenClassification(names).monitor == ("entity_f1" if expected else "accuracy")


def batches_of(texts, names, size=2):
    """Return batches and the logits of each, from (true labels, predicted labels) of each text; ``-`` is no label."""
    batches, logits = [], {}
    for first in range(0, len(texts), size):
        pairs = [(true.split(), guess.split()) for true, guess in texts[first : first + size]]
        targets = torch.tensor([names.index(t) if t != "-" else UNLABELLED for true, _ in pairs for t in true])
        batch = WordBatch(
            words=[["w"] * len(true) for true, _ in pairs],
            targets=targets,
            samples=torch.arange(first, first + len(pairs)),
        )
        guesses = torch.tensor([names.index(g) for _, guess in pairs for g in guess])
        logits[first] = 5.0 * torch.nn.functional.one_hot(guesses, len(names)).float()
        batches.append(batch)
    return batches, lambda batch: logits[int(batch.samples[0])]


TEXTS = [
    ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC"),  # two right
    ("B-PER I-PER O", "B-PER O O"),  # too short: one wrong, one missed
    ("O B-LOC O", "O B-LOC O"),  # one right
    ("O - O", "O B-LOC O"),  # not counted
    ("B-LOC O", "B-PER B-PER"),  # two wrong, one missed
]


def test_metrics_by_hand(measure):
    task = TokenClassification(NAMES)
    batches, predict = batches_of(TEXTS, NAMES)
    found = measure(task, predict, batches)
    true = [NAMES.index(t) for text, _ in TEXTS for t in text.split() if t != "-"]
    guess = [
        NAMES.index(g) for text, other in TEXTS for t, g in zip(text.split(), other.split(), strict=True) if t != "-"
    ]
    assert (found["entity_precision"], found["entity_recall"]) == pytest.approx((3 / 6, 3 / 5))
    assert found["entity_f1"] == pytest.approx(2 * 3 / 11)
    assert found["accuracy"] == pytest.approx(accuracy_score(true, guess))
    assert found["macro_f1"] == pytest.approx(f1_score(true, guess, average="macro"))
    normal = math.log(math.exp(5) + 4)
    wrong = sum(t != g for t, g in zip(true, guess, strict=True))
    assert found["loss"] == pytest.approx(normal - 5 + 5 * wrong / len(true), rel=1e-5)


def test_parts_of_speech_have_no_entities(measure):
    names = ("NOUN", "VERB")
    batches, predict = batches_of([("NOUN VERB", "NOUN NOUN")], names)
    facts = DataFacts("x", "token-classification", names, 4, 4, 2, 2, label_kind="words")
    found = measure(build_task(facts, reference=lambda batch: batch), predict, batches)
    assert set(found) == {"accuracy", "macro_f1", "loss"}
    assert found["accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 / 3) / 2)


def test_there_must_be_labels(measure):
    batches, predict = batches_of([("- -", "O O")], NAMES)
    with pytest.raises(UserError, match="no labelled words"):
        measure(TokenClassification(NAMES), predict, batches)


def test_the_loss_leaves_words_without_a_label_out():
    task = TokenClassification(NAMES)
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = task.supervised_loss(logits, torch.tensor([1, -1, 0, -1]), label_smoothing=0.1)
    smooth = torch.full((2, 5), 0.02)
    smooth[0, 1] = smooth[1, 0] = 0.92
    assert loss.item() == pytest.approx(-(smooth * logits[[0, 2]].log_softmax(1)).sum().item() / 2, rel=1e-5)
    loss.backward()
    assert logits.grad[[1, 3]].abs().max() == 0
