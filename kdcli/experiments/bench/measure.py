"""What a training costs: its parts, beside a loop written by hand, its memory, and what a teacher cache would save."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from kdcli.base.errors import UserError
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch
from kdcli.experiments.bench.hand_loop import WORDS, HandLoop, make_hand_loop
from kdcli.experiments.distill import planned_job
from kdcli.machine.memory import available_memory, forgets_peaks, peak_memory
from kdcli.models.outputs import ModelOutput
from kdcli.runs.folder import RunFolder
from kdcli.terminal.reporters import SilentReporter
from kdcli.training.job import Job
from kdcli.training.parts import PARTS, TEACHER, Time, timed_parts, wait_for
from kdcli.training.trainer import Trainer

_WARM_UP = 2
"""Steps before anything is measured: lazy states, autotuning, caches."""
_MATMUL = 1024
"""Rows and columns of the matrices by which the device's rate is measured."""
_MOST_TRIED = 2**16
"""No larger batch is tried."""


@dataclass(frozen=True)
class Bench:
    """What was measured; times are of a step, medians over the repeats.

    Attributes:
        title: student, teacher and data.
        device: with its number of threads on a CPU.
        batch_size: samples of a step.
        workers: whether loader processes made batches meanwhile, whose CPU time is not in the parts.
        parts: in the order in which they run; of a compiled student its forward pass is with the losses.
        step: from ready batches, without marks.
        hand: the same with the loop written by hand, or None.
        hand_words: what that loop is.
        no_hand: why there is none.
        ratio: the hand-written loop's time over kdcli's, and the smallest and largest of a repeat.
        cached: a step whose teacher's outputs are at hand already; None without a teacher.
        macs: multiply-accumulates of a step, three passes of the student's.
        matmul_rate: of the device in the training's precision, MACs a second of the clock that counts.
        peak: most bytes while training, with all that was there before.
        largest_batch: that fits; None where that could not be told.
        largest_how: how that was found.
    """

    title: str
    device: str
    batch_size: int
    noun: str
    workers: bool
    steps: int
    repeats: int
    parts: dict[str, Time]
    step: Time
    hand: Time | None
    hand_words: str
    no_hand: str
    ratio: tuple[float, float, float] | None
    cached: Time | None
    macs: int
    matmul_rate: float
    peak: int
    peak_is_own: bool
    largest_batch: int | None
    largest_how: str

    @property
    def whole(self) -> Time:
        """A step with its data: the sum of the parts."""
        return Time(sum(part.wall for part in self.parts.values()), sum(part.cpu for part in self.parts.values()))

    @property
    def throughput(self) -> float:
        """Samples a second, data included."""
        return self.batch_size / self.whole.wall

    @property
    def matmul_share(self) -> float:
        """Of the device's measured rate, that the step on ready batches reaches."""
        return self.macs / self.clock(self.step) / self.matmul_rate

    @property
    def clock_name(self) -> Literal["CPU", "wall"]:
        """What times are compared by: on a CPU its own, which other programs change less than the clock's."""
        return "CPU" if self.device.startswith("cpu") else "wall"

    def clock(self, time: Time) -> float:
        """Return the seconds that times are compared by."""
        return time.cpu if self.clock_name == "CPU" else time.wall

    def to_json(self) -> dict[str, Any]:
        """Return all of it, seconds and bytes."""
        whole = {"wall": self.whole.wall, "cpu": self.whole.cpu}

        def both(time: Time | None) -> dict[str, float] | None:
            return None if time is None else {"wall": time.wall, "cpu": time.cpu}

        return {
            "title": self.title,
            "device": self.device,
            "batch_size": self.batch_size,
            "loader_processes": self.workers,
            "steps": self.steps,
            "repeats": self.repeats,
            "parts": {name: both(part) for name, part in self.parts.items()},
            "whole_step": whole,
            "throughput": self.throughput,
            "ready_step": both(self.step),
            "hand_written": {
                "step": both(self.hand),
                "is": self.hand_words,
                "why_not": self.no_hand or None,
                "times_ours": None
                if self.ratio is None
                else dict(zip(("median", "low", "high"), self.ratio, strict=True)),
            },
            "teacher_at_hand_step": both(self.cached),
            "macs": self.macs,
            "matmul_macs_per_second": self.matmul_rate,
            "matmul_share": self.matmul_share,
            "compared_by": self.clock_name,
            "peak_bytes": self.peak,
            "peak_is_of_training_alone": self.peak_is_own,
            "largest_batch": self.largest_batch,
            "largest_batch_how": self.largest_how,
        }


