"""The Accelerate loop: nothing here knows a task or a method."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim import Optimizer

from kdcli.analysis import singular_values
from kdcli.config import RunConfig, TrainConfig
from kdcli.data import Batch, ImageSource, prepare
from kdcli.distiller import Distiller
from kdcli.errors import UserError, did_you_mean
from kdcli.job import Job
from kdcli.models import load_saved
from kdcli.models.base import Model
from kdcli.run_folder import RunFolder
from kdcli.teacher import LiveTeacher

_LOG_EVERY = 50
"""Steps between two readings of the losses from the device."""
_SPECTRA = 200
"""Largest number of times that singular values are recorded in a run."""


class Reporter(Protocol):
    """What the trainer tells while it runs."""

    def started(self, total_steps: int) -> None:
        """Training begins."""

    def stepped(self, step: int) -> None:
        """One batch is done; called at every step, must not read the device."""

    def logged(self, values: dict[str, float]) -> None:
        """Mean losses since the last call, learning rate and images per second."""

    def validated(self, values: dict[str, float], *, best: bool) -> None:
        """Metrics on the validation split."""

    def skipped(self, name: str) -> None:
        """A file could not be read and was left out."""


@dataclass
class Result:
    """What a run came to.

    Attributes:
        validation: metrics of the best student on the validation split, with its ``epoch``.
        test: its metrics on the test split; empty when there is none.
        steps: batches.
        seconds: of training, validations included.
        skipped: distinct files that could not be read.
    """

    validation: dict[str, float]
    test: dict[str, float]
    steps: int
    seconds: float
    skipped: int


@dataclass
class _Meter:
    """Sums losses on the device; reads them only when asked."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    images: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, terms: dict[str, Tensor], images: int) -> None:
        for name, value in terms.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1
        self.images += images

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.since
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        return means | {"images_per_second": self.images / max(seconds, 1e-9)}


