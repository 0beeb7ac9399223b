"""The other names of ImageNet's classes: WordNet ids beside words, and words beside ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo

_WNID = re.compile(r"n[0-9]{8}")


def aliases_of(label_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return another name of every class: the words of WordNet ids, the ids of ImageNet-1k's words; None for others.

    Args:
        label_names: of a model's classes, in order.
    """
    if not label_names:
        return None
    if all(map(_WNID.fullmatch, label_names)):
        try:
            return tuple(_imagenet().label_name_to_description(name) for name in label_names)
        except KeyError:  # an id that timm has no words for
            return None
    if len(label_names) != 1000:
        return None
    info = _imagenet()
    words = [description.partition(",")[0].lower() for description in info.label_descriptions()]
    ours = [name.partition(",")[0].strip().lower() for name in label_names]
    agreeing = sum(a == b for a, b in zip(words, ours, strict=True))
    return tuple(info.label_names()) if agreeing > 0.95 * len(words) else None


@cache
def _imagenet() -> ImageNetInfo:
    return ImageNetInfo("imagenet-1k")