def bench(config: RunConfig, *, steps: int, repeats: int, with_memory: bool, told: Callable[[str], None]) -> Bench:
    """Measure what a training of ``config`` costs; nothing of it is kept.

    Every repeat measures each of the loops in turn, ``steps`` batches long: what else the machine does meanwhile meets
    them all.

    Args:
        config: of the run; its epochs are left aside.
        steps: batches of each loop in a repeat.
        repeats: of which medians are taken.
        with_memory: also look for the largest batch that fits.
        told: of what is measured just now.

    Raises:
        UserError: for anything that can't be had or doesn't fit, or that isn't trained step by step.
    """
    config = _settled(config)
    job, accelerator = planned_job(config)
    if job.config.embedding is not None:
        job = replace(job, config=job.config.model_copy(update={"embedding": None}))
    pristine = job
    batch = next(iter(job.train_loader().epoch(0, 0)))
    with tempfile.TemporaryDirectory() as folder:
        told("hand-written loop")
        team_device, autocast = accelerator.device, accelerator.autocast
        hand, no_hand = make_hand_loop(pristine, team_device, autocast, batch)
        trainer = Trainer(job, RunFolder(Path(folder)), accelerator, SilentReporter(), writes=False)
        trainer.begin()
        loops = _Loops(trainer, hand, steps)
        told("warm-up")
        loops.warm_up()
        found = [loops.measure(told, f"repeat {number + 1} of {repeats}") for number in range(repeats)]
        told("peak of memory")
        device = trainer.team.device
        peak = peak_memory(loops.train_ready, device)
        largest, how = None, "not looked for"
        if with_memory:
            told("largest batch")
            largest, how = _largest_batch(trainer)
    return _bench(job, trainer, found, steps, no_hand, peak, largest, how)


def _settled(config: RunConfig) -> RunConfig:
    if config.episodes is not None:
        raise UserError(
            "Episodes train many small students, and bench measures one training.", "Leave --ways and --shots out."
        )
    train = config.train.model_copy(update={"epochs": max(config.train.epochs, 1), "num_processes": 1})
    return config.model_copy(update={"train": train, "baseline": False})


@dataclass(frozen=True)
class _Round:
    """One repeat: times of a step."""

    parts: dict[str, Time]
    ready: Time
    hand: Time | None
    cached: Time | None


