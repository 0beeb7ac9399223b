"""The detectors by name, and how each of them is made by torchvision's own functions. No torch here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdcli.base.errors import UserError, did_you_mean
from kdcli.models.torchvision_detection.calls import Call, Name, call

Family = Literal["ssd", "ssdlite", "retinanet", "fcos", "fasterrcnn"]

_DETECTION = "torchvision.models.detection"
_BACKBONES = f"{_DETECTION}.backbone_utils"
_ANCHORS = f"{_DETECTION}.anchor_utils"
_PYRAMID = "torchvision.ops.feature_pyramid_network"
_CLASSES: Mapping[Family, tuple[str, str]] = {
    "ssd": (f"{_DETECTION}.ssd", "SSD"),
    "ssdlite": (f"{_DETECTION}.ssd", "SSD"),
    "retinanet": (_DETECTION, "RetinaNet"),
    "fcos": (_DETECTION, "FCOS"),
    "fasterrcnn": (_DETECTION, "FasterRCNN"),
}
LOSSES: Mapping[Family, tuple[str, ...]] = {
    "ssd": ("bbox_regression", "classification"),
    "ssdlite": ("bbox_regression", "classification"),
    "retinanet": ("classification", "bbox_regression"),
    "fcos": ("classification", "bbox_regression", "bbox_ctrness"),
    "fasterrcnn": ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
}
"""What each family's loss is the sum of, as torchvision calls them."""
_ANCHORED = ("retinanet", "fasterrcnn")
"""Whose anchors have sizes in pixels."""
_STRIDES = (32, 64, 128, 256, 512)
"""The sizes of anchors in pixels that torchvision takes, a level each."""
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MOBILENETS = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
_SSDLITE_CHANNELS = {"mobilenet_v3_large": (672, 480), "mobilenet_v3_small": (288, 288)}
"""Of the two maps that SSDLite takes of a backbone with a reduced tail; four of 512, 256, 256 and 128 follow."""
_SSDLITE_MEAN = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Network:
    """A detector.

    Attributes:
        name: ``fcos_resnet50_fpn``, whose weights torchvision publishes, or ``fcos/resnet18``, put together of parts
            that it has.
        family: which kind it is.
        side: of its images in pixels where nobody asks for another.
        backbone: its name, of a network that is put together.
        defaults: of its function, where they are not those of the family's class.
        frozen: how many of its backbone's stages torchvision does not train where the weights are published ones; none
            where the normalisations are trained on too.
        has_exact_norms: whether the published weights are meant without what keeps normalisations from dividing by 0.
    """

    name: str
    family: Family
    side: int
    backbone: str = ""
    defaults: tuple[tuple[str, Any], ...] = ()
    frozen: int = 0
    has_exact_norms: bool = False

    @property
    def is_published(self) -> bool:
        """Whether torchvision has weights of the whole detector."""
        return not self.backbone

    def arguments(self) -> dict[str, Any]:
        """Return what can be set in the name, with its own values: the family's numbers and, of some, ``anchors``."""
        parameters = inspect.signature(Name(*_CLASSES[self.family]).make().__init__).parameters.values()
        own = {p.name: p.default for p in parameters if isinstance(p.default, (int, float)) and p.name not in _SIZES}
        own |= dict(self.defaults)
        return {**own, "anchors": list(_STRIDES)} if self.backbone and self.family in _ANCHORED else own

    def check(self, arguments: Mapping[str, Any], *, shown: str) -> None:
        """Refuse arguments that the network does not have.

        Raises:
            UserError: it names them; ``shown`` is what the network is called there.
        """
        valid = self.arguments()
        for key, value in arguments.items():
            if key not in valid:
                raise UserError(
                    f"{shown}: there is no argument {key!r}. {did_you_mean(key, valid)}".rstrip(),
                    f"Its arguments: {', '.join(valid)}.",
                )
            is_list = isinstance(valid[key], list)
            if is_list != isinstance(value, list) or isinstance(value, str):
                raise UserError(f"{shown}: {key} can't be {value!r}.", f"By default it is {valid[key]}.")
            if is_list and (len(value) != len(valid[key]) or min(value) <= 0):
                raise UserError(f"{shown}: anchors are {len(valid[key])} sizes in pixels, one a level.", "Mend them.")

    def made(self, num_classes: int, arguments: Mapping[str, Any], size: tuple[int, int]) -> Call:
        """Return the call that makes the detector, without weights.

        Args:
            num_classes: without background; torchvision counts that in, as the class 0.
            arguments: out of :meth:`arguments`, those that are set.
            size: (height, width) of its images: nothing is resized inside.
        """
        keywords: dict[str, Any] = {"num_classes": num_classes + 1}
        keywords |= {key: value for key, value in arguments.items() if key != "anchors"}
        if self.family not in ("ssd", "ssdlite"):
            keywords["fixed_size"] = (size[1], size[0])
        if self.is_published:
            return call(_DETECTION, self.name, weights=None, weights_backbone=None, **keywords)
        if self.family == "ssdlite":
            return _ssdlite(self.backbone, keywords, size)
        if "anchors" in arguments:
            key = "rpn_anchor_generator" if self.family == "fasterrcnn" else "anchor_generator"
            keywords[key] = _anchors(self.family, arguments["anchors"])
        return Call(Name(*_CLASSES[self.family]), (_pyramid(self.family, self.backbone),), keywords)


