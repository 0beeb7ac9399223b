"""One interface to every vision model: features at named taps, and logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcli.errors import UserError
from kdcli.facts import ModelFacts, Preprocessing
from kdcli.models.measure import Measured, measure
from kdcli.models.spec import Library


@dataclass
class ModelOutput:
    """What a model returned.

    Attributes:
        features: tap -> (B, d), the taps that were asked for.
        logits: (B, num_classes); None where they were not asked for, or the model has no classifier.
    """

    features: dict[str, Tensor]
    logits: Tensor | None


@dataclass(frozen=True)
class Origin:
    """Where a model came from; see :class:`kdcli.facts.ModelFacts` for the fields.

    ``image_size`` is the user's override in pixels, None for the model's own.
    """

    name: str
    pretrained: bool
    weights: str
    label_names: tuple[str, ...] | None
    image_size: int | None = None


@dataclass(frozen=True)
class Probe:
    """Shapes and numbers of one image's pass, from which a subclass learns how its model is put together."""

    dims: dict[str, int]
    measured: Measured


class Model(nn.Module, ABC):
    """A library's own model behind one ``forward``.

    Two taps exist: ``pooled``, the mean over the final feature map's spatial positions or patch tokens (class,
    distillation and register tokens left out), always; and ``embedding``, the classifier's input, where there is a
    classifier.

    Attributes:
        module: the library's own model.
        facts: what is known about it.
    """

    library: ClassVar[Library]
    module: nn.Module
    facts: ModelFacts

    def __init__(self, module: nn.Module, origin: Origin, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__()
        self.module = module
        height, width = preprocessing.image_size
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        with _size_errors(origin, height):
            probe = self._probe(image, num_classes)
        self.facts = ModelFacts(
            name=origin.name,
            library=self.library,
            task="image-classification" if num_classes else "image-embedding",
            pretrained=origin.pretrained,
            weights=origin.weights,
            num_classes=num_classes,
            label_names=origin.label_names,
            feature_dims=probe.dims,
            preprocessing=preprocessing,
            num_parameters=sum(parameter.numel() for parameter in module.parameters()),
            macs=probe.measured.macs,
            activation_bytes=probe.measured.activation_bytes,
        )

    def forward(self, images: Tensor, *, taps: tuple[str, ...] = (), logits: bool = True) -> ModelOutput:
        """Run the model, and no more of it than is asked for.

        Args:
            images: (B, 3, H, W), float, normalised as ``facts.preprocessing`` says.
            taps: names out of ``facts.feature_dims``.
            logits: whether to compute the classifier.

        Raises:
            ValueError: for an unknown tap.
        """
        for tap in taps:
            if tap not in self.facts.feature_dims:
                valid = ", ".join(self.facts.feature_dims)
                raise ValueError(f"{self.facts.name} has no tap {tap!r}; valid: {valid}")
        logits = logits and self.facts.num_classes > 0
        if not taps and not logits:
            return ModelOutput({}, None)
        return self._run(images, taps, logits)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model into ``folder`` in its library's own format: safetensors, config with the label names."""

    @abstractmethod
    def _probe(self, image: Tensor, num_classes: int) -> Probe:
        """Learn from one pass of ``image`` how features and logits come out of ``self.module``; measure that pass."""

    @abstractmethod
    def _run(self, images: Tensor, taps: tuple[str, ...], logits: bool) -> ModelOutput:
        """Compute ``taps`` (all valid) and logits (asked for only where there are any)."""

    def _measure(self, image: Tensor, *, taps: tuple[str, ...], logits: bool) -> Measured[ModelOutput]:
        return measure(self.module, lambda: self._run(image, taps, logits))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, where weights are initialised, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the accelerators
        yield


@contextmanager
def _size_errors(origin: Origin, size: int) -> Iterator[None]:
    """Turn what a model throws at an image of the wrong size into the user's error, if the size is the user's."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        if origin.image_size is None:
            raise
        raise UserError(
            f"{origin.name} can't take images of {size} pixels: {error}", "Leave image_size out for the model's own."
        ) from error


def freeze(model: Model) -> Model:
    """Put ``model`` into eval mode and switch its gradients off."""
    return model.eval().requires_grad_(False)


def mean_of_patches(tokens: Tensor, num_prefix: int) -> Tensor:
    """(B, N, d) -> (B, d), the first ``num_prefix`` tokens left out."""
    return tokens[:, num_prefix:].mean(dim=1)