class _Loops:
    """The loops that are measured, on the same trainer.

    Args:
        trainer: of the run.
        hand: the loop written by hand, or None.
        steps: batches of each.
    """

    def __init__(self, trainer: Trainer, hand: HandLoop | None, steps: int) -> None:
        self._trainer, self._hand, self._steps = trainer, hand, steps
        self._batches = self._endless()
        self._ready = list(itertools.islice(self._endless(), steps))

    def _endless(self) -> Iterator[AnyBatch]:
        for epoch in itertools.count():
            yield from self._trainer.loader.epoch(epoch, 0)

    def train_ready(self) -> None:
        """Train on the batches that are in memory."""
        for batch in self._ready:
            self._trainer.train_step(batch, 0)

    def warm_up(self) -> None:
        """Do all of it once or twice, unmeasured."""
        for batch in itertools.islice(itertools.cycle(self._ready), _WARM_UP):
            self._trainer.train_step(batch, 0)
            if self._hand is not None:
                self._hand.step(self._hand.inputs(batch))

    def measure(self, told: Callable[[str], None], where: str) -> _Round:
        """Measure each loop once."""
        trainer = self._trainer
        told(f"{where}: parts")
        with timed_parts(trainer) as watch:
            for batch in itertools.islice(watch.waiting(self._batches), self._steps):
                trainer.train_step(batch, 0)
                watch.close()
        parts = {
            name: Time(
                *(
                    statistics.fmean(getattr(step.get(name, Time()), kind) for step in watch.steps)
                    for kind in ("wall", "cpu")
                )
            )
            for name in PARTS
        }
        told(f"{where}: whole step")
        ready = self._time(self.train_ready)
        hand = cached = None
        if self._hand is not None:
            told(f"{where}: hand-written loop")
            loop, prepared = self._hand, [self._hand.inputs(batch) for batch in self._ready]

            def by_hand() -> None:
                for each in prepared:
                    loop.step(each)

            hand = self._time(by_hand)
        if trainer.teacher is not None:
            told(f"{where}: teacher's outputs at hand")
            cached = self._time_cached()
        return _Round(parts, ready, hand, cached)

    def _time_cached(self) -> Time:
        trainer, outputs = self._trainer, list[ModelOutput]()
        teacher = trainer.teacher
        assert teacher is not None

        def keep(batch: AnyBatch) -> ModelOutput:
            outputs.append(teacher(batch))
            return outputs[-1]

        def give(batch: AnyBatch) -> ModelOutput:
            outputs.append(outputs.pop(0))
            return outputs[-1]

        try:
            trainer.teacher = keep  # type: ignore[assignment]  # no more than this is asked of it in a step
            self.train_ready()
            trainer.teacher = give  # type: ignore[assignment]
            return self._time(self.train_ready)
        finally:
            trainer.teacher = teacher

    def _time(self, work: Callable[[], object]) -> Time:
        device = self._trainer.team.device
        wait_for(device)
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        wait_for(device)
        steps = len(self._ready)
        return Time((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)


def _median(times: Sequence[Time]) -> Time:
    return Time(statistics.median(each.wall for each in times), statistics.median(each.cpu for each in times))


def _bench(
    job: Job,
    trainer: Trainer,
    found: Sequence[_Round],
    steps: int,
    no_hand: str,
    peak: int,
    largest: int | None,
    how: str,
) -> Bench:
    device = trainer.team.device
    hands = [each.hand for each in found if each.hand is not None]
    cached = [each.cached for each in found if each.cached is not None]
    ratios = sorted(
        each.hand.cpu / each.ready.cpu if device.type == "cpu" else each.hand.wall / each.ready.wall
        for each in found
        if each.hand is not None
    )
    size = min(job.config.train.batch_size, len(job.train_source()))
    parts = {name: _median([each.parts[name] for each in found]) for name in PARTS}
    teacher_macs = 0 if job.teacher is None or parts[TEACHER].wall == 0 else job.teacher.facts.macs
    count = torch.get_num_threads()
    threads = f", {count} thread{'' if count == 1 else 's'}" if device.type == "cpu" else f" ({_name_of(device)})"
    return Bench(
        title=f"{job.config.student.name} from {job.config.teacher.name} on {job.data.facts.name}",
        device=f"{device}{threads}",
        batch_size=size,
        noun=job.data.facts.noun,
        workers=bool(getattr(getattr(trainer.loader, "_loader", None), "num_workers", 0)),
        steps=steps,
        repeats=len(found),
        parts={name: part for name, part in parts.items() if part.wall > 0},
        step=_median([each.ready for each in found]),
        hand=_median(hands) if hands else None,
        hand_words=WORDS,
        no_hand=no_hand,
        ratio=(statistics.median(ratios), ratios[0], ratios[-1]) if ratios else None,
        cached=_median(cached) if cached else None,
        macs=size * (teacher_macs + 3 * job.student.facts.macs),
        matmul_rate=_matmul_rate(device, trainer.team.precision),
        peak=peak,
        peak_is_own=forgets_peaks(device),
        largest_batch=largest,
        largest_how=how,
    )


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _matmul_rate(device: torch.device, precision: str) -> float:
    """Return the most multiply-accumulates a second of a product of two large matrices, in the training's precision."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    size = _MATMUL if device.type == "cpu" else 8 * _MATMUL
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best, clock = float("inf"), time.process_time if device.type == "cpu" else time.perf_counter
    for _ in range(7):
        wait_for(device)
        start = clock()
        left @ right
        wait_for(device)
        best = min(best, clock() - start)
    return size**3 / best


def _largest_batch(trainer: Trainer) -> tuple[int | None, str]:
    """Return the largest batch that fits, and how that was found: on a GPU by trying, else by the growth of memory."""
    most = len(trainer.job.train_source())
    if trainer.team.device.type == "cuda":
        return _largest_by_trying(trainer, min(most, _MOST_TRIED))
    return _largest_by_growth(trainer, most)


def _train_at(trainer: Trainer, size: int) -> Callable[[], None]:
    """Return what trains on one batch of ``size``; the batch is made at once."""
    config = trainer.job.config
    train = config.train.model_copy(update={"batch_size": size})
    job = replace(trainer.job, config=config.model_copy(update={"train": train}))
    batch = next(iter(job.train_loader(trainer.team).epoch(0, 0)))
    return lambda: trainer.train_step(batch, 0)


def _largest_by_trying(trainer: Trainer, most: int) -> tuple[int | None, str]:
    fits, fails = 0, most + 1
    size = min(trainer.job.config.train.batch_size, most)
    while fails - fits > max(1, fits // 16):
        try:
            _train_at(trainer, size)()
            wait_for(trainer.team.device)
            fits = size
        except torch.OutOfMemoryError:
            fails = size
            trainer.objective.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        size = min(2 * fits, most) if fails > most else (fits + fails) // 2
        if fits == most:
            return most, f"tried on {trainer.team.device}; there are no more training samples"
    return fits or None, f"tried on {trainer.team.device}, to a sixteenth"


def _largest_by_growth(trainer: Trainer, most: int) -> tuple[int | None, str]:
    device = trainer.team.device
    large = min(2 * trainer.job.config.train.batch_size, most)
    small = large // 2
    if small < 2 or not forgets_peaks(device):
        return None, "not told: this system does not say what a batch alone takes"
    peaks = {}
    for size in (small, large):
        work = _train_at(trainer, size)
        work()  # what is allocated once, for kernels of this size
        peaks[size] = peak_memory(work, device)
    each = (peaks[large] - peaks[small]) / (large - small)
    if each <= 0:
        return None, f"not told: memory did not grow from {small} to {large}"
    room = available_memory(device)
    return int(large + room / each), (
        f"estimated, not tried: {each / 2**20:.2f} MiB a sample from {small} to {large}, {room / 2**30:.1f} GiB free"
    )
