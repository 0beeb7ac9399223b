"""How a frozen teacher is run: as it is, or prepared for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcli.base.reads import Reads
from kdcli.config.run import RunConfig
from kdcli.config.training import TeacherForward
from kdcli.models.base import Inputs, Model, freeze, to_device
from kdcli.models.fold import find_foldable, fold
from kdcli.models.outputs import ModelOutput


@dataclass(frozen=True)
class Form:
    """How a teacher is run.

    Attributes:
        folded: its batch normalisations are folded into the convolutions before them.
        channels_last: its images and its weights lie in memory channel by channel of each position.
        precision: of weights and computing; None for that of the training.
    """

    folded: bool = False
    channels_last: bool = False
    precision: torch.dtype | None = None

    @property
    def name(self) -> TeacherForward:
        """Its value in the config, but for the precision."""
        if self.folded:
            return "folded_channels_last" if self.channels_last else "folded"
        return "channels_last" if self.channels_last else "plain"

    def run(self, model: Model, inputs: Inputs, reads: Reads) -> ModelOutput:
        """Run a model in this form, without gradient; the outputs are float32 where the precision is its own.

        Args:
            model: of :func:`in_form`.
            inputs: of the model in its usual form.
            reads: what to return.
        """
        device = next(model.parameters()).device.type
        if self.channels_last:
            inputs = _map(inputs, lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)
        if self.precision is not None:
            precision = self.precision
            inputs = _map(inputs, lambda x: x.to(precision) if x.is_floating_point() else x)
        # Not inference mode, whose tensors no backward pass may save.
        with torch.no_grad(), nullcontext() if self.precision is None else torch.autocast(device, enabled=False):
            output = model(inputs, reads)
        if self.precision in (None, torch.float32):
            return output
        return output.map(lambda value: value.float() if value.is_floating_point() else value)


def form_of(config: RunConfig) -> Form:
    """Return the form that a run's config says; what it leaves open, in a run of an earlier version, is as it was."""
    name = config.train.teacher_forward
    if name is None:
        name = "channels_last" if config.train.channels_last else "plain"
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return Form(
        folded=name.startswith("folded"),
        channels_last=name.endswith("channels_last"),
        precision=named.get(config.teacher.precision or ""),
    )


def has_forms(config: RunConfig) -> bool:
    """Whether the teacher can be copied in another form: it is neither in shares nor quantised."""
    return not config.teacher.sharded and config.teacher.quantization is None


def in_form(teacher: Model, form: Form, reads: Reads) -> Model:
    """Return the teacher as ``form`` says: a copy, or itself where nothing about it changes.

    Args:
        teacher: frozen, in eval mode, on its device.
        form: how it is to be run.
        reads: what will be read of it.
    """
    if form in (Form(), Form(precision=torch.float32)):
        return teacher
    model = teacher
    if form.folded:
        example = to_device(teacher.example(), next(teacher.parameters()).device)
        model = fold(teacher, find_foldable(teacher, example, reads))
    model = freeze(copy.deepcopy(teacher)) if model is teacher else model
    if form.precision == torch.bfloat16:
        model = model.to(form.precision)
    return model.to(memory_format=torch.channels_last) if form.channels_last else model


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(value) for name, value in inputs.items()}
