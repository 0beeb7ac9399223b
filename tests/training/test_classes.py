"""Weights of classes in the loss, and classes drawn evenly."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from kdcli.base.facts import UNLABELLED
from kdcli.data.epoch import BalancedDraws, Order
from kdcli.machine.team import ALONE
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.dense.segmentation import SemanticSegmentation

WEIGHTS = torch.tensor([1.0, 5.0, 2.5])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def weighted(task):
    task.class_weights = WEIGHTS
    return task


TASK = weighted(ImageClassification(["a", "b", "c"]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_torchs(smoothing):
    hard = torch.tensor([0, 2, UNLABELLED, 1, 1, 0])
    expected = F.cross_entropy(LOGITS, hard, weight=WEIGHTS, ignore_index=UNLABELLED, label_smoothing=smoothing)
    found = TASK.supervised_loss(LOGITS, hard, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    assert float(TASK.count_labels(hard)) == 1 + 2.5 + 5 + 5 + 1
    soft = F.one_hot(hard.where(hard != UNLABELLED, 3), 4).float()
    torch.testing.assert_close(TASK.supervised_loss(LOGITS, soft, label_smoothing=smoothing), expected)


def test_mixed_targets_have_torchs_sum_over_the_weights_of_their_shares():
    mixed = torch.tensor([[0.7, 0, 0.3, 0], [0, 0.4, 0.2, 0.4], [0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
    total = F.cross_entropy(LOGITS, mixed[:, :3], weight=WEIGHTS, reduction="sum")  # of shares that don't sum to 1, too
    shares = float((mixed[:, :3] * WEIGHTS).sum())
    torch.testing.assert_close(TASK.supervised_loss(LOGITS, mixed, label_smoothing=0.0), total / shares)


def test_pixels_have_weights_in_the_cross_entropy_alone():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.randint(-1, 3, (2, 4, 4), generator=torch.Generator().manual_seed(2))
    task = weighted(SemanticSegmentation(["a", "b", "c"]))
    expected = F.cross_entropy(logits, targets, weight=WEIGHTS, ignore_index=UNLABELLED)
    torch.testing.assert_close(task.supervised_loss(logits, targets, label_smoothing=0.0), expected)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["data.class_weights=balanced"], "class weights: "),
        (["data.class_weights={3: 4.0}"], "class weights: 3 4, 0 1, 1 1"),
        (["data.balanced_sampling=true"], "sampling: 10 classes, equally often in every epoch"),
        (["data.class_weights={11: 2}"], "names 11, and demo:digits has the classes 0, 1"),
        (["data.class_weights={1: -2}"], "a weight is a number above 0, and that of 1 is -2"),
        (["data.class_weights=even"], "balanced is wanted, or a weight for each class"),
        (["data.class_weights=balanced", "data.balanced_sampling=true"], "together they favour the small ones"),
        (["task=image-embedding", "data.balanced_sampling=true"], "its samples have no class each"),
        (["task=semantic-segmentation", "data.class_weights=balanced"], "can't be balanced"),
        (
            ["data.class_weights=balanced", "methods=[{method: stochastic_triplet_kl}]"],
            "none of the methods has the loss on the labels that it weighs: stochastic_triplet_kl",
        ),
    ],
)
def test_the_plan_tells_weights_and_sampling_and_what_is_wrong(run_cli, few_digits, settings, told):
    sets = [word for setting in settings for word in ("--set", setting)]
    student = "smp:unet/resnet18" if "task=semantic-segmentation" in settings else "cifar:resnet8"
    needs_teacher = "task=image-embedding" in settings or any("triplet" in setting for setting in settings)
    teacher = "random:cifar:resnet8" if needs_teacher else "none"
    data = "demo:scenes" if "smp" in student else "demo:digits"
    run = ("distill", "--teacher", teacher, "--student", student, "--data", data, "--device", "cpu")
    exit_code, stdout, stderr = run_cli(*run, "--set", "student.image_size=32", *sets, "--dry-run")
    assert told in (stdout + stderr)
    assert exit_code == (0 if told.startswith(("class weights: ", "sampling: ")) else 2)


LABELS = [0] * 20 + [1] * 5 + [2] * 2 + [UNLABELLED] * 3


def drawn(draws: BalancedDraws, epoch: int) -> list[int]:
    """The places of LABELS that an epoch draws."""
    return [draws.indices[place] for place in draws.order(seed=7, epoch=epoch).tolist()]


def test_every_epoch_has_all_classes_equally_often():
    draws = BalancedDraws(LABELS)
    seen: set[int] = set()
    for epoch in range(8):
        order = draws.order(seed=7, epoch=epoch).tolist()
        assert len(set(order)) == len(order) == draws.num_samples == 30  # each repetition is a place of its own
        places = drawn(draws, epoch)
        assert Counter(LABELS[place] for place in places) == {0: 9, 1: 9, 2: 9, UNLABELLED: 3}
        times = Counter(places)
        assert max(times[place] for place in range(20)) == 1
        assert {times[place] for place in range(20, 25)} == {1, 2}
        assert {times[place] for place in (25, 26)} == {4, 5}
        seen.update(place for place in places if place < 20)
    assert seen == set(range(20))
    assert drawn(draws, 3) == drawn(BalancedDraws(LABELS), 3) != drawn(draws, 4)


def test_what_is_left_over_goes_to_other_classes_each_epoch():
    draws = BalancedDraws([0] * 6 + [1] * 3 + [2] * 2)
    counts = [Counter("aaaaaabbbcc"[place] for place in drawn(draws, epoch)) for epoch in range(6)]
    assert all(sorted(count.values()) == [3, 4, 4] for count in counts)
    assert len({tuple(sorted(count.items())) for count in counts}) > 1


def test_batches_begin_in_the_middle_of_an_epoch():
    draws = BalancedDraws(LABELS)
    order = Order(len(draws.indices), 8, 7, ALONE, noun="image", draws=draws)
    order.epoch = 2
    whole = list(order)
    order.start = 2
    assert list(order) == whole[2:]
    assert [index for batch in whole for _, index in batch] == draws.order(seed=7, epoch=2).tolist()[:24]
