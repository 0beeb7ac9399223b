"""transformers' models of text: classifiers, encoders alone, and decoders used as encoders."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModel,
    AutoModelForTextEncoding,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
)

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, TextPooling, TextPreprocessing
from kdcli.base.tasks import TASKS, HeadKind
from kdcli.config.models import Pooling
from kdcli.models.fit import LoadReport, build_with_weights
from kdcli.models.place import Place
from kdcli.models.transformers import files
from kdcli.models.transformers.build import from_config, load_weights, read_config
from kdcli.models.transformers.sentence import SentenceSettings
from kdcli.models.transformers.text import (
    AUTO,
    PROBLEMS,
    classifier_of,
    head_kind,
    head_of_config,
    text_part,
)
from kdcli.models.transformers.tokenizer import max_length, num_tokens
from kdcli.models.transformers.vision import label_names
from kdcli.models.weights import Checkpoint, reason_of

_HEAD_NAMES = {
    "sequence": "classifier of texts",
    "token": "classifier of tokens",
    "masked": "masked language model",
    "causal": "causal language model",
}
_OF_TEXT = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
)
"""A model whose config is in one of them reads text."""
_EMBEDDING_KEYS = ("pad", "bos", "eos", "cls", "sep")
"""Of the tokens that a config knows by number."""


def read_text_config(place: Place) -> Any:
    """Return the config of a model, as :func:`kdcli.models.transformers.build.read_config`.

    Raises:
        UserError: as there, or the model is none of text.
    """
    config = read_config(place)
    if not any(type(config) in mapping for mapping in _OF_TEXT):
        raise UserError(
            f"{place.name} is no model of text: transformers has none of the kind {config.model_type!r}.",
            "Choose a model such as BERT, DistilBERT, RoBERTa, DeBERTa, ModernBERT, T5, GPT-2 or Llama.",
        )
    return config


def build_text_teacher(place: Place, config: Any, *, task: str, pretrained: bool, pooling: TextPooling) -> nn.Module:
    """Build the model with its own head, or the backbone, that ``config`` describes.

    Raises:
        UserError: it has no head for a task that needs one, or the weights are missing, damaged or incomplete.
    """
    kind = _teacher_kind(place, config, task, pretrained=pretrained)
    auto = _auto_class(place, config, kind)
    arguments = _pooler_arguments(auto, config, pooling)
    if pretrained:
        may_miss = () if pooling == "pooler" else ("pooler",)
        return load_weights(auto, place, config, may_miss=may_miss, **arguments)
    return from_config(auto, place, config, **arguments)


def _teacher_kind(place: Place, config: Any, task: str, *, pretrained: bool) -> HeadKind:
    kind = TASKS[task].head
    if TASKS[task].is_language_model:
        if pretrained and (own := head_of_config(config)) != kind:
            what = "a backbone alone" if own == "none" else f"a {_HEAD_NAMES[own]}"
            raise UserError(
                f"{place.name} is no {_HEAD_NAMES[kind]}: it was saved as {what}.",
                f"Name a teacher for --task {task}, or choose another --task.",
            )
        return kind
    if kind == "token":
        return "token" if head_of_config(config) == "token" else "none"
    return "sequence" if has_text_classifier(config) else "none"


def build_text_teacher_with_weights(
    place: Place, config: Any, checkpoint: Checkpoint, *, task: str, pooling: TextPooling
) -> tuple[nn.Module, LoadReport]:
    """Build what ``config`` describes with a local checkpoint's weights, its classifier as wide as theirs."""

    def build(num_classes: int | None) -> nn.Module:
        if num_classes:
            config.num_labels = num_classes
        kind = _teacher_kind(place, config, task, pretrained=False)
        auto = _auto_class(place, config, "none" if num_classes == 0 and kind == "sequence" else kind)
        return from_config(auto, place, config, **_pooler_arguments(auto, config, pooling))

    return build_with_weights(build, checkpoint, classifier=classifier_of)


def build_text_student(
    place: Place, config: Any, data: DataFacts, *, pretrained: bool, pooling: TextPooling
) -> nn.Module:
    """Build a model for the data's task: with a classifier over their labels, a language model, or a backbone.

    Raises:
        UserError: transformers has no such model of this kind, or the weights can't be had.
    """
    kind = TASKS[data.task].head
    auto = _auto_class(place, config, kind)
    if data.class_names:
        config.id2label = dict(enumerate(data.class_names))
        config.label2id = {name: index for index, name in enumerate(data.class_names)}
        config.problem_type = PROBLEMS[data.label_kind] if kind == "sequence" else None
    arguments = _pooler_arguments(auto, config, pooling)
    if not pretrained:
        return from_config(auto, place, config, **arguments)
    may_miss = None if kind in ("sequence", "token") else () if pooling == "pooler" else ("pooler",)
    return load_weights(auto, place, config, may_miss=may_miss, **arguments)


def load_saved_text_module(place: Place) -> nn.Module:
    """Load what :meth:`HFTextModel.save` wrote."""
    config = read_config(place)
    auto = _auto_class(place, config, head_of_config(config))
    pooling = own_pooling(config, SentenceSettings())
    return load_weights(auto, place, config, may_miss=(), **_pooler_arguments(auto, config, pooling))


