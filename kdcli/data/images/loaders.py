"""Loaders whose batches depend on the seed, the epoch and the source, and on nothing else."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdcli.base.errors import UserError
from kdcli.base.facts import Preprocessing
from kdcli.data.epoch import Order, in_batches
from kdcli.data.images.augment import Augmentation
from kdcli.data.images.batch import Batch
from kdcli.data.images.decode import MODES, UnreadableImage, in_channels, values_of
from kdcli.data.images.photo import Photo, Pixels
from kdcli.data.images.pictures import Partner, Picture
from kdcli.data.images.preprocess import fit_as, fit_geometry
from kdcli.data.images.sources import ImageSource
from kdcli.data.images.streams import Fed, Feed, is_streamed, stream_of
from kdcli.data.source import Loading, Sample
from kdcli.machine.team import ALONE, Team

Key = TypeVar("Key")

SMALL = 256
"""Sources of fewer images than this are loaded without processes of their own."""
SMALL_IN_MEMORY = 10_000
"""Likewise for sources that open no files."""
MOST, MOST_BESIDE_CPU = 16, 4
"""Loader processes of one training process, on an accelerator and on the CPU."""


class TrainLoader:
    """Augmented training batches, see :class:`~kdcli.data.source.TrainBatches`.

    They are the same with any number of loader processes. An unreadable image is replaced by the next readable one of
    the source.

    Args:
        source: the training split.
        loading: how batches are made; ``workers`` None chooses by :func:`choose_workers`.
        canvas: (height, width) of the images.

    Raises:
        UserError: there are fewer images than processes.
        ValueError: a batch is not the same number of images for each process.
    """

    def __init__(self, source: ImageSource, loading: Loading, *, canvas: tuple[int, int]) -> None:
        self._order = Order(
            len(source),
            loading.batch_size,
            loading.seed,
            loading.team,
            noun="image",
            draws=loading.draws,
            blocks=source.blocks,
            views=loading.views,
        )
        augmentation = Augmentation(loading.augment, canvas=canvas, seed=loading.seed, channels=source.channels)
        dataset = _TrainDataset(source, augmentation, canvas, loading)
        self._loader = _data_loader(dataset, self._order, source, loading)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of a whole epoch."""
        return self._order.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from number ``start``; one epoch at a time.

        Raises:
            UserError: ``strict`` and an unreadable image, or no readable image at all.
        """
        self._order.epoch, self._order.start = epoch, start
        for result in self._loader:
            yield _unwrap(result)


class EvalLoader:
    """Every sample once, in order, fitted to a model's input size; unreadable images are left out.

    Args:
        source: the split to evaluate on.
        loading: how batches are made; ``workers`` None chooses by :func:`choose_workers`.
        preprocessing: the model's; its normalisation is :func:`~kdcli.data.images.preprocess.prepare`'s part.
    """

    def __init__(self, source: ImageSource, loading: Loading, *, preprocessing: Preprocessing) -> None:
        team, batches = loading.team, in_batches(len(source), loading.batch_size)
        if is_streamed(source):  # neighbours are of one block
            own = np.array_split(np.arange(len(batches)), team.size)[team.rank]
            self._batches: Sequence[range] = [batches[number] for number in own]
        else:
            self._batches = team.share(batches)
        self._is_shared = not loading.team.is_alone
        dataset = _EvalDataset(source, preprocessing, loading)
        self._loader = _data_loader(dataset, self._batches, source, loading)

    def __len__(self) -> int:
        """Return the number of batches; of which those without a readable image are not yielded."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; for one of several processes one without any image where none of its own can be read.

        Raises:
            UserError: ``strict`` and an unreadable image, or no readable image at all.
        """
        held: Batch | None = None  # one batch back, so that it can take the names of unreadable batches after it
        for batch in map(_unwrap, self._loader):
            if held is None:
                held = batch
            elif not len(batch):
                held.skipped += batch.skipped
            elif not len(held):
                batch.skipped[:0] = held.skipped
                held = batch
            else:
                yield held
                held = batch
        if held is None:
            return
        if not len(held) and not self._is_shared:
            raise _none_readable(held.skipped)
        yield held


def choose_workers(source: ImageSource, team: Team = ALONE) -> int:
    """Return how many loader processes to use.

    Where an accelerator trains: one less than the CPU cores that fall to this process of the machine's, at most
    ``MOST``. Where the cores themselves train: at most ``MOST_BESIDE_CPU``, and none on one or two cores, where they
    would compete with training. None for a source that is small, or in memory and not large, where they cost more than
    they save.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(source) < (SMALL_IN_MEMORY if source.in_memory else SMALL):
        return 0
    local = os.environ.get("LOCAL_WORLD_SIZE", "") if not team.is_alone else ""
    own = cores // (int(local) if local.isdigit() and int(local) else team.size)
    if team.device.type == "cpu":
        return 0 if own <= 2 else min(MOST_BESIDE_CPU, own - 1)
    return min(MOST, max(own - 1, 0))


