"""Temperature scaling of a finished student: fitted on validation, told before and after, and folded into exports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.base.checksums import file_digest
from kdcli.base.errors import UserError
from kdcli.base.reads import LOGITS
from kdcli.base.result import Saved
from kdcli.machine.devices import resolve_device
from kdcli.models.base import Model
from kdcli.results.candidates import load_candidate
from kdcli.results.evaluate import predict_batch
from kdcli.results.samples import choose_split, data_config, loader_of, open_run, open_samples, task_of
from kdcli.runs.folder import RunFolder
from kdcli.statistics.intervals import confidence_interval
from kdcli.tasks import build_task
from kdcli.tasks.classification.report import ClassificationMeters

FILE = "calibration.json"
_BOUNDS = (0.05, 20.0)
_PARTS = 5
"""Of the validation samples; each is measured with a temperature that the others fit."""
_TOLERANCE = 1e-4
"""Of logits that are divided, relative to their largest magnitude."""


class Calibration(Saved):
    """What ``calibration.json`` of a run holds.

    Attributes:
        temperature: T; calibrated probabilities are ``softmax(logits / T)``. It is 1 where the gain is within noise.
        fitted: the temperature of the least mean cross-entropy on validation; None in files of earlier versions.
        gain: of the mean cross-entropy by a temperature that other validation samples fitted, with the ends of its 95 %
            interval; None where there are too few samples for one.
        student: SHA-256 of the weights that it is of.
        splits: by split ``samples`` and, ``before`` and ``after``, ``nll`` (mean cross-entropy in nats) and ``ece``
            (expected calibration error, 15 bins of equal width).
    """

    temperature: float
    fitted: float | None = None
    gain: tuple[float, float, float] | None = None
    student: str
    splits: dict[str, dict[str, Any]]


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature, from 0.05 to 20, of the least mean cross-entropy of ``softmax(logits / T)``.

    Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, arXiv 1706.04599, section 4.2. Of one parameter
    it is found by bounded minimisation of ``log T``; the cross-entropy is convex in ``1 / T``, so there is one minimum.

    Args:
        logits: (N, C).
        targets: class indices int64 (N,).
    """
    from scipy.optimize import minimize_scalar

    own = logits.double()
    found = minimize_scalar(
        lambda log: float(F.cross_entropy(own / math.exp(log), targets)),
        bounds=tuple(map(math.log, _BOUNDS)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))


def gain_of_temperature(logits: Tensor, targets: Tensor) -> tuple[float, float, float] | None:
    """Return by how much a fitted temperature lowers the mean cross-entropy, and the ends of the 95 % t-interval.

    Each of five parts of the samples is measured with the temperature that the other four fit: on the samples that it
    was fitted on, any temperature has a gain. The interval is that of the paired differences, one a sample; which part
    a sample is in is drawn with a fixed seed.

    Args:
        logits: (N, C).
        targets: class indices int64 (N,).

    Returns:
        Mean, low and high in nats; None of fewer than two samples a part.
    """
    if len(targets) < 2 * _PARTS:
        return None
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    own, gains = logits.double(), torch.zeros(len(targets), dtype=torch.float64)
    for part in range(_PARTS):
        held = order[part::_PARTS]
        others = torch.ones(len(targets), dtype=torch.bool)
        others[held] = False
        temperature = fit_temperature(logits[others], targets[others])
        before, after = (
            F.cross_entropy(values, targets[held], reduction="none") for values in (own[held], own[held] / temperature)
        )
        gains[held] = before - after
    low, high = confidence_interval(gains.tolist())
    assert low is not None
    assert high is not None
    return float(gains.mean()), low, high


