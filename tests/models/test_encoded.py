"""Tokens of texts are made once for each text, and are what the tokenizer itself gives."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from kdcli.data import TextPair
from kdcli.models.transformers import encoded
from kdcli.models.transformers.encoded import Encoder
from kdcli.models.transformers.tokenizer import encode

TEXTS = ["the film was good", "a very dull plot with a weak end and quite poor music", "lovely", "was the film bad ?"]
PAIRS = [TextPair(first, second) for first, second in itertools.pairwise(TEXTS)]


def its_own(tokenizer, texts, max_length):
    return encode(tokenizer, texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")


@pytest.mark.parametrize("max_length", [6, 64])
@pytest.mark.parametrize("texts", [TEXTS, PAIRS, TEXTS[2:3], [*TEXTS, *TEXTS[:1]]])
def test_tokens_are_the_tokenizers_own(make_tokenizer, texts, max_length) -> None:
    tokenizer = make_tokenizer()
    encoder = Encoder(tokenizer, max_length)
    for _ in range(2):
        found, expected = encoder(texts), its_own(tokenizer, texts, max_length)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            assert values.dtype == torch.int64
            assert torch.equal(values, expected[name]), name
    assert encoder.tokenized == len(set(texts))


def test_each_text_is_tokenized_once_whatever_the_batches(make_tokenizer) -> None:
    encoder = Encoder(make_tokenizer(), 16)
    for batch in (TEXTS[:2], TEXTS[1:], TEXTS[::-1], TEXTS):
        encoder(batch)
    assert encoder.tokenized == len(TEXTS)
    again = copy.deepcopy(encoder)
    again(TEXTS)
    assert again.tokenized == len(TEXTS), "a copied model, as of averaged weights, keeps what was made"


def test_what_is_kept_is_bounded(make_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    monkeypatch.setattr(encoded, "KEPT_BYTES", 1200)  # two of these texts
    encoder = Encoder(tokenizer, 64)
    for _ in range(3):
        found = encoder(TEXTS)
        assert torch.equal(found["input_ids"], its_own(tokenizer, TEXTS, 64)["input_ids"])
    assert encoder.tokenized == 4 + 2 + 2