@dataclass(frozen=True)
class _Failure:
    """A :class:`UserError` on its way from a worker process, where torch would wrap it into another exception."""

    message: str
    hint: str


class _BatchDataset(Dataset[Batch | _Failure], ABC, Generic[Key]):
    """Maps the key of a whole batch to the batch."""

    def __init__(self, source: ImageSource, canvas: tuple[int, int], loading: Loading) -> None:
        self._source = source
        self._canvas = canvas
        self._strict = loading.strict
        self._is_reduced = loading.reduced

    def __getitem__(self, keys: Sequence[Key] | Fed) -> Batch | _Failure:
        if isinstance(keys, Fed):
            with stream_of(self._source).lent(keys.cells):
                return self._batch(keys.keys)
        return self._batch(keys)

    def _batch(self, keys: Sequence[Key]) -> Batch | _Failure:
        images = torch.empty((len(keys), self._source.channels, *self._canvas), dtype=torch.uint8)
        indices: list[int] = []
        targets: list[Any] = []
        skipped: dict[str, None] = {}  # an ordered set
        try:
            for key in keys:
                read = self._read(key, images[len(indices)], skipped)
                if read is not None:
                    indices.append(read[0])
                    targets.append(read[1])
        except UserError as error:
            return _Failure(error.message, error.hint)
        return Batch(
            images=images[: len(indices)],
            targets=_together(targets),
            samples=self._source.samples(indices),
            view=self._source.views(indices, self._epoch_of(keys)),
            skipped=list(skipped),
        )

    @abstractmethod
    def _read(self, key: Key, out: Tensor, skipped: dict[str, None]) -> tuple[int, Any] | None:
        """Write one image to ``out``, uint8 ``(channels, H, W)``; return its index and its target, None without one."""

    @abstractmethod
    def _epoch_of(self, keys: Sequence[Key]) -> int | None:
        """Return the epoch that the batch is of; None in evaluation."""

    def _load(self, index: int) -> Sample:
        """Return a sample with the source's number of channels, which not every source brings its images to."""
        sample = self._source.open(index) if self._is_reduced else self._source.load(index)
        image, channels = sample.inputs, self._source.channels
        if isinstance(image, Photo):
            image.channels = channels
        elif image.mode != MODES[channels]:
            try:
                return sample._replace(inputs=in_channels(image, channels))
            except ValueError as error:
                raise UnreadableImage(self._source.describe(index), str(error)) from error
        return sample

    def _skip(self, error: UnreadableImage, skipped: dict[str, None]) -> None:
        if self._strict:
            raise UserError(
                f"Unreadable image {error.name}: {error.reason}",
                "Mend or remove it; data.strict=false skips unreadable images.",
            ) from error
        skipped[error.name] = None


