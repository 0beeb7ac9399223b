"""What models of texts have in common."""

from __future__ import annotations

from typing import Any

from kdcli.base.facts import TextPreprocessing
from kdcli.models.base import Model


class TextModel(Model):
    """A model of texts.

    Attributes:
        tokenizer: its own, of transformers.
    """

    preprocessing: TextPreprocessing
    tokenizer: Any

    @property
    def separates_pairs(self) -> bool:
        """Whether the tokenizer puts a token between the texts of a pair."""
        count = self.tokenizer.num_special_tokens_to_add
        return count(pair=True) > count(pair=False)
