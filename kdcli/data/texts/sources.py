"""Texts: one split of them, a data set of three, and batches whose order depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts
from kdcli.config.data import DataConfig
from kdcli.data.epoch import epoch_order
from kdcli.data.texts.batch import AnyTextBatch, Text, TextBatch, TextPair
from kdcli.machine.team import ALONE, Team


class TextSource:
    """One split, in memory.

    Args:
        texts: or pairs of texts; none of them blank.
        labels: one class index a text, or 0 for a text with values; ``UNLABELLED`` for neither.
        values: where texts have several labels or a number: float32 (N, C), each row of zeros and ones, or the number
            alone; NaN for none.
        split: what :meth:`describe` calls it.
    """

    def __init__(
        self,
        texts: Iterable[Text],
        labels: Iterable[int],
        *,
        values: NDArray[np.float32] | None = None,
        split: str,
    ) -> None:
        self.texts = tuple(texts)
        self.labels: Sequence[int] = tuple(int(label) for label in labels)
        self.values = values
        self.split = split

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_pairs(self) -> bool:
        """Whether a sample is a pair of texts."""
        return bool(self.texts) and isinstance(self.texts[0], TextPair)

    def load(self, index: int) -> Text:
        """Return one text or pair."""
        return self.texts[index]

    def describe(self, index: int) -> str:
        """Return ``split[index]``."""
        return f"{self.split}[{index}]"

    def take(self, indices: Iterable[int], labels: Iterable[int] | None = None) -> TextSource:
        """Return the texts ``indices``, in that order and some repeatedly, with their own labels or with others."""
        chosen = [int(index) for index in indices]
        return TextSource(
            (self.texts[index] for index in chosen),
            (self.labels[index] for index in chosen) if labels is None else labels,
            values=None if self.values is None else self.values[chosen],
            split=self.split,
        )

    def batch(self, indices: Sequence[int], epoch: int | None = None) -> AnyTextBatch:
        """Return the texts ``indices`` as a batch, the same in every epoch."""
        targets = (
            torch.tensor([self.labels[index] for index in indices], dtype=torch.int64)
            if self.values is None
            else torch.from_numpy(self.values[list(indices)])
        )
        return TextBatch([self.texts[index] for index in indices], targets, torch.tensor(indices, dtype=torch.int64))


class Pieces(Protocol):
    """What batches of texts are made of."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def batch(self, indices: Sequence[int], epoch: int | None = None) -> AnyTextBatch:
        """Return the samples ``indices`` as a batch of a training epoch, or without one as they are evaluated."""


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
    """Training batches; the last, incomplete one of an epoch is dropped, unless it is the only one.

    Args:
        source: the training split.
        batch_size: over all training processes.
        seed: the run's; the order of an epoch is a pure function of it and the epoch.
        team: of the training processes; each gets its consecutive share of every batch, all of one size.

    Raises:
        UserError: there are fewer texts than processes.
        ValueError: ``batch_size`` is not a multiple of the team's size.
    """

    def __init__(self, source: Pieces, *, batch_size: int, seed: int, team: Team = ALONE) -> None:
        if batch_size % team.size:
            raise ValueError(f"a batch of {batch_size} is no whole number for each of {team.size} processes")
        if len(source) < team.size:
            raise UserError(
                f"There are {len(source)} training texts for {team.size} processes.", "Use fewer processes."
            )
        self._source, self._seed = source, seed
        self._batch_size = min(batch_size, len(source) // team.size * team.size)
        self._share = self._batch_size // team.size
        self._first = team.rank * self._share

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of a whole epoch."""
        return len(self._source) // self._batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[AnyTextBatch]:
        """Yield the batches of an epoch, from number ``start``."""
        order = epoch_order(len(self._source), seed=self._seed, epoch=epoch).tolist()
        for number in range(start, self.batches_per_epoch):
            first = number * self._batch_size + self._first
            yield self._source.batch(order[first : first + self._share], epoch)


class TextEvalLoader:
    """Every text once, in order.

    Args:
        source: the split to evaluate on.
        batch_size: texts of a batch.
        team: of the processes; each gets its share of the batches.
    """

    def __init__(self, source: Pieces, *, batch_size: int, team: Team = ALONE) -> None:
        self._source = source
        batches = [range(i, min(i + batch_size, len(source))) for i in range(0, len(source), batch_size)]
        self._batches = team.share(batches)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[AnyTextBatch]:
        """Yield the batches."""
        for indices in self._batches:
            yield self._source.batch(indices)


def labelled_indices(source: TextSource) -> list[int]:
    """Return which texts have a label."""
    return [index for index, label in enumerate(source.labels) if label != UNLABELLED]
