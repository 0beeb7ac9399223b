"""Texts in the pieces that a task reads, and what the plan says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdcli.config.run import RunConfig
from kdcli.data import TextSource, TokenSource, WordSource
from kdcli.models.base import Model
from kdcli.models.transformers.text import HFTextModel
from kdcli.models.transformers.tokenizer import separates_pairs
from kdcli.plan.plan import Decision
from kdcli.tasks.language.cut import token_cutter
from kdcli.tasks.words.cut import word_cutter


def cutter(
    config: RunConfig, teacher: Model | None, student: Model, class_names: Sequence[str]
) -> Callable[[TextSource], TokenSource | WordSource]:
    """Return what cuts a split's texts into pieces that teacher and student can take, each split once."""
    cut: Callable[[TextSource], TokenSource | WordSource]
    if config.task == "token-classification":
        cut = word_cutter(teacher, student, class_names)
    else:
        cut = token_cutter(config, teacher, student)
    known: dict[TextSource, TokenSource | WordSource] = {}

    def cut_once(source: TextSource) -> TokenSource | WordSource:
        if source not in known:
            known[source] = cut(source)
        return known[source]

    return cut_once


def describe_pairs(teacher: Model | None, student: Model) -> Decision:
    """Return the decision on how two texts of a sample are read."""
    reason = "Each model's own encoding of two texts; the longer one is cut first."
    for role, model in (("teacher", teacher), ("student", student)):
        if isinstance(model, HFTextModel) and not separates_pairs(model.tokenizer):
            reason += f" The {role}'s tokenizer puts nothing between them: the second goes on where the first ends."
    return Decision("pairs", "two texts a sample, read together", reason)


def describe_pieces(config: RunConfig, texts: TextSource, pieces: TokenSource | WordSource) -> Decision:
    """Return the decision on the pieces that texts were cut into."""
    if isinstance(pieces, WordSource):
        assert isinstance(texts, WordSource)
        value = f"{pieces.num_words} for training, in {len(pieces)} pieces"
        reason = (
            "A word stands by its first token; texts are cut between words where they are longer than a model takes."
        )
        if lost := texts.num_words - pieces.num_words:
            reason += f" {lost} words that a tokenizer makes nothing of are left out."
        return Decision("words", value, reason)
    value = f"{len(pieces)} pieces for training, {pieces.num_tokens} tokens"
    reason = (
        "Each text by itself, cut where it is longer than both models take; special tokens stand around every piece."
    )
    if config.task == "masked-lm":
        value += f", {config.data.mask_probability:.0%} of them predicted"
        reason += " Masks are drawn anew in every epoch, and are always the same in evaluation."
    return Decision("tokens", value, reason)
