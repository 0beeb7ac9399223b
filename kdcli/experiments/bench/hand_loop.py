"""The loop that one would write by hand for the same models: what kdcli's step is compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.data import AnyBatch
from kdcli.models.base import Inputs, Model
from kdcli.training.job import Job

WORDS = (
    "plain models in eager mode, teacher in eval mode and without gradient, cross-entropy, a linear projector with the"
    " mean squared error of the features, torch's AdamW, and inputs that are ready and normalised"
)


class HandLoop:
    """One forward pass of each model, two losses, backward, a step of AdamW; the models are copies.

    Args:
        job: whose models are copied as they are before anything is done to make them faster.
        device: of the training.
        autocast: makes the context of its precision.

    Raises:
        ValueError: no such loop can be written for this job in general; it says why.
    """

    def __init__(self, job: Job, device: torch.device, autocast: Callable[[], Any]) -> None:
        if job.data.facts.label_kind != "class" or job.pieces is not None:
            raise ValueError(f"{job.config.task} has a loss and batches of its own")
        if len(job.distiller.adversaries()) or not job.trains_classifier:
            raise ValueError("the methods of this run do more than add a loss to that of the labels")
        self._device, self._autocast = device, autocast
        self._student_model = copy.deepcopy(job.student)
        self._teacher_model = copy.deepcopy(job.teacher)
        self._student = _Read(self._student_model, [pair.student for m in job.plan.methods for pair in m.pairs], device)
        self._teacher = None
        if self._teacher_model is not None:
            taps = [pair.teacher for m in job.plan.methods for pair in m.pairs]
            self._teacher = _Read(self._teacher_model.eval().requires_grad_(False), taps, device)
        self._projector: nn.Linear | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._lr = job.config.optim.lr

    def inputs(self, batch: AnyBatch) -> tuple[Inputs | None, Inputs, Tensor]:
        """Return what both models take, ready in memory, and the targets; a data loader would have made it."""
        batch = batch.to(self._device)
        teacher = None if self._teacher_model is None else self._teacher_model.prepare(batch)
        return teacher, self._student_model.prepare(batch), batch.targets

    def step(self, ready: tuple[Inputs | None, Inputs, Tensor]) -> None:
        """Train on a batch."""
        theirs, inputs, targets = ready
        with self._autocast():
            known = None
            if self._teacher is not None and theirs is not None:
                with torch.no_grad():
                    _, known = self._teacher(theirs)
            logits, features = self._student(inputs)
            loss = F.cross_entropy(logits.float(), targets)
            if known is not None:
                if self._projector is None:
                    self._projector = nn.Linear(features.shape[1], known.shape[1]).to(self._device)
                loss = loss + F.mse_loss(self._projector(features).float(), known.float())
        if self._optimizer is None:
            trained = [
                *self._student.module.parameters(),
                *([] if self._projector is None else self._projector.parameters()),
            ]
            self._optimizer = torch.optim.AdamW(trained, lr=self._lr)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


class _Read(nn.Module):
    """A library's own model with a hook on a layer: its logits (B, C) and the features (B, d) of the layer."""

    def __init__(self, model: Model, taps: Sequence[str], device: torch.device) -> None:
        super().__init__()
        self.module: nn.Module = model.native.to(device)
        self._features: Tensor | None = None
        named = dict(self.module.named_modules())
        layer = next((named[tap] for tap in taps if tap in named), None)
        if layer is not None:
            layer.register_forward_hook(lambda _, inputs, output: self._keep(output))
            return
        heads = [
            module
            for module in named.values()
            if isinstance(module, nn.Linear) and module.out_features == model.facts.num_classes
        ]
        if heads:  # the classifier's input
            heads[-1].register_forward_pre_hook(lambda _, inputs: self._keep(inputs[0]))

    def _keep(self, found: Any) -> None:
        tensor = found if isinstance(found, Tensor) else found[0]
        places = {4: (2, 3), 3: (1,)}.get(tensor.ndim)
        self._features = tensor if places is None else tensor.mean(dim=places)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return logits, and the features; the logits themselves where no layer could be told."""
        output = self.module(**inputs) if isinstance(inputs, dict) else self.module(inputs)
        logits = getattr(output, "logits", output)
        logits = logits[0] if isinstance(logits, tuple) else logits
        features, self._features = self._features, None
        return logits, logits if features is None else features


def make_hand_loop(
    job: Job, device: torch.device, autocast: Callable[[], Any], batch: AnyBatch
) -> tuple[HandLoop | None, str]:
    """Return the loop once it has run on ``batch``, or None with the reason why there is none."""
    try:
        loop = HandLoop(job, device, autocast)
        loop.step(loop.inputs(batch))
    except ValueError as error:
        return None, f"{error}."
    except (TypeError, RuntimeError, AttributeError, KeyError) as error:  # a model that is called otherwise
        return None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return loop, ""