def resolve_precision(train: TrainConfig) -> str:
    """Return ``no``, ``fp16`` or ``bf16``: ``auto`` is bf16 where the GPU has it, fp16 on other GPUs, else ``no``."""
    if train.mixed_precision != "auto":
        return train.mixed_precision
    if train.device == "cpu" or not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def make_accelerator(train: TrainConfig, *, tracking: Path | None = None) -> Accelerator:
    """Return the Accelerator for the configured device, precision and trackers.

    Args:
        train: the configuration.
        tracking: where trackers that write files put them.

    Raises:
        UserError: when the device does not exist here, can't compute in the precision asked for, or a tracker is not
            installed.
    """
    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in train.track:
        if name not in available:
            package = "'kdcli[tracking]'" if name == "tensorboard" else name
            raise UserError(f"The tracker {name} is not installed.", f"pip install {package}")
    # Accelerate keeps its state in process-wide singletons; a second run in this process may differ from the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if train.device != "auto":
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(_check_device(train.device))
    precision = resolve_precision(train)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=train.device == "cpu",
            gradient_accumulation_steps=train.accumulation,
            log_with=list(train.track) or None,
            project_dir=tracking,
        )
        if accelerator.num_processes > 1:
            raise UserError(
                f"This version trains in one process, and {accelerator.num_processes} were started.",
                "Start it with kdcli alone, not through accelerate launch or torchrun.",
            )
        if precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would compute in float32
            raise ValueError("the CPU does not train in fp16.")
        return accelerator
    except ValueError as error:
        raise UserError(
            f"--mixed-precision {precision} does not work here: {error}", "Use --mixed-precision no."
        ) from None


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first GPU, else the CPU.

    Raises:
        UserError: when it does not exist here.
    """
    return Accelerator().device if name == "auto" else _check_device(name)


def _check_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The device {name!r} can't be used here: {reason}", "Use --device cpu, cuda or cuda:N."
        ) from None
    return device


def train(job: Job, run: RunFolder, accelerator: Accelerator, reporter: Reporter) -> Result:
    """Train ``job``'s distiller; leave the best student by validation, the projectors and all records in ``run``."""
    config = job.config
    device = accelerator.device
    torch.manual_seed(config.seed)

    distiller = job.distiller
    teacher = _place_teacher(job, device)
    if config.train.channels_last:
        distiller.student.to(memory_format=torch.channels_last)
    if config.train.compile:
        distiller.student.compile()
    distiller.to(device)
    loader, mix = job.train_loader(), job.mix()
    total_steps = config.train.epochs * loader.batches_per_epoch
    updates = total_steps // config.train.accumulation
    if updates == 0:
        raise UserError(
            f"{total_steps} batches in all are fewer than train.accumulation {config.train.accumulation}.",
            "Train for more epochs, or accumulate less.",
        )
    optimizer = make_optimizer(distiller, config)
    schedule = make_schedule(optimizer, config, updates)
    ema = ModelEmaV3(distiller.student, decay=config.train.ema, use_warmup=True) if config.train.ema else None
    wrapped, wrapped_optimizer = accelerator.prepare(distiller, optimizer)

    skipped: set[str] = set()

    def skip(names: Iterable[str]) -> None:
        for name in names:
            if name not in skipped:
                skipped.add(name)
                reporter.skipped(name)

    def record(event: str, values: dict[str, float]) -> None:
        run.add_metrics(event, values)
        accelerator.log({f"{event}/{name}": value for name, value in values.items() if name != "step"}, step=step)

    def validate(epoch: int, step: int) -> dict[str, float]:
        student = distiller.student if ema is None else ema.module
        return {"epoch": epoch, "step": step} | evaluate(job, student, job.data.validation, accelerator, skip)

    best: dict[str, float] = {}
    spectra = _SpectraRecord(run, every=math.ceil(config.train.epochs / _SPECTRA))
    spectra.add(distiller, step=0)
    step = update = 0
    start = time.perf_counter()
    accelerator.init_trackers("kdcli")
    reporter.started(total_steps)
    for epoch in range(config.train.epochs):
        distiller.train()
        meter = _Meter()
        for batch in loader.epoch(epoch):
            skip(batch.skipped)
            batch = mix(batch.to(device), epoch, step)
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    teacher_outputs = None if teacher is None else teacher(batch)
                terms = wrapped(batch, teacher_outputs)
                accelerator.backward(terms["loss"])
                if accelerator.sync_gradients and config.optim.clip_grad is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), config.optim.clip_grad)
                wrapped_optimizer.step()
                wrapped_optimizer.zero_grad()
                if accelerator.sync_gradients:
                    update += 1
                    schedule.step_update(min(update, updates))
                    if ema is not None:
                        ema.update(distiller.student, step=update)
            step += 1
            meter.add(terms, len(batch))
            reporter.stepped(step)
            if step % _LOG_EVERY == 0:
                reporter.logged(_log(record, meter, optimizer, epoch=epoch + 1, step=step))
                meter = _Meter()
        if meter.steps:
            reporter.logged(_log(record, meter, optimizer, epoch=epoch + 1, step=step))
        last = epoch + 1 == config.train.epochs
        if last or (epoch + 1) % config.train.validate_every == 0:
            metrics = validate(epoch + 1, step)
            is_best = not best or _rank(job, metrics) >= _rank(job, best)
            if is_best:
                best = metrics
                student = distiller.student if ema is None else ema.module
                run.write_student(student.save)
                run.write_tensors("projector.safetensors", distiller.methods.state_dict())
            record("validation", metrics | {"best": float(is_best)})
            reporter.validated(metrics, best=is_best)
        if last or (epoch + 1) % spectra.every == 0:
            spectra.add(distiller, step=step)
    seconds = time.perf_counter() - start

    test: dict[str, float] = {}
    if job.data.test is not None:
        test = evaluate(job, load_saved(run.student).to(device), job.data.test, accelerator, skip)
        record("test", {"epoch": best["epoch"], "step": best["step"], **test})
    accelerator.end_training()
    return Result(best, test, step, seconds, len(skipped))


def evaluate(
    job: Job,
    model: Model,
    source: ImageSource,
    accelerator: Accelerator,
    skip: Callable[[Iterable[str]], None] = lambda names: None,
) -> dict[str, float]:
    """Return the task's metrics of ``model`` on ``source``; the model is left in the mode it was in.

    ``skip`` is told the files that can't be read.
    """
    was_training = model.training
    model.eval()

    def predict(images: Tensor) -> Tensor:
        with accelerator.autocast():
            logits = model(prepare(images, model.facts.preprocessing)).logits
        assert logits is not None
        return logits

    def batches() -> Iterator[Batch]:
        for batch in job.eval_loader(source, model.facts.preprocessing):
            skip(batch.skipped)
            yield batch

    metrics = job.task.evaluate(predict, batches(), accelerator.device)
    model.train(was_training)
    return metrics


