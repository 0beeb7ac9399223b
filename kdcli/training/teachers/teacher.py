"""The frozen teacher beside the distiller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from kdcli.base.reads import Reads
from kdcli.data import AnyBatch, Text, TextBatch
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.models.outputs import ModelOutput


class LiveTeacher:
    """Runs the teacher on each batch and returns no more than the methods read.

    Args:
        model: frozen, in eval mode, on its device.
        reads: what to return.
    """

    def __init__(self, model: Model, reads: Reads) -> None:
        self.model = model
        self.reads = reads

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch`` without gradient."""
        if not self.reads:  # only an earlier stage had a use for it
            return ModelOutput()
        with torch.no_grad():  # not inference mode, whose tensors no backward pass may save
            inputs = self.model.prepare(batch)
            return self.model(inputs, self.reads)


class StoredTeacher:
    """Returns what the teacher has made of the training texts: they are not augmented, so once is enough.

    Args:
        model: the teacher.
        rows: text or pair -> its row in every table.
        outputs: of all texts: features (N, d) and logits (N, C) on the CPU.
    """

    def __init__(self, model: Model, rows: Mapping[Text, int], outputs: ModelOutput) -> None:
        self.model = model
        self._rows = rows
        self._outputs = outputs

    @classmethod
    def fill(
        cls,
        teacher: LiveTeacher,
        texts: Sequence[Text],
        run: Callable[[AnyBatch], ModelOutput],
        batches: Iterable[AnyBatch],
        team: Team,
    ) -> StoredTeacher:
        """Run the teacher once on every text.

        Args:
            teacher: what is run.
            texts: each once.
            run: ``teacher`` as training calls it.
            batches: of ``texts``, with their places among them; of several processes each has its share.
            team: of the processes. A row is one process's numbers and the others' zeros.
        """
        features = {tap: torch.zeros(len(texts), width) for tap, width in _widths(teacher).items()}
        heads = {head: torch.zeros(len(texts), teacher.model.facts.num_classes) for head in teacher.reads.heads}
        for batch in batches:
            output, rows = run(batch), batch.indices.cpu()
            for tables, found in ((features, output.features), (heads, output.heads)):
                for name, table in tables.items():
                    table[rows] = found[name].float().cpu()
        stored = ModelOutput(features, heads=heads).map(lambda table: team.sum(table).cpu())
        return cls(teacher.model, {text: row for row, text in enumerate(texts)}, stored)

    @staticmethod
    def size(teacher: LiveTeacher, num_texts: int) -> int:
        """Return the bytes that the outputs for so many texts take."""
        numbers = sum(_widths(teacher).values()) + teacher.model.facts.num_classes * len(teacher.reads.heads)
        return 4 * num_texts * numbers

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch``, on its device."""
        assert isinstance(batch, TextBatch)
        rows = torch.tensor([self._rows[text] for text in batch.texts])
        return self._outputs.map(lambda table: table[rows].to(batch.indices.device))


def _widths(teacher: LiveTeacher) -> dict[str, int]:
    return {tap: teacher.model.facts.feature_dims[tap] for tap in teacher.reads.features}
