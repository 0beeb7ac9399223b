"""Texts as a tokenizer's numbers, made once for each text and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data.texts.batch import Text
from kdcli.models.transformers.tokenizer import encode

KEPT_BYTES = 2**28
"""Of texts and their tokens that each model keeps; texts beyond are tokenized anew every time."""
_OVERHEAD = 400
"""Bytes of a kept text beside its characters and tokens: the entry, the key and two arrays."""
_Row = tuple[NDArray[np.int32], NDArray[np.int8] | None]
"""Tokens of a text (L,), and of which text of a pair each is."""


class Encoder:
    """Tokenizes texts, each once as long as there is room.

    Args:
        tokenizer: a model's, which pads on the right.
        max_length: in tokens; longer texts are cut by the tokenizer.

    Attributes:
        tokenized: texts that the tokenizer was given so far, repetitions included.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self._kept: dict[Text, _Row] = {}
        self._bytes = 0
        self.tokenized = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        """Return itself: a copy of a model reads texts alike, and what is kept need not be there twice."""
        return self

    def __call__(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """Return what the tokenizer would, padded to the longest: int64 (B, L) ``input_ids`` and ``attention_mask``.

        Also ``token_type_ids``, where the tokenizer has them.
        """
        rows = self._rows(texts)
        shape = (len(rows), max(len(ids) for ids, _ in rows))
        ids = np.full(shape, self._tokenizer.pad_token_id, np.int64)
        mask = np.zeros(shape, np.int64)
        types = np.full(shape, self._tokenizer.pad_token_type_id, np.int64) if rows[0][1] is not None else None
        for place, (row, kinds) in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = row, 1
            if types is not None and kinds is not None:
                types[place, : len(row)] = kinds
        found = {"input_ids": ids, "attention_mask": mask}
        if types is not None:
            found["token_type_ids"] = types
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _rows(self, texts: Sequence[Text]) -> list[_Row]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        made = dict(zip(missing, self._tokenize(missing), strict=True)) if missing else {}
        for text, row in made.items():
            self._keep(text, row)
        return [made.get(text) or self._kept[text] for text in texts]

    def _tokenize(self, texts: Sequence[Text]) -> list[_Row]:
        self.tokenized += len(texts)
        found = encode(self._tokenizer, texts, truncation=True, max_length=self._max_length)
        kinds = found["token_type_ids"] if "token_type_ids" in found else [None] * len(texts)
        return [
            (np.asarray(ids, np.int32), None if kind is None else np.asarray(kind, np.int8))
            for ids, kind in zip(found["input_ids"], kinds, strict=True)
        ]

    def _keep(self, text: Text, row: _Row) -> None:
        characters = len(text) if isinstance(text, str) else sum(map(len, text))
        size = _OVERHEAD + 4 * characters + row[0].nbytes + (0 if row[1] is None else row[1].nbytes)
        if self._bytes + size <= KEPT_BYTES:
            self._kept[text] = row
            self._bytes += size