class _TrainDataset(_BatchDataset[tuple[int, int]]):
    def __init__(
        self, source: ImageSource, augmentation: Augmentation, canvas: tuple[int, int], loading: Loading
    ) -> None:
        super().__init__(source, canvas, loading)
        self._augmentation = augmentation

    def _read(self, key: tuple[int, int], out: Tensor, skipped: dict[str, None]) -> tuple[int, Any]:
        epoch, first = key
        for step in range(len(self._source)):
            index = (first + step) % len(self._source)
            try:
                image, target = self._load(index)
                fill = self._source.fill
                pixels, target = self._augmentation(image, target, epoch=epoch, index=index, fill=fill)
            except UnreadableImage as error:  # or what belongs to it
                self._skip(error, skipped)
                continue
            _write(pixels.numpy(), out)
            return index, target
        raise _none_readable(list(skipped))

    def _epoch_of(self, keys: Sequence[tuple[int, int]]) -> int:
        return keys[0][0]


class _EvalDataset(_BatchDataset[int]):
    def __init__(self, source: ImageSource, preprocessing: Preprocessing, loading: Loading) -> None:
        super().__init__(source, preprocessing.image_size, loading)
        self._preprocessing = preprocessing

    def _read(self, key: int, out: Tensor, skipped: dict[str, None]) -> tuple[int, Any] | None:
        try:
            image, target = self._load(key)
            target = self._shown(target) if isinstance(target, Partner) else target
            geometry = fit_geometry(image, self._preprocessing)

            def fit(picture: Pixels) -> Image.Image:
                return fit_as(geometry, picture, self._preprocessing)

            _write(values_of(fit(image)).transpose(2, 0, 1), out)
        except UnreadableImage as error:
            self._skip(error, skipped)
            return None
        fill = self._source.fill
        return key, geometry.of_target(target, fill=fill, smallest=0.0, of_picture=fit)  # truth stays, however small

    def _shown(self, partner: Partner) -> Tensor:
        """Return an image of the other kind as the target, fitted by itself; NaN where there is none."""
        image = partner.shown()
        picture = Picture(Image.new("RGB", (1, 1)), is_known=False) if image is None else Picture(image)
        geometry = fit_geometry(picture.image, self._preprocessing)
        return picture.moved(lambda one: fit_as(geometry, one, self._preprocessing))

    def _epoch_of(self, keys: Sequence[int]) -> None:
        return None


def _together(targets: Sequence[Any]) -> Tensor | list[Any]:
    """Return class indices, or tensors of one shape and type, as one tensor; all else as a list."""
    if all(isinstance(target, Integral) for target in targets):
        return torch.tensor(targets, dtype=torch.int64)
    if all(isinstance(target, Tensor) for target in targets) and len({(t.shape, t.dtype) for t in targets}) == 1:
        return torch.stack([target.as_subclass(Tensor) for target in targets])
    return list(targets)


def _write(pixels: NDArray[np.uint8], out: Tensor) -> None:
    """Copy one image, uint8 ``(channels, H, W)`` in any memory order.

    By numpy: torch splits even a copy this small among its threads, and waiting for them on busy cores takes a hundred
    times longer than the copy.
    """
    np.copyto(out.numpy(), pixels)


def _data_loader(
    dataset: _BatchDataset, batches: Order | Sequence[range], source: ImageSource, loading: Loading
) -> DataLoader[Batch | _Failure]:
    num_workers = choose_workers(source, loading.team) if loading.workers is None else loading.workers
    return DataLoader(
        dataset,
        batch_size=None,  # one key of the sampler is one batch
        sampler=Feed(batches, source) if is_streamed(source) else batches,
        num_workers=num_workers,  # each with one torch thread, which is torch's own rule
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else each epoch would draw a number from the global generator
    )


def _unwrap(result: Batch | _Failure) -> Batch:
    if isinstance(result, _Failure):
        raise UserError(result.message, result.hint)
    return result


def _none_readable(names: Sequence[str]) -> UserError:
    return UserError(
        f"None of the images can be read, {names[0]} for one.",
        "Check that the files are complete images; data.strict=true stops at the first with its reason.",
    )
