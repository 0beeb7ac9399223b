"""What training steps: an objective, and its phases, each with parameters, optimiser and schedule of its own."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.run import RunConfig
from kdcli.data import AnyBatch
from kdcli.machine.team import Team
from kdcli.models.base import Model
from kdcli.models.outputs import ModelOutput


@dataclass(frozen=True)
class Phase:
    """A part of an objective that has an optimiser of its own: all of it, or the generator of a GAN.

    Attributes:
        name: unique in the objective.
        optimizer: of its parameters, which no other phase has.
        schedule: timm's; its ``step_update`` is called with the number of optimiser steps so far.
        steps: optimiser steps a batch.
        leads: whether its learning rate is the run's in records; by default the first phase's is.
    """

    name: str
    optimizer: Optimizer
    schedule: Any
    steps: int = 1
    leads: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser changes."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


class Part(NamedTuple):
    """Some of an objective's tensors, as a checkpoint holds them.

    Attributes:
        module: which has them.
        words: for what they are in messages: "the run's ...".
    """

    module: nn.Module
    words: str


class Objective(nn.Module, ABC):
    """All that a run trains, and its losses.

    Attributes:
        student: what is kept of it, by validation.
        step: batches before the one that is trained on; set by the trainer.
        turn: which of a phase's steps on the batch this is, from 0; set by :class:`Phases`.
    """

    student: Model
    step: int
    turn: int = 0

    @abstractmethod
    def phases(self, config: RunConfig, updates: int) -> Sequence[Phase]:
        """Return its phases, in the order in which they are stepped for each batch.

        Args:
            config: of the run; its ``optim`` is of the student's phase.
            updates: optimiser steps of the whole run, for the schedules.
        """

    @property
    def teacher_reads(self) -> Reads:
        """What it reads of the teacher; nothing by default."""
        return Reads()

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """Return the modules whose tensors a checkpoint holds, by their names in it."""

    @abstractmethod
    def forward(self, batch: AnyBatch, teacher_outputs: ModelOutput | None, *, phase: str) -> dict[str, Tensor]:
        """Return what ``phase`` minimises as ``loss``, and whatever else is to be recorded, all of them scalars.

        Args:
            batch: of this process.
            teacher_outputs: what the objective reads of the teacher, without gradient; None without a teacher.
            phase: the name of one of :meth:`phases`; the other phases' parameters get no gradient.
        """

    def look_ahead(self, outputs: Callable[[], Iterable[tuple[ModelOutput, Tensor]]], team: Team) -> None:
        """Take from the teacher what the whole training set tells, before the first step; nothing by default.

        Args:
            outputs: starts a pass: what is read of the teacher, with the targets, for every labelled training sample
                without augmentation; of several processes each gets its share.
            team: the processes.
        """

    def kept_tensors(self) -> dict[str, Tensor]:
        """Return what is kept beside the best student, by name; nothing by default."""
        return {}

    def embedding_projector(self) -> nn.Module | None:
        """Return what maps the student's pooled features into the space of the teacher's; None by default."""
        return None

    def projector_matrices(self) -> Mapping[str, Tensor]:
        """Return the matrices whose spectra are recorded, by name; none by default."""
        return {}


class Phases:
    """Steps an objective's phases.

    Args:
        objective: on its device.
        config: of the run.
        updates: optimiser steps of the whole run.
        accelerator: precision, processes, accumulation.

    Raises:
        UserError: gradients can't be accumulated for these phases.
    """

    def __init__(self, objective: Objective, config: RunConfig, updates: int, accelerator: Accelerator) -> None:
        self._accelerator, self._clip = accelerator, config.optim.clip_grad
        self._objective = objective
        self._accumulation = config.train.accumulation
        self._phases = objective.phases(config, updates)
        self._wrapped, *self._optimizers = accelerator.prepare(objective, *(phase.optimizer for phase in self._phases))
        names = self.names
        owners = [{id(parameter) for parameter in phase.parameters} for phase in self._phases]
        if len(set(names)) < len(names) or len(set().union(*owners)) < sum(map(len, owners)):
            raise ValueError(f"phases have names and parameters of their own: {', '.join(names)}")
        # In the objective's order, which the sum in a gradient's norm depends on.
        self._parameters = [[p for p in self._wrapped.parameters() if id(p) in owned] for owned in owners]
        if self._accumulation > 1 and any(phase.steps > 1 for phase in self._phases):
            raise UserError(
                "Gradients can't be accumulated: a part of the model takes several steps a batch.",
                "Drop train.accumulation.",
            )
        # After the step of one phase the scale is another, and gradients of the others still have the old one.
        if self._accumulation > 1 and len(self._phases) > 1 and accelerator.scaler is not None:
            raise UserError(
                "Gradients of several optimisers can't be accumulated in float16.",
                "Drop train.accumulation, or use --mixed-precision bf16.",
            )

    def step(self, batch: AnyBatch, teacher_outputs: ModelOutput | None, step: int) -> dict[str, Tensor]:
        """Train every phase on a batch, and return its terms.

        Of several phases ``loss`` is the sum of theirs, and ``loss/NAME`` each of them; of several steps the last one's
        terms are returned.

        Args:
            batch: of this process.
            teacher_outputs: what the objective reads of the teacher.
            step: batches before this one.
        """
        accelerator = self._accelerator
        accelerator.step = step  # Accelerate counts for its accumulation; here too a resumed run goes on
        terms: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        with accelerator.accumulate(self._wrapped):
            for phase, optimizer, parameters in zip(self._phases, self._optimizers, self._parameters, strict=True):
                with self._others_frozen(phase):
                    for self._objective.turn in range(phase.steps):
                        found = self._wrapped(batch, teacher_outputs, phase=phase.name)
                        accelerator.backward(found["loss"])
                        if accelerator.sync_gradients and self._clip is not None:
                            accelerator.clip_grad_norm_(parameters, self._clip)
                        optimizer.step()
                        optimizer.zero_grad()
                losses[f"loss/{phase.name}"] = found["loss"].detach()
                terms |= found
            if accelerator.sync_gradients:
                self.go_to(step + 1)
        return terms if len(losses) == 1 else terms | losses | {"loss": torch.stack([*losses.values()]).sum()}

    @contextlib.contextmanager
    def _others_frozen(self, phase: Phase) -> Iterator[None]:
        others = [p for other in self._phases if other is not phase for p in other.parameters if p.requires_grad]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    @property
    def names(self) -> list[str]:
        """The phases' names, in order."""
        return [phase.name for phase in self._phases]

    def updates(self, step: int) -> int:
        """Return the optimiser steps of the first ``step`` batches."""
        return step // self._accumulation

    def go_to(self, step: int) -> None:
        """Set the learning rates to those after ``step`` batches."""
        for phase in self._phases:
            phase.schedule.step_update(self.updates(step))

    def set_rate(self, rate: float) -> None:
        """Set the next step's learning rate in every phase, whatever the schedules say; ``lr_scale`` is kept."""
        for phase in self._phases:
            for group in phase.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)

    def rates(self) -> dict[str, float]:
        """Return the learning rate as ``lr``; of several phases that of the leading one, and all as ``lr/NAME``."""
        rates = {f"lr/{phase.name}": phase.optimizer.param_groups[0]["lr"] for phase in self._phases}
        leading = next((phase for phase in self._phases if phase.leads), self._phases[0])
        first = {"lr": rates[f"lr/{leading.name}"]}
        return first if len(rates) == 1 else first | rates

    def state_dict(self) -> dict[str, Any]:
        """Return the optimisers' states by phase."""
        return {phase.name: phase.optimizer.state_dict() for phase in self._phases}

    def load_state_dict(self, saved: Mapping[str, Any], *, step: int) -> None:
        """Go back to where :meth:`state_dict` was taken, after ``step`` batches."""
        for phase in self._phases:
            phase.optimizer.load_state_dict(saved[phase.name])
            _match_memory_formats(phase.optimizer)
        self.go_to(step)


def _match_memory_formats(optimizer: Optimizer) -> None:
    """Lay out restored moments as their parameters are, as the optimiser itself does."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
