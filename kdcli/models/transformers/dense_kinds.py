"""transformers' kinds of network with an answer at every pixel: classes or depth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForDepthEstimation, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.facts import DepthFacts, DepthKind

DenseHead = Literal["dense", "depth"]
"""As tasks' rows call heads: classes at every position, or depth."""

AUTO: Mapping[DenseHead, Any] = {"dense": AutoModelForSemanticSegmentation, "depth": AutoModelForDepthEstimation}
"""transformers' class by the head."""
CLASSES: Mapping[DenseHead, Mapping[str, str]] = {
    "dense": dict(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES),
    "depth": dict(MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES),
}
"""The kinds by the head, with the name of each one's class."""
KINDS = frozenset({*CLASSES["dense"], *CLASSES["depth"]})
"""All of them."""
PROCESSORS: Mapping[DenseHead, str] = {"dense": "SegformerImageProcessor", "depth": "DPTImageProcessor"}
"""The image processor that a saved model gets: it squashes images, and knows what to make of the outputs."""

IGNORED = 255
"""The class that transformers' own loss of a saved segmenter leaves out."""
UNIT = "depth_unit"
"""The key of a saved model's config that says that its depth is in metres; transformers reads no such key."""
_METRES = "metre"
_INVERSE = {"dpt", "depth_pro"}
"""Kinds whose published depth is inverse, up to scale and shift (MiDaS), or to the focal length."""
_WHOLE = {"depth_anything"}
"""Kinds whose bound is a whole number, though their default is none."""
_NEEDS_PROMPT = {"prompt_depth_anything"}
"""Kinds whose published depth is relative to the range of a prompt, which kdcli gives none."""


def head_of(config: Any, wanted: str) -> DenseHead | None:
    """Return the head that a config has at every position; None of a classifier, a detector or a backbone.

    A config without architectures, of a kind by name, has ``wanted`` where its kind can have it, and else what its kind
    alone is for.

    Args:
        config: any config of transformers.
        wanted: the head of the task.
    """
    kind = config.model_type
    heads: list[DenseHead] = [head for head in CLASSES if kind in CLASSES[head]]
    if config.architectures:
        return next((head for head in CLASSES if set(CLASSES[head].values()) & set(config.architectures)), None)
    if wanted in heads:
        return "dense" if wanted == "dense" else "depth"
    return None if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES or not heads else heads[0]


def backbone_config(config: Any) -> Any:
    """Return the config of the network that reads the image: a backbone's own, where there is one."""
    found = getattr(config, "backbone_config", None)
    return found if found is not None and not getattr(config, "is_hybrid", False) else config


def depth_kind(config: Any) -> DepthKind:
    """Return what a model's depth is, as far as its config tells."""
    if getattr(config, UNIT, None) == _METRES:
        return "metric"
    told = getattr(config, "depth_estimation_type", None)
    if told is not None:
        return "inverse" if told == "relative" else "metric"
    return "inverse" if config.model_type in _INVERSE else "metric"


def needs_prompt(config: Any) -> bool:
    """Whether a model's depth means nothing without a prompt."""
    return config.model_type in _NEEDS_PROMPT and getattr(config, UNIT, None) != _METRES


def in_metres(config: Any, depth: DepthFacts, *, pretrained: bool, given: Mapping[str, Any]) -> None:
    """Let a student's depth be metres, up to ``depth.farthest`` where its kind has a bound; to the next whole metre
    where that is a whole number.

    Depth Anything and GLPN scale a sigmoid to ``max_depth``, ZoeDepth, TIPSv2 and CHMv2 mix depths of bins from
    ``min_depth`` to ``max_depth``, all in their own config; DPT, Depth Pro and Prompt Depth Anything, which has a
    sigmoid up to 1 only, cut off at zero (ReLU). ``depth_unit`` says ``metre``.

    Args:
        config: is changed.
        depth: which depths count.
        pretrained: whether it keeps published weights.
        given: keys that the user set; they stay.
    """

    def put(key: str, value: Any) -> None:
        if hasattr(config, key) and key not in given:
            setattr(config, key, value)

    setattr(config, UNIT, _METRES)
    if config.model_type in _NEEDS_PROMPT:
        return
    put("depth_estimation_type", "metric")
    is_whole = isinstance(getattr(config, "max_depth", None), int) or config.model_type in _WHOLE
    put("max_depth", math.ceil(depth.farthest) if is_whole else depth.farthest)
    put("min_depth", depth.nearest)
    if not pretrained:  # of its own strategies some leave the range of the bins
        put("bins_strategy", "linear")
        put("norm_strategy", "linear")
    bins = getattr(config, "bin_configurations", None)
    if bins and len(bins) == 1:
        put("bin_configurations", [{**bins[0], "min_depth": depth.nearest, "max_depth": depth.farthest}])


@torch.no_grad()
def start_depth(module: nn.Module, depth: DepthFacts, *, anew: bool) -> None:
    """Let the last convolution of a depth head that is cut off at zero start where it is not stuck there.

    Args:
        module: a student.
        depth: which depths count.
        anew: whether its weights were made for another depth, so that it is initialised anew, whatever comes after it.
    """
    head: Any = getattr(module, "head", None)
    if not isinstance(head, nn.Module):
        return
    layers = list(head.modules())
    last = next((layer for layer in reversed(layers) if isinstance(layer, nn.Conv2d) and layer.out_channels == 1), None)
    if last is None or last.bias is None:
        return
    if anew:
        last.reset_parameters()
    config: Any = module.config
    is_bounded = getattr(config, "depth_estimation_type", None) == "metric" and not needs_prompt(config)
    if not is_bounded and config.model_type in _INVERSE | _NEEDS_PROMPT:
        last.bias.fill_(depth.start)


def without_auxiliary(config: Any) -> None:
    """Leave out a segmenter's second head, which only transformers' own loss reads."""
    if getattr(config, "use_auxiliary_head", False):
        config.use_auxiliary_head = False
    if hasattr(config, "semantic_loss_ignore_index"):
        config.semantic_loss_ignore_index = IGNORED


def complete(config: Any, head: DenseHead) -> None:
    """Set what a kind's default config lacks for a head at every position, and leave out what only their loss reads.

    BEiT reads four layers, evenly spread. Sapiens2 gets two transposed convolutions, which halve its width each, and a
    convolution of one pixel.
    """
    if head == "dense":
        without_auxiliary(config)
        if config.model_type == "beit" and len(config.out_indices or ()) != 4:
            count = config.num_hidden_layers
            config.out_indices = [count * (number + 1) // 4 for number in range(4)]
        own = getattr(config, "head_config", None)
        if config.model_type == "sapiens2" and own is not None and not own.upsample_out_channels:
            width = config.hidden_size
            values = {"upsample_out_channels": [width // 2, width // 4], "conv_out_channels": [width // 4]}
            config.head_config = type(own)(**values)
