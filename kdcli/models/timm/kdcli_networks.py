"""Networks that timm lacks, in timm's registry: CIFAR's residual networks, narrow MobileNets V1 and VkD's DeiTs.

This file needs torch and timm, and nothing else of kdcli: a copy goes with every saved model of these architectures,
and importing that copy makes ``timm.create_model("local-dir:FOLDER", pretrained=True)`` work without kdcli.

- ``cifar_resnetDEPTH``: K. He et al., *Deep Residual Learning for Image Recognition*, arXiv 1512.03385, section 4.2.
  As in the distillation benchmark of Y. Tian et al., arXiv 1910.10699, a shortcut that changes the shape is a 1x1
  convolution with batch normalisation, and ``x4`` has twice the width in the stem and four times the width in the
  stages.
- ``cifar_wrn_DEPTH_WIDTH``: S. Zagoruyko, N. Komodakis, *Wide Residual Networks*, arXiv 1605.07146, without dropout.
- ``mobilenetv1_0*``: A. Howard et al., *MobileNets*, arXiv 1704.04861, at widths below timm's 1.0.
- ``vkd_deit_*``: the students of R. Miles et al., *VkD*, arXiv 2403.06213, as in the authors' code: DeiT with
  a distillation head, a stem of convolutions, and the mean of the patches in place of a learnt distillation token.

CIFAR's networks name their parameters as the benchmark's code does, whose checkpoints therefore fit.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed, create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientnet import _gen_mobilenet_v1
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

_RESNETS = {  # depth; channels of the stem and of the three stages
    **{f"cifar_resnet{depth}": (depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{depth}x4": (depth, (32, 64, 128, 256)) for depth in (8, 32)},
}
_WIDE_RESNETS = {f"cifar_wrn_{depth}_{width}": (depth, width) for depth in (16, 40) for width in (1, 2)}
_MOBILENETS = {f"mobilenetv1_{round(100 * width):03d}": width for width in (0.25, 0.5, 0.75)}
_VKD_DEITS = {  # width, heads
    "vkd_deit_tiny_patch16_224": (192, 3),
    "vkd_deit_small_patch16_224": (384, 6),
}

NAMES = (*_RESNETS, *_WIDE_RESNETS, *_MOBILENETS, *_VKD_DEITS)
"""What this file registers."""


class _Network(nn.Module, ABC):
    """What both families share: arguments and classifier, with timm's interface.

    Args:
        depths: blocks of the three stages.
        channels: of the stem and of the three stages.
        num_classes: 0 for no classifier.
        in_chans: channels of the images.
        global_pool: timm's name of a pooling.
        drop_rate: of dropout before the classifier.
    """

    def __init__(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans, self.num_features, self.drop_rate = in_chans, channels[3], drop_rate
        self._make_stages(depths, channels)
        self._make_head(num_classes, global_pool)
        self._initialize()

    @abstractmethod
    def _make_stages(self, depths: Sequence[int], channels: Sequence[int]) -> None:
        """Make stem and stages."""

    def _make_head(self, num_classes: int, global_pool: str) -> None:
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes for none."""
        self._make_head(num_classes, global_pool or self.global_pool.pool_type)

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, (B, ``num_features``, H / 4, W / 4), of images (B, ``in_chans``, H, W)."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or with ``pre_logits`` its mean over positions."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, ``num_classes``)."""
        return self.forward_head(self.forward_features(x))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; ReLU after the sum."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_chs, out_chs, stride)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(out_chs, out_chs)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.downsample = nn.Sequential()
        if stride != 1 or in_chs != out_chs:
            self.downsample = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.downsample(x) + residual)


class CifarResNet(_Network):
    """A residual network: a 3x3 stem and three stages of blocks. With n blocks in each it is called ResNet-(6n + 2)."""

    def _make_stages(self, depths: Sequence[int], channels: Sequence[int]) -> None:
        self.conv1 = _conv3x3(self.in_chans, channels[0])
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(_Block, depths[0], channels[0], channels[1], 1)
        self.layer2 = _stage(_Block, depths[1], channels[1], channels[2], 2)
        self.layer3 = _stage(_Block, depths[2], channels[2], channels[3], 2)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the output of the last stage."""
        return self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))


class _PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU, and a shortcut.

    Where the width changes, the shortcut is a 1x1 convolution of the normalised input.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3x3(in_chs, out_chs, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(out_chs, out_chs)
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False) if in_chs != out_chs else None

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.relu1(self.bn1(x))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(normalized))))
        return residual + (x if self.shortcut is None else self.shortcut(normalized))


