"""What a detector gives, and what it is given: boxes and, to train on, the boxes that are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kdcli.base.tasks import task_of
from kdcli.data import AnyBatch, Batch, prepare
from kdcli.data.images.geometry import SMALLEST_BOX
from kdcli.models.base import Inputs
from kdcli.models.vision import VisionModel

_IGNORED = ("crowd", "difficult")
BOXES = "boxes"
"""The head of a detector, whose value is :class:`Detections`."""
Boxes = dict[str, Tensor]
"""The boxes of one image: ``boxes`` float32 (n, 4), left, top, right, bottom in pixels; ``labels`` int64 (n,), from 0
on; of a prediction ``scores`` float32 (n,) in [0, 1], descending; of a target, where the data have it, ``crowd`` or
``difficult`` bool (n,)."""


@dataclass
class Detections:
    """What a detector makes of a batch.

    Attributes:
        size: (height, width) of the images whose pixels ``boxes`` are in: those of the batch, whatever the model has
            resized them to.
        boxes: of each image; none in training.
        losses: the library's own by name, scalars, where the targets came with the inputs. In training their mean over
            the processes is the loss of all processes' samples, as far as the library allows; in evaluation processes
            don't talk to one another, and each loss is that of the batch.
        raw: what the heads gave before any box was chosen, by name, (B, ...), in evaluation alone: two models that are
            the same have it alike, while a rounding can change which boxes are chosen.
    """

    size: tuple[int, int]
    boxes: list[Boxes] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    raw: dict[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Detections:
        """Return the same with ``function`` of every tensor."""
        return replace(
            self,
            boxes=[{name: function(value) for name, value in found.items()} for found in self.boxes],
            losses={name: function(value) for name, value in self.losses.items()},
            raw={name: function(value) for name, value in self.raw.items()},
        )

    def cpu(self) -> Detections:
        """Return the same on the CPU, without gradient."""
        return self.map(lambda value: value.detach().cpu())

    def at(self, size: tuple[int, int]) -> Detections:
        """Return the same with boxes in pixels of images of ``size``, (height, width)."""
        if size == self.size:
            return self
        found = [{**one, "boxes": scale_boxes(one["boxes"], self.size, size)} for one in self.boxes]
        return replace(self, size=size, boxes=found)

    def of_classes(self, columns: Sequence[int]) -> Detections:
        """Return the boxes of some classes, numbered anew: ``columns`` has for each new class its number here.

        Raw outputs, which are over the old classes, are left out; losses are there only where both have the same.
        """
        numbers = {old: new for new, old in enumerate(columns)}
        found = []
        for one in self.boxes:
            labels = torch.tensor([numbers.get(label, -1) for label in one["labels"].tolist()], dtype=torch.int64)
            labels = labels.to(one["labels"].device)
            kept = labels >= 0
            found.append({**{name: value[kept] for name, value in one.items()}, "labels": labels[kept]})
        return replace(self, boxes=found, raw={})


def scale_boxes(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Return boxes (n, 4) of an image of size ``old``, (height, width), after it has been resized to ``new``."""
    if old == new:
        return boxes
    across, down = new[1] / old[1], new[0] / old[0]
    return boxes * boxes.new_tensor([across, down, across, down])


def is_ignored(truth: Mapping[str, Tensor]) -> Tensor:
    """Return which boxes (m,) of a target are of crowds or difficult, bool."""
    ignored = torch.zeros(len(truth["labels"]), dtype=torch.bool, device=truth["labels"].device)
    for name in _IGNORED:
        if name in truth:
            ignored = ignored | truth[name].bool()
    return ignored


class DetectionModel(VisionModel):
    """A detector of a library; its one head is ``boxes``.

    What it is given: images alone, (B, 3, H, W) of its own size; or a mapping, whose tensors move to a device as any
    do, where targets come with them or the batch's images were of another size (see :func:`unpack`). A student in
    training has to have its targets within the forward pass, as the libraries compute their losses there and
    data-parallel training wants no parameter used elsewhere.
    """

    def _task(self, num_classes: int) -> str:
        return task_of("image", "boxes").name

    def _own_heads(self, num_classes: int) -> tuple[str, ...]:
        return (BOXES,)

    def prepare(self, batch: AnyBatch) -> Inputs:
        """Return images (B, 3, H, W), or a mapping of images, sizes and, of a model in training, targets."""
        return self.with_targets(batch) if self.training else self._images(batch, {})

    def with_targets(self, batch: AnyBatch) -> Inputs:
        """Return the inputs with the batch's targets, which are of the model's own classes, for its losses.

        Boxes of crowds and difficult ones are left out: nothing is learnt of them but that, as elsewhere in the image,
        there is no single thing.
        """
        device = batch.samples.device
        targets = [_counted(target) for target in batch.targets]
        counts = torch.tensor([len(target["labels"]) for target in targets], dtype=torch.int64)
        boxes = [target["boxes"] for target in targets] or [torch.zeros(0, 4, device=device)]
        labels = [target["labels"] for target in targets] or [torch.zeros(0, dtype=torch.int64, device=device)]
        packed = {"counts": counts, "boxes": torch.cat(boxes).float(), "labels": torch.cat(labels)}
        return self._images(batch, packed)

    def _images(self, batch: AnyBatch, packed: dict[str, Tensor]) -> Inputs:
        assert isinstance(batch, Batch)
        images, canvas = (
            prepare(batch.images, self.preprocessing),
            (int(batch.images.shape[2]), int(batch.images.shape[3])),
        )
        if not packed and canvas == self.preprocessing.image_size:
            return images
        return {"images": images, "canvas": torch.tensor(canvas), **packed}


def _counted(target: Mapping[str, Tensor]) -> Boxes:
    kept = ~is_ignored(target)
    return {name: target[name][kept] for name in ("boxes", "labels")}


def unpack(inputs: Inputs, *, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int], list[Boxes] | None]:
    """Return what a detector is given, taken apart.

    Args:
        inputs: as :meth:`DetectionModel.prepare` returns them.
        size: (height, width) of the model's images.

    Returns:
        Images (B, 3, H, W), the (height, width) of the batch's own, in whose pixels the model answers, and the targets
        of each image in pixels of the model's; None without any. Boxes that a resizing has left with less than a pixel
        of width or height are dropped, with their labels.
    """
    if isinstance(inputs, Tensor):
        return inputs, (int(inputs.shape[2]), int(inputs.shape[3])), None
    height, width = inputs["canvas"].tolist()
    canvas = (height, width)
    if "counts" not in inputs:
        return inputs["images"], canvas, None
    counts = inputs["counts"].tolist()
    boxes = scale_boxes(inputs["boxes"], canvas, size).split(counts)
    targets = []
    for one, labels in zip(boxes, inputs["labels"].split(counts), strict=True):
        kept = (one[:, 2:] - one[:, :2] >= SMALLEST_BOX).all(dim=1)
        targets.append({"boxes": one[kept], "labels": labels[kept]})
    return inputs["images"], canvas, targets
