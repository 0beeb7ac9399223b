"""What scenes are made of: small pictures of objects, and photographs, as this machine has them."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcli.base.errors import UserError
from kdcli.base.text import expand_user
from kdcli.data.images.digits import read_digits

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SIDE = 28
"""Pixels of an object's picture, across and down."""

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts it."""
_FASHION = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_FASHION_PARTS: Mapping[Split, tuple[str, slice]] = {
    "train": ("train", slice(0, 50_000)),
    "validation": ("train", slice(50_000, 60_000)),
    "test": ("t10k", slice(0, 10_000)),
}
_DIGIT_PARTS: Mapping[Split, slice] = {
    "train": slice(0, 1200),
    "validation": slice(1200, 1400),
    "test": slice(1400, 1797),
}
_PHOTOS: Mapping[Split, tuple[str, ...]] = {
    "train": ("coffee.png", "chelsea.png", "camera.png", "brick.png", "gravel.png", "ihc.png", "coins.png", "moon.png"),
    "validation": ("rocket.jpg", "retina.jpg"),
    "test": ("astronaut.png", "grass.png", "hubble_deep_field.jpg"),
}
"""Photographs inside scikit-image; the stereo pair of demo:motorcycle is none of them."""
_FEW_PHOTOS = ("china.jpg", "flower.jpg")
_STRIPS: Mapping[Split, tuple[int, int]] = {"train": (0, 352), "validation": (356, 476), "test": (480, 640)}
"""Columns of scikit-learn's two photographs, which are 640 wide."""
_LARGEST = 256
"""Pixels: larger photographs are reduced to this width or height."""
_INK: Mapping[str, int] = {"Fashion-MNIST": 16, "digits": 96}
"""From this brightness on a pixel belongs to the object, of 0..255."""


@dataclass(frozen=True)
class Materials:
    """Which objects and photographs scenes are made of.

    Attributes:
        objects: whose pictures of objects.
        photos: whose photographs.
        objects_at: folder of Fashion-MNIST's four files; None for scikit-learn's digits.
        photos_at: folder of the photographs.
    """

    objects: Literal["Fashion-MNIST", "digits"]
    photos: Literal["scikit-image", "scikit-learn"]
    objects_at: Path | None
    photos_at: Path

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the objects, in label order."""
        return _FASHION if self.objects == "Fashion-MNIST" else tuple("0123456789")

    @property
    def may_flip(self) -> bool:
        """Whether an object is still one of its class when left and right are exchanged."""
        return self.objects != "digits"

    @property
    def note(self) -> str:
        """What was found, in one sentence."""
        objects = "objects of Fashion-MNIST" if self.objects == "Fashion-MNIST" else "scikit-learn's digits as objects"
        number = sum(map(len, _PHOTOS.values()))
        photos = (
            f"{number} photographs of scikit-image" if self.photos == "scikit-image" else "scikit-learn's 2 photographs"
        )
        return (
            f"Scenes are rendered from {objects} and {photos}; with other objects or photographs the scenes, and all"
            " numbers, differ."
        )


def find_materials(root: Path | None) -> Materials:
    """Return the best of what is installed.

    Args:
        root: ``data.root``, where torchvision's Fashion-MNIST lies, or its files themselves; None for Debian's package,
            where it is installed, and else scikit-learn's digits.

    Raises:
        UserError: there is no Fashion-MNIST in ``root``.
    """
    import sklearn

    objects_at = _find_fashion(root)
    inside = package_folder("skimage")
    photos_at = None if inside is None else inside / "data"
    has_all = photos_at is not None and all((photos_at / name).is_file() for part in _PHOTOS.values() for name in part)
    if photos_at is None or not has_all:
        photos_at = Path(sklearn.__file__).parent / "datasets" / "images"
    return Materials(
        "digits" if objects_at is None else "Fashion-MNIST",
        "scikit-image" if has_all else "scikit-learn",
        objects_at,
        photos_at,
    )


def package_folder(name: str) -> Path | None:
    """Return where an installed package lies, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    places = None if spec is None else spec.submodule_search_locations
    return None if not places else Path(next(iter(places)))


