"""The Accelerate loop: nothing here knows a task or a method."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim import Optimizer

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED
from kdcli.base.result import Result
from kdcli.config.keys import comparable, refuse_differences, without_later_keys
from kdcli.data import AnyBatch, ImageSource, TextSource
from kdcli.machine.control import Control, Every, Stopped, Verdict
from kdcli.machine.seeding import stable_seed
from kdcli.machine.team import Team
from kdcli.models import load_saved
from kdcli.models.base import Model
from kdcli.models.outputs import ModelOutput
from kdcli.runs.checkpoint import Checkpoint, Checkpoints, restore_module
from kdcli.runs.folder import OF_BEST, RunFolder
from kdcli.tasks import rank_students
from kdcli.terminal.progress import Reporter
from kdcli.training.downstream import measure_features
from kdcli.training.evaluation import KeptSums, evaluate
from kdcli.training.job import Job
from kdcli.training.meters import (
    AFTER_NAN,
    COLLAPSED,
    SPECTRA,
    TEACHERS,
    Meter,
    SpectraRecord,
    Watch,
    not_finite,
)
from kdcli.training.optim import make_optimizer, make_schedule
from kdcli.training.teachers.check import measure_teacher
from kdcli.training.teachers.teacher import LiveTeacher, StoredTeacher

_LOG_EVERY = 50
"""Steps between two readings of the losses from the device."""
_MAX_STORED = 2**30
"""Bytes of the teacher's outputs for texts that are kept in memory."""


