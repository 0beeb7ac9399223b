"""The architectures that can be students, by task: their names, and each built untrained, ready to be measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar

import timm as timm_library
import torch
from torch import Tensor, nn

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import PROBE_TOKENS, DataFacts, TextPooling
from kdcli.base.tasks import TASKS
from kdcli.config.run import Task
from kdcli.models.libraries import find_extension
from kdcli.models.place import Place
from kdcli.models.timm import build as timm
from kdcli.models.timm import kdcli_networks
from kdcli.models.timm.registry import load_architectures
from kdcli.models.transformers import build as hf
from kdcli.models.transformers import processor
from kdcli.models.transformers import text_build as hf_text
from kdcli.models.transformers.kinds import KINDS, place_of
from kdcli.models.transformers.sentence import SentenceSettings
from kdcli.models.transformers.tokenizer import num_positions

NUM_CLASSES = 1000
"""Classifiers of images are over so many classes."""
NUM_TEXT_CLASSES = 2
"""Classifiers of texts or tokens are over so many."""
_WRAPPERS = {"timm_wrapper"}
_NUM_WORDS = 1000
"""A made-up text is of the first so many tokens of the vocabulary."""


@dataclass(frozen=True)
class Built:
    """An untrained network in eval mode.

    Attributes:
        module: the network.
        run: passes one sample through it.
        input_size: the sample's (height, width) in pixels, or (tokens,).
    """

    module: nn.Module
    run: Callable[[], object]
    input_size: tuple[int, ...]


class Catalogue(ABC):
    """The architectures for a task.

    Args:
        task: what they are built for.
        size: of the sample that they are measured with; None for the usual one.

    Attributes:
        unit: of ``size``.
        pattern_example: of some of the names.
    """

    pattern_example: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, task: Task, size: int | None) -> None:
        self.task = task
        self.size = size

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes of the classifier; 0 without one."""

    @property
    def counted(self) -> str:
        """How everything is counted, in one phrase."""
        return f"with {self.num_classes} classes" if self.num_classes else "without a classifier"

    @abstractmethod
    def is_published(self, place: Place) -> bool:
        """Whether the name alone stands for published weights too."""

    @abstractmethod
    def build(self, place: Place, size: int | None) -> Built:
        """Build the architecture for samples of ``size``, on torch's default device.

        Raises:
            Exception: it can't be a student, or can't take such samples; of any kind, as the libraries raise it.
        """

    def find(self, pattern: str | None) -> list[Place]:
        """Return the architectures that ``pattern`` names, sorted, under the names that ``--student`` takes.

        Raises:
            UserError: nothing is called so.
        """
        places = self._places(pattern)
        chosen = [name for name in places if (self._is_shown(name) if pattern is None else fnmatch(name, pattern))]
        if not chosen:
            raise UserError(
                f"No architecture is called {pattern}. {did_you_mean(str(pattern), places)}".rstrip(),
                f"A pattern has * for any letters: --name '{self.pattern_example}'.",
            )
        return [places[name] for name in sorted(chosen)]

    @abstractmethod
    def _places(self, pattern: str | None) -> Mapping[str, Place]:
        """Return every architecture by name, those of the extension that ``pattern`` begins with among them."""

    def _is_shown(self, name: str) -> bool:
        return True