def _find_fashion(root: Path | None) -> Path | None:
    if root is None:
        return _DEBIAN if _has_fashion(_DEBIAN) else None
    root = expand_user(root)
    found = next((place for place in (root / "FashionMNIST" / "raw", root) if _has_fashion(place)), None)
    if found is None:
        raise UserError(
            f"data.root: there is no Fashion-MNIST in {root}.",
            "demo:scenes takes its objects from there: its four files train-images-idx3-ubyte.gz and so on, in the "
            "folder or in FashionMNIST/raw below it. Without data.root it takes those of Debian's package "
            "dataset-fashion-mnist, or scikit-learn's digits.",
        )
    return found.resolve()


def _has_fashion(folder: Path) -> bool:
    return all(
        _file(folder, f"{part}-{kind}").is_file()
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )


def _file(folder: Path, name: str) -> Path:
    """Return a file of MNIST's format, compressed or not."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


@lru_cache(maxsize=4)
def _read_fashion(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (N, 28, 28) and labels (N,) of one half."""
    images = _content(_file(folder, f"{part}-images-idx3-ubyte"), 16)
    labels = _content(_file(folder, f"{part}-labels-idx1-ubyte"), 8)
    if len(images) != len(labels) * SIDE * SIDE or labels.max(initial=0) >= len(_FASHION):
        raise UserError(f"{folder} does not hold Fashion-MNIST: its files don't fit together.", "Install it anew.")
    return images.reshape(-1, SIDE, SIDE), labels


def _content(path: Path, header: int) -> NDArray[np.uint8]:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise UserError(f"{path} can't be read: {error}", "Install Fashion-MNIST anew.") from error
    return np.frombuffer(content, dtype=np.uint8, offset=min(header, len(content)))


@lru_cache(maxsize=6)
def read_objects(materials: Materials, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pictures of a split's objects, uint8 (N, 28, 28), bright on black, and their classes (N,)."""
    if materials.objects_at is not None:
        part, rows = _FASHION_PARTS[split]
        images, labels = _read_fashion(materials.objects_at, part)
        return images[rows], labels[rows]
    digits = read_digits()
    rows = _DIGIT_PARTS[split]
    small = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in small]
    return np.stack(large), digits.target[rows].astype(np.uint8)


class Photo(NamedTuple):
    """A photograph, or a part of one: as an image, and its pixels, uint8 (H, W, 3)."""

    image: Image.Image
    pixels: NDArray[np.uint8]


@lru_cache(maxsize=6)
def read_photos(materials: Materials, split: Split) -> tuple[Photo, ...]:
    """Return a split's photographs, or its parts of photographs."""
    if materials.photos == "scikit-image":
        whole = [Image.open(materials.photos_at / name).convert("RGB") for name in _PHOTOS[split]]
        for photo in whole:
            photo.thumbnail((_LARGEST, _LARGEST), Image.Resampling.BOX, reducing_gap=None)
    else:
        first, last = _STRIPS[split]
        opened = [Image.open(materials.photos_at / name).convert("RGB") for name in _FEW_PHOTOS]
        whole = [photo.crop((first, 0, last, photo.height)) for photo in opened]
    return tuple(Photo(photo, np.asarray(photo)) for photo in whole)


def cut_out(picture: NDArray[np.uint8], materials: Materials) -> NDArray[np.uint8]:
    """Return an object's picture, cut to its extent, uint8 (h, w, 3): brightness, opacity (0 or 255), and nothing.

    Of clothes, dark parts between bright ones, in their row and in their column, belong to the object; of digits the
    strokes alone.
    """
    solid = picture >= _INK[materials.objects]
    if materials.objects == "Fashion-MNIST":
        across = np.logical_or.accumulate(solid, axis=1) & np.logical_or.accumulate(solid[:, ::-1], axis=1)[:, ::-1]
        down = np.logical_or.accumulate(solid, axis=0) & np.logical_or.accumulate(solid[::-1], axis=0)[::-1]
        solid = across & down
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    if not rows.size:  # an empty picture: a square, so that whatever is placed has an extent
        return np.full((2, 2, 3), 255, np.uint8)
    extent = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cut = np.zeros((rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0], 3), np.uint8)
    cut[..., 0] = picture[extent]
    cut[..., 1] = solid[extent] * np.uint8(255)
    return cut


@lru_cache(maxsize=6)
def digest_of(materials: Materials, split: Split) -> str:
    """Return a digest of all objects and photographs of a split."""
    digest = hashlib.sha256()
    for array in (*read_objects(materials, split), *(photo.pixels for photo in read_photos(materials, split))):
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
