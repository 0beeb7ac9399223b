"""How a step is computed, where the config leaves it open: measured before the first step, and written into the config.

A run that goes on, or is run again from its ``config.yaml``, computes with the same kernels, and so the same bits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from kdcli import __version__
from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.base.result import Saved
from kdcli.config.run import RunConfig
from kdcli.losses.common import most_precise
from kdcli.machine.team import Team
from kdcli.models.base import Inputs, Model, to_device
from kdcli.models.detections import DetectionModel
from kdcli.models.outputs import ModelOutput
from kdcli.plan.plan import Decision
from kdcli.training.job import Job
from kdcli.training.optim import can_fuse
from kdcli.training.teachers.cache import Kept, digest_of_weights
from kdcli.training.teachers.forward import Form, form_of, has_forms, in_form

EXACT = 1e-5
"""Largest difference of a teacher's outputs, relative to their largest, that a form may make without being asked."""
BF16_COST = 1e-2
"""Likewise of ``teacher.precision: auto``, root mean square relative to that of the outputs."""
_WORTH = 1.05
"""So many times the speed of the plain form, or it stays plain."""
_BF16_WORTH = 1.2
_LEAST_MACS = 5e8
"""Of a batch; what a smaller model costs is not worth measuring."""
_MOST_MACS = 1e10
"""A pass on the CPU is measured on no more samples than take so many."""
_ROUNDS = 3
_SECONDS = 1.5
"""After so many no further round begins."""


class _Choice(Saved):
    """What was measured: the choice, its speed in times the plain one's, and by how much outputs differ."""

    name: str
    speed: float
    difference: float | None = None
    precision: str | None = None
    refused: str = ""


def settle_step(job: Job, team: Team) -> Job:
    """Return ``job`` with what its config leaves open of how a step is computed settled, in config and plan.

    That is the teacher's form, the student's order in memory and whether the optimiser is fused. The main process
    measures, on a batch of the run's size; what it measured before of the same networks on this machine it recalls.

    Args:
        job: not begun.
        team: device, precision, processes.
    """
    train = job.config.train
    changes: dict[str, Any] = {}
    decisions: list[Decision] = []
    teacher_changes: dict[str, Any] = {}
    if job.teacher is not None:
        found = team.broadcast(_measured_teacher(job, job.teacher, team) if team.is_main else None)
        if job.config.task_facts.reads_images:
            changes["teacher_forward"] = found.name if found else form_of(job.config).name
        if job.config.teacher.precision == "auto":
            teacher_changes["precision"] = found.precision if found else None  # else that of the training
        if found:
            decisions.append(_tell_teacher(found, train.teacher_forward))
    if train.channels_last is None and job.config.task_facts.reads_images:
        found = team.broadcast(_measured_student(job, team) if team.is_main else None)
        changes["channels_last"] = found is not None and found.name == "channels_last"
        if found:
            decisions.append(_tell_student(found))
    if train.fused_optimizer is None:
        changes["fused_optimizer"] = can_fuse(job.config.optim, team.device)
        if changes["fused_optimizer"]:
            why = f"torch steps all weights of {job.config.optim.optimizer} at once. --set train.fused_optimizer=false."
            decisions.append(Decision("optimiser's step", "fused", why))
    config = job.config.model_copy(update={"train": train.model_copy(update=changes)})
    if teacher_changes:
        config = config.model_copy(update={"teacher": config.teacher.model_copy(update=teacher_changes)})
    return replace(job, config=config, plan=job.plan.with_decisions(decisions))


def _tell_teacher(found: _Choice, asked: str | None) -> Decision:
    words = [found.name.replace("_channels_last", ", channels-last").replace("channels_last", "channels-last")]
    words += ["bfloat16"] if found.precision == "bfloat16" else []
    value = f"{', '.join(words)}: {found.speed:.2f}x" if found.speed > 1 else ", ".join(words)
    reason = "Asked for." if asked else "The fastest, measured on a batch of this size."
    if found.difference:
        reason += f" Its outputs differ by {found.difference:.1g} of their size."
    return Decision("teacher's forward", value, reason + found.refused)


def _tell_student(found: _Choice) -> Decision:
    if found.name == "channels_last":
        return Decision(
            "student's layout", f"channels-last: {found.speed:.2f}x", "Measured on a batch of this size, both ways."
        )
    return Decision("student's layout", "plain", f"Channels-last was measured to bring nothing.{found.refused}")


# ---- The teacher ----------------------------------------------------------------------------------------------------


