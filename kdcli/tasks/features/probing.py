"""A sample of labelled data, and a frozen model's features of it: what probing a teacher begins with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.reads import Reads
from kdcli.data import AnyBatch, Loading, Source, TextSource
from kdcli.models.base import Model

_BATCH = 64


def sample_by_class(train: Source, names: Sequence[str], samples: int, seed: int) -> tuple[Source, list[str]]:
    """Return labelled samples, in proportion by class, and the classes of which a single one would be among them.

    Args:
        train: with one class a sample.
        names: of the classes.
        samples: how many, at most.
        seed: draws them.

    Raises:
        UserError: there are fewer than two classes with two samples or more.
    """
    labels = np.array(train.labels)
    wanted = range(len(names))
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(np.flatnonzero((labels == label) & (labels != UNLABELLED))) for label in wanted]
    # A sample's place among those of its class, from 0 to 1: the first so many of all are as many of each in
    # proportion.
    ranks = np.concatenate([(np.arange(len(members)) + 0.5) / max(len(members), 1) for members in shuffled])
    chosen = np.concatenate(shuffled)[np.argsort(ranks, kind="stable")[:samples]]
    counts = {label: int((labels[chosen] == label).sum()) for label in wanted}
    kept = np.sort(chosen[[counts[label] > 1 for label in labels[chosen]]])
    if len(np.unique(labels[kept])) < 2:
        is_text = isinstance(train, TextSource)
        raise UserError(
            f"The sample of {len(chosen)} labelled {'text' if is_text else 'image'}s has fewer than two classes with"
            " two or more.",
            f"Give more --samples{'' if is_text else ', or other --classes'}.",
        )
    return train.take(kept), [names[label] for label, count in counts.items() if count == 1]


class Features(NamedTuple):
    """What a model makes of samples.

    Attributes:
        by_tap: float32 (N, d).
        labels: (N,) of the samples that can be read.
        seconds: that the model took.
        lost: names of what can't be read.
    """

    by_tap: dict[str, Tensor]
    labels: NDArray[np.int64]
    seconds: float
    lost: list[str]


@torch.inference_mode()
def features_of(
    model: Model,
    source: Source,
    taps: tuple[str, ...],
    device: torch.device,
    count: Callable[[int], None] = lambda done: None,
    look: Callable[[AnyBatch], None] = lambda batch: None,
    workers: int | None = None,
) -> Features:
    """Run a model over samples, each with the model's own preprocessing and without augmentation.

    Args:
        model: in eval mode.
        source: the samples, all with a label.
        taps: features to return.
        device: to run it on.
        count: told after every batch how many are done.
        look: shown every batch, on the CPU.
        workers: loader processes; None chooses.

    Raises:
        UserError: none of the samples can be read.
    """
    model.to(device)
    features: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    labels, seconds, lost = [], 0.0, dict[str, None]()
    for batch in source.eval_batches(Loading(_BATCH, workers=workers), model.facts.preprocessing):
        lost.update(dict.fromkeys(batch.skipped))
        if not len(batch):
            continue
        look(batch)
        inputs = model.prepare(batch.to(device))
        start = time.perf_counter()
        found = model(inputs, Reads(taps)).features
        for tap in taps:
            features[tap].append(found[tap].float().cpu())
        seconds += time.perf_counter() - start
        labels.append(batch.targets)
        count(sum(map(len, labels)))
    by_tap = {tap: torch.cat(parts) for tap, parts in features.items()}
    return Features(by_tap, torch.cat(labels).numpy(), seconds, list(lost))