def make_optimizer(distiller: Distiller, config: RunConfig) -> Optimizer:
    """Return timm's optimiser with every orthogonal projector's retraction attached.

    Raises:
        UserError: for a name that timm doesn't have, or one that needs more than gradients.
    """
    optim = config.optim
    valid = [str(name) for name in list_optimizers()]
    if optim.optimizer.lower().removeprefix("lookahead_") not in valid:
        raise UserError(
            f"There is no optimiser {optim.optimizer!r}. {did_you_mean(optim.optimizer, valid)}".rstrip(),
            "Any name of timm.optim.list_optimizers() works, such as adamw, sgd or lamb.",
        )
    groups = distiller.parameter_groups(lr=optim.lr, weight_decay=optim.weight_decay)
    try:
        optimizer = create_optimizer_v2(
            groups, opt=optim.optimizer, lr=optim.lr, weight_decay=optim.weight_decay, momentum=optim.momentum
        )
    except (ImportError, AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The optimiser {optim.optimizer!r} can't be used: {error}", "Use adamw, sgd or lamb."
        ) from None
    if getattr(optimizer, "is_second_order", False):
        raise UserError(f"The optimiser {optim.optimizer!r} needs second derivatives.", "Use adamw, sgd or lamb.")
    distiller.attach(optimizer)
    return optimizer


def make_schedule(optimizer: Optimizer, config: RunConfig, updates: int) -> Any:
    """Return timm's schedule over ``updates`` optimiser steps, warm-up included."""
    optim = config.optim
    choices: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("cosine", {}),
        "linear": ("poly", {"decay_rate": 1.0}),
        "step": ("step", {"decay_rate": 0.1, "decay_epochs": math.ceil(updates / 3)}),
        "constant": ("step", {"decay_rate": 1.0}),
    }
    name, extra = choices[optim.schedule]
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=updates,
        updates_per_epoch=1,
        step_on_epochs=False,
        warmup_epochs=round(optim.warmup * updates),
        warmup_lr=optim.lr * optim.min_lr_ratio,
        min_lr=optim.lr * optim.min_lr_ratio,
        **extra,
    )
    schedule.step_update(0)
    return schedule


class _SpectraRecord:
    """Singular values of every projector over training, kept in ``spectra.safetensors``."""

    def __init__(self, run: RunFolder, *, every: int) -> None:
        self.run = run
        self.every = every
        self.steps: list[int] = []
        self.values: dict[str, list[Tensor]] = {}

    def add(self, distiller: Distiller, *, step: int) -> None:
        """Record now; does nothing without a projector that is a matrix."""
        matrices = distiller.projector_matrices()
        if not matrices:
            return
        self.steps.append(step)
        for name, matrix in matrices.items():
            self.values.setdefault(name, []).append(singular_values(matrix).float())
        stacked = {name: torch.stack(values) for name, values in self.values.items()}
        self.run.write_tensors("spectra.safetensors", {"steps": torch.tensor(self.steps), **stacked})


def _place_teacher(job: Job, device: torch.device) -> LiveTeacher | None:
    if job.teacher is None:
        return None
    job.teacher.to(device)
    if job.config.train.channels_last:
        job.teacher.to(memory_format=torch.channels_last)
    return LiveTeacher(job.teacher, taps=job.distiller.teacher_taps, logits=job.distiller.teacher_logits)


def _log(
    record: Callable[[str, dict[str, float]], None], meter: _Meter, optimizer: Optimizer, *, epoch: int, step: int
) -> dict[str, float]:
    """Read the meter, record its means and return them.

    Raises:
        UserError: when one of them is not finite.
    """
    values = {"epoch": epoch, "step": step, "lr": optimizer.param_groups[0]["lr"]} | meter.read()
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"The loss term {name!r} became {value} in the {meter.steps} steps up to step {step}.",
                "Lower --lr, or use --mixed-precision no; the best student so far is kept in the run folder.",
            )
    record("train", values)
    return values


def _rank(job: Job, metrics: dict[str, float]) -> tuple[float, float]:
    return metrics[job.task.monitor], -metrics["loss"]
