"""What every source of samples has, whatever its samples are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.facts import Preprocessing, TextPreprocessing
from kdcli.config.data import AugmentConfig
from kdcli.data.batch import EVALUATION, AnyBatch
from kdcli.data.epoch import BalancedDraws, Blocks, in_few_blocks
from kdcli.machine.team import ALONE, Team


class Sample(NamedTuple):
    """One sample.

    Attributes:
        inputs: an image, a text, a pair of texts, words or tokens.
        target: a class index, ``UNLABELLED`` for none; or whatever the source's task is trained on.
    """

    inputs: Any
    target: Any


@dataclass(frozen=True)
class Loading:
    """How batches are made.

    Attributes:
        batch_size: of training batches over all processes; of batches for evaluation in each.
        seed: of the order and of augmentation.
        augment: of training images.
        workers: loader processes of images; None chooses.
        strict: stop at an image that can't be read.
        reduced: decode JPEG files at a part of their size where that is enough.
        by_length: put texts of about one length into a batch, which needs less padding; the order is then another.
        team: of the processes that share the samples.
        draws: of the training samples of each epoch, where not all of the source's are in each.
        views: epochs after which images are augmented as in the first again; None for never.
    """

    batch_size: int
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: int | None = None
    strict: bool = False
    team: Team = ALONE
    reduced: bool = False
    draws: BalancedDraws | None = None
    by_length: bool = False
    views: int | None = None


class TrainBatches(Protocol):
    """The batches of training, epoch after epoch.

    The order of an epoch is a pure function of seed and epoch, and each sample in it of seed, epoch and its place in
    the source, whatever the number of processes. Each process gets its consecutive share of every batch, all of one
    size. The last, incomplete batch of an epoch is dropped, unless it is the only one.
    """

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of a whole epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[AnyBatch]:
        """Yield the batches of an epoch, from number ``start``; one epoch at a time."""


class EvalBatches(Protocol):
    """Every sample once, in order; of several processes each has its share of the batches."""

    def __len__(self) -> int:
        """Return the number of batches of this process."""

    def __iter__(self) -> Iterator[AnyBatch]:
        """Yield the batches."""


class Source(ABC):
    """The samples of one split, or some of them.

    Attributes:
        labels: what the samples are stratified by: a class index each, or 0 where a target is something else; in both
            cases ``UNLABELLED`` for none.
    """

    labels: Sequence[int]

    @property
    @abstractmethod
    def ids(self) -> NDArray[np.int64]:
        """A number for each sample, int64 (N,), that stays with it when samples are taken, repeated or cut into pieces.

        They are the numbers of one split as the data have it: another split has the same ones.
        """

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def blocks(self) -> Blocks | None:
        """What is read together with each sample; None where each can be read alone."""
        return None

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Return one sample, the same each time."""

    def in_channels(self, channels: int) -> Source:
        """Return the same samples, if images with so many channels each."""
        return self

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return what the sample is called: its file, or ``split[index]`` where it has none."""

    @abstractmethod
    def take(self, indices: Iterable[int], labels: Iterable[int] | None = None) -> Self:
        """Return the samples ``indices``, in that order and some repeatedly, with their own labels or with others."""

    @abstractmethod
    def train_batches(
        self, loading: Loading, preprocessing: Sequence[Preprocessing | TextPreprocessing]
    ) -> TrainBatches:
        """Return the batches to train on.

        Args:
            loading: how they are made.
            preprocessing: of the models that read them.

        Raises:
            UserError: there are fewer samples than processes.
            ValueError: a batch is not the same number of samples for each process.
        """

    @abstractmethod
    def eval_batches(self, loading: Loading, preprocessing: Preprocessing | TextPreprocessing) -> EvalBatches:
        """Return every sample once, in order and without augmentation, as ``preprocessing`` says."""

    def near(self, count: int) -> Self:
        """Return samples out of which about ``count`` are to be looked at: of few blocks, where they are read in such.

        They are all samples where each can be read alone.
        """
        return self if self.blocks is None else self.take(in_few_blocks(self.blocks, count).tolist())

    def samples(self, indices: Sequence[int]) -> Tensor:
        """Return the ids of the samples ``indices``, int64 (n,)."""
        return torch.from_numpy(self.ids[np.asarray(indices, dtype=np.int64)])

    def views(self, indices: Sequence[int], epoch: int | None = None) -> Tensor:
        """Return which augmentation of each sample the samples ``indices`` are, int64 (n,).

        It is the epoch's number where no sample is in the source more than once. Otherwise repetitions, or pieces of
        one text, are counted on: those of an epoch are all different. Without an epoch they are the views of
        evaluation: ``EVALUATION``, and the numbers below it for repetitions and pieces.
        """
        copies, number = self._copies
        chosen = torch.from_numpy(copies[np.asarray(indices, dtype=np.int64)])
        return EVALUATION - chosen if epoch is None else epoch * number + chosen

    @property
    def num_copies(self) -> int:
        """How often a sample is in the source at most: an epoch has so many views of it."""
        return self._copies[1]

    def places(self, samples: Tensor, view: Tensor | None = None) -> Tensor:
        """Return the indices of samples of this source by their ids, int64 (n,).

        Args:
            samples: int64 (n,), as a batch has them.
            view: int64 (n,), of the same batch: tells repetitions and pieces. By default the first of each is meant.
        """
        number = self._copies[1]
        wanted = samples.cpu().numpy() * number
        if view is not None:
            views = view.cpu().numpy()
            wanted = wanted + np.where(views < 0, EVALUATION - views, views % number)
        keys, order = self._sorted
        return torch.from_numpy(order[np.searchsorted(keys, wanted)])

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A number for each sample and copy, ascending, and which sample of the source has it."""
        copies, number = self._copies
        keys = self.ids * number + copies
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    @cached_property
    def _copies(self) -> tuple[NDArray[np.int64], int]:
        """How often each sample was there before in this source, (N,), and how often one is at most."""
        ids = self.ids
        order = np.argsort(ids, kind="stable")
        is_first = np.ones(len(ids), dtype=bool)
        is_first[1:] = ids[order][1:] != ids[order][:-1]
        places = np.arange(len(ids))
        firsts = np.maximum.accumulate(np.where(is_first, places, 0))
        copies = np.empty_like(ids)
        copies[order] = places - firsts
        return copies, int(copies.max(initial=0)) + 1
