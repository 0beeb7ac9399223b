"""CPU time from a JPEG file to a model's input: kdcli's training loader beside timm's and a plain torchvision pipeline.

    python tests/benchmarks/data_path.py photographs/ --size 128
    python tests/benchmarks/data_path.py --large 4000x3000 --size 224 --images 16

All do a random resized crop (bicubic, 35 % to 100 % of the area), a flip, batches of 32 and the normalisation of one model,
on one thread and without loader processes. Each round runs every pipeline once over the same files; shown is the median
over rounds of CPU milliseconds an image, and its ratio to torchvision's in the same round. ``--large`` makes photographs of
that size out of those that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from kdcli.base.facts import Preprocessing
from kdcli.config.data import AugmentConfig
from kdcli.data import Loading, TrainLoader, fit, prepare
from kdcli.data.images.decode import decode_image
from kdcli.data.images.photo import open_image
from kdcli.data.images.preprocess import fit_as, fit_geometry
from kdcli.data.images.sources import FileSource

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, BATCH = (0.35, 1.0), 32


def make_large(folder: Path, width: int, height: int, count: int) -> None:
    """Write photographs of this size, each another part of one that comes with scikit-learn."""
    from sklearn.datasets import load_sample_images

    found = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        image = found[number % len(found)]
        left, top = (number * 17) % 160, (number * 11) % 120
        part = image.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + 480, top + 300))
        part.save(folder / f"{number:04d}.jpg", quality=92)


class Files(torch.utils.data.Dataset):
    """Files with a torchvision transform, all of class 0."""

    def __init__(self, paths: list[str], transform: Callable[[Image.Image], object]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.transform(default_loader(self.paths[index])), 0


def pipelines(paths: list[str], folder: Path, size: int) -> dict[str, Callable[[], int]]:
    """Return functions that go through all files once, and return how many images they have seen."""
    bicubic = v1.InterpolationMode.BICUBIC
    model = Preprocessing((size, size), MEAN, STD)
    source = FileSource(paths, [0] * len(paths))
    loaders = {
        name: TrainLoader(
            source,
            Loading(min(BATCH, len(paths)), 0, AugmentConfig(crop_scale=SCALE), workers=0, reduced=reduced),
            canvas=(size, size),
        )
        for name, reduced in {"kdcli": True, "kdcli, decoded whole": False}.items()
    }

    def ours(loader: TrainLoader) -> int:
        return sum(len(prepare(batch.images, model)) for batch in loader.epoch(0))

    crop = {"scale": SCALE, "interpolation": bicubic}
    classic = v1.Compose(
        [v1.RandomResizedCrop(size, **crop), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    )
    newer = v2.Compose(
        [
            *(v2.RandomResizedCrop(size, **crop), v2.RandomHorizontalFlip(), v2.PILToTensor()),
            *(v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)),
        ]
    )

    def theirs(transform: Callable[[Image.Image], object]) -> Callable[[], int]:
        batches = DataLoader(Files(paths, transform), min(BATCH, len(paths)), shuffle=True, drop_last=True)
        return lambda: sum(len(images) for images, _ in batches)

    timms = create_loader(
        ImageDataset(str(folder.parent)),
        (3, size, size),
        min(BATCH, len(paths)),
        is_training=True,
        use_prefetcher=True,
        scale=SCALE,
        hflip=0.5,
        color_jitter=None,  # type: ignore[arg-type]  # which turns it off
        re_prob=0,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=0,
        device=torch.device("cpu"),
        persistent_workers=False,
    )

    def timm_epoch() -> int:
        return sum(len(images) for images, _ in timms)

    def evaluation(whole: bool) -> int:
        for path in paths:
            if whole:
                fit(decode_image(path), model)
            else:
                photo = open_image(path)
                fit_as(fit_geometry(photo, model), photo, model)
        return len(paths)

    return {
        "torchvision": theirs(classic),
        "torchvision v2": theirs(newer),
        "timm": timm_epoch,
        **{name: lambda loader=loader: ours(loader) for name, loader in loaders.items()},  # type: ignore[misc]
        "kdcli's evaluation": lambda: evaluation(True),
        "kdcli's evaluation, data.reduced_decoding=always": lambda: evaluation(False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="JPEG files, in any depth")
    parser.add_argument("--large", help="WIDTHxHEIGHT of photographs that are made, in place of a folder")
    parser.add_argument("--size", type=int, default=224, help="side of the models' input")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if (given.folder is None) == (given.large is None):
        parser.error("give a folder, or --large")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        folder.mkdir()
        if given.large is not None:
            width, height = map(int, given.large.split("x"))
            make_large(folder, width, height, given.images)
        else:
            found = sorted(given.folder.rglob("*.jpg"))
            for number, file in enumerate(found[:: max(len(found) // given.images, 1)][: given.images]):
                (folder / f"{number:04d}.jpg").symlink_to(file.resolve())
        paths = sorted(map(str, folder.glob("*.jpg")))
        things = pipelines(paths, folder, given.size)
        spent: dict[str, list[float]] = {name: [] for name in things}
        for number in range(given.rounds + 1):
            for name, run in things.items():
                start = time.process_time()
                count = run()
                if number:  # the first is a warm-up
                    spent[name].append((time.process_time() - start) / count * 1e3)
    print(f"{len(paths)} photographs to {given.size} pixels, {given.rounds} rounds, one thread")
    for name, values in spent.items():
        ratios = [value / other for value, other in zip(values, spent["torchvision"], strict=True)]
        print(
            f"{name:50s} {statistics.median(values):8.2f} CPU ms/image   {statistics.median(ratios):5.2f} of torchvision"
        )


if __name__ == "__main__":
    main()