class CifarWideResNet(_Network):
    """A wide residual network: a 3x3 stem, three stages of blocks, batch normalisation and ReLU.

    With n blocks in each stage, 16 channels in the stem and 16w, 32w and 64w in the stages it is called WRN-(6n + 4)-w.
    """

    def _make_stages(self, depths: Sequence[int], channels: Sequence[int]) -> None:
        self.conv1 = _conv3x3(self.in_chans, channels[0])
        self.block1 = _stage(_PreActivationBlock, depths[0], channels[0], channels[1], 1)
        self.block2 = _stage(_PreActivationBlock, depths[1], channels[1], channels[2], 2)
        self.block3 = _stage(_PreActivationBlock, depths[2], channels[2], channels[3], 2)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.relu = nn.ReLU(inplace=True)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output, normalised and rectified."""
        return self.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))


def _conv3x3(in_chs: int, out_chs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, bias=False)


def _stage(block: Any, count: int, in_chs: int, out_chs: int, stride: int) -> nn.Sequential:
    rest = (block(out_chs, out_chs, 1) for _ in range(count - 1))
    return nn.Sequential(block(in_chs, out_chs, stride), *rest)


class ConvEmbed(PatchEmbed):
    """Patches of 16 x 16 pixels by convolutions: 7x7 (stride 2), twice 3x3, all of 64 channels, then 8x8 (stride 8).

    Batch normalisation and ReLU follow each but the last. Arguments are those of timm's ``PatchEmbed``.
    """

    def __init__(
        self, img_size: Any = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768, **kwargs: Any
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim, **kwargs)
        if self.patch_size != (16, 16):
            raise ValueError(f"the stem makes patches of 16 x 16 pixels, not {self.patch_size}")
        self.proj = nn.Sequential(  # type: ignore[assignment]  # where timm has one convolution
            _conv_norm_relu(in_chans, 64, 7, stride=2),
            _conv_norm_relu(64, 64, 3),
            _conv_norm_relu(64, 64, 3),
            nn.Conv2d(64, embed_dim, 8, stride=8),
        )

    def init_weights(self) -> None:
        """Initialise the convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


class MeanTokenDeiT(VisionTransformerDistilled):
    """A DeiT whose distillation token is the mean of the patches, behind a stem of convolutions.

    In evaluation the logits are the mean of both heads, as with every model of timm's class. Arguments are those of
    timm's ``VisionTransformer``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, embed_layer=ConvEmbed, **kwargs)
        del self.dist_token

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise everything; there is no distillation token to initialise."""
        VisionTransformer.init_weights(self, mode=mode, needs_reset=needs_reset)

    def _pos_embed(self, x: Tensor) -> Tensor:
        assert self.cls_token is not None
        assert self.pos_embed is not None
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x.mean(dim=1, keepdim=True), x), dim=1)
        return self.pos_drop(x + self.pos_embed)


def _conv_norm_relu(in_chs: int, out_chs: int, size: int, *, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_chs, out_chs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename what the benchmark's code calls ``block1.layer.0.convShortcut``."""
    return {
        re.sub(r"^(block\d)\.layer\.(\d+)\.", r"\1.\2.", name).replace("convShortcut", "shortcut"): value
        for name, value in state_dict.items()
    }


_CIFAR = {
    "num_classes": 100,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.5071, 0.4867, 0.4408),  # of CIFAR-100's training images
    "std": (0.2675, 0.2565, 0.2761),
    "first_conv": "conv1",
    "classifier": "fc",
}
_IMAGENET = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "conv_stem",
    "classifier": "classifier",
}
_DEIT = _IMAGENET | {
    "pool_size": None,
    "fixed_input_size": True,
    "first_conv": "patch_embed.proj.0.0",
    "classifier": ("head", "head_dist"),
}
default_cfgs = generate_default_cfgs(
    {name: _IMAGENET if name in _MOBILENETS else _DEIT if name in _VKD_DEITS else _CIFAR for name in NAMES}
)


def _register(name: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if name in _MOBILENETS:
            return _gen_mobilenet_v1(name, _MOBILENETS[name], pretrained=pretrained, **kwargs)
        if name in _VKD_DEITS:
            width, heads = _VKD_DEITS[name]
            own: dict[str, Any] = {"patch_size": 16, "embed_dim": width, "depth": 12, "num_heads": heads}
            return build_model_with_cfg(MeanTokenDeiT, name, pretrained, **(own | kwargs))
        if name in _RESNETS:
            depth, channels = _RESNETS[name]
            own = {"depths": [(depth - 2) // 6] * 3, "channels": channels}
            return build_model_with_cfg(CifarResNet, name, pretrained, **(own | kwargs))
        depth, width = _WIDE_RESNETS[name]
        own = {"depths": [(depth - 4) // 6] * 3, "channels": [16, 16 * width, 32 * width, 64 * width]}
        return build_model_with_cfg(CifarWideResNet, name, pretrained, **(own | kwargs))

    entrypoint.__name__ = entrypoint.__qualname__ = name
    globals()[name] = register_model(entrypoint)


for _name in NAMES:
    _register(_name)
