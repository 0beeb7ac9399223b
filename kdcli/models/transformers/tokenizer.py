"""A model's own tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from torch import nn
from transformers import AutoTokenizer

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError
from kdcli.data.texts.batch import Text, TextPair
from kdcli.models.weights import reason_of

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
DEFAULT_MAX_LENGTH = 512
"""Most tokens of a text where nothing is asked for: longer ones would cost memory that few texts need."""


def read_tokenizer(folder: Path | None) -> Any | None:
    """Return the tokenizer in ``folder``, which pads on the right; None where there is none.

    As it was found it stays in ``as_found``, for :func:`save_tokenizer`.

    Raises:
        UserError: it can't be read, or has no token that could pad.
    """
    if folder is None or not any((folder / name).is_file() for name in _VOCABULARIES):
        return None  # transformers would make up one without words
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # on damaged files transformers raises whatever it trips over
        raise UserError(
            f"The tokenizer in {folder} can't be read: {reason_of(error)}",
            "Check its files; kdcli runs no code from model folders.",
        ) from error
    tokenizer.as_found = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"The tokenizer in {folder} has no token to pad with.", "Give its tokenizer_config.json a pad_token."
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path, *, max_length: int | None) -> None:
    """Write what :func:`read_tokenizer` returned as it was found: its sides, template and tokens are the folder's own.

    Args:
        tokenizer: a model's.
        folder: where to.
        max_length: the longest text that the model was trained on, to cut longer ones there; a token to pad with is
            then given, too, where the folder's tokenizer has none. None leaves both as they are, for language models.
    """
    own = copy.deepcopy(tokenizer.as_found)
    if max_length is not None:
        own.model_max_length = max_length
        if own.pad_token is None:
            own.pad_token = tokenizer.pad_token
    own.save_pretrained(folder)


def lower_case(tokenizer: Any, source: str) -> None:
    """Let a tokenizer see all letters as small ones.

    Raises:
        UserError: it can't be told to.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{source} wants do_lower_case, which its tokenizer {type(tokenizer).__name__} can't be told.",
            "Give its folder a tokenizer.json.",
        )
    for changed in (tokenizer, tokenizer.as_found):
        backend = changed.backend_tokenizer
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def encode(tokenizer: Any, texts: Sequence[Text], **options: Any) -> Any:
    """Return the tokenizer's own encoding of texts, or of pairs of texts, which are cut at the longer one first.

    Args:
        tokenizer: a model's.
        texts: all single ones, or all pairs.
        options: of the tokenizer's call.
    """
    if any(isinstance(text, TextPair) for text in texts):
        firsts, seconds = zip(*texts, strict=True)
        return tokenizer(list(firsts), list(seconds), **options)
    return tokenizer(list(texts), **options)


def max_length(name: str, module: Any, tokenizer: Any, *, asked: int | None, own: int | None) -> int:
    """Return the longest text in tokens.

    Args:
        name: of the model, for messages.
        module: the model.
        tokenizer: its own.
        asked: the user's wish.
        own: what sentence-transformers keeps beside the model.

    Returns:
        ``asked``, else ``own``, else what both model and tokenizer can take, at most ``DEFAULT_MAX_LENGTH``.

    Raises:
        UserError: more is asked for than the model has positions for.
    """
    positions = num_positions(module)
    if asked is not None:
        if positions is not None and asked > positions:
            raise UserError(f"{name} takes texts of at most {positions} tokens, not {asked}.", "Lower max_length.")
        return asked
    limits = [limit for limit in (own, tokenizer.model_max_length, positions) if limit is not None]
    return int(min(limits if own is not None else [*limits, DEFAULT_MAX_LENGTH]))


def num_tokens(tokenizer: Any) -> int:
    """Return one more than the largest number that a tokenizer gives out."""
    return max(tokenizer.get_vocab().values()) + 1


def num_positions(module: Any) -> int | None:
    """Return how many tokens a model has positions for; None for any number."""
    for name, child in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(child, nn.Embedding):
            # RoBERTa and its kin number positions from behind the padding's on.
            return child.num_embeddings - (0 if child.padding_idx is None else child.padding_idx + 1)
    positions = getattr(module.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
