"""Which samples an epoch has, and in what order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
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


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, int64 ``(num_samples,)``: a pure function of its arguments."""
    generator = torch.Generator().manual_seed(stable_seed("order", seed, epoch))
    return torch.randperm(num_samples, generator=generator)


def in_batches(num_samples: int, batch_size: int) -> list[range]:
    """Return which samples each batch has, in order; the last may have fewer."""
    return [range(first, min(first + batch_size, num_samples)) for first in range(0, num_samples, batch_size)]


class Order:
    """Sampler of whole batches: lists of (epoch, index), so that persistent workers learn of the epoch.

    Args:
        num_samples: of the source.
        batch_size: over all training processes; of fewer samples there is one batch.
        seed: the run's.
        team: of the training processes.
        noun: what a sample is, for messages.

    Raises:
        UserError: there are fewer samples than processes.
        ValueError: ``batch_size`` is not a multiple of the team's size.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, team: Team, *, noun: str) -> None:
        if batch_size % team.size:
            raise ValueError(f"a batch of {batch_size} is no whole number for each of {team.size} processes")
        if num_samples < team.size:
            raise UserError(
                f"There are {num_samples} training {noun}s for {team.size} processes.", "Use fewer processes."
            )
        batch_size = min(batch_size, num_samples // team.size * team.size)
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._share = team.rank, batch_size // team.size
        self.num_batches = num_samples // batch_size
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = self.epoch, epoch_order(self._num_samples, seed=self._seed, epoch=self.epoch)
        for number in range(self.start, self.num_batches):
            first = number * self._batch_size + self._rank * self._share
            yield [(epoch, index) for index in order[first : first + self._share].tolist()]

    def __len__(self) -> int:
        return self.num_batches - self.start
