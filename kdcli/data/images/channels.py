"""Images of one, three or four channels: whether the data have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing, TextPreprocessing
from kdcli.config.run import RunConfig
from kdcli.data.images.augment import check_channels
from kdcli.data.images.decode import has_four
from kdcli.data.images.deep import spread
from kdcli.data.images.sources import ImageSource
from kdcli.data.images.splits import ImageData
from kdcli.data.source import Source

_Data = TypeVar("_Data")

_HINT = "Models for 3 channels read all images as colours, those for 1 as greyscale (data.channels in training)."


def in_channels_of(config: RunConfig, data: _Data) -> _Data:
    """Return the data of a run whose facts tell of ``data.channels``.

    Raises:
        UserError: four are wanted, and images have less; or an augmentation has no rule for four.
    """
    channels, says = config.data.channels, "data.channels says"
    if channels == 3 or not isinstance(data, ImageData):
        return data
    check_channels(config.augment, channels)
    for source in (data.train, data.validation, data.test):
        if source is not None:
            check_four(source, channels, data.facts.name, says=says)
    labelled = data.labelled
    if labelled is not None:
        check_four(labelled.train, channels, labelled.facts.name, says=says)
    how = "as greyscale" if channels == 1 else "with all four channels of the files"
    note = (
        f"Channels: images are read {how} (data.channels); mean and deviation of a model for colours become"
        " their average over its channels, as timm does."
    )
    facts = replace(data.facts, channels=channels, notes=(*data.facts.notes, note))
    return replace(data, facts=facts)


def check_models(source: Source, models: Mapping[str, Preprocessing | TextPreprocessing], name: str) -> None:
    """Refuse images that have no fourth channel for the models that read four.

    Where other models are asked beside them every image is looked at: all models are asked about the same ones.

    Args:
        source: the images; nothing is refused of other samples.
        models: by name, how they want them.
        name: of the data.

    Raises:
        UserError: it names an image, and what it is.
    """
    if not isinstance(source, ImageSource):
        return
    wanted = {model: pre.num_channels for model, pre in models.items() if isinstance(pre, Preprocessing)}
    most = len(source) if len({*wanted.values()}) > 1 else None
    for model, channels in wanted.items():
        check_four(source, channels, name, says=f"{model} reads", most=most)


def check_four(source: ImageSource, channels: int, name: str, *, says: str, most: int | None = None) -> None:
    """Refuse images of which some don't have the four channels that are wanted, by the headers of some of them.

    Args:
        source: the images.
        channels: that are wanted: nothing is refused where these are not four.
        name: of the data.
        says: who wants them.
        most: so many are looked at; by default a few hundred.

    Raises:
        UserError: it names one, and what it is.
    """
    if channels != 4:
        return
    count = less = 0
    example = ""
    looked_at = spread(source, shallow=True) if most is None else spread(source, shallow=True, most=most)
    for encoded in looked_at:
        if (found := has_four(encoded)) is not None:
            count += 1
            if not found[0]:
                less += 1
                example = example or f"{'an image' if isinstance(encoded, bytes) else encoded} ({found[1]})"
    if less:
        raise UserError(
            f"{name}: {less} of {count} images looked at {'has' if less == 1 else 'have'} no fourth channel, and {says}"
            f" 4: {example}.",
            _HINT,
        )
    if not count and len(source):
        raise UserError(f"{name} has no images of four channels in files that can be read.", _HINT)
