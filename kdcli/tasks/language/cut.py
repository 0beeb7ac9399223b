"""Texts to tokens for language models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kdcli.base.errors import UserError
from kdcli.config.run import RunConfig
from kdcli.data import Masking, TextData, TextSource, TokenSource, cut_into_tokens
from kdcli.models.base import Model
from kdcli.models.texts import TextModel

_TRIED_TEXTS = 200
"""So many training texts are cut by both tokenizers, to see that they do it alike."""


def token_cutter(
    config: RunConfig, teacher: Model | None, student: Model, *, is_masked: bool
) -> Callable[[TextSource], TokenSource]:
    """Return what makes tokens of a source of texts, with the tokenizer that both models share."""
    assert isinstance(student, TextModel)
    tokenizer, length = student.tokenizer, student.preprocessing.max_length
    if isinstance(teacher, TextModel):
        length = min(length, teacher.preprocessing.max_length)
    masking = None
    if is_masked:
        if tokenizer.mask_token_id is None:
            raise UserError(f"The tokenizer of {student.facts.name} has no mask token.", "Choose another --task.")
        special = frozenset(tokenizer.all_special_ids)
        masking = Masking(
            config.data.mask_probability,
            tokenizer.mask_token_id,
            special,
            student.preprocessing.vocab_size,
            config.seed,
        )
    return partial(cut_into_tokens, tokenizer=tokenizer, max_length=length, masking=masking)


def check_tokenizers(teacher: Model | None, student: Model, data: TextData) -> None:
    """Refuse a language model's teacher whose tokens are others than the student's.

    Raises:
        UserError: they are; it says how.
    """
    if teacher is None:
        return
    assert isinstance(teacher, TextModel)
    assert isinstance(student, TextModel)
    ours, theirs = (model.tokenizer.get_vocab() for model in (student, teacher))
    what = ""
    if ours != theirs:
        common = len(ours.items() & theirs.items())
        what = f"of the student's {len(ours)} tokens {common} are among the teacher's {len(theirs)}"
    else:
        texts = list(data.train.texts[:_TRIED_TEXTS])
        tried = [model.tokenizer(texts, verbose=False)["input_ids"] for model in (student, teacher)]
        differing = sum(a != b for a, b in zip(*tried, strict=True))
        if differing:
            what = f"they have the same vocabulary, but cut {differing} of {len(texts)} texts differently"
    if what:
        raise UserError(
            f"A language model is distilled token by token, and the tokenizers differ: {what}.",
            "Take a student without a tokenizer of its own, which gets the teacher's, or --student 'teacher?layers=N'.",
        )
