"""Whether the teacher is run on every batch, or once on every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdcli.base.errors import UserError
from kdcli.config.run import RunConfig
from kdcli.plan.plan import Decision, TeacherOutputs

MOST_BYTES = 2**30
"""Of outputs that are kept in memory."""


def choose_outputs(
    *, num_samples: int, numbers: int, epochs: int, noun: str
) -> tuple[TeacherOutputs, Sequence[Decision]]:
    """Return how the teacher's outputs are come by, for samples that are the same in every epoch, and why.

    Args:
        num_samples: different ones.
        numbers: float32 numbers that are read of each.
        epochs: of training.
        noun: what a sample is.
    """
    size = 4 * num_samples * numbers
    if epochs < 2 or not size:
        return "live", ()
    shown = _size(size)
    if size > MOST_BYTES:
        why = f"Stored, those of {num_samples} {noun}s would take {shown}, more than {MOST_BYTES / 2**30:g} GiB."
        return "live", [Decision("teacher outputs", "run on every batch", why)]
    why = f"The {noun}s are not augmented, so the teacher reads each once, before the first step, not in every epoch."
    return "stored", [Decision("teacher outputs", f"stored for {num_samples} {noun}s, {shown} of memory", why)]


CACHE = "teacher cache"
"""What the plan's decision about it is called."""
_PAYS = 0.5
"""Share of a step's operations that the teacher has where a cache is proposed."""
_MOST_PROPOSED = 100 * 2**30
"""Bytes of a cache that is proposed."""


@dataclass(frozen=True)
class CacheFacts:
    """What is known of a teacher cache before training.

    Attributes:
        noun: what a sample is.
        samples: of an epoch.
        views: that are kept: of every epoch, or fewer that are taken in turn.
        epochs: of training.
        bytes_each: of one sample's outputs.
        teacher_share: of the operations of a step, of 1; the student's is three passes.
        is_augmented: whether a sample differs from view to view.
    """

    noun: str
    samples: int
    views: int
    epochs: int
    bytes_each: int
    teacher_share: float
    is_augmented: bool

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.samples * self.views * self.bytes_each


def check_cache(config: RunConfig) -> None:
    """Refuse a cache where nothing could be kept, and views that can't be taken in turn.

    Raises:
        UserError: it says what is in the way.
    """
    train = config.train
    if train.cache_views is not None and (config.augment.mixup or config.augment.cutmix):
        raise UserError(
            "train.cache_views takes the same augmented images again in other batches, and augment.mixup and"
            " augment.cutmix mix an image with its neighbour in the batch.",
            "Drop --cache-views: each epoch is then kept as it is; or set both to 0.",
        )
    if train.cache_teacher is None:
        return
    if config.teacher.name == "none":
        raise UserError("--cache-teacher is set, and there is no teacher.", "Drop it, or name a --teacher.")
    if config.episodes is not None:
        raise UserError(
            "--cache-teacher is for one training set, and each episode draws its own.",
            "Drop it, or --ways and --shots.",
        )


def describe_cache(config: RunConfig, facts: CacheFacts, *, present: float, free: int) -> Decision:
    """Return the decision on a cache that is used.

    Args:
        config: of the run.
        facts: of the cache.
        present: share of it that is there already, of 1.
        free: bytes that there is room for.
    """
    train = config.train
    kept = "one view" if facts.views == 1 else f"{facts.views} views"
    there = "" if not present else ", all there" if present >= 1 else f", {present:.0%} there"
    value = f"{train.cache_teacher}: {_size(facts.size)} for {kept} of {facts.samples} {facts.noun}s"
    value += f", {train.cache_dtype}{there}"
    spared = f"{facts.teacher_share:.0%} of a step's operations"
    if present >= 1:
        reason = f"The teacher is not run on a training {facts.noun}, which spares {spared}."
    else:
        reason = f"What is missing is computed and kept. Where all is there, the teacher is not run: {spared}."
        if facts.views < facts.epochs:
            reason += f" Of {facts.epochs} epochs {facts.views} have to be computed."
        else:
            reason += " That spares the teacher to other runs with it and with the same data, augmentation and seed."
    if not facts.is_augmented and facts.views > 1:
        one = _size(facts.size // facts.views)
        reason += f" Nothing is augmented: --cache-views 1 takes {one}, and spares this run's later epochs too."
    if (missing := facts.size * (1 - min(present, 1))) > free:
        reason += f" Warning: {_size(missing)} are missing and {_size(free)} are free: what finds no room isn't kept."
    return Decision(CACHE, value, reason)


def propose_cache(facts: CacheFacts) -> Sequence[Decision]:
    """Return the decision on a cache that nobody asked for: a proposal where it would pay, else nothing."""
    if facts.teacher_share < _PAYS or facts.epochs < 2 or not facts.bytes_each or facts.size > _MOST_PROPOSED:
        return ()
    each = _size(facts.samples * facts.bytes_each)
    reason = (
        f"The teacher has {facts.teacher_share:.0%} of a step's operations. --cache-teacher DIR keeps its outputs,"
        f" {each} an epoch, for other runs with the same data, augmentation and seed;"
    )
    if facts.is_augmented:
        reason += " with --cache-views K each image has K augmentations, and epochs after the first K go without it."
    else:
        reason += " nothing is augmented, so with --cache-views 1 all epochs but the first go without it."
    spared = f"{facts.teacher_share:.0%} of a step's operations, {each} an epoch"
    return [Decision(CACHE, "none", reason, brief=f"none; --cache-teacher DIR spares other runs the teacher: {spared}")]


def _size(size: float) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
