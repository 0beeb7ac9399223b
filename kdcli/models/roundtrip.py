"""Whether a student can be loaded again once it is saved, found out before it is trained."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors, temporary_folder
from kdcli.base.reads import LOGITS, VOCABULARY, Reads
from kdcli.models.base import Model
from kdcli.models.detections import Detections
from kdcli.models.loading import load_saved

_TOLERANCE = 1e-4
"""Relative to the largest number of a model's output: the memory's layout changes the order of sums."""


def check_reloads(model: Model, *, label: str) -> None:
    """Save ``model`` to a temporary folder, load it from there and run both on the same made-up sample.

    Costs as much as one checkpoint of the student and one pass of a sample.

    Args:
        model: on the CPU; it is left as it is, torch's random numbers too.
        label: the name by which the user asked for it.

    Raises:
        UserError: it can't be saved, what was saved can't be loaded, or it computes something else.
    """
    broken = f"Student {label} could not be loaded again once it is saved"
    hint = "Give other values, or leave arguments out; or choose another student."
    make_room = "Make room, or point TMPDIR at another disk."
    needed = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    folder = Path(tempfile.gettempdir())
    if shutil.disk_usage(folder).free < needed:
        raise UserError(
            f"Before training a student is saved and loaded once, and {folder} has no room for its"
            f" {needed / 2**20:.0f} MiB.",
            make_room,
        )
    was_training = model.training
    inputs = model.example()
    with temporary_folder(folder) as temporary, torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            with clear_os_errors(temporary, hint=make_room):
                model.save(temporary)
            other = load_saved(temporary).eval()
            before, after = (_outputs(one, inputs) for one in (model.eval(), other))
        except UserError as error:
            advice = make_room if error.hint == make_room else hint
            raise UserError(f"{broken}: {_without(temporary, error.message)}", advice) from error
        except Exception as error:  # what a library trips over at a model that it can build, and not save or load
            reason = _without(temporary, f"{type(error).__name__}: {error}".splitlines()[0])
            raise UserError(f"{broken}: {reason}", hint) from error
        finally:
            model.train(was_training)
    for name, ours in before.items():
        theirs = after.get(name)
        if theirs is None or ours.shape != theirs.shape or not _is_close(ours, theirs):
            raise UserError(f"Student {label} computes other {name} once it is saved and loaded again.", hint)


def _without(folder: Path, reason: str) -> str:
    return re.sub(f"([a-z]+:)?{re.escape(str(folder))}", "its folder", reason)


def _outputs(model: Model, inputs: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    output = model(inputs, Reads(("pooled",)) | model.predictions)
    vocabulary = {} if output.vocabulary is None else {LOGITS: output.vocabulary.dense()}
    heads = dict[str, Tensor]()
    for name, head in output.heads.items():
        if isinstance(head, Detections):  # which boxes are chosen may change by a rounding
            heads |= head.raw
        elif name != VOCABULARY:
            heads[name] = head
    return {**output.features, **heads, **vocabulary}


def _is_close(ours: Tensor, theirs: Tensor) -> bool:
    bound = _TOLERANCE * float(ours.abs().nan_to_num(posinf=0).max())
    return torch.allclose(ours, theirs, rtol=0, atol=bound, equal_nan=True)