class Trainer:
    """Trains a job's distiller; leaves the best student by validation, the projectors and all records in its run.

    Everything random is a pure function of the seed and of where training stands, and everything else is in a
    checkpoint: training that is stopped and taken up again ends as if it had not been. Of several processes only the
    main one writes and reports.

    Args:
        job: what to train.
        run: where to leave it.
        accelerator: device, precision, processes.
        reporter: told of all that happens.
        writes: False leaves nothing in the run folder: no student, no records, no checkpoints.
    """

    def __init__(
        self, job: Job, run: RunFolder, accelerator: Accelerator, reporter: Reporter, *, writes: bool = True
    ) -> None:
        config = job.config
        device = accelerator.device
        self.job, self.run, self.accelerator, self.reporter = job, run, accelerator, reporter
        self.team = Team.of(accelerator)
        self.is_main = writes and self.team.is_main
        self.distiller = job.distiller
        self.teacher: LiveTeacher | StoredTeacher | None = _place_teacher(job, device)
        student = self.distiller.student
        if config.train.channels_last:
            student.to(memory_format=torch.channels_last)
        if not self.team.is_alone and config.train.sync_batchnorm and device.type == "cuda":
            student.synchronize_batchnorm()
        if config.train.compile:
            student.compile()
        self.distiller.to(device)
        self.loader = job.train_loader(self.team)
        self.mix = job.mix()
        self.steps_per_epoch = self.loader.batches_per_epoch
        accumulation = config.train.accumulation
        # Batches that would not fill a last group are not trained on.
        self.total_steps = config.train.epochs * self.steps_per_epoch // accumulation * accumulation
        self.updates = self.total_steps // accumulation
        # A stage goes on with the stream of samples where the one before left it.
        self.epochs_before = 0 if config.embedding is None else config.embedding.epochs
        if self.updates == 0 and config.train.epochs:
            raise UserError(
                f"{config.train.epochs * self.steps_per_epoch} batches in all are fewer than train.accumulation"
                f" {accumulation}.",
                "Train for more epochs, or accumulate less.",
            )
        self.optimizer = make_optimizer(self.distiller, config)
        self.schedule = make_schedule(self.optimizer, config, max(self.updates, 1))
        self.ema = ModelEmaV3(student, decay=config.train.ema, use_warmup=True) if config.train.ema else None
        self.wrapped, self.wrapped_optimizer = accelerator.prepare(self.distiller, self.optimizer)
        self.checkpoints = Checkpoints(run.path / "checkpoints", keep=config.train.keep_checkpoints)
        self.control = Control(Every.parse(config.train.checkpoint_every), self.team)
        self.watch = Watch()
        self.unbounded = not_finite(self.distiller)
        """Buffers that hold infinity as the model means it, such as the bounds of a clipping."""
        self.spectra = SpectraRecord(run if self.is_main else None, every=math.ceil(config.train.epochs / SPECTRA) or 1)
        self.meter = Meter()
        self.step = 0
        """Batches that are trained on and accounted for."""
        self.closed = 0
        """The step up to which ends of epochs are dealt with: validated, recorded."""
        self.best: dict[str, float] = {}
        self.first_norms: dict[str, float] = {}
        self.collapsed: set[str] = set()
        """Features that were warned of."""
        self.seconds = 0.0
        self.skipped: dict[str, None] = {}  # an ordered set

    def start_from(self, folder: Path) -> None:
        """Take the weights of the student that is saved in ``folder``, before the first step."""
        self._load_student(self.distiller.student, folder)
        if self.ema is not None:
            self.ema.set(self.distiller.student)

    @property
    def student(self) -> Model:
        """The student as it stands: with averaged weights, where they are averaged."""
        return self.distiller.student if self.ema is None else self.ema.module

    def fit(self) -> Result:
        """Train to the end, test the best student once, and return what came of it.

        Raises:
            Stopped: a signal asked for it; a checkpoint was saved.
            UserError: training can't go on; it says why, and the last good checkpoint is kept.
        """
        self.accelerator.init_trackers("kdcli")
        self.reporter.started(total_steps=self.total_steps, steps_per_epoch=self.steps_per_epoch, step=self.step)
        if self.job.plan.teacher_metrics is not None:
            self.reporter.measured(self.job.plan.teacher_metrics)
        with self.control.listening(), _hardware_errors(self):
            self._train()
            if not self.best:
                raise UserError(
                    "No student of this run gave a finite loss on the validation split: there is none to keep.",
                    AFTER_NAN,
                )
            test = self._test()
            teacher = self._teacher_metrics(tested=bool(test))
        self._end_tracking()
        return Result(
            validation=self.best,
            test=test,
            steps=self.step,
            seconds=self.seconds,
            skipped=len(self.skipped),
            teacher=teacher,
            teacher_samples={"validation": sample} if teacher and (sample := self.job.plan.teacher_samples) else {},
        )

    def _train(self) -> None:
        started = time.perf_counter() - self.seconds
        if isinstance(self.teacher, LiveTeacher):
            self.teacher = self._stored(self.teacher)
        if self.step == 0:
            self._look_ahead()
            if not self.spectra.steps:
                self.spectra.add(self.distiller, step=0)
            if self.total_steps == 0 and not self.best:
                self._close_epoch(started)  # the student as it starts
        elif self.closed != self.step and self._ends_epoch():
            self._close_epoch(started)  # it was stopped during the validation
        while self.step < self.total_steps:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            epoch += self.epochs_before
            for batch in self._timed(self.loader.epoch(epoch, first)):
                self._train_step(batch, epoch)
                if self._ends_epoch() or self.step % _LOG_EVERY == 0:
                    self._log()
                self.seconds = time.perf_counter() - started
                if self._ends_epoch():
                    self._close_epoch(started)
                self._obey()
                if self.step == self.total_steps:
                    break
        self.save()

    def _train_step(self, batch: AnyBatch, epoch: int) -> None:
        accelerator, config = self.accelerator, self.job.config
        self._note_skipped(batch.skipped)
        # Dropout and the like: drawn anew for every step, so that nothing of the past has to be restored.
        step = self.epochs_before * self.steps_per_epoch + self.step
        set_seed(stable_seed("step", config.seed, step, self.team.rank) % 2**32)
        batch = self.mix(batch.to(accelerator.device), epoch, step)
        self.distiller.step = self.step
        accelerator.step = self.step  # Accelerate counts for its accumulation; here too a resumed run goes on
        with accelerator.accumulate(self.wrapped):
            with accelerator.autocast():
                teacher_outputs = None if self.teacher is None else self.teacher(batch)
            terms = self.wrapped(batch, teacher_outputs)
            accelerator.backward(terms["loss"])
            if accelerator.sync_gradients and config.optim.clip_grad is not None:
                accelerator.clip_grad_norm_(self.wrapped.parameters(), config.optim.clip_grad)
            self.wrapped_optimizer.step()
            self.wrapped_optimizer.zero_grad()
            if accelerator.sync_gradients:
                update = (self.step + 1) // config.train.accumulation
                self.schedule.step_update(update)
                if self.ema is not None:
                    self.ema.update(self.distiller.student, step=update)
        self.step += 1
        self.meter.add(terms, len(batch) * self.team.size)
        self.watch.add({**_of_teacher(teacher_outputs), **terms}, self.step)
        self.reporter.stepped(self.step)

    def _stored(self, teacher: LiveTeacher) -> LiveTeacher | StoredTeacher:
        """Run the teacher on every training text now, where that saves it from reading them again in every epoch.

        Not for the tasks over tokens, whose outputs are too many, and whose masks change.
        """
        source = self.job.train_source()
        is_over_tokens = self.job.config.task_facts.is_over_tokens
        if not isinstance(source, TextSource) or is_over_tokens or self.total_steps <= self.steps_per_epoch:
            return teacher
        if self.step == self.total_steps:  # nothing is left but the test
            return teacher
        # Texts of one length after the other need the least padding.
        texts = sorted(set(source.texts), key=lambda text: (len("".join(text)), text))
        if not 0 < StoredTeacher.size(teacher, len(texts)) <= _MAX_STORED:
            return teacher

        def run(batch: AnyBatch) -> ModelOutput:
            self._after_batch(())
            with self.team.autocast():
                return teacher(batch)

        loader = self.job.eval_loader(
            TextSource(texts, [UNLABELLED] * len(texts), split=source.split),
            teacher.model.facts.preprocessing,
            self.team,
        )
        batches = (batch.to(self.team.device) for batch in loader)
        return StoredTeacher.fill(teacher, texts, run, batches, self.team)

    def _look_ahead(self) -> None:
        """Show the teacher's outputs for the training images to the methods that ask for them."""

        def outputs() -> Iterator[tuple[ModelOutput, Tensor]]:
            assert self.teacher is not None, "the plan lets such methods pass only with a teacher"
            for batch in self.job.eval_loader(
                self.job.labelled_samples(), self.teacher.model.facts.preprocessing, self.team
            ):
                self._after_batch(batch.skipped)
                if not len(batch):
                    continue
                batch = batch.to(self.team.device)
                with self.team.autocast():
                    teacher_outputs = self.teacher(batch)
                yield teacher_outputs, batch.targets

        for _, method in self.distiller.each_method():
            if method.looks_ahead:
                method.look(outputs(), self.team)

    def _ends_epoch(self) -> bool:
        return self.step % self.steps_per_epoch == 0 or self.step == self.total_steps

    def _close_epoch(self, started: float) -> None:
        epoch = math.ceil(self.step / self.steps_per_epoch)
        is_last = self.step == self.total_steps
        if is_last or epoch % self.job.config.train.validate_every == 0:
            self._check_weights()  # a damaged student must not take the best one's place
            found, sums = self._evaluate(self.student, self.job.data.validation)
            metrics = {"epoch": epoch, "step": self.step} | found
            is_best = self._is_best(metrics)
            if is_best:
                self.best = metrics
                samples = sums.gather(self.team)
                if self.is_main:
                    self.run.write_student(self.student.save)
                    self.run.write_tensors("projector.safetensors", self.distiller.methods.state_dict())
                    self.run.write_samples("validation", samples)
            self._record("validation", metrics | {"best": float(is_best)})
            self.reporter.validated(metrics, best=is_best)
        if self.step and (is_last or epoch % self.spectra.every == 0):
            ranks = self.spectra.add(self.distiller, step=self.step)
            self.accelerator.log(ranks, step=self.step)
        self.closed = self.step
        self.seconds = time.perf_counter() - started

    def _is_best(self, metrics: dict[str, float]) -> bool:
        ranks = [rank_students(found, self.job.monitor) for found in (metrics, self.best) if found]
        if not ranks[0][0]:
            self.reporter.warned(
                f"The validation loss at step {self.step} is not a finite number: this student can't be the best."
            )
            return False
        return ranks[0] >= ranks[-1]

    def _evaluate(self, model: Model, source: ImageSource | TextSource) -> tuple[dict[str, float], KeptSums]:
        sums = KeptSums(self.job, source)
        return evaluate(self.job, model, source, self.team, self._after_batch, sums), sums

    def _after_batch(self, skipped: Iterable[str]) -> None:
        self._note_skipped(skipped)
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
            self.meter.waited += time.perf_counter() - before
            yield batch

    def _log(self) -> None:
        if not self.meter.steps:
            return
        self.watch.check()
        values = {
            "epoch": math.ceil(self.step / self.steps_per_epoch),
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
        } | self.meter.read(self.job.data.facts.noun)
        self.meter = Meter()
        self._record("train", values)
        self.reporter.logged(values)
        self._warn_of_collapse(values)

    def _warn_of_collapse(self, values: dict[str, float]) -> None:
        for name, norm in values.items():
            kind, _, tap = name.partition("/")
            if kind != "feature_norm":
                continue
            first = self.first_norms.setdefault(tap, norm)
            if tap in self.collapsed:
                continue
            if norm <= COLLAPSED * first:
                what = f"have shrunk to {norm:.2g}, from {first:.2g}"
            elif values[f"feature_std/{tap}"] <= COLLAPSED * norm:
                what = f"are all but the same for every sample (spread {values[f'feature_std/{tap}']:.2g}, norm {norm:.2g})"
            else:
                continue
            self.collapsed.add(tap)
            self.reporter.warned(
                f"The student's features {tap!r} {what} at step {self.step}. Lower --lr or the weight of the feature loss,"
                " or standardise the student's side (normalize_student: standardize)."
            )

    def _record(self, event: str, values: dict[str, float]) -> None:
        if self.is_main:
            self.run.add_metrics(event, values)
        logged = {f"{event}/{name}": value for name, value in values.items() if name != "step"}
        self.accelerator.log(logged, step=self.step)

    def _note_skipped(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.skipped:
                self.skipped[name] = None
                self.reporter.skipped(name)

    def _test(self) -> dict[str, float]:
        source, labelled = self.job.data.test, self.job.labelled
        if (source is None and labelled is None) or not self.job.config.test:
            return {}
        student = copy.deepcopy(self.distiller.student)
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
        self._record("test", {"epoch": self.best["epoch"], "step": self.best["step"], **test})
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
            self._check_weights()
            scaler = self.accelerator.scaler
            state = {
                "config": comparable(self.job.config),
                "step": self.step,
                "closed": self.closed,
                "best": self.best,
                "seconds": self.seconds,
                "skipped": list(self.skipped),
                "metrics_size": self.run.metrics_size(),
                "first_norms": self.first_norms,
                "meter": {"sums": dict(self.meter.sums), "steps": self.meter.steps, "images": self.meter.images},
                "spectra": {"steps": self.spectra.steps, "values": self.spectra.values},
                "student": dict(self.distiller.student.state_dict()),
                "methods": dict(self.distiller.methods.state_dict()),
                "balances": dict(self.distiller.balances.state_dict()),
                "ema": None if self.ema is None else dict(self.ema.module.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            self.checkpoints.save(
                self.step,
                state,
                best=self.run.student if self.best else None,
                beside=[self.run.path / name for name in OF_BEST],
            )
            self.reporter.saved(self.step)
        self.control.saved(self.step)

    def _check_weights(self) -> None:
        """Refuse to go on with weights that are not finite, those of an averaged student among them."""
        names = not_finite(self.distiller)
        if self.ema is not None:
            names += [f"student.{name}" for name in not_finite(self.ema.module)]
        if wrong := [name for name in names if name not in self.unbounded]:
            raise UserError(
                f"{len(wrong)} weights became NaN or infinite up to step {self.step}, {wrong[0]} for one.", AFTER_NAN
            )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where ``checkpoint`` was written: this object, and the run folder's files.

        Raises:
            UserError: the checkpoint is of another run or does not fit; it says what differs.
        """
        state, path = checkpoint.state, checkpoint.path
        refuse_differences(without_later_keys(state["config"], self.job.config), self.job.config, path)
        if state["step"] > self.total_steps:
            raise UserError(
                f"The run has already been trained for {state['step']} steps, and {self.job.config.train.epochs} epochs"
                f" are {self.total_steps}.",
                "Give more --epochs.",
            )
        restore_module(self.distiller.student, state["student"], what="student", path=path)
        restore_module(self.distiller.methods, state["methods"], what="projectors", path=path)
        restore_module(self.distiller.balances, state.get("balances", {}), what="balanced weights", path=path)
        if self.ema is not None:
            restore_module(self.ema.module, state["ema"], what="averaged student", path=path)
        self.optimizer.load_state_dict(state["optimizer"])
        _match_memory_formats(self.optimizer)
        self.step, self.closed = state["step"], state["closed"]
        self.control.saved(self.step)
        self.schedule.step_update(self.step // self.job.config.train.accumulation)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best, self.seconds, self.first_norms = state["best"], state["seconds"], state["first_norms"]
        self.skipped = dict.fromkeys(state["skipped"])
        self.spectra.restore(**state["spectra"])
        self.meter = Meter.restored(state["meter"], self.accelerator.device)
        if self.is_main:
            self.run.unfinish()
            self.checkpoints.remove_after(self.step)
            self.run.cut_metrics(state["metrics_size"])
            self.run.restore_best(checkpoint.best)

    def _gather_skipped(self) -> None:
        if not self.team.is_alone:
            self._note_skipped(self.team.gather(list(self.skipped)))


def _of_teacher(outputs: ModelOutput | None) -> dict[str, Tensor]:
    """Return what has to be finite of a teacher's outputs: features, and each sample's largest logit."""
    if outputs is None:
        return {}
    logits = {} if outputs.logits is None else {f"{TEACHERS}logits": outputs.logits.amax(dim=1)}
    return logits | {f"{TEACHERS}features {tap!r}": features for tap, features in outputs.features.items()}


def _match_memory_formats(optimizer: Optimizer) -> None:
    """Lay out restored moments as their parameters are, as the optimiser itself does."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@contextlib.contextmanager
def _hardware_errors(trainer: Trainer) -> Iterator[None]:
    """Turn a machine's limits into one message with what to do."""
    train = trainer.job.config.train
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error).strip()
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
            where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "the machine"
            processes = trainer.team.size
            half = max(train.batch_size // 2 // processes * processes, processes, 2)
            raise UserError(
                f"The memory of {where} ran out at step {trainer.step + 1} with a batch of {train.batch_size}.",
                f"--batch-size {half} --set train.accumulation={train.accumulation * train.batch_size // half} takes"
                " less memory for steps of as many images.",
            ) from error
        if text.startswith("DataLoader worker"):
            raise UserError(
                f"The system ended a process that loads data: {text.splitlines()[0]}",
                "Mostly memory ran out: use fewer (--set data.workers=1, or 0), or give a container more shared memory"
                " (--shm-size). A run that has a checkpoint goes on with --resume.",
            ) from error
        raise


def _place_teacher(job: Job, device: torch.device) -> LiveTeacher | None:
    if job.teacher is None:
        return None
    job.teacher.to(device)
    if job.config.train.channels_last:
        job.teacher.to(memory_format=torch.channels_last)
    return LiveTeacher(job.teacher, job.distiller.teacher_reads)
