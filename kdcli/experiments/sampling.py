"""Episodes: which classes and samples each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcli.base.errors import UserError
from kdcli.config.training import EpisodesConfig
from kdcli.machine.seeding import stable_seed


@dataclass(frozen=True)
class Episode:
    """One small task.

    Attributes:
        classes: (N,) of the data's classes, in label order; in the episode they are 0 to N - 1.
        support: (N * K,) indices into the training split, class by class.
        queries: (N * Q,) indices into the split of the queries, class by class.
    """

    classes: tuple[int, ...]
    support: tuple[int, ...]
    queries: tuple[int, ...]


class EpisodeSampler:
    """Draws episodes; each is a pure function of the seed and its number.

    Args:
        config: how many classes and images.
        train: labels of the training split; images without a label are never drawn.
        queries: labels of the split of the queries.
        class_names: in label order.
        seed: the run's.

    Raises:
        UserError: there are too few classes, or too few images in one.
    """

    def __init__(
        self,
        config: EpisodesConfig,
        *,
        train: Sequence[int],
        queries: Sequence[int],
        class_names: Sequence[str],
        seed: int,
    ) -> None:
        if config.ways > len(class_names):
            raise UserError(
                f"Episodes of {config.ways} classes can't be drawn from {len(class_names)} classes.",
                f"Use --ways {len(class_names)} or fewer.",
            )
        self._config, self._seed = config, seed
        self._train = _by_class(train, class_names, config.shots, what="training images with a label", option="--shots")
        self._queries = _by_class(
            queries, class_names, config.queries, what=f"{config.split} images", option="--queries"
        )

    def draw(self, number: int) -> Episode:
        """Return episode ``number``; its classes and queries don't depend on the number of shots."""

        def generator(purpose: str) -> np.random.Generator:
            return np.random.default_rng(stable_seed(purpose, self._seed, number))

        chosen = generator("classes").choice(len(self._train), self._config.ways, replace=False)
        classes = np.sort(chosen).tolist()

        def images(purpose: str, members: Sequence[NDArray[np.int64]], count: int) -> tuple[int, ...]:
            drawing = generator(purpose)
            drawn = [drawing.choice(members[label], count, replace=False) for label in classes]
            return tuple(np.concatenate(drawn).tolist())

        return Episode(
            tuple(classes),
            images("support", self._train, self._config.shots),
            images("queries", self._queries, self._config.queries),
        )


def _by_class(
    labels: Sequence[int], class_names: Sequence[str], least: int, *, what: str, option: str
) -> list[NDArray[np.int64]]:
    """Return the indices of every class's images, of which there have to be ``least``."""
    array = np.asarray(labels, dtype=np.int64)
    members = [np.flatnonzero(array == label) for label in range(len(class_names))]
    counts = [len(indices) for indices in members]
    if short := [f"{name} ({n})" for name, n in zip(class_names, counts, strict=True) if n < least]:
        shown = ", ".join(short[:5]) + (f" and {len(short) - 5} more" if len(short) > 5 else "")
        fewest = min(counts)
        raise UserError(
            f"{option} is {least}, and there are fewer {what} in {shown}.",
            f"Ask for at most {fewest}." if fewest else "Give every class images in both splits.",
        )
    return members