def has_text_classifier(config: Any) -> bool:
    """Whether the config describes a classifier of texts: by its architecture, else by label names of its own."""
    if config.architectures:
        return head_of_config(config) == "sequence"
    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and label_names(config) is not None


def own_pooling(config: Any, settings: SentenceSettings) -> Pooling:
    """Return how a model pools: as it was saved, else by a decoder's last token or the mean."""
    saved = getattr(config, "sentence_pooling", None)
    if saved in ("cls", "mean", "max", "last", "pooler"):
        return saved
    if settings.pooling is not None:
        return settings.pooling
    is_decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return "last" if is_decoder else "mean"


def preprocessing_of(
    place: Place,
    module: Any,
    tokenizer: Any,
    *,
    asked_length: int | None,
    own_length: int | None,
    pooling: TextPooling,
    tokenizer_of: str,
    prompt: str = "",
    remarks: tuple[str, ...] = (),
) -> TextPreprocessing:
    """Return how a model wants its texts, and tell its tokenizer and its config.

    Raises:
        UserError: the tokenizer has more tokens than the model, or ``asked_length`` is too long.
    """
    number = _num_embeddings(module)
    tokens = num_tokens(tokenizer)
    if number is not None and tokens > number:
        raise UserError(
            f"The tokenizer of {tokenizer_of} has {tokens} tokens, and {place.name} has embeddings for {number}.",
            "Choose a student with a tokenizer of its own, or start untrained.",
        )
    length = max_length(place.name, module, tokenizer, asked=asked_length, own=own_length)
    tokenizer.model_max_length = module.config.text_max_length = length
    config, kind = text_part(module.config), head_kind(module)
    # A decoder's classifier takes the last token that the config does not name as padding.
    finds_last = kind == "sequence" and not module.config.is_encoder_decoder
    if finds_last or (getattr(config, "pad_token_id", None) is None and kind not in ("masked", "causal")):
        config.pad_token_id = tokenizer.pad_token_id
    if pooling != "none":
        module.config.sentence_pooling = pooling
        if tokenizer.truncation_side != "right":
            remarks += ("Its tokenizer cuts long texts at their beginning.",)
    phrase = f"{type(tokenizer).__name__} of {tokenizer_of}"
    return TextPreprocessing(length, phrase, tokens, pooling, prompt, remarks)


def own_length(config: Any, tokenizer: Any) -> int:
    """Return the longest text in tokens of a model that :meth:`HFTextModel.save` wrote."""
    length = getattr(config, "text_max_length", None)  # of runs of before there is the tokenizer's
    return int(tokenizer.model_max_length if length is None else length)


def keep_generation(module: Any, folder: Path) -> None:
    """Let an untrained language model write texts by the settings in its architecture's folder, where there are any.

    Raises:
        UserError: they can't be read.
    """
    if not module.can_generate() or not (folder / files.GENERATION).is_file():
        return
    try:
        module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # on damaged files transformers raises whatever it trips over
        raise UserError(f"{folder / files.GENERATION} can't be read: {reason_of(error)}", "Mend it.") from error


def _num_embeddings(module: Any) -> int | None:
    """Return how many tokens a model knows; None for any number (CANINE hashes characters)."""
    try:
        found = module.get_input_embeddings()
    except NotImplementedError:  # as transformers says that there is no table of them
        return None
    return (
        found.get_parameter("weight").shape[0] if isinstance(found, nn.Module) else None
    )  # Perceiver's are of its latents


def fit_vocabulary(config: Any, tokenizer: Any) -> None:
    """Let an untrained model's config have the tokenizer's number of tokens and its special ones."""
    config = text_part(config)
    config.vocab_size = num_tokens(tokenizer)
    for key in _EMBEDDING_KEYS:
        number = getattr(tokenizer, f"{key}_token_id")
        if number is not None or (getattr(config, f"{key}_token_id", None) or 0) >= config.vocab_size:
            setattr(config, f"{key}_token_id", number)


def _auto_class(place: Place, config: Any, kind: HeadKind) -> Any:
    """Return the auto class of models with such a head.

    Raises:
        UserError: transformers has none for this kind of network.
    """
    if kind != "none":
        auto, mapping, _ = AUTO[kind]
        if type(config) not in mapping:
            raise UserError(
                f"transformers has no {_HEAD_NAMES[kind]} of the kind {config.model_type!r} ({place.name}).",
                "Choose another model, such as a "
                f"{'GPT-2 or a Llama' if kind == 'causal' else 'BERT or a DistilBERT'}.",
            )
        if kind != "sequence" and config.is_encoder_decoder:
            raise UserError(
                f"{place.name} is an encoder with a decoder, which kdcli distils for no task over tokens.",
                "Choose an encoder or a decoder alone.",
            )
        return auto
    if not config.is_encoder_decoder:
        return AutoModel
    if type(config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise UserError(
            f"transformers has no encoder alone for models of the kind {config.model_type!r}.",
            "Choose another model, such as a BERT or a T5.",
        )
    return AutoModelForTextEncoding


def _pooler_arguments(auto: Any, config: Any, pooling: TextPooling) -> dict[str, Any]:
    """Return what leaves a backbone's pooler out where nothing reads it."""
    if auto is not AutoModel or pooling == "pooler":
        return {}
    found = auto._model_mapping[type(config)]
    kind: Any = found[0] if isinstance(found, tuple) else found
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(kind).parameters else {}
