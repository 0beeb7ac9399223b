"""Parts of a pass through torchvision's detectors: levels, losses, and the boxes that are chosen.

The detectors' own forward gives losses in training and boxes in evaluation, of images that it resizes itself. Here the
images are as large as they are to be and normalised already; all else is its own functions, in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from kdcli.models.detections import Boxes

_DIVISIBLE = 32
"""Images are filled up to multiples of so many pixels, but for SSD's."""


class Counted(NamedTuple):
    """A loss with what it is a mean over.

    Attributes:
        loss: a scalar.
        number: of the anchors or images that it was divided by; where there was none, by 1.
    """

    loss: Tensor
    number: Tensor


def filled_up(module: nn.Module, images: Tensor) -> ImageList:
    """Return images (B, 3, H, W) as the detector takes them: with zeros at their right and below."""
    height, width = int(images.shape[2]), int(images.shape[3])
    if not isinstance(module, SSD):
        images = F.pad(images, (0, -width % _DIVISIBLE, 0, -height % _DIVISIBLE))
    return ImageList(images, [(height, width)] * len(images))


def levels_of(module: Any, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the maps that the heads read, by torchvision's names, and the last one of the backbone before them.

    With a feature pyramid that is what the pyramid's top is made of; of SSD, whose further levels follow one another,
    the end of the network that was there before.
    """
    backbone = module.backbone
    if isinstance(backbone, BackboneWithFPN):
        stages = backbone.body(images)
        return dict(backbone.fpn(stages)), list(stages.values())[-1]
    levels = dict(backbone(images))
    return levels, levels["1"]


def losses_and_boxes(
    module: Any, images: ImageList, levels: dict[str, Tensor], targets: Sequence[Boxes] | None, *, chooses: bool
) -> tuple[dict[str, Counted], list[Boxes], dict[str, Tensor]]:
    """Return a detector's losses, its boxes, and what its heads give for themselves.

    Args:
        module: the detector.
        images: of :func:`filled_up`.
        levels: of :func:`levels_of`.
        targets: labels from 0 on; None for no losses.
        chooses: whether boxes are chosen; otherwise there are none, and nothing of the heads either.
    """
    shifted = None
    if targets is not None:  # the class 0 is the background
        shifted = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in targets]
    if isinstance(module, FasterRCNN):
        losses, boxes, raw = _two_stages(module, images, levels, shifted, chooses=chooses)
    else:
        losses, boxes, raw = _one_stage(module, images, levels, shifted, chooses=chooses)
    return losses, [_without_background(one) for one in boxes], raw


def _without_background(found: Mapping[str, Tensor]) -> Boxes:
    kept = found["labels"] > 0
    return {
        "boxes": found["boxes"][kept].float(),
        "scores": found["scores"][kept].float(),
        "labels": found["labels"][kept] - 1,
    }


def _one_stage(
    module: Any, images: ImageList, levels: dict[str, Tensor], targets: list[Boxes] | None, *, chooses: bool
) -> tuple[dict[str, Counted], list[Boxes], dict[str, Tensor]]:
    features = list(levels.values())
    heads = {name: value.float() for name, value in module.head(features).items()}
    anchors = module.anchor_generator(images, features)
    losses = {} if targets is None else _one_stage_losses(module, features, targets, heads, anchors)
    if not chooses:
        return losses, [], {}
    if isinstance(module, SSD):
        return losses, module.postprocess_detections(heads, anchors, images.image_sizes), heads
    places = [level.shape[2] * level.shape[3] for level in features]
    each = heads["cls_logits"].shape[1] // sum(places)
    sizes = [each * count for count in places]
    by_level = {name: list(value.split(sizes, dim=1)) for name, value in heads.items()}
    of_images = [list(one.split(sizes)) for one in anchors]
    return losses, module.postprocess_detections(by_level, of_images, images.image_sizes), heads


def _one_stage_losses(
    module: Any, features: list[Tensor], targets: list[Boxes], heads: dict[str, Tensor], anchors: list[Tensor]
) -> dict[str, Counted]:
    """Return the losses: of SSD and FCOS divided by the matched anchors of all images, of RetinaNet a mean of images.

    SSD and FCOS take the anchors of a batch together: an image with more boxes counts for more.
    """
    device = anchors[0].device
    matched: list[Tensor] = []
    if isinstance(module, SSD):
        for of_image, target in zip(anchors, targets, strict=True):
            if target["boxes"].numel():
                matched.append(module.proposal_matcher(box_iou(target["boxes"], of_image)))
            else:
                matched.append(torch.full((len(of_image),), -1, dtype=torch.int64, device=device))
        losses = module.compute_loss(targets, heads, anchors, matched)
    elif isinstance(module, FCOS):
        sizes = [level.shape[2] * level.shape[3] for level in features]
        with _listening(module.head, "compute_loss", lambda arguments, _: matched.extend(arguments[3])):
            losses = module.compute_loss(targets, heads, anchors, sizes)
    else:
        losses = module.compute_loss(targets, heads, anchors)
    if matched:
        count = torch.stack([(one >= 0).sum() for one in matched]).sum()
    else:
        count = torch.tensor(len(targets), device=device)
    return {name: Counted(loss, count) for name, loss in losses.items()}


def _two_stages(
    module: Any, images: ImageList, levels: dict[str, Tensor], targets: list[Boxes] | None, *, chooses: bool
) -> tuple[dict[str, Counted], list[Boxes], dict[str, Tensor]]:
    losses: dict[str, Counted] = {}
    boxes: list[Boxes] = []
    raw: dict[str, Tensor] = {}
    if targets is not None:
        losses = _two_stage_losses(module, images, levels, targets)
    if chooses:
        proposals, _ = module.rpn(images, levels)
        boxes, _ = module.roi_heads(levels, proposals, images.image_sizes)
        objectness, deltas = module.rpn.head(list(levels.values()))
        raw = {f"objectness.{number}": value for number, value in enumerate(objectness)}
        raw |= {f"deltas.{number}": value for number, value in enumerate(deltas)}
        height, width = images.image_sizes[0]
        whole = [deltas[0].new_tensor([[0, 0, width, height]])] * len(images.image_sizes)
        pooled = module.roi_heads.box_roi_pool(levels, whole, images.image_sizes)
        raw["class_logits"], raw["box_regression"] = module.roi_heads.box_predictor(module.roi_heads.box_head(pooled))
    return losses, boxes, raw


def _two_stage_losses(
    module: Any, images: ImageList, levels: dict[str, Tensor], targets: list[Boxes]
) -> dict[str, Counted]:
    """Return the losses of anchors and proposals, each a mean over those that were drawn."""
    rpn, heads = module.rpn, module.roi_heads
    counts = {id(part): torch.zeros((), dtype=torch.int64, device=images.tensors.device) for part in (rpn, heads)}

    def count(part: nn.Module) -> Callable[[Any, Any], None]:
        def look(_: Any, drawn: tuple[list[Tensor], list[Tensor]]) -> None:
            chosen = [positive | negative for positive, negative in zip(*drawn, strict=True)]
            counts[id(part)] = torch.stack([(one > 0).sum() for one in chosen]).sum()

        return look

    with ExitStack() as stack:
        for part in (rpn, heads):
            stack.enter_context(_listening(part, "fg_bg_sampler", count(part)))
            stack.enter_context(_in_training(part))
        proposals, of_anchors = rpn(images, levels, targets)
        _, of_proposals = heads(levels, proposals, images.image_sizes, targets)
    losses = {name: Counted(loss, counts[id(heads)]) for name, loss in of_proposals.items()}
    return losses | {name: Counted(loss, counts[id(rpn)]) for name, loss in of_anchors.items()}


@contextmanager
def _listening(owner: Any, name: str, look: Callable[[Any, Any], None]) -> Iterator[None]:
    """Call ``look`` with the arguments and the result of every call of ``owner.name``, a method or a function."""
    own = vars(owner).get(name)
    called = getattr(owner, name)

    def listener(*arguments: Any) -> Any:
        result = called(*arguments)
        look(arguments, result)
        return result

    setattr(owner, name, listener)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def _in_training(part: nn.Module) -> Iterator[None]:
    """Let ``part`` compute losses; what it is made of stays as it is, batch normalisations among it."""
    was_training, part.training = part.training, True
    try:
        yield
    finally:
        part.training = was_training
