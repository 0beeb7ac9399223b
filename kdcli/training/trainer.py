"""The Accelerate loop over batches and phases: nothing here knows a task or a method."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.result import Result
from kdcli.config.keys import comparable, refuse_differences, without_later_keys
from kdcli.data import AnyBatch, Source
from kdcli.machine.control import Control, Every, Stopped, Verdict
from kdcli.machine.devices import track_picture
from kdcli.machine.seeding import seed_everything, stable_seed
from kdcli.machine.team import Team
from kdcli.models import load_saved
from kdcli.models.base import Model
from kdcli.models.outputs import ModelOutput
from kdcli.runs.checkpoint import Checkpoint, Checkpoints
from kdcli.runs.folder import BESIDE_BEST, OF_BEST, RunFolder
from kdcli.runs.snapshots import cut_grids
from kdcli.tasks import rank_students
from kdcli.terminal.reporters import Reporter
from kdcli.training.average import WeightAverage
from kdcli.training.downstream import measure_features
from kdcli.training.evaluation import KeptSums, evaluate
from kdcli.training.hardware import hardware_errors
from kdcli.training.job import Job
from kdcli.training.meters import AFTER_NAN, SPECTRA, LossWatch, Meter, SpectraRecord, of_teacher
from kdcli.training.phases import Objective, Phases
from kdcli.training.state import TrainingState
from kdcli.training.teachers.check import measure_teacher
from kdcli.training.teachers.outputs import open_teacher
from kdcli.training.teachers.sharded import even
from kdcli.training.teachers.teacher import Teacher


class Watcher(Protocol):
    """Draws students as they are trained."""

    def __call__(self, student: Model, *, epoch: int, step: int) -> NDArray[np.uint8] | None:
        """Look at the student of this moment in the main process; return a picture (H, W, 3), or None for nothing."""


_LOG_EVERY = 50
"""Steps between two readings of the losses from the device."""


class Trainer:
    """Trains a job's objective; leaves the best student by validation, what goes with it and all records in its run.

    Everything random is a pure function of the seed and of where training stands, and everything else is in a
    checkpoint: training that is stopped and taken up again ends as if it had not been. Of several processes only the
    main one writes and reports.

    Args:
        job: what to train.
        run: where to leave it.
        accelerator: device, precision, processes.
        reporter: told of all that happens.
        writes: False leaves nothing in the run folder: no student, no records, no checkpoints.
        watcher: shown the student before the first step and after every validation; its pictures go to trackers.
    """

    def __init__(
        self,
        job: Job,
        run: RunFolder,
        accelerator: Accelerator,
        reporter: Reporter,
        *,
        writes: bool = True,
        watcher: Watcher | None = None,
    ) -> None:
        config = job.config
        self.job, self.run, self.accelerator, self.reporter = job, run, accelerator, reporter
        self.team = team = Team.of(accelerator)
        self.is_main = writes and team.is_main
        self.watcher = watcher if self.is_main else None
        self.objective: Objective = job.distiller
        self.teacher: Teacher | None = open_teacher(job, team, reporter.warned)
        student = self.objective.student
        if config.train.channels_last:
            student.to(memory_format=torch.channels_last)
        if not team.is_alone and config.train.sync_batchnorm and team.device.type == "cuda":
            student.synchronize_batchnorm()
        if config.train.compile:
            student.compile()
        self.objective.to(team.device)
        self.loader = job.train_loader(team)
        self.mix = job.mix()
        self.steps_per_epoch = self.loader.batches_per_epoch
        accumulation, batches = config.train.accumulation, config.train.epochs * self.steps_per_epoch
        # Batches that would not fill a last group are not trained on.
        self.total_steps = batches // accumulation * accumulation
        if self.total_steps == 0 and config.train.epochs:
            raise UserError(
                f"{batches} batches in all are fewer than train.accumulation {accumulation}.",
                "Train for more epochs, or accumulate less.",
            )
        # A stage goes on with the stream of samples where the one before left it.
        self.epochs_before = 0 if config.embedding is None else config.embedding.epochs
        self.watch = LossWatch()
        self.checkpoints = Checkpoints(run.path / "checkpoints", keep=config.train.keep_checkpoints)
        self.control = Control(Every.parse(config.train.checkpoint_every), team)
        ema = WeightAverage(student, decay=config.train.ema) if config.train.ema else None
        self.state = TrainingState(
            self.objective,
            Phases(self.objective, config, max(self.total_steps // accumulation, 1), accelerator),
            ema,
            SpectraRecord(run if self.is_main else None, every=math.ceil(config.train.epochs / SPECTRA) or 1),
            accelerator,
        )

    @property
    def step(self) -> int:
        """Batches that are trained on and accounted for."""
        return self.state.step

    @property
    def student(self) -> Model:
        """The student as it stands: with averaged weights, where they are averaged."""
        return self.state.student

    def start_from(self, folder: Path) -> None:
        """Take the weights of the student that is saved in ``folder``, before the first step."""
        self._load_student(self.objective.student, folder)
        if self.state.ema is not None:
            self.state.ema.set(self.objective.student)

    def fit(self) -> Result:
        """Train to the end, test the best student once, and return what came of it.

        Raises:
            Stopped: a signal asked for it; a checkpoint was saved.
            UserError: training can't go on; it says why, and the last good checkpoint is kept.
        """
        state, plan = self.state, self.job.plan
        self.accelerator.init_trackers("kdcli")
        self.reporter.started(total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch, step=self.step)
        if plan.teacher_metrics is not None:
            self.reporter.measured(plan.teacher_metrics)
        processes = self.team.size
        with (
            self.control.listening(),
            hardware_errors(self.job.config.train, step=lambda: self.step, processes=processes),
        ):
            try:
                self._train()
            finally:
                if self.teacher is not None:
                    self.teacher.end()
            if not state.best:
                raise UserError(
                    "No student of this run gave a finite loss on the validation split: there is none to keep.",
                    AFTER_NAN,
                )
            test = self._test()
            teacher = self._teacher_metrics(tested=bool(test))
        self._end_tracking()
        return Result(
            validation=state.best,
            test=test,
            steps=self.step,
            seconds=state.seconds,
            skipped=len(state.skipped),
            teacher=teacher,
            teacher_samples={"validation": sample} if teacher and (sample := plan.teacher_samples) else {},
            last=self._last() if self.job.task.reports_last else {},
        )

    def _last(self) -> dict[str, float]:
        """Return the metrics of the last validation; nothing in a process that keeps no records."""
        found = self.run.read_metrics("validation") if self.is_main else []
        return {name: value for name, value in found[-1].items() if name not in ("event", "best")} if found else {}

    def _train(self) -> None:
        state = self.state
        started = time.perf_counter() - state.seconds
        self.begin()
        if self.step == 0:
            if not state.spectra.steps:
                state.spectra.add(self.objective, step=0)
            if self.total_steps:
                self._show(epoch=0)
            elif not state.best:
                self._close_epoch(started)  # the student as it starts
        elif state.closed_step != self.step and self._ends_epoch():
            self._close_epoch(started)  # it was stopped during the validation
        while self.step < self.total_steps and not self._has_lost_patience():
            epoch, first = divmod(self.step, self.steps_per_epoch)
            epoch += self.epochs_before
            for batch in self._timed(self.loader.epoch(epoch, first)):
                self.train_step(batch, epoch)
                if self._ends_epoch() or self.step % _LOG_EVERY == 0:
                    self._log()
                state.seconds = time.perf_counter() - started
                if self._ends_epoch():
                    self._close_epoch(started)
                self._obey()
                if self.step == self.total_steps:
                    break
        self.save()

    def begin(self) -> None:
        """Do what comes before the first step, or before going on: all that is read of the teacher ahead."""
        if self.teacher is not None and self.step < self.total_steps:
            self.teacher.begin(self._obey_early)
        if self.step == 0:
            self.objective.look_ahead(self._labelled_outputs, self.team)

    def train_step(self, batch: AnyBatch, epoch: int) -> None:
        """Train on a batch of ``epoch``, and account for it."""
        state, team = self.state, self.team
        self._note_skipped(batch.skipped)
        # Dropout and the like: drawn anew for every step, so that nothing of the past has to be restored.
        step = self.epochs_before * self.steps_per_epoch + self.step
        seed_everything(stable_seed("step", self.job.config.seed, step, team.rank) % 2**32, team.device)
        batch = self.mix(batch.to(team.device), epoch, step)
        teacher_outputs = self._run_teacher(batch)
        self.objective.step = self.step
        terms = state.phases.step(batch, teacher_outputs, self.step)
        state.step += 1
        if state.ema is not None and self.accelerator.sync_gradients:
            state.ema.update(self.objective.student, step=state.phases.updates(self.step))
        state.meter.add(terms, len(batch) * team.size)
        self.watch.add({**of_teacher(teacher_outputs), **terms}, self.step)
        self.reporter.stepped(self.step)

    def _run_teacher(self, batch: AnyBatch) -> ModelOutput | None:
        with self.team.autocast():
            return None if self.teacher is None else self.teacher(batch)

    def _labelled_outputs(self) -> Iterator[tuple[ModelOutput, Tensor]]:
        """Yield the teacher's outputs for the labelled training samples without augmentation, and their targets."""
        assert self.teacher is not None, "the plan lets nothing look ahead without one"
        samples, preprocessing = self.job.labelled_samples(), self.teacher.facts.preprocessing
        for batch in even(self.job, self.job.eval_loader(samples, preprocessing, self.team), self.team):
            self._after_batch(batch.skipped)
            if len(batch):
                batch = batch.to(self.team.device)
                outputs = self._run_teacher(batch)
                assert outputs is not None
                yield outputs, batch.targets

    def _ends_epoch(self) -> bool:
        return self.step % self.steps_per_epoch == 0 or self.step == self.total_steps

    def _close_epoch(self, started: float) -> None:
        state = self.state
        epoch = math.ceil(self.step / self.steps_per_epoch)
        is_last = self.step == self.total_steps
        if is_last or epoch % self.job.config.train.validate_every == 0:
            state.check_weights()  # a damaged student must not take the best one's place
            found, sums = self._evaluate(self.student, self.job.data.validation)
            metrics = {"epoch": epoch, "step": self.step} | found
            is_best = self._is_best(metrics)
            if is_best:
                state.best = metrics
                samples = sums.gather(self.team)
                if self.is_main:
                    self.run.write_student(self.student.save)
                    self.run.write_tensors(BESIDE_BEST, self.objective.kept_tensors())
                    self.run.write_samples("validation", samples)
            self._record("validation", metrics | {"best": float(is_best)})
            self._show(epoch=epoch)
            self.reporter.validated(metrics, best=is_best)
        if self.step and (is_last or epoch % state.spectra.every == 0):
            ranks = state.spectra.add(self.objective, step=self.step)
            self.accelerator.log(ranks, step=self.step)
        state.closed_step = self.step
        state.seconds = time.perf_counter() - started

    def _has_lost_patience(self) -> bool:
        """Whether ``train.patience`` epochs up to the last validation have brought no better student."""
        patience, best = self.job.config.train.patience, self.state.best
        closed = self.state.closed_step // self.steps_per_epoch
        if patience is None or not best or closed - best["epoch"] < patience:
            return False
        self.reporter.warned(
            f"Stopped early after epoch {closed} of {self.job.config.train.epochs}: no better student since epoch"
            f" {best['epoch']:.0f} (train.patience is {patience})."
        )
        return True

    def _show(self, *, epoch: int) -> None:
        if self.watcher is not None:
            picture = self.watcher(self.student, epoch=epoch, step=self.step)
            if picture is not None:
                track_picture(self.accelerator, "validation/samples", picture, step=self.step)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        ranks = [rank_students(found, self.job.monitor) for found in (metrics, self.state.best) if found]
        if not ranks[0][0]:
            self.reporter.warned(
                f"The validation loss at step {self.step} is not a finite number: this student can't be the best."
            )
            return False
        return ranks[0] >= ranks[-1]

    def _evaluate(self, model: Model, source: Source) -> tuple[dict[str, float], KeptSums]:
        sums = KeptSums(source)
        return evaluate(self.job, model, source, self.team, self._after_batch, sums), sums

    def _after_batch(self, skipped: Iterable[str]) -> None:
        self._note_skipped(skipped)
        self._obey_early()

    def _obey_early(self) -> None:
        # A signal ends an evaluation too, in a run of one process; when the run goes on, it begins with it.
        if self.control.stop_asked and self.team.is_alone:
            self._obey()

    def _obey(self) -> None:
        verdict = self.control.after(self.step)
        # Within a group of accumulated batches the gradient so far is nowhere but in memory.
        if verdict == Verdict.GO_ON or self.step % self.job.config.train.accumulation:
            return
        if verdict.is_stop:
            self._stop(verdict)
        self.save()

    def _stop(self, verdict: Verdict) -> None:
        self.save()
        self._end_tracking()
        raise Stopped(verdict.exit_code, self.step, self.total_steps)

    def _end_tracking(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _timed(self, batches: Iterable[AnyBatch]) -> Iterator[AnyBatch]:
        """Yield the batches, and count the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            self.state.meter.waited += time.perf_counter() - before
            yield batch

    def _log(self) -> None:
        state = self.state
        if not state.meter.steps:
            return
        self.watch.check()
        values = {
            "epoch": math.ceil(self.step / self.steps_per_epoch),
            "step": self.step,
            **state.phases.rates(),
            **state.meter.read(self.job.data.facts.noun),
        }
        state.meter = Meter()
        self._record("train", values)
        self.reporter.logged(values)
        for warning in state.collapse.warnings(values, self.step):
            self.reporter.warned(warning)

    def _record(self, event: str, values: dict[str, float]) -> None:
        if self.is_main:
            self.run.add_metrics(event, values)
        logged = {f"{event}/{name}": value for name, value in values.items() if name != "step"}
        self.accelerator.log(logged, step=self.step)

    def _note_skipped(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.state.skipped:
                self.state.skipped[name] = None
                self.reporter.skipped(name)

    def _test(self) -> dict[str, float]:
        source, labelled = self.job.data.test, self.job.labelled
        if (source is None and labelled is None) or not self.job.config.test:
            return {}
        student = copy.deepcopy(self.objective.student)
        self._load_student(student, self.run.student)
        test: dict[str, float] = {}
        samples: dict[str, Tensor] = {}
        if source is not None:
            test, sums = self._evaluate(student, source)
            samples = sums.gather(self.team)
        if labelled is not None:
            student.eval()
            test |= measure_features(self.job, labelled, student, self.team, self._after_batch)
        self._gather_skipped()
        self._obey()  # a signal that came meanwhile: there may be a baseline still to be trained
        if self.is_main:
            self.run.write_samples("test", samples)
        self._record("test", {"epoch": self.state.best["epoch"], "step": self.state.best["step"], **test})
        return test

    def _teacher_metrics(self, *, tested: bool) -> dict[str, dict[str, float]]:
        """Return the teacher's own metrics by split, where it was measured before the first step."""
        before, source = self.job.plan.teacher_metrics, self.job.data.test
        if before is None:
            return {}
        metrics = {"validation": dict(before)}
        if tested and source is not None:
            metrics["test"] = measure_teacher(self.job, source, self.team, self._after_batch)
            self._obey()
        return metrics

    def _load_student(self, student: Model, folder: Path) -> None:
        if self.is_main:
            student.load_state_dict(load_saved(folder).state_dict())
        self.team.broadcast_weights(student)  # the run folder need not be within every process's reach

    def save(self) -> None:
        """Write a checkpoint of everything that the rest of the run depends on, unless there is one of this step.

        Raises:
            UserError: a weight is not finite, or the file system refuses; earlier checkpoints are kept.
        """
        if self.control.saved_step == self.step:
            return
        self.watch.check()
        self._gather_skipped()
        if self.is_main:
            self.state.check_weights()
            run = {"config": comparable(self.job.config), "metrics_size": self.run.metrics_size()}
            self.checkpoints.save(
                self.step,
                run | self.state.to_checkpoint(),
                best=self.run.student if self.state.best else None,
                beside=[self.run.path / name for name in OF_BEST],
            )
            self.reporter.saved(self.step)
        self.control.saved(self.step)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where ``checkpoint`` was written: this object, and the run folder's files.

        Raises:
            UserError: the checkpoint is of another run or does not fit; it says what differs.
        """
        saved, path, config = checkpoint.state, checkpoint.path, self.job.config
        refuse_differences(without_later_keys(saved["config"], config), config, path)
        if saved["step"] > self.total_steps:
            raise UserError(
                f"The run has already been trained for {saved['step']} steps, and {config.train.epochs} epochs"
                f" are {self.total_steps}.",
                "Give more --epochs.",
            )
        self.state.restore(saved, path)
        self.control.saved(self.step)
        if self.is_main:
            self.run.unfinish()
            self.checkpoints.remove_after(self.step)
            self.run.cut_metrics(saved["metrics_size"])
            cut_grids(self.run.path, self.step)
            self.run.restore_best(checkpoint.best)

    def _gather_skipped(self) -> None:
        self._note_skipped(self.team.gather(list(self.state.skipped)))