class ImageCatalogue(Catalogue):
    """timm's registry, and transformers' image classifiers with their default configs; ``size`` is a side in pixels."""

    pattern_example = "mobilenet*"
    unit = "pixels"

    def __init__(self, task: Task, size: int | None, *, pretrained: bool) -> None:
        super().__init__(task, size)
        self._pretrained = pretrained
        self._published = {name.partition(".")[0] for name in timm_library.list_models(pretrained=True)}

    @property
    def num_classes(self) -> int:
        """``NUM_CLASSES``, or none where the student is a backbone alone."""
        return 0 if TASKS[self.task].is_label_free else NUM_CLASSES

    def is_published(self, place: Place) -> bool:
        """Whether timm has weights."""
        return place.architecture in self._published

    def find(self, pattern: str | None) -> list[Place]:
        """Return the architectures, where asked for only those with published weights."""
        return [place for place in super().find(pattern) if not self._pretrained or place.name in self._published]

    def build(self, place: Place, size: int | None) -> Built:
        """Build it for square images, by default of its own size."""
        if place.library == "timm":
            module, _ = timm.load(place, pretrained=False, num_classes=self.num_classes, image_size=size)
            own = module.pretrained_cfg["input_size"][1:]  # type: ignore[index]
        else:
            names = [str(label) for label in range(self.num_classes)]
            module = hf.build_student(place, names, pretrained=False, image_size=size)
            own = processor.own_image_size(module.config) or (224, 224)
        height, width = own if size is None else (size, size)
        image = torch.randn(1, 3, int(height), int(width))
        return Built(module.eval(), lambda: module(image), (int(height), int(width)))

    def _places(self, pattern: str | None) -> Mapping[str, Place]:
        places = {}
        prefix, colon, _ = (pattern or "").partition(":")
        entry = find_extension(prefix) if colon else None
        if entry is not None:
            load_architectures(entry)
        for architecture in timm_library.list_models():
            own = architecture in kdcli_networks.NAMES and architecture.startswith("cifar_")
            own = own or (entry is not None and architecture.startswith(f"{entry.name}_"))
            name = architecture.replace("_", ":", 1) if own else architecture
            places[name] = Place("timm", name, architecture=architecture)
        return places | _kinds(KINDS["image"] - _WRAPPERS)

    def _is_shown(self, name: str) -> bool:
        return not name.startswith("test_")


class TextCatalogue(Catalogue):
    """transformers' kinds of networks of text with their default configs; ``size`` is a text's length in tokens."""

    pattern_example = "hf:*bert*"
    unit = "tokens"

    @property
    def num_classes(self) -> int:
        """``NUM_TEXT_CLASSES``, or none of a backbone alone or a language model."""
        return NUM_TEXT_CLASSES if TASKS[self.task].head in ("sequence", "token") else 0

    @property
    def counted(self) -> str:
        """How everything is counted; a language model is with its head."""
        return "as language models" if TASKS[self.task].is_language_model else super().counted

    def is_published(self, place: Place) -> bool:
        """Never: a kind has no weights of its own."""
        return False

    def build(self, place: Place, size: int | None) -> Built:
        """Build it with the vocabulary of its default config.

        A text has ``PROBE_TOKENS`` tokens by default. It goes in without a mask, as most networks then need no look at
        values, which torch's meta device doesn't have.
        """
        length = PROBE_TOKENS if size is None else size
        config = hf_text.read_text_config(place)
        names = tuple(str(label) for label in range(self.num_classes))
        data = DataFacts.of_labels(names, task=self.task)
        over_tokens = TASKS[self.task].is_over_tokens
        pooling: TextPooling = "none" if over_tokens else hf_text.own_pooling(config, SentenceSettings())
        module: Any = hf_text.build_text_student(place, config, data, pretrained=False, pooling=pooling).eval()
        positions = num_positions(module)
        if positions is not None and length > positions:  # the meta device looks up any position
            raise ValueError(f"{place.name} takes texts of at most {positions} tokens")
        text = _made_up_text(hf_text.text_part(module.config), length)
        return Built(module, lambda: module(input_ids=text), (length,))

    def _places(self, pattern: str | None) -> Mapping[str, Place]:
        return _kinds(KINDS["text"])


def catalogue_of(task: Task, *, size: int | None, pretrained: bool) -> Catalogue:
    """Return the architectures for ``task``, measured with samples of ``size``; ``pretrained`` is about images."""
    if task.startswith("image"):
        return ImageCatalogue(task, size, pretrained=pretrained)
    return TextCatalogue(task, size)


def _kinds(kinds: Iterable[str]) -> dict[str, Place]:
    return {place.name: place for place in map(place_of, kinds)}


def _made_up_text(config: Any, length: int) -> Tensor:
    """Return random tokens, int64 (1, length), none of them special but an end where the config knows one."""
    special = {getattr(config, f"{key}_token_id", None) for key in ("pad", "bos", "eos", "cls", "sep")}
    size = getattr(config, "vocab_size", _NUM_WORDS)  # CANINE's are characters, of which it knows all
    ordinary = [number for number in range(min(size, _NUM_WORDS)) if number not in special]
    text = torch.tensor(ordinary)[torch.randint(len(ordinary), (1, length))]
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int):
        text[:, -1] = end
    return text
