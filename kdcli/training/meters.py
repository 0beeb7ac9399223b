"""What training watches: means of losses, numbers that are not finite, spectra."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.models.outputs import ModelOutput
from kdcli.projectors.spectra import rank_evolution, singular_values
from kdcli.runs.folder import RunFolder
from kdcli.training.phases import Objective

SPECTRA = 200
"""Largest number of times that singular values are recorded in a run."""


COLLAPSED = 1e-3
"""A feature's spread over the batch, relative to its size, below which it is all but constant."""


AFTER_NAN = (
    "Lower --lr, clip gradients harder (optim.clip_grad), or use --mixed-precision no. Checkpoints and a best student"
    " from before are kept."
)


@dataclass
class Meter:
    """Sums losses on the device; reads them only when asked. Every process has the losses of the whole batch.

    Attributes:
        names: of the terms so far.
        values: their sums, float32, in one vector, so that a step adds to it once.
        steps: how many were added.
        images: samples of those.
        waited: seconds spent waiting for batches.
        since: when the first was.
    """

    names: tuple[str, ...] = ()
    values: Tensor | None = None
    steps: int = 0
    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    @classmethod
    def restored(cls, saved: dict[str, Any], device: torch.device) -> Meter:
        """Return a meter as a checkpoint has it."""
        sums = {name: value.to(device) for name, value in saved["sums"].items()}
        return cls(tuple(sums), torch.stack([*sums.values()]) if sums else None, saved["steps"], saved["images"])

    @property
    def sums(self) -> dict[str, Tensor]:
        """The sum of every term."""
        return {} if self.values is None else dict(zip(self.names, self.values.clone().unbind(), strict=True))

    def add(self, terms: dict[str, Tensor], images: int) -> None:
        """Add a step's losses, scalars, and how many samples it had."""
        names = tuple(dict.fromkeys((*self.names, *terms)))
        if tuple(terms) == names:
            found = torch.stack([value.detach().float() for value in terms.values()])
        else:  # a term that others don't come with
            zero = torch.zeros((), device=next(iter(terms.values())).device)
            found = torch.stack([terms.get(name, zero).detach().float() for name in names])
        if self.values is not None:
            missing = len(names) - len(self.names)
            found = (F.pad(self.values, (0, missing)) if missing else self.values) + found
        self.names, self.values = names, found
        self.steps += 1
        self.images += images

    def read(self, noun: str) -> dict[str, float]:
        """Return the means of the losses over the steps, and samples a second."""
        seconds = max(time.perf_counter() - self.since, 1e-9)
        sums = [] if self.values is None else self.values.tolist()
        means = {name: value / self.steps for name, value in zip(self.names, sums, strict=True)}
        return means | {f"{noun}s_per_second": self.images / seconds, "data_wait": min(self.waited / seconds, 1.0)}