def _measured_teacher(job: Job, teacher: Model, team: Team) -> _Choice | None:
    """Return the teacher's form by measurement; None where there is nothing to choose, or too little to gain."""
    config, reads = job.config, job.distiller.teacher_reads
    size = max(config.train.batch_size // team.size, 1)
    precision = config.teacher.precision
    is_asked = precision in ("auto", "bfloat16")  # then it is tried out, as a form that is asked for
    if not has_forms(config):
        for key in ("precision", "compile"):
            if getattr(config.teacher, key):
                why = "its weights are in shares" if config.teacher.sharded else "it is quantised"
                raise UserError(
                    f"teacher.{key} is set, and {teacher.facts.name} is run as it is: {why}.", "Leave it out."
                )
        return None
    forms = _forms(config, teacher)
    is_open = len(forms) > 1 and size * teacher.facts.macs >= _LEAST_MACS
    if not reads or not (is_open or is_asked or forms[0] != Form()):
        return None
    # By how much outputs differ depends on the weights' values.
    more = {"forms": [form.name for form in forms], "weights": digest_of_weights(teacher)}
    kept = _kept("teacher", config, teacher, reads, size, team, **more)
    if (found := kept.recall(_Choice)) is not None:
        return found
    teacher.to(team.device)
    inputs = to_device(_sample(teacher, size, team.device), team.device)
    found = _choose_form(teacher, forms, reads, inputs, team, precision)
    kept.keep(found)
    return found


def _forms(config: RunConfig, teacher: Model) -> list[Form]:
    """Return the forms to choose from, the plain one first, in the training's precision."""
    given = replace(form_of(config), precision=None)
    if config.train.teacher_forward is not None or not _is_convolutional(teacher):
        return [given]
    orders = (False, True) if config.train.channels_last is None else (config.train.channels_last,)
    return [Form(folded, last) for last, folded in product(orders, (False, True))]


def _choose_form(
    teacher: Model, forms: list[Form], reads: Reads, inputs: Inputs, team: Team, precision: str | None
) -> _Choice:
    exact = Form(precision=torch.float32)
    expected = exact.run(teacher, inputs, reads)
    own = {None: None, "auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    runs: dict[Form, Callable[[], object]] = {}
    differences: dict[Form, float] = {}
    refused = ""
    candidates = [replace(form, precision=own) for form in forms]
    candidates += [replace(form, precision=torch.bfloat16) for form in forms] if precision == "auto" else []
    for form in candidates:
        is_narrow = form.precision == torch.bfloat16
        try:
            model = in_form(teacher, form, reads)
            # Under autocast half precision rounds otherwise: what a form is worth shows in full precision.
            checked = form if is_narrow else replace(form, precision=torch.float32)
            outputs = checked.run(model, inputs, reads)
        except RuntimeError as error:  # a view of what lies in another order, or a product of two precisions
            if form == candidates[0]:
                raise UserError(
                    f"{teacher.facts.name} can't be run as asked for: {_first_line(error)}",
                    "Leave out teacher.precision, train.teacher_forward and train.channels_last.",
                ) from error
            refused += f" {form.name} can't be: {_first_line(error)}."
            continue
        difference = (_spread if is_narrow else _distance)(outputs, expected)
        limit = EXACT if not is_narrow else BF16_COST if precision == "auto" else float("inf")
        if form != candidates[0] and not difference <= limit:
            refused += f" {form.name}{' in bfloat16' if is_narrow else ''} would change outputs by {difference:.1g}."
            continue
        differences[form] = difference
        runs[form] = lambda form=form, model=model: form.run(model, inputs, reads)  # type: ignore[misc]
    times = _race(runs, team)
    first = candidates[0]
    best = min((form for form in times if form.precision == own), key=lambda form: times[form])
    if times[first] < _WORTH * times[best]:
        best = first
    narrow = [form for form in times if form.precision == torch.bfloat16 != own]
    if narrow:
        fastest = min(narrow, key=lambda form: times[form])
        best = fastest if times[best] >= _BF16_WORTH * times[fastest] else best
    return _Choice(
        name=best.name,
        speed=times[first] / times[best],
        difference=differences[best],
        precision="bfloat16" if best.precision == torch.bfloat16 else None,
        refused=refused,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _distance(found: ModelOutput, expected: ModelOutput) -> float:
    """Return the largest difference of any output, relative to the output's largest value."""
    return max((_relative(a, b, lambda x: x.abs().amax()) for a, b in _pairs(found, expected)), default=0.0)


def _spread(found: ModelOutput, expected: ModelOutput) -> float:
    """Return the largest root mean square of any output's difference, relative to the output's."""
    return max((_relative(a, b, lambda x: x.square().mean().sqrt()) for a, b in _pairs(found, expected)), default=0.0)


def _relative(found: Tensor, expected: Tensor, size: Callable[[Tensor], Tensor]) -> float:
    finite = expected.isfinite()
    if not bool(torch.equal(found.isfinite(), finite)):
        return float("inf")
    found, expected = most_precise(found[finite]), most_precise(expected[finite])
    if not len(expected):
        return 0.0
    scale = float(size(expected))
    difference = float(size(found - expected))
    return difference / scale if scale else float("inf") if difference else 0.0


def _pairs(found: ModelOutput, expected: ModelOutput) -> list[tuple[Tensor, Tensor]]:
    pairs = []
    for ours, theirs in ((f, e) for f, e in zip(_parts(found), _parts(expected), strict=True)):
        pairs += [(ours[name], value) for name, value in theirs.items() if isinstance(value, Tensor)]
    return pairs


def _parts(output: ModelOutput) -> tuple[Mapping[str, Any], ...]:
    return output.features, output.maps, output.heads


# ---- The student ----------------------------------------------------------------------------------------------------


def _measured_student(job: Job, team: Team) -> _Choice | None:
    """Return the student's order in memory by measurement; None where that makes no difference, or too little."""
    student, size = job.student, max(job.config.train.batch_size // team.size, 2)
    if not _is_convolutional(student) or 3 * size * student.facts.macs < _LEAST_MACS or not job.config.train.epochs:
        return None
    reads = job.distiller.student_reads or student.predictions or Reads(("pooled",))
    kept = _kept("student", job.config, student, reads, size, team, forms=["plain", "channels_last"])
    if (found := kept.recall(_Choice)) is not None:
        return found
    inputs = _sample(student, size, team.device, passes=3)
    assert isinstance(inputs, Tensor)
    inputs = inputs.to(team.device)
    runs: dict[str, Callable[[], object]] = {"plain": _training_pass(student, inputs, reads, team, last=False)}
    refused = ""
    runs["plain"]()
    try:
        runs["channels_last"] = _training_pass(student, inputs, reads, team, last=True)
        runs["channels_last"]()
    except RuntimeError as error:  # a view of what lies in another order
        del runs["channels_last"]
        refused = f" It can't be: {_first_line(error)}."
    times = _race(runs, team)
    best = min(times, key=lambda name: times[name])
    best = "plain" if times["plain"] < _WORTH * times[best] else best
    found = _Choice(name=best, speed=times["plain"] / times[best], refused=refused)
    kept.keep(found)
    return found


def _training_pass(student: Model, inputs: Tensor, reads: Reads, team: Team, *, last: bool) -> Callable[[], None]:
    """Return a pass of a copy of the student, forward and backward."""
    model = copy.deepcopy(student).train().to(team.device)
    if last:
        model.to(memory_format=torch.channels_last)

    def one_pass() -> None:
        with torch.enable_grad():
            with team.autocast():
                output = model(inputs, reads)
            values = [value for part in _parts(output) for value in part.values() if isinstance(value, Tensor)]
            torch.stack([value.float().square().mean() for value in values]).sum().backward()
        model.zero_grad()

    return one_pass


# ---- Shared ---------------------------------------------------------------------------------------------------------


def _is_convolutional(model: Model) -> bool:
    """Whether it is of images, and more than its first layer is a convolution of them.

    Detectors are run as they are: what they do with boxes is not what a made-up image shows.
    """
    convolutions = [module for module in model.module.modules() if isinstance(module, torch.nn.Conv2d)]
    if isinstance(model, DetectionModel) or len(convolutions) < 2:
        return False
    example = model.example()
    return isinstance(example, Tensor) and example.ndim == 4


def _sample(model: Model, size: int, device: torch.device, *, passes: int = 1) -> Inputs:
    """Return made-up inputs of a batch; on the CPU of no more samples than a short measurement can do with."""
    most = size if device.type != "cpu" else int(_MOST_MACS // (passes * max(model.facts.macs, 1)))
    return model.example(min(size, max(most, 2)))


def _race(runs: Mapping[Any, Callable[[], object]], team: Team) -> dict[Any, float]:
    """Return the least seconds that each took of a few rounds in turn: of the CPU where that computes."""
    if len(runs) == 1:
        return dict.fromkeys(runs, 1.0)
    is_cpu = team.device.type == "cpu"
    best = dict.fromkeys(runs, float("inf"))
    began = time.perf_counter()
    for number in range(_ROUNDS):
        if number and time.perf_counter() - began > _SECONDS:
            break
        for name, run in runs.items():
            start = time.process_time() if is_cpu else _now(team)
            with torch.random.fork_rng(), team.autocast():
                run()
            best[name] = min(best[name], (time.process_time() if is_cpu else _now(team)) - start)
    return best


def _now(team: Team) -> float:
    torch.accelerator.synchronize(team.device)
    return time.perf_counter()


def _kept(what: str, config: RunConfig, model: Model, reads: Reads, size: int, team: Team, **more: Any) -> Kept:
    """Return the place of a measurement, by all that its outcome depends on: ``more`` is what only some depend on."""
    facts, device = model.facts, team.device
    return Kept(
        {
            "kdcli": __version__,
            "torch": torch.__version__,
            "what": what,
            "model": [
                facts.name,
                facts.num_parameters,
                facts.macs,
                repr(facts.preprocessing),
                repr(facts.feature_dims),
            ],
            "reads": repr(reads),
            "size": size,
            "precision": [team.precision, config.teacher.precision],
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            **more,
        }
    )
