"""What a library offers for a task, by name, each built untrained and ready to be measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from kdcli.models.place import Place


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


class Shelf(ABC):
    """A library's architectures for a task."""

    @abstractmethod
    def places(self, prefix: str) -> Mapping[str, Place]:
        """Return every architecture by the name that ``--student`` takes.

        Args:
            prefix: of the extension that is asked for, where this is its library; else empty.
        """

    def is_shown(self, name: str) -> bool:
        """Whether it is listed where no pattern is given."""
        return True

    def is_published(self, place: Place) -> bool:
        """Whether the name alone stands for published weights too."""
        return False

    @abstractmethod
    def build(self, place: Place, num_classes: int, size: int | None) -> Built:
        """Build an architecture for samples of ``size``, on torch's default device.

        Args:
            place: of the architecture.
            num_classes: of its classifier; 0 for none.
            size: side in pixels, or tokens; None for the usual one.

        Raises:
            Exception: it can't be a student, or can't take such samples; of any kind, as the libraries raise it.
        """
