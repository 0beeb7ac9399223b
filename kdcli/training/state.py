"""All that training changes, as checkpoints hold it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from kdcli.base.errors import UserError
from kdcli.models.base import Model
from kdcli.runs.checkpoint import restore_module
from kdcli.training.average import WeightAverage
from kdcli.training.meters import AFTER_NAN, CollapseWatch, Meter, SpectraRecord, not_finite
from kdcli.training.phases import Objective, Phases


@dataclass
class TrainingState:
    """Where training stands.

    Attributes:
        objective: all trained tensors.
        phases: the optimisers.
        ema: the averaged student; None where it is not averaged.
        spectra: of the projectors so far.
        accelerator: has the gradient scaler.
        meter: the losses since the last reading.
        collapse: what features were at first.
        step: batches that are trained on and accounted for.
        closed_step: up to where ends of epochs are validated and recorded.
        best: metrics of the best student so far; empty before the first.
        seconds: spent on training.
        skipped: names of files that could not be read, in order.
    """

    objective: Objective
    phases: Phases
    ema: WeightAverage | None
    spectra: SpectraRecord
    accelerator: Accelerator
    meter: Meter = field(default_factory=Meter)
    collapse: CollapseWatch = field(default_factory=CollapseWatch)
    step: int = 0
    closed_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Buffers that hold infinity as the model means it, such as the bounds of a clipping.
        self._infinite_by_design = not_finite(self.objective)

    @property
    def student(self) -> Model:
        """The student as it stands: with averaged weights, where they are averaged."""
        return self.objective.student if self.ema is None else self.ema.module

    def check_weights(self) -> None:
        """Refuse weights that are not finite, those of an averaged student among them.

        Raises:
            UserError: there are any.
        """
        names = not_finite(self.objective)
        if self.ema is not None:
            names += [f"student.{name}" for name in not_finite(self.ema.module)]
        if wrong := [name for name in names if name not in self._infinite_by_design]:
            raise UserError(
                f"{len(wrong)} weights became NaN or infinite up to step {self.step}, {wrong[0]} for one.", AFTER_NAN
            )

    def to_checkpoint(self) -> dict[str, Any]:
        """Return all of it as :meth:`~kdcli.runs.checkpoint.Checkpoints.save` takes it."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "closed": self.closed_step,
            "best": self.best,
            "seconds": self.seconds,
            "skipped": list(self.skipped),
            "first_norms": self.collapse.first_norms,
            "meter": {"sums": dict(self.meter.sums), "steps": self.meter.steps, "images": self.meter.images},
            "spectra": {"steps": self.spectra.steps, "values": self.spectra.values},
            **{name: dict(part.module.state_dict()) for name, part in self.objective.parts().items()},
            "ema": None if self.ema is None else dict(self.ema.module.state_dict()),
            "optimizers": self.phases.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def restore(self, saved: dict[str, Any], path: Path) -> None:
        """Go back to where :meth:`to_checkpoint` was taken.

        Args:
            saved: what it returned.
            path: of the checkpoint, for messages.

        Raises:
            UserError: names or shapes of tensors differ.
        """
        for name, part in self.objective.parts().items():
            restore_module(part.module, saved.get(name, {}), what=part.words, path=path)
        if self.ema is not None:
            restore_module(self.ema.module, saved["ema"], what="averaged student", path=path)
        self.step, self.closed_step = saved["step"], saved["closed"]
        # An earlier version had one optimiser.
        optimizers = saved.get("optimizers") or dict.fromkeys(self.phases.names, saved["optimizer"])
        self.phases.load_state_dict(optimizers, step=self.step)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.best, self.seconds = saved["best"], saved["seconds"]
        self.skipped = dict.fromkeys(saved["skipped"])
        self.collapse.first_norms = saved["first_norms"]
        self.spectra.restore(**saved["spectra"])
        self.meter = Meter.restored(saved["meter"], self.accelerator.device)