def calibrate(name: str, *, device: str, batch_size: int, force: bool = False) -> tuple[Calibration, list[str]]:
    """Fit the temperature of a run's student on its validation split, and write it into the run.

    The test split plays no part in it: it is measured before and after.

    Args:
        name: a run folder.
        device: as for ``kdcli evaluate``.
        batch_size: samples of a batch.
        force: go on although files of the run have changed.

    Returns:
        What was found, and notes: a sentence each.

    Raises:
        UserError: it is no run of classes, one whose classifier is untrained, or it can't be opened.
    """
    run = open_run(name, force=force)
    if run is None:
        raise UserError(f"{name} is no run: a temperature is stored with a run's student.", "Name a run folder.")
    config = run.read_config()
    if config.task_facts.target != "label" or config.leaves_classifier_untrained:
        raise UserError(
            f"{name} has no trained classes of whole samples: its task is {config.task}.",
            "Temperature scaling is for image-classification and text-classification.",
        )
    task_name, extension = task_of(run, None)
    data, seed = data_config(run, None, None, None)
    samples = open_samples(data, task_name, seed, extension=extension)
    if samples.facts.label_kind != "class":
        raise UserError(
            f"{name} is of samples with {samples.facts.labels.needed.removesuffix(' a sample')} each, and a temperature"
            " is of one class each.",
            "Use its probabilities as they are.",
        )
    task = build_task(samples.facts, reference=_no_reference, extension=extension)
    candidate = load_candidate("student", name, run, samples.facts)
    place = resolve_device(device)
    candidate.model.to(place)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    notes: list[str] = []
    for split in ("validation", *(("test",) if samples.test is not None and config.test else ())):
        _, source, _ = choose_split(samples, split)
        logits, targets, lost = [], [], 0
        with torch.inference_mode():
            for batch in loader_of(source, candidate.model.facts.preprocessing, batch_size, data):
                lost += len(batch.skipped)
                if len(batch):
                    logits.append(predict_batch(task, candidate, batch, place))
                    targets.append(batch.targets.cpu())
        if not logits:
            raise UserError(f"No sample of the {split} split can be read.", "Check the files of that split.")
        if lost:
            notes.append(f"{lost} samples of the {split} split can't be read and are left out.")
        found[split] = torch.cat(logits), torch.cat(targets)
    fitted, gain = fit_temperature(*found["validation"]), gain_of_temperature(*found["validation"])
    temperature = 1.0 if gain is None or gain[1] <= 0 else fitted
    if temperature != fitted:
        notes.append(_kept(fitted, gain, len(found["validation"][1])))
    elif not _BOUNDS[0] * 1.01 < temperature < _BOUNDS[1] / 1.01:
        notes.append(
            f"The temperature is at its bound: of {len(found['validation'][1])} validation samples nearly all, or none,"
            " are right."
        )
    splits = {
        split: {
            "samples": len(targets),
            "before": _measure(logits, targets),
            "after": _measure(logits / temperature, targets),
        }
        for split, (logits, targets) in found.items()
    }
    result = Calibration(temperature=temperature, fitted=fitted, gain=gain, student=_digest_of(run), splits=splits)
    run.write_text(FILE, json.dumps(result.to_json(), indent=2) + "\n")
    return result, notes


def _kept(fitted: float, gain: tuple[float, float, float] | None, samples: int) -> str:
    """Return why the temperature stays 1."""
    if gain is None:
        return f"The temperature stays 1: {samples} validation samples are too few to fit one ({2 * _PARTS} at least)."
    return (
        f"The temperature stays 1: a fitted one ({fitted:.3g}) changes the mean cross-entropy of validation samples"
        f" that it was not fitted on by {-gain[0]:+.4f}, with a 95 % interval from {-gain[2]:+.4f} to {-gain[1]:+.4f}."
        f" That is within noise on {samples} samples, or no gain; more validation samples tell more."
    )


def read_calibration(run: RunFolder) -> Calibration | None:
    """Return what :func:`calibrate` wrote into a run; None where it has not.

    Raises:
        UserError: it is damaged, or of another student than the run has now.
    """
    path = run.path / FILE
    if not path.is_file():
        return None
    hint = f"Run 'kdcli calibrate {run.path}' again, or remove the file."
    try:
        found = Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}.", hint) from error
    if not 0 < found.temperature < math.inf:
        raise UserError(f"{path} is damaged: a temperature of {found.temperature}.", hint)
    if found.student != _digest_of(run):
        raise UserError(f"{path} is of another student than the run has now.", hint)
    return found


def fold_temperature(student: Model, temperature: float) -> None:
    """Divide a classifier's last layer, weights and bias, so that its logits are divided by ``temperature``.

    That is checked on made-up samples.

    Raises:
        UserError: no layer of the model does that.
    """
    width = student.facts.num_classes
    layers = [
        module
        for module in student.module.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == width
        and isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    inputs: Any = student.example(2, seed=3)
    expected = _logits(student, inputs) / temperature
    for chosen in [*([layer] for layer in reversed(layers)), layers]:
        before = _divide(chosen, temperature)
        difference = (_logits(student, inputs) - expected).abs().max()
        if float(difference) <= _TOLERANCE * float(expected.abs().max().clamp(min=1e-6)):
            return
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)
    raise UserError(
        f"The temperature can't be folded into {student.facts.name}: no layer of it is the last before its logits.",
        f"Remove {FILE} from the run to export it without.",
    )


def _divide(layers: list[nn.Module], by: float) -> list[tuple[nn.Parameter, Tensor]]:
    """Divide what layers hold; return their parameters with the values that these had."""
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    before = [(parameter, parameter.detach().clone()) for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.div_(by)
    return before


@torch.inference_mode()
def _logits(student: Model, inputs: Any) -> Tensor:
    logits: Tensor = student.eval()(inputs, student.predictions).heads[LOGITS]
    return logits.double()


def _measure(logits: Tensor, targets: Tensor) -> dict[str, float]:
    meters = ClassificationMeters(logits.shape[1])
    meters.update(logits, targets)
    found = meters.compute()
    return {"nll": found["cross_entropy"], "ece": found["expected_calibration_error"]}


def _digest_of(run: RunFolder) -> str:
    return file_digest(Path(run.student) / "model.safetensors")


def _no_reference(batch: Any) -> Tensor:
    raise NotImplementedError("a finished model is not compared with an embedding space")
