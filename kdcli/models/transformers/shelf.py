"""transformers' kinds of network, with their default configs, as shelves of architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdcli.base.facts import PROBE_TOKENS, DataFacts, TextPooling
from kdcli.base.tasks import TaskFacts
from kdcli.config.section import height_and_width
from kdcli.models.place import Place
from kdcli.models.shelf import Built, Shelf
from kdcli.models.transformers import build, dense_kinds, dense_loading, detector_loading, processor, text_build
from kdcli.models.transformers.detector_kinds import STUDENTS as DETECTORS
from kdcli.models.transformers.kinds import CLASSIFIERS, KINDS, place_of
from kdcli.models.transformers.sentence import SentenceSettings
from kdcli.models.transformers.tokenizer import num_positions

_WRAPPERS = {"timm_wrapper"}
_NUM_WORDS = 1000
"""A made-up text is of the first so many tokens of the vocabulary."""


class ImageShelf(Shelf):
    """transformers' image classifiers."""

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return every kind of classifier."""
        return {place.name: place for place in map(place_of, CLASSIFIERS - _WRAPPERS)}

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it for square images, by default of its own size."""
        names = [str(label) for label in range(num_classes)]
        module: Any = build.build_student(place, names, pretrained=False, image_size=height_and_width(size))
        own = processor.own_image_size(module.config) or (224, 224)
        height, width = own if size is None else (size, size)
        image = torch.randn(1, 3, int(height), int(width))
        return Built(module.eval(), lambda: module(image), (int(height), int(width)))


class DetectorShelf(Shelf):
    """transformers' object detectors."""

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return every kind of detector that can be trained."""
        return {place.name: place for place in map(place_of, DETECTORS)}

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it for square images, by default of its own size."""
        names = tuple(str(label) for label in range(max(num_classes, 1)))
        module, preprocessing = detector_loading.build_untrained(place, names, image_size=height_and_width(size))
        image = torch.randn(1, 3, *preprocessing.image_size)
        return Built(module.eval(), lambda: module(pixel_values=image), preprocessing.image_size)


class DenseShelf(Shelf):
    """transformers' segmenters, or its models of depth."""

    def __init__(self, task: TaskFacts) -> None:
        self._task = task

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return every kind that has a head for the task."""
        kinds = dense_kinds.CLASSES["depth" if self._task.head == "depth" else "dense"]
        return {place.name: place for place in map(place_of, kinds)}

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it for square images, by default of its own size."""
        names = [str(label) for label in range(max(num_classes, 1))]
        module, (height, width) = dense_loading.build_bare(place, names, self._task, height_and_width(size))
        image = torch.randn(1, 3, height, width)
        return Built(module.eval(), lambda: module(image), (height, width))


class TextShelf(Shelf):
    """transformers' networks of text."""

    def __init__(self, task: TaskFacts) -> None:
        self._task = task

    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return every kind of network that reads text."""
        return {place.name: place for place in map(place_of, KINDS["text"])}

    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build it with the vocabulary of its default config.

        A text has ``PROBE_TOKENS`` tokens by default. It goes in without a mask, as most networks then need no look at
        values, which torch's meta device doesn't have.
        """
        length = PROBE_TOKENS if size is None else size
        config = text_build.read_text_config(place)
        data = DataFacts.of_labels(map(str, range(num_classes)), task=self._task.name)
        over_tokens = self._task.is_over_tokens
        pooling: TextPooling = "none" if over_tokens else text_build.own_pooling(config, SentenceSettings())
        module: Any = text_build.build_text_student(place, config, data, pretrained=False, pooling=pooling).eval()
        positions = num_positions(module)
        if positions is not None and length > positions:  # the meta device looks up any position
            raise ValueError(f"{place.name} takes texts of at most {positions} tokens")
        text = made_up_text(text_build.text_part(module.config), length)
        return Built(module, lambda: module(input_ids=text), (length,))


def made_up_text(config: Any, length: int) -> Tensor:
    """Return random tokens, int64 (1, length), none of them special but an end where the config knows one."""
    special = {getattr(config, f"{key}_token_id", None) for key in ("pad", "bos", "eos", "cls", "sep")}
    size = getattr(config, "vocab_size", _NUM_WORDS)  # CANINE's are characters, of which it knows all
    ordinary = [number for number in range(min(size, _NUM_WORDS)) if number not in special]
    text = torch.tensor(ordinary)[torch.randint(len(ordinary), (1, length))]
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int):
        text[:, -1] = end
    return text
