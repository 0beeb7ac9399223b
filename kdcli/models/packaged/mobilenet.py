"""torchvision's MobileNetV2 for networks that are built around it."""

from __future__ import annotations

from kdcli.base.errors import UserError
from kdcli.models.packaged.classifiers import torchvision_state
from kdcli.models.packaged.rows import ROWS
from kdcli.models.packaged.weights import find_file
from kdcli.models.weights import Tensors

_NAME = "mobilenet_v2"


def encoder_state() -> Tensors:
    """Return the ImageNet weights by the names of ``torchvision.models.mobilenet_v2``, its classifier included.

    segmentation_models_pytorch's encoder ``mobilenet_v2`` loads them, and takes the classifier out itself.

    Raises:
        UserError: the package is not there, or its file is damaged or another.
    """
    return torchvision_state(ROWS[_NAME])


def has_encoder() -> bool:
    """Whether the package with these weights is installed."""
    try:
        find_file(ROWS[_NAME])
    except UserError:
        return False
    return True
