"""The boxes that a finished detector finds in a user's own image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcli.data import AnyBatch
from kdcli.models.detections import BOXES, Detections, scale_boxes
from kdcli.tasks.answers import Answer, Answers, Asked
from kdcli.tasks.dense.answers import axes_of
from kdcli.tasks.dense.drawing import draw_boxes
from kdcli.tasks.detection.pictures import SHOWN_FROM
from kdcli.tasks.reports import Panel

_EDGES = ("left", "top", "right", "bottom")


class BoxAnswers(Answers):
    """Boxes in pixels of the image, the best-scored first; by default those that pictures of samples show."""

    has_pictures = takes_top = takes_score = True

    def ask(self, asked: Asked, batch: AnyBatch) -> Detections:
        """Return what is found on the canvas; no losses, as there are no targets."""
        found: Detections = asked.model(asked.model.prepare(batch), self.task.reads(asked.model.facts)).heads[BOXES]
        return found

    def of(self, asked: Asked, outputs: Detections, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the boxes of every image, cut at its borders; what lies outside is left out."""
        least = SHOWN_FROM if self.choice.score is None else self.choice.score
        for one, (height, width) in zip(outputs.boxes, batch.targets.tolist(), strict=True):
            (down, above), (across, before) = axes_of(asked.model, (height, width))
            boxes = one["boxes"].double()
            boxes = (boxes - boxes.new_tensor([before, above] * 2)) / boxes.new_tensor([across, down] * 2)
            boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
            kept = (one["scores"] >= least) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            order = one["scores"].argsort(descending=True, stable=True)
            order = order[kept[order]][: self.choice.top]
            found = {"boxes": boxes[order].float(), "labels": one["labels"][order], "scores": one["scores"][order]}
            yield self._told(asked, found, (height, width), least)

    def _told(self, asked: Asked, found: dict[str, Tensor], size: tuple[int, int], least: float) -> Answer:
        boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
        names = [asked.class_names[label] for label in labels.tolist()]
        records = [
            {"label": name, "score": score, **dict(zip(_EDGES, edges, strict=True))}
            for name, score, edges in zip(names, scores.tolist(), boxes.tolist(), strict=True)
        ]
        lines = [
            f"{each['label']} {each['score']:.2f} at {', '.join(f'{each[edge]:.0f}' for edge in _EDGES)}"
            for each in records
        ]
        raw = {**found, "names": asked.class_names, "size": size}
        return Answer(records, lines or [f"no box with a score of {least:g} or more"], raw)

    def notes(self, asked: Asked) -> list[str]:
        """Say what is told."""
        least = SHOWN_FROM if self.choice.score is None else self.choice.score
        return [f"Boxes with scores from {least:g}: left, top, right, bottom in pixels of the upright image."]

    def panels(self, image: NDArray[np.uint8], answers: Mapping[str, Answer]) -> list[Panel]:
        """Return the image, and every model's boxes in it."""
        row = [Panel("image", image)]
        for role, answer in answers.items():
            found, count = answer.raw, len(answer.records)
            boxes = scale_boxes(found["boxes"], found["size"], (image.shape[0], image.shape[1]))
            drawn = draw_boxes(image, boxes.numpy(), found["labels"].numpy(), found["scores"].numpy(), found["names"])
            row.append(Panel(f"{role}: {count} box{'' if count == 1 else 'es'}", drawn))
        return row
