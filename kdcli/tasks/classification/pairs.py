"""Texts that may be pairs, such as a premise and a hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcli.config.run import RunConfig
from kdcli.models.base import Model
from kdcli.models.texts import TextModel
from kdcli.plan.plan import Decision
from kdcli.tasks.base import Cut, TextTask


class PairedTexts(TextTask):
    """A task whose samples are single texts, or pairs of them."""

    def decisions(
        self, config: RunConfig, teacher: Model | None, student: Model, data: Any, cut: Cut | None
    ) -> Sequence[Decision]:
        """Say how two texts of a sample are read."""
        if not data.has_pairs:
            return ()
        reason = "Each model's own encoding of two texts; the longer one is cut first."
        for role, model in (("teacher", teacher), ("student", student)):
            if isinstance(model, TextModel) and not model.separates_pairs:
                reason += f" The {role}'s tokenizer puts nothing between them: the second goes on where the first ends."
        return [Decision("pairs", "two texts a sample, read together", reason)]
