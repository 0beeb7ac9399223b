"""Which samples an epoch has, and in what order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.machine.seeding import stable_seed
from kdcli.machine.team import Team


def train_indices(labels: Sequence[int], *, labelled_share: float, reads_unlabelled: bool) -> list[int] | None:
    """Return which training images make up an epoch, some repeatedly; None for each of them once.

    With few labels the labelled images are repeated until they are ``labelled_share`` of the epoch, so that every batch
    has some. An objective that reads nothing but labels gets the labelled images alone, repeated to the same length: it
    takes as many steps. Each repetition is augmented on its own.
    """
    labelled = [index for index, label in enumerate(labels) if label != UNLABELLED]
    unlabelled = [index for index, label in enumerate(labels) if label == UNLABELLED]
    if not unlabelled or not labelled:
        return None
    repeated = max(len(labelled), round(labelled_share / (1 - labelled_share) * len(unlabelled)))
    if not reads_unlabelled:
        return _spread(labelled, repeated + len(unlabelled))
    return _spread(labelled, repeated) + unlabelled


def _spread(indices: list[int], count: int) -> list[int]:
    """Repeat ``indices`` to ``count``; what is left over goes evenly over the list, and so over its classes."""
    return [indices[number * len(indices) // count] for number in range(count)]


class BalancedDraws:
    """Draws the labelled samples of an epoch so that all classes are in it equally often.

    The source holds every labelled sample as often as an epoch can draw it, so that each repetition is a view of its
    own; :attr:`indices` makes it. An epoch has as many labelled samples as it would have without, of each class the
    same number (one more of some, drawn anew each epoch): a class that has more is drawn from without repetition, one
    that has fewer is gone through as often as it takes.

    Args:
        labels: of the samples of an epoch without it, some of them repeated; ``UNLABELLED`` for none.

    Attributes:
        indices: which samples of those given, some repeatedly, the source is made of.
        num_samples: of an epoch.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        own = np.asarray(labels, dtype=np.int64)
        classes = np.unique(own[own != UNLABELLED])
        self.num_samples = len(own)
        self._unlabelled = np.flatnonzero(own == UNLABELLED)
        self._labelled = self.num_samples - len(self._unlabelled)
        most = -(-self._labelled // max(len(classes), 1))
        pools, start = [self._unlabelled], len(self._unlabelled)
        self._classes: list[tuple[int, int, int]] = []  # first place in the source, samples, and rounds of them
        for label in classes:
            members = np.flatnonzero(own == label)
            rounds = -(-most // len(members))
            pools += [members] * rounds
            self._classes.append((start, len(members), rounds))
            start += rounds * len(members)
        self.indices: list[int] = np.concatenate(pools).tolist()

    def order(self, *, seed: int, epoch: int) -> Tensor:
        """Return which samples of the source an epoch has, int64 ``(num_samples,)``, in its order."""
        generator = torch.Generator().manual_seed(stable_seed("balanced", seed, epoch))
        count = len(self._classes)
        shares = torch.full((count,), self._labelled // max(count, 1))
        shares[torch.randperm(count, generator=generator)[: self._labelled % max(count, 1)]] += 1
        chosen = [torch.arange(len(self._unlabelled))]
        for (start, size, rounds), share in zip(self._classes, shares.tolist(), strict=True):
            draws = [number * size + torch.randperm(size, generator=generator) for number in range(rounds)]
            chosen.append(start + torch.cat(draws)[:share])
        whole = torch.cat(chosen)
        return whole[torch.randperm(len(whole), generator=generator)]


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, int64 ``(num_samples,)``: a pure function of its arguments."""
    generator = torch.Generator().manual_seed(stable_seed("order", seed, epoch))
    return torch.randperm(num_samples, generator=generator)


def grouped_order(order: Tensor, lengths: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int) -> Tensor:
    """Return an epoch's order in which each batch has samples of about one length: a pure function of its arguments.

    As the ``LengthGroupedSampler`` of transformers: stretches of ``GROUPED`` batches of the random order are sorted by
    length. Here the batches then come in a random order, so that lengths tell nothing of when.

    Args:
        order: int64 (n,), whole batches alone.
        lengths: int64 (N,), of every sample.
        batch_size: samples of a batch.
        seed: the run's.
        epoch: of training.
    """
    chosen = order.numpy()
    stretches = [chosen[first : first + GROUPED * batch_size] for first in range(0, len(chosen), GROUPED * batch_size)]
    sorted_ = np.concatenate([stretch[np.argsort(lengths[stretch], kind="stable")] for stretch in stretches])
    batches = torch.from_numpy(sorted_).view(-1, batch_size)
    generator = torch.Generator().manual_seed(stable_seed("groups", seed, epoch))
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


class Blocks(NamedTuple):
    """Samples that are read a block at a time: not one by one, but all of a block's together.

    Attributes:
        of: int64 (N,), the number of each sample's block.
        mixed: blocks whose samples are mixed with one another: so many are needed at a time.
    """

    of: NDArray[np.int64]
    mixed: int


_FEW = 4


def in_few_blocks(blocks: Blocks, count: int) -> NDArray[np.int64]:
    """Return the samples of so many blocks, evenly spread, as have about ``count`` of them: four or more, or all.

    Returns:
        int64 (n,), in order.
    """
    names = np.unique(blocks.of)
    number = min(max(-(-count * len(names) // len(blocks.of)), _FEW), len(names))
    chosen = names[np.arange(number) * len(names) // number]
    return np.flatnonzero(np.isin(blocks.of, chosen))


_LANES = (16, 8, 4, 2, 1)


def lanes_of(blocks: Blocks, batch_size: int) -> tuple[int, int]:
    """Return (lanes, blocks that each of them mixes) of :func:`block_order`.

    Lanes are a power of two, as numbers of processes mostly are: the largest that divides the batch and with which at
    least three fifths of the blocks that may be mixed are.
    """
    mixed = min(blocks.mixed, len(np.unique(blocks.of)))
    powers = [lanes for lanes in _LANES if batch_size % lanes == 0]
    return next((lanes, mixed // lanes) for lanes in powers if 5 * (mixed // lanes) * lanes >= 3 * mixed)


def block_order(blocks: Blocks, batch_size: int, *, seed: int, epoch: int) -> Tensor:
    """Return an epoch's order in which each block is needed for a while and no more: a pure function of its arguments.

    The blocks are shuffled and dealt to lanes, each of which has an equal share of every batch, always at the same
    place in it: of several processes each needs the blocks of its own lanes alone. A lane mixes K of its blocks: the
    samples of its j-th block come at times drawn evenly from j - K + 1 to j + 1, and at both ends of the epoch such
    that K blocks are mixed there too. So at any time at most K blocks of each lane are needed, of all lanes together at
    most ``blocks.mixed``. A block that two lanes have parts of comes at the same time in both.

    What fills no batch is left over: it is of the last of the shuffled blocks.

    Args:
        blocks: of the samples of an epoch.
        batch_size: over all processes, at most N.
        seed: the run's.
        epoch: of training.

    Returns:
        int64 (n,), whole batches alone.
    """
    generator = torch.Generator().manual_seed(stable_seed("blocks", seed, epoch))
    names, number = np.unique(blocks.of, return_inverse=True)
    place = torch.randperm(len(names), generator=generator).numpy()[number]
    lanes, mixed = lanes_of(blocks, batch_size)
    used = len(place) // batch_size * batch_size
    order = np.argsort(place, kind="stable")[:used].reshape(lanes, -1)
    order[1::2] = order[1::2, ::-1].copy()  # so that lanes meet in a block at their ends, or both begin with it
    # The blocks of a lane by number, from 0 to its last.
    turn = np.cumsum(np.diff(place[order], axis=1, prepend=place[order[:, :1]]) != 0, axis=1)
    last = turn[:, -1:]
    together = np.minimum(mixed, last + 1)
    start, stop = np.maximum(turn - together + 1, 0), np.minimum(turn, last - together + 1) + 1
    drawn = torch.rand(turn.shape, generator=generator, dtype=torch.float64).numpy()
    order = np.take_along_axis(order, np.argsort(start + (stop - start) * drawn, axis=1), axis=1)
    return torch.from_numpy(order.reshape(lanes, -1, batch_size // lanes).swapaxes(0, 1).flatten())


GROUPED = 50
"""Batches whose samples are sorted by length together; within so many there is still a choice of neighbours."""


def in_batches(num_samples: int, batch_size: int) -> list[range]:
    """Return which samples each batch has, in order; the last may have fewer."""
    return [range(first, min(first + batch_size, num_samples)) for first in range(0, num_samples, batch_size)]


class Order:
    """Sampler of whole batches: lists of (epoch of the augmentation, index), so that persistent workers learn of it.

    Args:
        num_samples: of the source.
        batch_size: over all training processes; of fewer samples there is one batch.
        seed: the run's.
        team: of the training processes.
        noun: what a sample is, for messages.
        draws: of the samples of each epoch; by default all of the source's.
        lengths: int64 (N,), of the samples, where each batch is to have such of about one length.
        blocks: of the samples, where they are read a block at a time.
        views: epochs after which samples are augmented as in the first again; None for never.

    Raises:
        UserError: there are fewer samples than processes.
        ValueError: ``batch_size`` is not a multiple of the team's size.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        team: Team,
        *,
        noun: str,
        draws: BalancedDraws | None = None,
        lengths: NDArray[np.int64] | None = None,
        blocks: Blocks | None = None,
        views: int | None = None,
    ) -> None:
        num_samples = num_samples if draws is None else draws.num_samples
        if batch_size % team.size:
            raise ValueError(f"a batch of {batch_size} is no whole number for each of {team.size} processes")
        if num_samples < team.size:
            raise UserError(
                f"There are {num_samples} training {noun}s for {team.size} processes.", "Use fewer processes."
            )
        batch_size = min(batch_size, num_samples // team.size * team.size)
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._seed, self._draws, self._lengths, self._blocks, self._views = seed, draws, lengths, blocks, views
        self._rank, self._share = team.rank, batch_size // team.size
        self.num_batches = num_samples // batch_size
        self.num_trained = self.num_batches * batch_size
        """Samples of an epoch: what would not fill a batch is left over."""
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, draws = self.epoch, self._draws
        if draws is not None:
            order = draws.order(seed=self._seed, epoch=epoch)
        elif self._blocks is not None:
            order = torch.arange(self._num_samples)
        else:
            order = epoch_order(self._num_samples, seed=self._seed, epoch=epoch)
        if self._blocks is not None:
            own = self._blocks._replace(of=self._blocks.of[order.numpy()])
            order = order[block_order(own, self._batch_size, seed=self._seed, epoch=epoch)]
        if self._lengths is not None:
            order = order[: self.num_trained]
            order = grouped_order(order, self._lengths, self._batch_size, seed=self._seed, epoch=epoch)
        view = epoch if self._views is None else epoch % self._views
        for number in range(self.start, self.num_batches):
            first = number * self._batch_size + self._rank * self._share
            yield [(view, index) for index in order[first : first + self._share].tolist()]

    def __len__(self) -> int:
        return self.num_batches - self.start
