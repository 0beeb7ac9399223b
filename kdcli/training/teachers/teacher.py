"""The frozen teacher beside the distiller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from kdcli.data import AnyBatch, Text, TextBatch
from kdcli.machine.team import Team
from kdcli.models.base import Model, ModelOutput


class LiveTeacher:
    """Runs the teacher on each batch and returns no more than the methods read.

    Args:
        model: frozen, in eval mode, on its device.
        taps: features to return.
        logits: whether to run its head.
        maps: features to return as maps.
    """

    def __init__(self, model: Model, *, taps: tuple[str, ...], logits: bool, maps: tuple[str, ...] = ()) -> None:
        self.model = model
        self.taps = taps
        self.maps = maps
        self.logits = logits

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch`` without gradient."""
        if not (self.taps or self.maps or self.logits):  # only an earlier stage had a use for it
            return ModelOutput({}, None)
        with torch.no_grad():  # not inference mode, whose tensors no backward pass may save
            inputs = self.model.prepare(batch)
            return self.model(inputs, taps=self.taps, maps=self.maps, logits=self.logits)


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
        logits = torch.zeros(len(texts), teacher.model.facts.num_classes) if teacher.logits else None
        for batch in batches:
            output, rows = run(batch), batch.indices.cpu()
            for tap, table in features.items():
                table[rows] = output.features[tap].float().cpu()
            if logits is not None and output.logits is not None:
                logits[rows] = output.logits.float().cpu()
        tables = ModelOutput(
            {tap: team.sum(table).cpu() for tap, table in features.items()},
            None if logits is None else team.sum(logits).cpu(),
        )
        return cls(teacher.model, {text: row for row, text in enumerate(texts)}, tables)

    @staticmethod
    def size(teacher: LiveTeacher, num_texts: int) -> int:
        """Return the bytes that the outputs for so many texts take."""
        numbers = sum(_widths(teacher).values()) + (teacher.model.facts.num_classes if teacher.logits else 0)
        return 4 * num_texts * numbers

    def __call__(self, batch: AnyBatch) -> ModelOutput:
        """Return the outputs for ``batch``, on its device."""
        assert isinstance(batch, TextBatch)
        rows = torch.tensor([self._rows[text] for text in batch.texts])
        place, stored = batch.indices.device, self._outputs
        return ModelOutput(
            features={tap: table[rows].to(place) for tap, table in stored.features.items()},
            logits=None if stored.logits is None else stored.logits[rows].to(place),
        )


def _widths(teacher: LiveTeacher) -> dict[str, int]:
    return {tap: teacher.model.facts.feature_dims[tap] for tap in teacher.taps}
