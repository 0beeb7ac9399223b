"""The losses of transformers' detectors, each process's as a share of the whole batch's.

transformers divides by the number of boxes: those of this process alone (RT-DETR, D-FINE), or their mean over all
processes. Accelerate's ``reduce`` is a mean already, and the result is divided by the number of processes again (DETR,
YOLOS and their kin), so that boxes would weigh twice as much with two processes. Here every process computes its loss
by itself, and it is scaled to the whole batch's numbers afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed
from transformers.loss import loss_for_object_detection, loss_lw_detr

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.machine.gather import is_alone, sum_over
from kdcli.models.detections import Boxes
from kdcli.models.transformers.detector_kinds import DetectorKind

_CLASSIFICATION = ("loss_ce", "loss_vfl", "loss_mal")


@contextmanager
def by_itself() -> Iterator[None]:
    """Let transformers' losses look at this process's boxes alone: in evaluation each has other batches."""
    with (
        patch.object(loss_for_object_detection, "is_accelerate_available", lambda: False),
        patch.object(loss_lw_detr, "_is_torch_distributed_initialized", lambda: False),
    ):
        yield


def labels_of(targets: Sequence[Boxes], size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Return targets as transformers reads them.

    Args:
        targets: of each image ``boxes`` (n, 4) in pixels of an image of ``size``, and ``labels`` (n,).
        size: (height, width).

    Returns:
        Of each image ``class_labels`` int64 (n,) and ``boxes`` float32 (n, 4): centre, width and height as shares of
        the image's width and height.
    """
    height, width = size
    labels = []
    for target in targets:
        left, top, right, bottom = target["boxes"].unbind(1)
        boxes = torch.stack(
            [
                (left + right) / (2 * width),
                (top + bottom) / (2 * height),
                (right - left) / width,
                (bottom - top) / height,
            ],
            dim=1,
        )
        labels.append({"class_labels": target["labels"], "boxes": boxes})
    return labels


def shares(
    loss: Tensor,
    parts: Mapping[str, Tensor],
    labels: Sequence[Mapping[str, Tensor]],
    config: Any,
    kind: DetectorKind,
    *,
    is_training: bool,
) -> dict[str, Tensor]:
    """Return a model's own loss in two terms, ``classification`` and ``boxes``, whose sum it is.

    In training of several processes the mean of the terms over the processes is that of the whole batch: a sum over
    the boxes of all processes, divided by their number. But for denoising, whose queries each process makes for its
    own boxes, and D-FINE's and DEIMv2's loss between their own layers, which is a mean of each process.

    Args:
        loss: the model's, a scalar, computed :func:`by_itself`.
        parts: its ``loss_dict``.
        labels: of each image, as the model took them.
        config: of the model.
        kind: of the model.
        is_training: whether all processes compute it now, on as many images each.
    """
    names = [name for name in parts if name.startswith(_CLASSIFICATION)]
    weight = getattr(config, "class_loss_coefficient", 1) if kind.groups else 1
    classification = weight * torch.stack([parts[name] for name in names]).sum()
    boxes = loss - classification
    if not is_training or is_alone():
        return {"classification": classification, "boxes": boxes}
    counts = [len(label["class_labels"]) for label in labels]
    number = torch.tensor(float(sum(counts)), device=loss.device)
    by_boxes = _ratio(number, least=1 / config.group_detr if kind.groups else 1)
    by_classes = by_boxes
    if kind.background:  # a mean over tokens, in which those without an object count less
        tokens = _number_of_tokens(config)
        matched = sum(min(tokens, count) for count in counts)
        weights = matched + config.eos_coefficient * (tokens * len(counts) - matched)
        by_classes = _ratio(torch.tensor(float(weights), device=loss.device), least=0)
    return {"classification": classification * by_classes, "boxes": boxes * by_boxes}


def _ratio(own: Tensor, *, least: float) -> Tensor:
    """Return the factor from a mean over ``own`` to a share of the mean over all processes' numbers."""
    return own.clamp(min=least) * distributed.get_world_size() / sum_over(own).clamp(min=least)


def _number_of_tokens(config: Any) -> int:
    found: int = getattr(config, "num_detection_tokens", None) or config.num_queries
    return found
