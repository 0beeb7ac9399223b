"""Texts: one split of them, a data set of three, and batches whose order depends on the seed and the epoch alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from kdcli.base.facts import UNLABELLED, DataFacts, Preprocessing, TextPreprocessing
from kdcli.config.data import DataConfig
from kdcli.data.batch import AnyBatch
from kdcli.data.epoch import Order, in_batches
from kdcli.data.source import Loading, Sample, Source
from kdcli.data.texts.batch import Text, TextBatch, TextPair


class Pieces(Source):
    """Samples in memory, of which batches are made as they are asked for."""

    split: str
    """What :meth:`describe` calls the samples."""

    @cached_property
    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """How long each sample is, int64 (N,), about in proportion to its tokens, whichever model reads it."""

    @abstractmethod
    def batch(self, indices: Sequence[int], epoch: int | None = None) -> AnyBatch:
        """Return the samples ``indices`` as a batch of a training epoch, or without one as they are evaluated."""

    def describe(self, index: int) -> str:
        """Return ``split[index]``."""
        return f"{self.split}[{index}]"

    def train_batches(
        self, loading: Loading, preprocessing: Sequence[Preprocessing | TextPreprocessing]
    ) -> TextTrainLoader:
        """Return batches to train on; each model prepares them by itself."""
        return TextTrainLoader(self, loading)

    def eval_batches(self, loading: Loading, preprocessing: Preprocessing | TextPreprocessing) -> TextEvalLoader:
        """Return every sample once, in order; each model prepares them by itself."""
        return TextEvalLoader(self, loading)


class TextSource(Pieces):
    """One split, in memory.

    Args:
        texts: or pairs of texts; none of them blank.
        labels: one class index a text, or 0 for a text with values; ``UNLABELLED`` for neither.
        values: where texts have several labels or a number: float32 (N, C), each row of zeros and ones, or the number
            alone; NaN for none.
        split: what :meth:`describe` calls it.
        ids: of the texts; by default their numbers.
    """

    def __init__(
        self,
        texts: Iterable[Text],
        labels: Iterable[int],
        *,
        values: NDArray[np.float32] | None = None,
        split: str,
        ids: NDArray[np.int64] | None = None,
    ) -> None:
        self.texts = tuple(texts)
        self.labels: Sequence[int] = tuple(int(label) for label in labels)
        self.values = values
        self.split = split
        self._ids = np.arange(len(self.texts)) if ids is None else ids

    @property
    def ids(self) -> NDArray[np.int64]:
        """As given."""
        return self._ids

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """In characters, both texts of a pair together."""
        sizes = (len(text) if isinstance(text, str) else sum(map(len, text)) for text in self.texts)
        return np.fromiter(sizes, np.int64, len(self.texts))

    @property
    def has_pairs(self) -> bool:
        """Whether a sample is a pair of texts."""
        return bool(self.texts) and isinstance(self.texts[0], TextPair)

    def load(self, index: int) -> Sample:
        """Return one text or pair, with its class, or with its row of values float32 (C,)."""
        target = self.labels[index] if self.values is None else torch.from_numpy(self.values[index])
        return Sample(self.texts[index], target)

    def take(self, indices: Iterable[int], labels: Iterable[int] | None = None) -> Self:
        """Return the texts ``indices``, in that order and some repeatedly, with their own labels or with others."""
        chosen = np.asarray([int(index) for index in indices], dtype=np.int64)
        return type(self)(
            (self.texts[index] for index in chosen),
            (self.labels[index] for index in chosen) if labels is None else labels,
            values=None if self.values is None else self.values[chosen],
            split=self.split,
            ids=self.ids[chosen],
        )

    def batch(self, indices: Sequence[int], epoch: int | None = None) -> AnyBatch:
        """Return the texts ``indices`` as a batch, the same in every epoch."""
        targets = (
            torch.tensor([self.labels[index] for index in indices], dtype=torch.int64)
            if self.values is None
            else torch.from_numpy(self.values[list(indices)])
        )
        texts = [self.texts[index] for index in indices]
        return TextBatch(texts=texts, targets=targets, samples=self.samples(indices), view=self.views(indices, epoch))


@dataclass(frozen=True)
class TextData:
    """A data set, split.

    Attributes:
        facts: what the plan needs to know about it.
        train: unlabelled texts included.
        validation: for choosing.
        test: for reporting; None where the data have a validation split and no test split.
        columns: of a table, that the texts, or both texts of a pair, are from.
        labelled: nothing: texts are measured by labels of their own.
    """

    facts: DataFacts
    train: TextSource
    validation: TextSource
    test: TextSource | None
    columns: tuple[str, ...] = ()
    labelled: None = None

    @property
    def has_pairs(self) -> bool:
        """Whether a sample is a pair."""
        return self.train.has_pairs

    def settle(self, config: DataConfig) -> DataConfig:
        """Return ``config``, by which the data were opened, with what was found out then."""
        if not self.has_pairs:
            return config
        columns = dict(zip(("text_column", "text_pair_column"), self.columns, strict=True))
        return config.model_copy(update=columns)


class TextTrainLoader:
    """Training batches, see :class:`~kdcli.data.source.TrainBatches`.

    Args:
        source: the training split.
        loading: how batches are made.

    Raises:
        UserError: there are fewer texts than processes.
        ValueError: a batch is not the same number of texts for each process.
    """

    def __init__(self, source: Pieces, loading: Loading) -> None:
        self._source = source
        lengths = source.lengths if loading.by_length else None
        self._order = Order(
            len(source),
            loading.batch_size,
            loading.seed,
            loading.team,
            noun="text",
            draws=loading.draws,
            lengths=lengths,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of a whole epoch."""
        return self._order.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[AnyBatch]:
        """Yield the batches of an epoch, from number ``start``."""
        self._order.epoch, self._order.start = epoch, start
        for keys in self._order:
            yield self._source.batch([index for _, index in keys], epoch)


class TextEvalLoader:
    """Every text once, in order, or from the shortest to the longest.

    Args:
        source: the split to evaluate on.
        loading: how batches are made; of several processes each gets its share of them.
    """

    def __init__(self, source: Pieces, loading: Loading) -> None:
        self._source = source
        batches: Sequence[Sequence[int]] = in_batches(len(source), loading.batch_size)
        if loading.by_length:
            order = np.argsort(source.lengths, kind="stable").tolist()
            batches = [order[batch.start : batch.stop] for batch in in_batches(len(order), loading.batch_size)]
        self._batches = loading.team.share(batches)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[AnyBatch]:
        """Yield the batches."""
        for indices in self._batches:
            yield self._source.batch(indices)


def labelled_indices(source: TextSource) -> list[int]:
    """Return which texts have a label."""
    return [index for index, label in enumerate(source.labels) if label != UNLABELLED]
