"""What a finished model says of every pixel of a user's own image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.facts import UNLABELLED, DepthFacts
from kdcli.data import AnyBatch, Batch
from kdcli.data.images.preprocess import geometry_at
from kdcli.models.base import Model
from kdcli.tasks.answers import TOP, Answer, Answers, Asked
from kdcli.tasks.base import Task
from kdcli.tasks.dense.depth_metrics import alignment_of, resize_depth, to_metres
from kdcli.tasks.dense.drawing import depth_range, depth_scale, draw_depth, draw_over, draw_values, legend
from kdcli.tasks.reports import Panel, Scale

Span = tuple[float, float]
"""A factor and a shift, see :meth:`~kdcli.data.images.geometry.Geometry.along_axes`."""
_BLOCK = 2**24
"""Numbers that are interpolated at once."""
_FARTHEST_IN_PNG = 65.535
"""Metres that 16 bits of millimetres reach."""
_RELATIVE = "viridis"
"""matplotlib's colours of relative inverse depth: near is bright, as in metres."""


def back_to(values: Tensor, size: tuple[int, int], axes: tuple[Span, Span]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield what a model gave of its canvas at the pixels of the image, some rows at a time.

    It is interpolated bilinearly, without antialiasing.

    Args:
        values: (C, h, w), of the canvas.
        size: (height, width) of the image.
        axes: where its rows and columns are on the canvas.

    Yields:
        The first row, values float32 (C, rows, width), and which of them the canvas shows, bool (rows, width).
    """
    (down, above), (across, before) = axes
    tall, wide = values.shape[1:]
    height, width = size
    y, x = down * (torch.arange(height) + 0.5) + above, across * (torch.arange(width) + 0.5) + before
    shown_y, shown_x = (y >= 0) & (y <= tall), (x >= 0) & (x <= wide)
    is_same = (tall, wide) == size and axes == ((1.0, 0.0), (1.0, 0.0))
    rows = max(1, _BLOCK // (len(values) * width))
    for start in range(0, height, rows):
        part = slice(start, start + rows)
        if is_same:
            found = values[:, part].float()
        else:
            grid = torch.stack(torch.broadcast_tensors(2 * x[None] / wide - 1, 2 * y[part, None] / tall - 1), dim=-1)
            found = F.grid_sample(
                values[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False
            )[0]
        yield start, found, shown_y[part, None] & shown_x[None]


def axes_of(model: Model, size: tuple[int, int]) -> tuple[Span, Span]:
    """Return where the rows and columns of an image of ``size``, (height, width), are on a model's canvas."""
    preprocessing: Any = model.facts.preprocessing
    return geometry_at(*size, preprocessing).along_axes(*size)


class MaskAnswers(Answers):
    """A class for every pixel of the image, at its own size."""

    has_pictures = one_space = takes_top = True

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the masks of logits (B, C, h, w): they are brought to the canvas, as for metrics, then to the image."""
        assert isinstance(batch, Batch)
        canvas = batch.images.shape[2:]
        for one, size in zip(outputs, batch.targets.tolist(), strict=True):
            logits = one[None].float()
            if logits.shape[2:] != canvas:
                logits = F.interpolate(logits, canvas, mode="bilinear", align_corners=False)
            height, width = size
            mask = torch.empty(height, width, dtype=torch.int16)
            for start, found, shown in back_to(logits[0], (height, width), axes_of(asked.model, (height, width))):
                guess = found.argmax(dim=0).masked_fill(~shown, UNLABELLED)
                mask[start : start + len(guess)] = guess.short()
            yield self._told(asked, mask.numpy())

    def _told(self, asked: Asked, mask: NDArray[np.int16]) -> Answer:
        labels, counts = np.unique(mask, return_counts=True)
        total = int(counts[labels >= 0].sum())
        order = sorted(
            (-int(count), int(label)) for label, count in zip(labels, counts, strict=True) if label != UNLABELLED
        )
        records = [
            {"label": asked.class_names[label], "class": label, "pixels": -count, "share": -count / total}
            for count, label in order[: self.choice.top or TOP]
        ]
        lines = [f"{each['label']} {each['share']:.1%}" for each in records]
        return Answer(records, lines, mask)

    def panels(self, image: NDArray[np.uint8], answers: Mapping[str, Answer]) -> list[Panel]:
        """Return the image, and the classes of every model over it."""
        names, row = self.task.class_names, [Panel("image", image)]
        for role, answer in answers.items():
            mask = _shrunk(answer.raw, image.shape[:2]).astype(np.int64)
            row.append(Panel(role, draw_over(image, mask, names), legend(names, mask)))
        return row

    def files(self, answer: Answer) -> Mapping[str, NDArray[Any]]:
        """Return the mask; a pixel that the model did not see is 255, or 65535 of more than 255 classes."""
        kind = np.uint8 if len(self.task.class_names) <= 255 else np.uint16
        return {"_mask.png": np.where(answer.raw < 0, np.iinfo(kind).max, answer.raw).astype(kind)}

    def file_notes(self) -> list[str]:
        """Say what is in the masks."""
        unseen = 255 if len(self.task.class_names) <= 255 else 65535
        return [
            f"NAME_mask.png has the number of each pixel's class in the order of class_names, {unseen} where the model"
            " sees nothing of the image."
        ]


class DepthAnswers(Answers):
    """A depth for every pixel of the image, at its own size: metres, or inverse depth up to scale and shift.

    There is no truth to fit a prediction to, so that a relative one stays as the model gives it.
    """

    has_pictures = True

    def is_relative(self, asked: Asked) -> bool:
        """Whether a model's answers are inverse depth up to scale and shift."""
        kind = asked.model.facts.depth
        return kind == "inverse" and alignment_of(_depth_of(asked), kind) != "none"

    def ask(self, asked: Asked, batch: AnyBatch) -> Tensor:
        """Return depth (B, 1, H, W) on the canvas, in metres or as the model gives it."""
        assert isinstance(batch, Batch)
        canvas = (int(batch.images.shape[2]), int(batch.images.shape[3]))
        values = resize_depth(Task.predict(self.task, asked.model, batch), canvas)
        if self.is_relative(asked):
            return values
        nothing = torch.zeros(len(values), *canvas, device=values.device)
        facts = replace(_depth_of(asked), alignment="none")
        return to_metres(values[:, 0], nothing, facts, asked.model.facts.depth)[:, None]

    def of(self, asked: Asked, outputs: Tensor, batch: AnyBatch) -> Iterator[Answer]:
        """Yield the depth of every image; 0 (of relative depth NaN) where the model sees nothing of it."""
        is_relative = self.is_relative(asked)
        unit = "" if is_relative else "m"
        for one, size in zip(outputs, batch.targets.tolist(), strict=True):
            height, width = size
            depth = torch.empty(height, width)
            for start, found, shown in back_to(one, (height, width), axes_of(asked.model, (height, width))):
                depth[start : start + found.shape[1]] = found[0].masked_fill(~shown, torch.nan if is_relative else 0.0)
            raw = depth.numpy()
            known = raw[np.isfinite(raw) & (is_relative | (raw > 0))]
            low, middle, high = (float(np.percentile(known, share)) for share in (0, 50, 100))
            kind = "inverse depth up to scale and shift" if is_relative else "metres"
            record = {"smallest": low, "median": middle, "largest": high, "kind": kind}
            line = f"{low:.3g} to {high:.3g}{unit and ' m'}, median {middle:.3g}{unit and ' m'}"
            yield Answer([record], [line], (raw, is_relative))

    def notes(self, asked: Asked) -> list[str]:
        """Say what a model's depth is where it is not metres as it is evaluated."""
        name, alignment = asked.model.facts.name, alignment_of(_depth_of(asked), asked.model.facts.depth)
        if self.is_relative(asked):
            return [f"The depth of {name} is relative: inverse, greater where it is nearer, up to scale and shift."]
        if alignment != "none":
            return [
                f"The depth of {name} is as the model gives it, while evaluation aligns it to each image's truth"
                f" ({alignment})."
            ]
        return []

    def panels(self, image: NDArray[np.uint8], answers: Mapping[str, Answer]) -> list[Panel]:
        """Return the image, and every model's depth; those in metres have one scale."""
        shown = {role: (_shrunk(answer.raw[0], image.shape[:2]), answer.raw[1]) for role, answer in answers.items()}
        low, high = depth_range([depth for depth, is_relative in shown.values() if not is_relative])
        row = [Panel("image", image)]
        for role, (depth, is_relative) in shown.items():
            if is_relative:
                ends = [float(np.nanpercentile(depth, share)) for share in (2, 98)]
                near = f"{role}: relative inverse depth"
                scale = Scale(near, ends[0], max(ends[1], ends[0] + 1e-6), _RELATIVE)
                row.append(Panel(role, draw_values(depth, scale.low, scale.high, colours=_RELATIVE), scale))
            else:
                own = depth_range([depth])
                title = f"{role}\n{own[0]:.2g} to {own[1]:.2g} m"
                row.append(Panel(title, draw_depth(depth, low, high), depth_scale(low, high)))
        return row

    def files(self, answer: Answer) -> Mapping[str, NDArray[Any]]:
        """Return millimetres in 16 bits where all depths fit in them, else float32."""
        depth, is_relative = answer.raw
        if is_relative or depth.max() > _FARTHEST_IN_PNG:
            return {"_depth.npy": depth}
        return {"_depth.png": np.rint(1000 * depth).astype(np.uint16)}

    def file_notes(self) -> list[str]:
        """Say what is in the files."""
        return [
            "NAME_depth.png has 16-bit millimetres; NAME_depth.npy has float32 metres where they are more than"
            f" {_FARTHEST_IN_PNG:g}, and of relative models float32 inverse depth."
        ]


def _depth_of(asked: Asked) -> DepthFacts:
    assert asked.facts.depth is not None, "of the task of depth"
    return asked.facts.depth


def _shrunk(values: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Return values (H, W) at the size of a picture, each the one at its pixel's centre."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(np.int64), old - 1)
        for old, new in zip(values.shape, size, strict=True)
    )
    return values[rows[:, None], columns]
