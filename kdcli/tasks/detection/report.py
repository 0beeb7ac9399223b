"""What is said of one finished detector, and how its boxes are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.data import AnyBatch
from kdcli.models.detections import Detections, is_ignored
from kdcli.tasks.detection.coco import SIZES, Seen, average_precision
from kdcli.tasks.reports import Layout

BY_CLASS = "average_precision"
_ROWS = (
    ("mAP, IoU 0.5 to 0.95", "map"),
    ("mAP at IoU 0.5", "map_50"),
    ("mAP at IoU 0.75", "map_75"),
    *((f"mAP of {size} boxes", f"map_{size}") for size in SIZES),
    ("recall of 100 boxes", "mar_100"),
)
LAYOUT = Layout("object", _ROWS, ("AP", BY_CLASS))


class BoxReport:
    """COCO's average precisions of one model on one split.

    Args:
        class_names: in label order.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = tuple(class_names)
        self._seen: list[Seen] = []
        self._size: tuple[int, int] | None = None

    def update(self, outputs: Detections, batch: AnyBatch) -> None:
        """Add a batch."""
        self._size = outputs.size
        self._seen += seen_in(outputs, batch)

    def compute(self) -> dict[str, Any]:
        """Return the average precisions, those of every class as a list; None where there is no box to find."""
        precision = average_precision(self._seen, len(self._class_names))
        return {**precision.metrics, BY_CLASS: list(precision.by_class)}

    def counts(self) -> list[int]:
        """Return how many boxes there are of every class; those of crowds and difficult ones are not counted."""
        labels = [one.truth["labels"][~is_ignored(one.truth)] for one in self._seen]
        joined = torch.cat([torch.zeros(0, dtype=torch.int64), *labels])
        return torch.bincount(joined, minlength=len(self._class_names)).tolist()

    def notes(self, name: str) -> list[str]:
        """Say in which pixels sizes are meant, and that there is no interval."""
        assert self._size is not None, "there were samples"
        height, width = self._size
        found = sum(len(one.found["labels"]) for one in self._seen)
        return [
            f"{name}: boxes are in pixels of its own {width}x{height} images, into which each whole image is squashed;"
            f" small is below 32x32 of them, large from 96x96 on. It gives {found} boxes for {len(self._seen)} images."
            " Average precision is no mean over images, so there is no interval."
        ]

    def agreement(self, other: Any) -> None:
        """Return None: boxes are not alike or different."""
        return


def seen_in(outputs: Detections, batch: AnyBatch) -> list[Seen]:
    """Return what was found in each image of a batch beside what is there, on the CPU."""
    found: Sequence[Mapping[str, Tensor]] = outputs.cpu().boxes
    truth = [{name: value.cpu() for name, value in target.items()} for target in batch.targets]
    return [Seen(*row) for row in zip(batch.samples.tolist(), found, truth, strict=True)]