class LossWatch:
    """Notices a loss term that is not finite, without making an accelerator wait."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, list[str], Tensor, Any]] = deque()

    def add(self, terms: dict[str, Tensor], step: int) -> None:
        """Look at the terms of ``step``; those of an accelerator a little later, once they have been computed."""
        scalars = [name for name, value in terms.items() if not value.ndim]
        others = [name for name in terms if name not in scalars]
        parts = [terms[name].detach().isfinite().all()[None] for name in others]
        if scalars:
            parts.append(torch.stack([terms[name].detach().float() for name in scalars]).isfinite())
        wrong = ~torch.cat(parts)
        event = None
        if wrong.is_cuda:
            # Into pinned memory: a copy into other memory is waited for.
            wrong = torch.empty(wrong.shape, dtype=wrong.dtype, pin_memory=True).copy_(wrong, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, [*others, *scalars], wrong, event))
        while self._pending and (self._pending[0][3] is None or self._pending[0][3].query()):
            self._look()

    def check(self) -> None:
        """Look at everything so far, and wait for it."""
        while self._pending:
            if self._pending[0][3] is not None:
                self._pending[0][3].synchronize()
            self._look()

    def _look(self) -> None:
        step, names, wrong, _ = self._pending.popleft()
        if not bool(wrong.any()):
            return
        bad = [name for name, is_wrong in zip(names, wrong.tolist(), strict=True) if is_wrong]
        if bad[0].startswith(TEACHERS):
            raise UserError(
                f"{bad[0]} are NaN or infinite at step {step}.",
                "Check its weights, or use --mixed-precision no. It may mask classes by -inf, but not all of them.",
            )
        raise UserError(f"The loss term {bad[0]!r} became NaN or infinite at step {step}.", AFTER_NAN)


TEACHERS = "The teacher's "


def of_teacher(outputs: ModelOutput | None) -> dict[str, Tensor]:
    """Return what has to be finite of a teacher's outputs: features, and each sample's largest logit."""
    if outputs is None:
        return {}
    logits = {} if outputs.logits is None else {f"{TEACHERS}logits": outputs.logits.amax(dim=1)}
    return logits | {f"{TEACHERS}features {tap!r}": features for tap, features in outputs.features.items()}


class CollapseWatch:
    """Notices features of the student's that shrink to nothing, or to the same for every sample.

    Attributes:
        first_norms: of every feature, when it was first seen.
    """

    def __init__(self) -> None:
        self.first_norms: dict[str, float] = {}
        self._warned: set[str] = set()

    def warnings(self, values: Mapping[str, float], step: int) -> list[str]:
        """Return what to warn of, each feature once.

        Args:
            values: ``feature_norm/NAME`` and ``feature_std/NAME``, among others.
            step: at which they were read.
        """
        found = []
        for name, norm in values.items():
            kind, _, tap = name.partition("/")
            if kind != "feature_norm":
                continue
            first = self.first_norms.setdefault(tap, norm)
            if tap in self._warned:
                continue
            std = values[f"feature_std/{tap}"]
            if norm <= COLLAPSED * first:
                what = f"have shrunk to {norm:.2g}, from {first:.2g}"
            elif std <= COLLAPSED * norm:
                what = f"are all but the same for every sample (spread {std:.2g}, norm {norm:.2g})"
            else:
                continue
            self._warned.add(tap)
            if "/" in tap:  # what a method with an adversary watches, of either phase
                found.append(f"{tap!r} {what} at step {step}. Lower optim.lr or adversary_lr, or choose other steps.")
                continue
            found.append(
                f"The student's features {tap!r} {what} at step {step}. Lower --lr or the weight of the feature loss,"
                " or standardise the student's side (normalize_student: standardize)."
            )
        return found


class SpectraRecord:
    """Singular values of every projector over training, kept in ``spectra.safetensors``.

    Args:
        run: where; None in a process that does not write.
        every: epochs between two records.
    """

    def __init__(self, run: RunFolder | None, *, every: int) -> None:
        self.run = run
        self.every = every
        self.steps: list[int] = []
        self.values: dict[str, list[Tensor]] = {}

    def add(self, objective: Objective, *, step: int) -> dict[str, float]:
        """Record now and return the ranks by name; does nothing without a projector that is a matrix."""
        matrices = objective.projector_matrices()
        if not matrices or self.run is None:
            return {}
        self.steps.append(step)
        ranks: dict[str, float] = {}
        for name, matrix in matrices.items():
            spectrum = singular_values(matrix).float()
            self.values.setdefault(name, []).append(spectrum)
            ranks |= {f"{name}/{kind}_rank": values[0] for kind, values in rank_evolution([spectrum]).items()}
        self._write()
        return ranks

    def restore(self, steps: list[int], values: dict[str, list[Tensor]]) -> None:
        """Go back to what was recorded up to a checkpoint."""
        self.steps, self.values = steps, values
        if self.values and self.run is not None:
            self._write()

    def _write(self) -> None:
        assert self.run is not None
        stacked = {name: torch.stack(values) for name, values in self.values.items()}
        self.run.write_tensors("spectra.safetensors", {"steps": torch.tensor(self.steps), **stacked})


def not_finite(module: torch.nn.Module) -> list[str]:
    """Return the names of the weights and buffers that hold NaN or infinity."""
    return [name for name, value in module.state_dict().items() if not bool(value.isfinite().all())]
