"""Whether data are still what they were."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from kdcli.data.sources import ImageSource
from kdcli.data.splits import ImageData
from kdcli.data.texts import TextData, TextSource
from kdcli.data.words import WordSource

_SIZES = 10_000
"""At most so many files of a split are asked for their size, spread evenly."""


def fingerprint(data: ImageData | TextData) -> dict[str, Any]:
    """Return a digest of every split: of its classes, labels and names of images, and of the sizes of their files.

    The images themselves are not read; of texts it is a digest of all there is.
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        name: {_noun(source): len(source), "digest": _digest(source, data.facts.class_names)}
        for name, source in splits.items()
        if source is not None
    }


def describe_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs between two fingerprints, a phrase for each split."""
    changes = []
    for name in before.keys() | now.keys():
        was, is_ = (values.get(name, {"digest": ""}) for values in (before, now))
        noun = "texts" if "texts" in was.keys() | is_.keys() else "images"
        if was.get(noun, 0) != is_.get(noun, 0):
            changes.append(f"{name} has {is_.get(noun, 0)} {noun}, not {was.get(noun, 0)}")
        elif was["digest"] != is_["digest"]:
            changes.append(f"{name} has other {'files' if noun == 'images' else noun}, labels or classes")
    return sorted(changes)


def _noun(source: ImageSource | TextSource) -> str:
    return "texts" if isinstance(source, TextSource) else "images"


def _digest(source: ImageSource | TextSource, class_names: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr(class_names).encode())
    if isinstance(source, WordSource):
        digest.update(repr((source.words, source.tags)).encode())
        return digest.hexdigest()
    if isinstance(source, TextSource):
        digest.update(repr((source.texts, source.labels)).encode())
        if source.values is not None:
            digest.update(source.values.tobytes())
        return digest.hexdigest()
    count = len(source)
    for index in range(count):
        digest.update(os.fsencode(f"{source.describe(index).rpartition(os.sep)[2]}\0{source.labels[index]}\n"))
    for index in sorted({number * count // _SIZES for number in range(_SIZES)} if count > _SIZES else range(count)):
        name = source.describe(index)
        digest.update(str(os.path.getsize(name) if os.path.isfile(name) else -1).encode())  # noqa: PTH202, PTH113
    return digest.hexdigest()
