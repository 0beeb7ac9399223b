"""The frozen teacher beside the objective: run on every batch, or looked up in what it gave for each text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from kdcli.base.facts import ModelFacts
from kdcli.base.reads import Reads
from kdcli.data import AnyBatch
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.models.outputs import ModelOutput
from kdcli.training.teachers.forward import Form, in_form


class Teacher(Protocol):
    """What is read of a teacher, however it is come by: run, looked up, or read from a disk."""

    @property
    def facts(self) -> ModelFacts:
        """The model's."""

    @property
    def reads(self) -> Reads:
        """What :meth:`__call__` returns."""

    def begin(self, after_batch: Callable[[], None]) -> None:
        """Make ready; called once, before the first step.

        Args:
            after_batch: called after every batch that the model is run on; raises where training was asked to stop.
        """

    def end(self) -> None:
        """Leave; called after the last step, also where training stops or fails."""

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch`` without gradient, on its device."""


class LiveTeacher:
    """Runs the teacher on each batch and returns no more than the methods read.

    Args:
        model: frozen, in eval mode, on its device; it stays as it is.
        reads: what to return.
        form: how it is run.
        compiles: through ``torch.compile``.
    """

    def __init__(self, model: Model, reads: Reads, form: Form | None = None, *, compiles: bool = False) -> None:
        self._form = form or Form()
        self.model = in_form(model, self._form, reads)
        if compiles:
            self.model = copy.deepcopy(model) if self.model is model else self.model
            self.model.compile()
        self._reads = reads

    @property
    def facts(self) -> ModelFacts:
        """The model's."""
        return self.model.facts

    @property
    def reads(self) -> Reads:
        """What is returned."""
        return self._reads

    def begin(self, after_batch: Callable[[], None]) -> None:
        """Do nothing: it is ready."""

    def end(self) -> None:
        """Do nothing: there is nothing to be kept."""

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch`` without gradient."""
        if not self.reads:  # only an earlier stage had a use for it
            return ModelOutput()
        return self._form.run(self.model, self.model.prepare(batch), self.reads)


class StoredTeacher:
    """Returns what the teacher has made of the training texts: they are not augmented, so once is enough.

    Args:
        live: what is run, or looks up what it gave in an earlier run.
        rows: of the tables, by the texts' ids; equal texts share one.
        batches: starts a pass over one text of each row, in batches on the teacher's device; of several processes each
            has its share.
        team: the processes. A row is one's numbers and the others' zeros.
    """

    def __init__(
        self,
        live: Teacher,
        rows: Mapping[int, int],
        batches: Callable[[], Iterable[AnyBatch]],
        team: Team,
    ) -> None:
        self._live, self._rows, self._batches, self._team = live, rows, batches, team
        self._outputs: ModelOutput | None = None
        """Of all texts, on the CPU: features (N, d) and heads (N, C)."""

    @property
    def facts(self) -> ModelFacts:
        """The model's."""
        return self._live.facts

    @property
    def reads(self) -> Reads:
        """What is returned."""
        return self._live.reads

    def begin(self, after_batch: Callable[[], None]) -> None:
        """Run the teacher once on every text."""
        self._live.begin(after_batch)
        live, num_texts = self._live, max(self._rows.values()) + 1
        facts, reads = live.facts, live.reads
        features = {tap: torch.zeros(num_texts, facts.feature_dims[tap]) for tap in reads.features}
        heads = {head: torch.zeros(num_texts, facts.num_classes) for head in reads.heads}
        for batch in self._batches():
            with self._team.autocast():
                output = live(batch)
            after_batch()
            rows = self._rows_of(batch)
            for tables, found in ((features, output.features), (heads, output.heads)):
                for name, table in tables.items():
                    table[rows] = found[name].float().cpu()
        self._outputs = ModelOutput(features, heads=heads).map(lambda table: self._team.sum(table).cpu())

    def end(self) -> None:
        """Leave what was run."""
        self._live.end()

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch``, on its device."""
        assert self._outputs is not None, "begin() comes first"
        rows = self._rows_of(batch)
        return self._outputs.map(lambda table: table[rows].to(batch.samples.device))

    def _rows_of(self, batch: AnyBatch) -> Tensor:
        return torch.tensor([self._rows[sample] for sample in batch.samples.tolist()])
