"""What a library by itself makes of an exported folder, beside what the student gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.models.base import Inputs, Model


class Reloaded(NamedTuple):
    """One output, two ways.

    Attributes:
        by: the library that loaded the folder.
        what: what is compared, in the plural: ``logits``, ``features``, ``embeddings``.
        found: of the model that the library loaded.
        expected: of the student, of the same shape.
    """

    by: str
    what: str
    found: Tensor
    expected: Tensor


@torch.inference_mode()
def logits_of(student: Model, inputs: Inputs) -> Tensor:
    """Return the student's logits (B, num_classes)."""
    logits = student(inputs).logits
    assert isinstance(logits, Tensor)
    return logits


def check_labels(names: Iterable[str] | None, student: Model) -> None:
    """Refuse label names of a reloaded model that are not the student's.

    Raises:
        UserError: they are others.
    """
    if tuple(names or ()) != student.facts.label_names:
        raise UserError("The exported model lost its label names.", "Please report this with the run's config.yaml.")
