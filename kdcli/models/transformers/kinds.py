"""transformers' kinds of network by name, each with its default config."""

from __future__ import annotations

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError
from kdcli.base.tasks import Modality
from kdcli.base.text import expand_user
from kdcli.models.place import Place
from kdcli.models.spec import ModelName

CLASSIFIERS = frozenset(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
"""Kinds with a classifier of images."""
KINDS: dict[Modality, frozenset[str]] = {
    "image": CLASSIFIERS
    | frozenset(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES)
    | frozenset(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    | frozenset(MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES),
    "text": frozenset(
        {
            *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            *MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
            *MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        }
    ),
}
"""What reads images or texts."""


def find(name: ModelName, *, weights: bool, modality: Modality) -> Place | None:
    """Return the kind of network that ``name`` means; None where there is none, or a folder of that name.

    Raises:
        UserError: its weights are wanted, which a kind has not.
    """
    if name.target not in KINDS[modality] or expand_user(name.target).is_dir():
        return None
    if weights:
        raise UserError(
            f"{name.text} is a kind of network of transformers: it has no published weights.",
            f"Name a model on the hub (hf:ORG/NAME), or take random:hf:{name.target} for it untrained.",
        )
    return place_of(name.target)


def place_of(kind: str) -> Place:
    """Return the place of a kind of network."""
    return Place("transformers", f"hf:{kind}", architecture=kind)
