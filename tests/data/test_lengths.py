"""Batches of texts of about one length: which samples, in what order, and that resume and processes don't change them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kdcli.data import Loading, TextEvalLoader, TextPair, TextSource, TextTrainLoader, TokenSource
from kdcli.data.epoch import GROUPED, epoch_order, grouped_order
from kdcli.machine.team import Team


def texts(number: int = 23) -> TextSource:
    sizes = np.random.default_rng(0).integers(1, 60, number)
    return TextSource(["x" * size + f" {place}" for place, size in enumerate(sizes)], [0] * number, split="train")


def padded(batches) -> int:
    return sum(len(batch) * max(map(len, batch.texts)) for batch in batches)


def test_an_epoch_has_the_same_texts_in_batches_of_less_padding() -> None:
    source = texts(230)
    plain, grouped = (list(TextTrainLoader(source, Loading(8, 3, by_length=flag)).epoch(2)) for flag in (False, True))
    samples = [torch.cat([batch.samples for batch in batches]) for batches in (plain, grouped)]
    assert [len(batch) for batch in grouped] == [8] * 28
    assert torch.equal(samples[0].sort().values, samples[1].sort().values)
    assert padded(grouped) < 0.75 * padded(plain)
    assert all((batch.view == 2).all() for batch in grouped)
    firsts = [len(batch.texts[0]) for batch in grouped]
    assert firsts != sorted(firsts), "lengths don't go up over an epoch"


def test_the_order_is_sorted_within_stretches_alone() -> None:
    size = 4
    lengths = np.random.default_rng(1).integers(0, 1000, GROUPED * size + 3 * size)
    order = epoch_order(len(lengths), seed=5, epoch=1)
    found = grouped_order(order, lengths, size, seed=5, epoch=1).view(-1, size)
    assert torch.equal(found, grouped_order(order, lengths, size, seed=5, epoch=1).view(-1, size))
    assert not torch.equal(found, grouped_order(order, lengths, size, seed=6, epoch=1).view(-1, size))
    first, last = set(order[: GROUPED * size].tolist()), set(order[GROUPED * size :].tolist())
    for stretch in (first, last):
        batches = [batch for batch in found.tolist() if stretch.issuperset(batch)]
        assert len(batches) == len(stretch) / size
        ranges = sorted((lengths[batch].min(), lengths[batch].max()) for batch in batches)
        assert all(high <= low for (_, high), (low, _) in itertools.pairwise(ranges))


def test_an_epoch_that_goes_on_is_the_rest_of_the_whole_one() -> None:
    source, loading = texts(), Loading(4, 1, by_length=True)
    whole = [batch.samples.tolist() for batch in TextTrainLoader(source, loading).epoch(3)]
    rest = [batch.samples.tolist() for batch in TextTrainLoader(source, loading).epoch(3, start=2)]
    assert len(whole) == 5
    assert rest == whole[2:]


def test_processes_share_each_batch() -> None:
    source = texts()
    (alone,) = [[b.samples for b in TextTrainLoader(source, Loading(4, 1, by_length=True)).epoch(0)]]
    shares = [
        [b.samples for b in TextTrainLoader(source, Loading(4, 1, by_length=True, team=Team(rank, 2))).epoch(0)]
        for rank in range(2)
    ]
    assert all(torch.equal(torch.cat(both), whole) for *both, whole in zip(*shares, alone, strict=True))


@pytest.mark.parametrize("size", [1, 2])
def test_evaluation_goes_from_short_to_long_and_has_each_text_once(size: int) -> None:
    source = texts()
    found = [
        batch
        for rank in range(size)
        for batch in TextEvalLoader(source, Loading(4, by_length=True, team=Team(rank, size)))
    ]
    assert sorted(torch.cat([batch.samples for batch in found]).tolist()) == list(range(23))
    for batch in found:
        assert [source.texts[sample] for sample in batch.samples.tolist()] == batch.texts
        assert [len(text) for text in batch.texts] == sorted(len(text) for text in batch.texts)
    assert padded(found) <= padded(TextEvalLoader(source, Loading(4)))


def test_lengths_of_pairs_and_of_tokens() -> None:
    pairs = TextSource([TextPair("ab", "c"), TextPair("", "d")], [0, 0], split="train")
    assert pairs.lengths.tolist() == [3, 1]
    pieces = TokenSource([np.arange(4), np.arange(2)], pad_token=0, masking=None, split="train")
    assert pieces.lengths.tolist() == [4, 2]
    assert pieces.take([1, 0, 1]).lengths.tolist() == [2, 4, 2]