_SIZES = ("min_size", "max_size")

_320 = (("min_size", 320), ("max_size", 640))
_WHOLE = (
    Network(
        "ssdlite320_mobilenet_v3_large",
        "ssdlite",
        320,
        defaults=(("score_thresh", 0.001), ("nms_thresh", 0.55), ("detections_per_img", 300), ("topk_candidates", 300)),
    ),
    Network("ssd300_vgg16", "ssd", 300),
    Network("retinanet_resnet50_fpn", "retinanet", 800, frozen=2, has_exact_norms=True),
    Network("retinanet_resnet50_fpn_v2", "retinanet", 800),
    Network("fcos_resnet50_fpn", "fcos", 800, frozen=2),
    Network("fasterrcnn_resnet50_fpn", "fasterrcnn", 800, frozen=2, has_exact_norms=True),
    Network("fasterrcnn_resnet50_fpn_v2", "fasterrcnn", 800),
    Network("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn", 800, frozen=3, defaults=(("rpn_score_thresh", 0.05),)),
    Network(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn",
        320,
        frozen=3,
        defaults=(("rpn_pre_nms_top_n_test", 150), ("rpn_post_nms_top_n_test", 150), ("rpn_score_thresh", 0.05)),
    ),
)
_PARTS: Mapping[Family, tuple[str, ...]] = {
    "ssdlite": tuple(_SSDLITE_CHANNELS),
    "retinanet": (*RESNETS, *MOBILENETS),
    "fcos": (*RESNETS, *MOBILENETS),
    "fasterrcnn": (*RESNETS, *MOBILENETS),
}
NETWORKS: Mapping[str, Network] = {
    network.name: network
    for network in (
        *_WHOLE,
        *(
            Network(f"{family}/{backbone}", family, 320, backbone, frozen=2 if backbone in RESNETS else 3)
            for family, backbones in _PARTS.items()
            for backbone in backbones
        ),
    )
}
"""By name."""


def _anchors(family: Family, sizes: Any) -> Call:
    """Return what makes anchors of three shapes; of RetinaNet each in three sizes, within an octave."""
    ratios = ((0.5, 1.0, 2.0),) * len(sizes)
    each: tuple[tuple[int, ...], ...]
    if family == "retinanet":
        each = tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in sizes)
    else:
        each = tuple((size,) for size in sizes)
    return call(_ANCHORS, "AnchorGenerator", each, ratios)


def _pyramid(family: Family, backbone: str) -> Call:
    """Return what makes a backbone with a feature pyramid of five levels, all of it trained.

    One-stage detectors have strides from 8 on, Faster R-CNN from 4 on.
    """
    is_resnet = backbone in RESNETS
    levels = [2, 3, 4] if is_resnet else [2, 3, 5]
    keywords: dict[str, Any] = {
        "backbone_name": backbone,
        "weights": None,
        "norm_layer": Name("torch.nn", "BatchNorm2d"),
        "trainable_layers": 5 if is_resnet else 6,
        "returned_layers": [levels[0] - 1, *levels] if family == "fasterrcnn" else levels,
    }
    if family != "fasterrcnn":
        keywords["extra_blocks"] = call(_PYRAMID, "LastLevelP6P7", 256, 256)
    if is_resnet:
        return call(_BACKBONES, "resnet_fpn_backbone", **keywords)
    return call(_BACKBONES, "mobilenet_backbone", fpn=True, **keywords)


def _ssdlite(backbone: str, keywords: Mapping[str, Any], size: tuple[int, int]) -> Call:
    """Return what makes SSDLite as torchvision makes its own, on another MobileNetV3."""
    module = f"{_DETECTION}.ssdlite"
    norm = call("functools", "partial", Name("torch.nn", "BatchNorm2d"), eps=0.001, momentum=0.03)
    trunk = call("torchvision.models", backbone, weights=None, norm_layer=norm, reduced_tail=True)
    channels = [*_SSDLITE_CHANNELS[backbone], 512, 256, 256, 128]
    head = call(module, "SSDLiteHead", channels, [6] * 6, keywords["num_classes"], norm)
    own: dict[str, Any] = {"score_thresh": 0.001, "nms_thresh": 0.55, "detections_per_img": 300, "topk_candidates": 300}
    own |= {"image_mean": list(_SSDLITE_MEAN), "image_std": list(_SSDLITE_MEAN)}
    return call(
        f"{_DETECTION}.ssd",
        "SSD",
        call(module, "_mobilenet_extractor", trunk, 6, norm),
        call(_ANCHORS, "DefaultBoxGenerator", [[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95),
        (size[1], size[0]),
        head=head,
        **(own | dict(keywords)),
    )
