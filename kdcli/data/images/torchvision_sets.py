"""Image classification sets of torchvision, with their official splits."""

from __future__ import annotations

import http.client
import inspect
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.text import expand_user
from kdcli.data.images.decode import UnreadableImage, decode_image
from kdcli.data.images.sources import FileSource, ImageSource, OfficialSplits
from kdcli.data.source import Sample

_FLAG = {"train": {"train": True}, "test": {"train": False}}
_NAMED = {"train": {"split": "train"}, "test": {"split": "test"}}
_NAMED_WITH_VAL = _NAMED | {"validation": {"split": "val"}}
_VAL_IS_TEST = {"train": {"split": "train"}, "test": {"split": "val"}}
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}

SETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "Caltech101": _WHOLE,
    "Country211": _NAMED | {"validation": {"split": "valid"}},
    "DTD": _NAMED_WITH_VAL,
    "EMNIST": {split: {**flag, "split": "balanced"} for split, flag in _FLAG.items()},
    "EuroSAT": _WHOLE,
    "FGVCAircraft": _NAMED_WITH_VAL,
    "FashionMNIST": _FLAG,
    "Flowers102": _NAMED_WITH_VAL,
    "Food101": _NAMED,
    "GTSRB": _NAMED,
    "ImageNet": _VAL_IS_TEST,
    "Imagenette": _VAL_IS_TEST,
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "PCAM": _NAMED_WITH_VAL,
    "RenderedSST2": _NAMED_WITH_VAL,
    "STL10": _NAMED,
    "SUN397": _WHOLE,
    "SVHN": _NAMED,
    "StanfordCars": _NAMED,
    "USPS": _FLAG,
}
"""Name of the class in torchvision -> our split -> the constructor arguments that select it."""

_NOTES = {
    "EMNIST": "EMNIST: its 'balanced' split, 47 classes.",
    "ImageNet": "Test: ImageNet's 'val', as its own test labels are not public.",
    "Imagenette": "Test: Imagenette's 'val', on which results are reported.",
}
_NO_DOWNLOAD = {"ImageNet"}
_ARRAY_PARTS = {"_reconstruct", "ndarray", "dtype"}
"""What numpy's arrays are pickled as, in its modules ``numpy`` and ``numpy.core.multiarray``."""

if sys.version_info >= (3, 11, 4):
    # Archives are unpacked below their folder, or not at all; later versions of torchvision see to it themselves.
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numbers, texts, containers and numpy's arrays; anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ARRAY_PARTS and module in {"numpy", "numpy.core.multiarray", "numpy._core.multiarray"}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")


def _load_arrays(file: IO[bytes], *, encoding: str) -> Any:
    return _ArrayUnpickler(file, encoding=encoding).load()


# CIFAR's files are pickles. Torchvision checks their MD5 sums, and then has this read them.
datasets.cifar.pickle = SimpleNamespace(load=_load_arrays)
_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


def open_torchvision(name: str, *, root: Path | None) -> OfficialSplits:
    """Open ``torchvision:NAME``, downloading it where that is possible and needed.

    Args:
        name: class in :mod:`torchvision.datasets`, in any case.
        root: where the files are or go; by default ``$KDCLI_DATA``, else ``~/.cache/kdcli/data``.

    Raises:
        UserError: there is no such set, or its files are neither there nor to be had.
    """
    by_lower = {known.lower(): known for known in SETS}
    if name.lower() not in by_lower:
        nearest = did_you_mean(name.lower(), by_lower)
        for lower, known in by_lower.items():
            nearest = nearest.replace(lower, known)
        raise UserError(
            f"torchvision:{name} is not a classification set that kdcli knows.",
            f"{nearest} Valid: {', '.join(SETS)}.".strip(),
        )
    name = by_lower[name.lower()]
    if root is None:
        root = Path(os.environ.get("KDCLI_DATA") or "~/.cache/kdcli/data")
    root = expand_user(root)
    sets = {split: _construct(name, root, arguments) for split, arguments in SETS[name].items()}
    sources = {split: _source(dataset, split) for split, dataset in sets.items()}
    return OfficialSplits(
        class_names=_class_names(sets["train"], sources["train"]),
        train=sources["train"],
        validation=sources.get("validation"),
        test=sources.get("test"),
        notes=(_NOTES[name],) if name in _NOTES else (),
    )


