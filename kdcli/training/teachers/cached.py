"""A teacher whose outputs are kept on disk: looked up there, and run for what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.facts import ModelFacts
from kdcli.base.reads import Reads
from kdcli.data import AnyBatch
from kdcli.data.batch import EVALUATION
from kdcli.models.outputs import ModelOutput
from kdcli.training.teachers.store import Keys, Store
from kdcli.training.teachers.teacher import Teacher

CacheDtype = Literal["float32", "bfloat16", "float16"]

_KINDS = ("features", "maps", "heads")


class CachedTeacher:
    """Looks batches up by their samples and views; runs the teacher on one that is not there as a whole, and adds it.

    So a batch is made of what the teacher gave for that very batch, where batches are those of the training that filled
    the cache. Each process looks up and adds its own share.

    Args:
        live: what is run; it begins when it is first needed.
        store: where outputs are kept; None keeps nothing, and only rounds.
        dtype: what outputs are rounded to, also those that were just computed: it makes no difference whether a batch
            was there.
        copies: views of a sample in an epoch, see :attr:`kdcli.data.source.Source.num_copies`.
    """

    def __init__(self, live: Teacher, store: Store | None, dtype: CacheDtype, copies: int) -> None:
        self.store = store
        self._live, self._copies = live, copies
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._names = names_of(live.reads)
        self._after_batch: Callable[[], None] = _nothing
        self._has_begun = False

    @property
    def facts(self) -> ModelFacts:
        """The model's."""
        return self._live.facts

    @property
    def reads(self) -> Reads:
        """What is returned."""
        return self._live.reads

    def begin(self, after_batch: Callable[[], None]) -> None:
        """Do nothing yet: the teacher begins when something is missing."""
        self._after_batch = after_batch

    def end(self) -> None:
        """Write what was added."""
        if self._has_begun:
            self._live.end()
        if self.store is not None:
            self.store.flush()

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch``, on its device.

        Raises:
            UserError: an output is too large for float16.
        """
        if not self._names:
            return ModelOutput()
        if self.store is None:
            return _as_output(self._rounded(self._run(batch))[0])
        group, keys = keys_of(*(batch.host or (batch.samples, batch.view)), self._copies)
        found = self.store.read(group, keys, self._names)
        if found is None:
            tensors, stored = self._rounded(self._run(batch))
            self.store.add(group, keys, tensors, stored)
            return _as_output(tensors)
        device = batch.samples.device
        return _as_output({name: tensor.to(device, non_blocking=True) for name, tensor in found.items()})

    def _run(self, batch: AnyBatch) -> dict[str, Tensor]:
        if not self._has_begun:
            self._live.begin(self._after_batch)
            self._has_begun = True
        output = self._live(batch)
        parts: dict[str, Mapping[str, Tensor]] = {kind: getattr(output, kind) for kind in _KINDS}
        return {name: parts[name.partition("/")[0]][name.partition("/")[2]] for name in self._names}

    def _rounded(self, outputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the outputs after rounding, in their own dtypes and in those that they are stored in."""
        stored = {name: self._narrowed(name, tensor) for name, tensor in outputs.items()}
        return {name: tensor.to(outputs[name].dtype) for name, tensor in stored.items()}, stored

    def _narrowed(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.element_size() <= self._dtype.itemsize:
            return tensor
        narrow = tensor.to(self._dtype)
        if self._dtype == torch.float16 and not torch.equal(narrow.isfinite(), tensor.isfinite()):
            raise UserError(
                f"{self.facts.name} gives {name} of up to {float(tensor.abs().max()):.3g}, and float16 holds no more"
                " than 65504.",
                "Use --cache-dtype bfloat16 or float32.",
            )
        return narrow


def names_of(reads: Reads) -> tuple[str, ...]:
    """Return what the outputs that are read are called in a store."""
    return tuple(f"{kind}/{name}" for kind in _KINDS for name in getattr(reads, kind))


def group_of(epoch: int) -> str:
    """Return what the group of an epoch's augmentation is called."""
    return f"view-{epoch:06d}"


def keys_of(samples: Tensor, view: Tensor, copies: int) -> tuple[str, Keys]:
    """Return the group of a batch, and the key of each of its samples in it, int64 (n,).

    Args:
        samples: int64 (n,), ids.
        view: int64 (n,), all of one epoch, or all of evaluation.
        copies: views of a sample in an epoch.
    """
    ids, views = samples.cpu().numpy(), view.cpu().numpy()
    if not len(views) or views[0] < 0:
        return "evaluation", ids * copies + (EVALUATION - views)
    epochs = np.unique(views // copies).tolist()
    if len(epochs) > 1:
        raise ValueError(f"a batch is of one epoch, and this one is of {epochs}")
    return group_of(epochs[0]), ids * copies + views % copies


def _as_output(tensors: Mapping[str, Tensor]) -> ModelOutput:
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for name, tensor in tensors.items():
        kind, _, own = name.partition("/")
        parts[kind][own] = tensor
    return ModelOutput(parts["features"], parts["maps"], parts["heads"])


def _nothing() -> None:
    return
