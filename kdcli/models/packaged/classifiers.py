"""Classifiers whose weights fit an architecture of timm, tensor by tensor in the file's order."""

from __future__ import annotations

from typing import Any

import timm
import torch

from kdcli.models.packaged.rows import Packaged
from kdcli.models.packaged.weights import check_known, check_names, read_pickled, refusal
from kdcli.models.weights import Tensors


def timm_state(row: Packaged) -> Tensors:
    """Return a package's weights by timm's names, the classifier of 1000 classes included.

    timm's network has the same layers in the same order as the one that the file was saved from, under other names: of
    MobileNetV2 ``features.1.conv.0.0`` is ``blocks.0.0.conv_dw``. So the file's tensors are taken in their order, where
    number, kinds and shapes agree one by one, and a known output says that they are what they should be. With timm's
    ``mobilenetv2_100`` the logits are torchvision's to the bit.

    Raises:
        UserError: the package is not there, or its file is damaged or another.
    """
    tensors = read_pickled(row)
    module = timm.create_model(row.architecture)
    wanted = module.state_dict()
    kinds = [[name.rpartition(".")[2] for name in names] for names in (wanted, tensors)]
    if kinds[0] != kinds[1]:
        raise refusal(row, f"it has {len(tensors)} tensors in an order that is not that of timm's {row.architecture}")
    state = dict(zip(wanted, tensors.values(), strict=True))
    check_names(row, wanted, state)
    module.load_state_dict(state)
    check_known(row, module)
    return module.state_dict()


def packaged_input(row: Packaged) -> dict[str, Any]:
    """Return what timm's config says of the images that the weights were trained on, and of where they are from."""
    wanted = row.preprocessing
    return {
        "interpolation": wanted.interpolation,
        "crop_pct": wanted.image_size[0] / wanted.resize[0],
        "mean": wanted.mean,
        "std": wanted.std,
        "tag": row.name,
        "license": row.licence,
        "hf_hub_id": None,
        "url": "",
    }


def torchvision_state(row: Packaged) -> Tensors:
    """Return the weights of ``torchvision.models.mobilenet_v2`` by torchvision's names, all 314 tensors.

    Raises:
        UserError: the package is not there, or its file is damaged or another.
    """
    from torchvision.models import mobilenet_v2

    with torch.device("meta"):
        wanted = mobilenet_v2().state_dict()
    tensors = read_pickled(row)
    check_names(row, wanted, tensors)
    timm_state(row)
    return tensors
