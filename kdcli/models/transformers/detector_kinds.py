"""What kdcli has to know of each of transformers' kinds of object detector, as their classes don't say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
)

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError

Neck = Literal["patches", "sequence", "levels", "maps"]


@dataclass(frozen=True)
class DetectorKind:
    """A kind of detector.

    Attributes:
        neck: the module whose output is what the boxes are found in.
        layout: of that output: ``patches`` between a class token and the detection tokens; a ``sequence`` of one map's
            positions; one of the positions of several ``levels``; or a list of ``maps``.
        processor: the image processor that a saved student gets, whose ``post_process_object_detection`` reads the
            model's outputs. RF-DETR's own resizes without antialiasing, as nothing here does.
        background: whether the logits have a last column for no object, and softmax makes them probabilities;
            else each class has its own sigmoid.
        tokens: whether the tokens that boxes are read from are ``learnt`` parameters, one a place, or ``chosen`` among
            the positions of each image by their scores.
        groups: whether in training there are several groups of tokens, of which the first alone is used afterwards.
        candidates: most boxes of an image that the image processor returns by default; None for as many as tokens.
        trains: whether transformers has a loss for it.
    """

    neck: str = "model.encoder"
    layout: Neck = "sequence"
    processor: str = "DetrImageProcessor"
    background: bool = False
    tokens: Literal["learnt", "chosen"] = "learnt"
    groups: bool = False
    candidates: int | None = None
    trains: bool = True


_DETR = DetectorKind(background=True)
_CONDITIONAL = DetectorKind(processor="ConditionalDetrImageProcessor", candidates=100)
_DEFORMABLE = DetectorKind(layout="levels", processor="DeformableDetrImageProcessor", candidates=100)
_REAL_TIME = DetectorKind(layout="maps", processor="RTDetrImageProcessor", tokens="chosen")
_LAYOUT = {"layout": "maps", "tokens": "chosen", "trains": False}
_KINDS = {
    "yolos": DetectorKind("vit", "patches", "YolosImageProcessor", background=True),
    "detr": _DETR,
    "table-transformer": _DETR,
    "conditional_detr": _CONDITIONAL,
    "dab-detr": _CONDITIONAL,
    "deformable_detr": _DEFORMABLE,
    "rt_detr": _REAL_TIME,
    "rt_detr_v2": _REAL_TIME,
    "d_fine": _REAL_TIME,
    "deimv2": _REAL_TIME,
    "lw_detr": DetectorKind("model.backbone", "maps", "DeformableDetrImageProcessor", groups=True, candidates=100),
    "rf_detr": DetectorKind("model.backbone", "maps", "DeformableDetrImageProcessor", groups=True, candidates=100),
    "pp_doclayout_v2": DetectorKind(processor="PPDocLayoutV2ImageProcessor", **_LAYOUT),  # type: ignore[arg-type]
    "pp_doclayout_v3": DetectorKind(processor="PPDocLayoutV3ImageProcessor", **_LAYOUT),  # type: ignore[arg-type]
}
_UNUSABLE = {
    "pp_ocr": "marks the pixels of text, and gives no boxes",
    "pp_doclayout_v4": "gives boxes with four corners of their own, which are no upright boxes",
}
"""Why kinds are none of those, by the start of their names."""
KINDS = frozenset(_KINDS)
"""The kinds of detector that kdcli can read."""
STUDENTS = frozenset(name for name, kind in _KINDS.items() if kind.trains)
"""Those of them that transformers has a loss for."""
CLASSIFIERS = frozenset(
    {"class_labels_classifier", "class_embed", "enc_score_head", "enc_out_class_embed", "denoising_class_embed"}
)
"""Modules, wherever they are in a detector, that have a row or a column for each class."""


def is_detector(config: Any) -> bool:
    """Whether the config describes a detector of boxes: by its architecture, else as its kind has no other use."""
    if config.architectures:
        return bool(set(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values()) & set(config.architectures))
    kind = type(config)
    return kind in MODEL_FOR_OBJECT_DETECTION_MAPPING and kind not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def kind_of(config: Any, name: str) -> DetectorKind:
    """Return what is known of the detector that a config describes.

    Raises:
        UserError: it gives no boxes, or it is of a kind that kdcli does not know; ``name`` is what to call it.
    """
    found = _KINDS.get(config.model_type)
    if found is None:
        unusable = (reason for start, reason in _UNUSABLE.items() if config.model_type.startswith(start))
        reason = next(unusable, "is of a kind whose outputs kdcli does not know")
        raise UserError(
            f"{name} ({config.model_type}) {reason}.", f"Choose one of these kinds: {', '.join(sorted(KINDS))}."
        )
    return found


def classifier_parameters(module: Any) -> set[str]:
    """Return the names of a detector's parameters and buffers that depend on its classes."""
    return {name for name in module.state_dict() if CLASSIFIERS & set(name.split("."))}


def check_trains(kind: DetectorKind, name: str) -> None:
    """Refuse a student that transformers has no loss for.

    Raises:
        UserError: there is none.
    """
    if not kind.trains:
        raise UserError(
            f"transformers has no loss for {name}, which can only be used as it is.",
            "Take it as a teacher, or choose another student, such as hf:rt_detr or hf:yolos.",
        )
