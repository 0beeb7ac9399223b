"""HED: edges at every position, from five stages of VGG16."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.models.packaged.rows import Packaged
from kdcli.models.packaged.weights import find_file, refusal
from kdcli.models.weights import Tensors

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""The widths of VGG16's thirteen convolutions, in five stages."""


class HED(nn.Module):
    """Holistically-nested edge detection (Xie and Tu, ICCV 2015, figure 3).

    The five stages of VGG16 end before their pooling. Each gives a map of edges by a 1x1 convolution; these, resized to
    the image, and a weighted sum of them are trained alike. The sum is the output.

    As the package's network in TensorFlow: pooling covers the last row and column of odd sizes too (``padding="same"``
    is ``ceil_mode`` here), and maps are resized between the centres of pixels without smoothing.

    Attributes:
        levels: the modules whose outputs :meth:`trunk` gives.
    """

    levels = ("block1", "block2", "block3", "block4", "block5")

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for number, widths in enumerate(_STAGES, start=1):
            layers: list[nn.Module] = [nn.MaxPool2d(2, 2, ceil_mode=True)] if number > 1 else []
            for wider in widths:
                layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
                width = wider
            self.add_module(f"block{number}", nn.Sequential(*layers))
            self.add_module(f"dsn{number}", nn.Conv2d(width, 1, 1))
        self.fuse = nn.Conv2d(5, 1, 1)

    def trunk(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the five stages: (B, 64, H, W), (B, 128, H/2, W/2) to (B, 512, H/16, W/16), rounded up."""
        found = []
        for part in self.levels:
            images = self.get_submodule(part)(images)
            found.append(images)
        return found

    def maps(self, levels: list[Tensor]) -> Tensor:
        """Return the logits of an edge at every pixel, (B, 1, H, W), of what :meth:`trunk` gave."""
        size = levels[0].shape[2:]
        sides = [self.get_submodule(f"dsn{number}")(level) for number, level in enumerate(levels, start=1)]
        resized = [sides[0], *(F.interpolate(side, size, mode="bilinear", align_corners=False) for side in sides[1:])]
        fused: Tensor = self.fuse(torch.cat(resized, dim=1))
        return fused

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, 1, H, W) of an edge at every pixel of (B, 3, H, W): BGR of 0 to 255 minus the mean."""
        return self.maps(self.trunk(images))


def read(row: Packaged) -> Tensors:
    """Return HED's weights out of Keras's file, by the names and in the layout of :class:`HED`.

    Keras calls the convolutions of a block ``conv2d``, ``conv2d_1``, ..., in their order; ``vars/0`` is the kernel,
    (height, width, in, out), which torch wants as (out, in, height, width), and ``vars/1`` the bias. What else the file
    has keeps its name.

    Raises:
        UserError: h5py or the file is not there, or the file is damaged.
    """
    path = find_file(row)
    names = _names_in_file()
    return {names.get(name, name): from_hwio(value) for name, value in _read_h5(row, path).items()}


def from_hwio(kernel: Tensor) -> Tensor:
    """Return a kernel (height, width, in, out) as (out, in, height, width); a bias as it is."""
    return kernel.permute(3, 2, 0, 1).contiguous() if kernel.ndim == 4 else kernel


def _names_in_file() -> dict[str, str]:
    """Return Keras's name of a tensor -> its name in :class:`HED`."""
    with torch.device("meta"):
        module = HED()
    names: dict[str, str] = {}
    for part, child in module.named_children():
        where = f"{part}/vars"
        layers = {where: part}
        if isinstance(child, nn.Sequential):
            places = [number for number, layer in enumerate(child) if isinstance(layer, nn.Conv2d)]
            layers = {
                f"{part}/layers/conv2d{f'_{number}' if number else ''}/vars": f"{part}.{place}"
                for number, place in enumerate(places)
            }
        for where, layer in layers.items():
            names |= {f"{where}/0": f"{layer}.weight", f"{where}/1": f"{layer}.bias"}
    return names


def _read_h5(row: Packaged, path: Path) -> Tensors:
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"package:{row.name}: h5py, which reads {path.name}, is not installed.", "pip install 'kdcli[demo-dense]'"
        ) from None
    found: Tensors = {}

    def look(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = torch.from_numpy(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(look)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:  # what h5py raises on rubbish
        raise refusal(row, f"it can't be read ({error})") from error
    return found
