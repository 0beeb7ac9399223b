"""How far a run is, and how long the rest of it takes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

_RECENT_STEPS = 200
"""Fewest steps over which the time that is left is estimated."""
_MARKS = 5000
"""Most times kept for that."""


class Pace:
    """How far a run is, and how long the rest of it takes.

    Timed over whole epochs, so that validations count in, and over at least 200 steps. The first step after a start is
    left out: loader processes start in it, and kernels are compiled.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, step: int, clock: Callable[[], float]) -> None:
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.first = self.step = step
        self.clock = clock
        self.since = clock()
        window = steps_per_epoch * math.ceil(_RECENT_STEPS / steps_per_epoch)
        self.every = math.ceil(window / _MARKS)
        self.marks: deque[tuple[int, float]] = deque(maxlen=math.ceil(window / self.every) + 1)

    def advance(self, step: int) -> None:
        """Take the time of ``step``."""
        self.step = step
        if not self.marks or step % self.every == 0:
            self.marks.append((step, self.clock()))

    @property
    def elapsed(self) -> float:
        """Seconds since the start, or since it went on."""
        return self.clock() - self.since

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step; None while too little is known."""
        if len(self.marks) < 2:
            return None
        (first, start), (last, end) = self.marks[0], self.marks[-1]
        return (self.total_steps - self.step) * (end - start) / (last - first)

    @property
    def epoch(self) -> tuple[int, int]:
        """The epoch, counted from 1, and how many of its steps are done; it ends with its last step."""
        epoch = max(math.ceil(self.step / self.steps_per_epoch), 1)
        return epoch, self.step - (epoch - 1) * self.steps_per_epoch


def duration(seconds: float | None) -> str:
    """Return seconds as ``h:mm:ss``."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
