"""COCO's average precision of boxes, over the images of all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.models.detections import is_ignored

_BACKEND: Literal["faster_coco_eval"] = "faster_coco_eval"
SIZES = ("small", "medium", "large")
"""Of the true boxes, by area: below 32 x 32 pixels, below 96 x 96, above; in pixels of the model's images."""


@dataclass(frozen=True)
class Seen:
    """What was found in one image, and what is there; on the CPU.

    Attributes:
        sample: the image's id.
        found: ``boxes`` (n, 4), ``scores``, ``labels``.
        truth: ``boxes`` (m, 4), ``labels``, and ``crowd`` or ``difficult`` where the data have them.
    """

    sample: int
    found: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]


@dataclass(frozen=True)
class Precision:
    """Average precisions, each None where there is no box to find.

    Attributes:
        metrics: ``map``, over IoU from 0.5 to 0.95 in steps of 0.05; ``map_50`` and ``map_75``, at one IoU;
            ``map_small``, ``map_medium`` and ``map_large``, see :data:`SIZES`; ``mar_100``, the mean recall of the 100
            best boxes of an image.
        by_class: ``map`` of every class.
    """

    metrics: Mapping[str, float | None]
    by_class: Sequence[float | None]


def check_backend() -> None:
    """Refuse to go on without the package that computes the metric.

    Raises:
        UserError: it is missing.
    """
    if find_spec(_BACKEND) is None:
        raise UserError(
            "COCO's average precision is computed by faster-coco-eval, which is not installed.",
            "pip install 'kdcli[dense]', or pip install faster-coco-eval.",
        )


def average_precision(seen: Sequence[Seen], num_classes: int) -> Precision:
    """Return COCO's average precision: the mean over classes that have a box, with 101 recalls and 100 boxes an image.

    Boxes of crowds are as in COCO, and difficult ones (Pascal VOC) are taken in the same way: not finding them is no
    error, and neither is any number of boxes within them.

    Args:
        seen: in any order: images are sorted by their ids, so that ties of scores are broken alike by any number of
            processes.
        num_classes: of the data.
    """
    check_backend()
    from torchmetrics.detection import MeanAveragePrecision

    # torchmetrics' own thresholds are rounded to float32, and then miss a recall that is exactly one of them.
    metric = MeanAveragePrecision(
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        class_metrics=True,
        backend=_BACKEND,
    )
    metric.warn_on_many_detections = False
    for one in sorted(seen, key=lambda one: one.sample):
        found = {name: one.found[name] for name in ("boxes", "scores", "labels")}
        metric.update([found], [_truth(one.truth)])
    result = metric.compute()
    names = ("map", "map_50", "map_75", *(f"map_{size}" for size in SIZES), "mar_100")
    by_class: list[float | None] = [None] * num_classes
    classes, values = result["classes"].reshape(-1).tolist(), result["map_per_class"].reshape(-1).tolist()
    for label, value in zip(classes, values, strict=True):
        by_class[int(label)] = _known(value)
    return Precision({name: _known(float(result[name])) for name in names}, by_class)


def _truth(truth: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"boxes": truth["boxes"], "labels": truth["labels"], "iscrowd": is_ignored(truth).long()}


def _known(value: float) -> float | None:
    return None if value < 0 else value
