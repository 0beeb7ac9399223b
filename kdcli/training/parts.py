"""How long each part of a training step takes: marks set around the trainer's own calls, which are run as they are."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from kdcli.training.trainer import Trainer

DATA, TEACHER, STUDENT = "data", "teacher", "student forward"
LOSSES, BACKWARD, OPTIMISER, OTHER = "projector and losses", "backward", "optimiser", "other"
PARTS = (DATA, TEACHER, STUDENT, LOSSES, BACKWARD, OPTIMISER, OTHER)
"""In the order in which a step runs through them; what is between them is ``OTHER``."""

Item = TypeVar("Item")


@dataclass
class Time:
    """Seconds of the clock, and of this process's threads on the CPU."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass
class Watch:
    """Adds up the time since the last mark to the part that has just ended.

    Attributes:
        device: is waited for at every mark, so that a part's own work is in its own time.
        steps: the times of the parts of every step that is over.
    """

    device: torch.device
    steps: list[dict[str, Time]] = field(default_factory=list)
    _now: dict[str, Time] = field(default_factory=lambda: defaultdict(Time))
    _since: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """Forget the time since the last mark."""
        wait_for(self.device)
        self._since = time.perf_counter(), time.process_time()

    def mark(self, part: str) -> None:
        """Say that ``part`` has ended."""
        wait_for(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        found = self._now[part]
        found.wall += wall - self._since[0]
        found.cpu += cpu - self._since[1]
        self._since = wall, cpu

    def close(self) -> None:
        """Say that the step has ended."""
        self.mark(OTHER)
        self.steps.append(dict(self._now))
        self._now = defaultdict(Time)

    def around(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return ``call`` with a mark before and after it."""

        def timed(*arguments: Any, **named: Any) -> Any:
            self.mark(OTHER)
            result = call(*arguments, **named)
            self.mark(part)
            return result

        return timed

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield ``items``; the time that each takes to come is the data's."""
        iterator = iter(items)
        while True:
            self.start()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.mark(DATA)
            yield item


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done all that it was given; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def timed_parts(trainer: Trainer) -> Iterator[Watch]:
    """Mark the parts of every step that ``trainer`` makes within it; afterwards nothing is marked any more.

    A compiled student is one part with projector and losses: marks within it would be compiled, too.
    """
    watch = Watch(trainer.team.device)
    objective, phases, accelerator = trainer.objective, trainer.state.phases, trainer.accelerator
    kept: list[tuple[Any, str, Any]] = []

    def replace(holder: Any, name: str, value: Any) -> None:
        kept.append((holder, name, vars(holder).get(name)))
        setattr(holder, name, value)

    replace(trainer, "mix", watch.around(trainer.mix, DATA))
    if trainer.teacher is not None:
        replace(trainer, "teacher", watch.around(trainer.teacher, TEACHER))
    replace(accelerator, "backward", watch.around(accelerator.backward, BACKWARD))
    step = phases.step

    def stepped(*arguments: Any) -> Any:
        watch.mark(OTHER)
        terms = step(*arguments)
        watch.mark(OPTIMISER)
        return terms

    replace(phases, "step", stepped)
    hooks = [
        objective.register_forward_pre_hook(lambda *_: watch.mark(OTHER)),
        objective.register_forward_hook(lambda *_: watch.mark(LOSSES)),
    ]
    if not trainer.job.config.train.compile:
        hooks.append(objective.student.register_forward_hook(lambda *_: watch.mark(STUDENT)))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
        for holder, name, value in reversed(kept):
            if value is None:
                delattr(holder, name)
            else:
                setattr(holder, name, value)