class TorchvisionSource(ImageSource):
    """A torchvision data set that opens its images itself.

    Args:
        dataset: yields (PIL image, class index).
        labels: one class index an image.
        split: what :meth:`describe` calls it.
    """

    def __init__(self, dataset: Any, labels: Iterable[int], *, split: str) -> None:
        self.labels = tuple(int(label) for label in labels)
        self.in_memory = hasattr(dataset, "data")
        self._dataset = dataset
        self._split = split

    def load(self, index: int) -> Sample:
        """Return one image."""
        try:
            image = self._dataset[index][0]
        except Exception as error:  # what PIL's decoders trip over, as in decode_image
            raise UnreadableImage(self.describe(index), f"{type(error).__name__}: {error}") from error
        return Sample(decode_image(image, name=self.describe(index)), self.labels[index])

    def arrays(self) -> NDArray[Any] | None:
        """Return all images as (N, ...), as the set has them in memory; None where it opens each when asked."""
        return np.asarray(self._dataset.data) if self.in_memory else None

    def describe(self, index: int) -> str:
        """Return ``split[index]``."""
        return f"{self._split}[{index}]"


def _takes_loader(dataset_class: type) -> bool:
    is_folder = issubclass(dataset_class, datasets.ImageFolder)
    return is_folder or "loader" in inspect.signature(dataset_class).parameters


def _construct(name: str, root: Path, arguments: Mapping[str, Any]) -> Any:
    """Build from the files at ``root`` if they are there, else with a download."""
    dataset_class = getattr(datasets, name)
    # With ``loader=str`` a set of files yields paths, which kdcli's own decoder opens.
    arguments = {**arguments, "loader": str} if _takes_loader(dataset_class) else dict(arguments)
    try:
        return dataset_class(str(root), **arguments)
    except _FAILURES as error:
        failure: Exception = error
    if name not in _NO_DOWNLOAD:
        try:
            root.mkdir(parents=True, exist_ok=True)
            return dataset_class(str(root), **arguments, download=True)
        except _FAILURES as error:
            failure = error
    verb = "can't be downloaded automatically" if name in _NO_DOWNLOAD else "couldn't be downloaded"
    raise UserError(
        f"torchvision:{name} is not in {root} and {verb}: {str(failure).strip() or type(failure).__name__}",
        f"Without access to the network, put its files under {root}, as torchvision.datasets.{name} expects them, or "
        "point data.root (or $KDCLI_DATA) to where they are.",
    ) from failure


def _source(dataset: Any, split: str) -> ImageSource:
    if _takes_loader(type(dataset)):
        samples = [dataset[index] for index in range(len(dataset))]
        return FileSource((path for path, _ in samples), (int(label) for _, label in samples))
    return TorchvisionSource(dataset, _labels(dataset), split=split)


def _labels(dataset: Any) -> Iterable[int]:
    """Return the labels of a set without opening its images."""
    if isinstance(dataset, datasets.PCAM):
        file, _, _ = dataset._FILES[dataset._split]["targets"]
        with dataset.h5py.File(dataset._base_folder / file) as targets:
            return targets["y"][:, 0, 0, 0].tolist()
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(dataset, attribute):
            return getattr(dataset, attribute)
    return [label for _, label in dataset._samples]


def _class_names(dataset: Any, source: ImageSource) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if names is None:
        names = range(max(source.labels) + 1)
    # ImageNet and Imagenette name a class by a tuple of synonyms.
    return tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)
