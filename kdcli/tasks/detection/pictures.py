"""Pictures of boxes: those that are there, and those that each model finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torchvision.ops import box_iou

from kdcli.models.detections import Detections, is_ignored
from kdcli.tasks.dense.drawing import draw_boxes
from kdcli.tasks.reports import Panel

SHOWN_FROM = 0.3
"""Boxes of lower scores are not drawn: most detectors give many of them."""
_MOST_SHOWN = 20
"""Nor are more of an image than so many, those with the highest scores."""
_FOUND_FROM = 0.5
"""The IoU at which a box is found."""


def panels_of(
    images: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    outputs: Mapping[str, Detections],
    class_names: Sequence[str],
) -> list[list[Panel]]:
    """Return of every sample the image, its own boxes, and those of each model.

    Args:
        images: uint8 (B, 3, H, W).
        targets: of every sample, in pixels of the images.
        outputs: of each model by its role, in pixels of whatever images it has seen.
        class_names: by label.
    """
    size = (int(images.shape[2]), int(images.shape[3]))
    found = {role: detections.at(size).boxes for role, detections in outputs.items()}
    rows = []
    for number, target in enumerate(targets):
        image = images[number].permute(1, 2, 0).numpy()
        boxes, labels = target["boxes"].numpy(), target["labels"].numpy()
        row = [
            Panel("image", image),
            Panel(f"target: {_counted(len(labels))}", draw_boxes(image, boxes, labels, None, class_names)),
        ]
        for role, each in found.items():
            one = each[number]
            best = one["scores"].argsort(descending=True, stable=True)[:_MOST_SHOWN]
            kept = best[one["scores"][best] >= SHOWN_FROM]
            shown = {name: value[kept] for name, value in one.items()}
            drawn = draw_boxes(
                image, shown["boxes"].numpy(), shown["labels"].numpy(), shown["scores"].numpy(), class_names
            )
            row.append(Panel(f"{role}: {_judged(shown, target)}", drawn, role=role))
        rows.append(row)
    return rows


def _judged(shown: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """Return in words what of a target is among the boxes that are drawn."""
    counted = ~is_ignored(target)
    hits = _hits(shown, {name: target[name][counted] for name in ("boxes", "labels")})
    there = int(counted.sum())
    return f"{hits} of {there} found\nscores from {SHOWN_FROM:g}, {len(shown['labels']) - hits} others"


def _hits(shown: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> int:
    """Return how many boxes of a target are found, the best-scored one of each class first."""
    overlap = box_iou(shown["boxes"], target["boxes"])
    overlap = overlap * (shown["labels"][:, None] == target["labels"][None])
    free, hits = [True] * len(target["labels"]), 0
    for place in shown["scores"].argsort(descending=True).tolist():
        best = max(
            (other for other in range(len(free)) if free[other] and overlap[place, other] >= _FOUND_FROM),
            key=lambda other: float(overlap[place, other]),
            default=None,
        )
        if best is not None:
            free[best], hits = False, hits + 1
    return hits


def _counted(number: int) -> str:
    return f"{number} box{'' if number == 1 else 'es'}"
