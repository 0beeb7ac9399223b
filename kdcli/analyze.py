"""Analyse the projectors of a finished run: what ``kdcli analyze-projector`` shows and writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.analysis import decompose, linear_cka, rank_evolution, summarize
from kdcli.data import ImageSource, TextSource
from kdcli.devices import resolve_device
from kdcli.errors import UserError
from kdcli.facts import LANGUAGE_MODELING, Preprocessing, TextPreprocessing
from kdcli.job import Job, reopen_job
from kdcli.methods.projection import Projection
from kdcli.models.base import Model
from kdcli.normalize import identity
from kdcli.provenance import OLD, changes_since, insist_unchanged, read_record, take_record
from kdcli.report import plot_decomposition, plot_evolution, plot_spectrum
from kdcli.run_folder import RunFolder

Table = tuple[str, list[str], list[list[str]]]


def analyze_run(run: RunFolder, *, split: str, device: str) -> tuple[dict[str, Any], list[Path]]:
    """Analyse every projector of ``run`` that is a matrix, on held-out data.

    Args:
        run: a finished run.
        split: ``validation`` or ``test``.
        device: to run both models on; ``auto`` is the first GPU, else the CPU.

    Returns:
        The content of ``analysis.json`` and the files written to ``RUN/analysis``.

    Raises:
        UserError: when the run has no such projector or no such split.
    """
    if split not in ("validation", "test"):
        raise UserError(f"There is no split {split!r} to analyse on.", "Use validation or test.")
    projections = _matrix_projections(run)
    job = reopen_job(run)
    source = job.data.validation if split == "validation" else job.data.test
    if source is None:
        raise UserError(f"{job.data.facts.name} has no test split.", "Use --split validation.")
    assert job.teacher is not None
    forced, notes = _check_record(run, job, split)
    methods = {name: method for name, method in job.distiller.each_method() if name in projections}
    if unknown := set(projections) - methods.keys():
        raise UserError(
            f"{run.path / 'spectra.safetensors'} does not go with the run's config.yaml: {', '.join(sorted(unknown))}.",
            "Repeat the run.",
        )
    student_taps = tuple(sorted({tap for method in methods.values() for tap in method.student_taps}))
    teacher_taps = tuple(sorted({tap for method in methods.values() for tap in method.teacher_taps}))
    place = resolve_device(device)
    canvas = job.shared_preprocessing()
    student = _features(job, job.student, source, student_taps, place, canvas)
    teacher = _features(job, job.teacher, source, teacher_taps, place, canvas)

    folder = run.path / "analysis"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't write to {folder}: {error.strerror}.", "Move what stands in its way.") from error
    spectra = run.read_tensors("spectra.safetensors")
    results, files = {}, []
    for name, method in methods.items():
        assert isinstance(method, Projection)
        try:
            result = _analyze(method, student[method.student_taps[0]], teacher[method.teacher_taps[0]])
        except ValueError as error:
            raise UserError(f"{name} can't be analysed: {error}.", "Repeat the run, with a lower --lr.") from error
        history, steps = _history(run, spectra, name)
        result["evolution"] = {"steps": steps.tolist(), **rank_evolution(history)}
        results[name] = result
        title = f"{type(method.projector).__name__} of {run.path.resolve().name}"
        files += [
            plot_spectrum(
                folder / f"spectrum-{name}.png",
                result["singular_values"],
                rank=result["spectrum"]["rank"],
                title=title,
                reference=history[0],
            ),
            plot_evolution(
                folder / f"evolution-{name}.png",
                steps,
                history,
                ranks=rank_evolution(history),
                title=title,
                epoch_steps=_steps_per_epoch(run),
            ),
            plot_decomposition(folder / f"decomposition-{name}.png", result["parts"], title=title),
        ]
        result["decomposition"] = result.pop("parts").to_json()
    analysis = {
        "split": split,
        "samples": _noun(job),
        "num_samples": len(next(iter(student.values()))),
        "projectors": results,
        "forced": [*dict.fromkeys((*run.forced, *forced))],
        "notes": notes,
    }
    run.write_text("analysis/analysis.json", json.dumps(analysis, indent=2) + "\n")
    return analysis, [run.path / "analysis" / "analysis.json", *files]


def _check_record(run: RunFolder, job: Job, split: str) -> tuple[list[str], list[str]]:
    """Return what was forced, and notes, a sentence each.

    Raises:
        UserError: the split or the teacher has changed, and the run was not opened by force.
    """
    if (record := read_record(run)) is None:
        return [], [f"It can't be told whether data or teacher have changed: {OLD}."]
    changes = changes_since(record, take_record(job.data, job.teacher, splits=(split,)), splits=(split,))
    return [*record.forced, *insist_unchanged(run, changes, what="Analysed")], []


def _noun(job: Job) -> str:
    if job.config.task == "token-classification":
        return "word"
    return "token" if job.config.task in LANGUAGE_MODELING else job.data.facts.noun


def tables(analysis: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables for the terminal."""
    noun = analysis["samples"]
    for name, result in analysis["projectors"].items():
        spectrum, parts, evolution = result["spectrum"], result["decomposition"], result["evolution"]
        rows, columns = spectrum["shape"]
        yield (
            f"{name}: {result['kind']} {rows} x {columns}, {result['direction'].replace('_', ' ')}",
            ["", "at the start", "best student"],
            [
                ["numerical rank", f"{evolution['numerical'][0]:.0f}", str(spectrum["rank"])],
                ["stable rank", f"{evolution['stable'][0]:.1f}", f"{spectrum['stable_rank']:.1f}"],
                ["effective rank", f"{evolution['effective'][0]:.1f}", f"{spectrum['effective_rank']:.1f}"],
                ["largest singular value", "", f"{spectrum['largest']:.4g}"],
                ["smallest singular value", "", f"{spectrum['smallest']:.4g}"],
                ["distance from orthogonal", "", f"{spectrum['orthogonality_error']:.2e}"],
            ],
        )
        yield (
            f"Squared residual on {analysis['num_samples']} {analysis['split']} {noun}s{result['residual_of']}",
            ["part", f"per {noun}", "share"],
            [
                ["knowledge transfer", f"{parts['transfer_per_sample']:.4g}", f"{parts['transfer_share']:.1%}"],
                ["spectral", f"{parts['spectral_per_sample']:.4g}", f"{parts['spectral_share']:.1%}"],
                ["total", f"{parts['total_per_sample']:.4g}", "100.0%"],
            ],
        )
        yield (
            "Similarity (linear CKA)",
            ["between", "CKA"],
            [[pair.replace("_", " "), f"{value:.4f}"] for pair, value in result["linear_cka"].items()],
        )


@torch.no_grad()
def _analyze(method: Projection, student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """Analyse one projector on features (N, d_s) and (N, d_t) of the same samples."""
    projector: Any = method.projector
    matrix = projector.matrix().detach().cpu()
    student_side, teacher_side = method.project(student, teacher)
    normalized = method.normalize_teacher(teacher)
    if projector.direction == "teacher_to_student":
        source, target = normalized, student_side
        projected_pair = {"student_and_projected_teacher": linear_cka(student_side, teacher_side)}
    else:
        source, target = student, normalized  # the residual before the student side is normalised
        projected_pair = {"projected_student_and_teacher": linear_cka(student_side, teacher_side)}
    before = projector.direction == "student_to_teacher" and method.normalize_student is not identity
    parts = decompose(source, target, matrix)
    return {
        "kind": type(projector).__name__.removesuffix("Projector").lower(),
        "direction": projector.direction,
        "spectrum": summarize(matrix).to_json(),
        "singular_values": parts.singular_values[: min(matrix.shape)],
        "parts": parts,
        "residual_of": ", before the student's side is normalised" if before else "",
        "linear_cka": {"student_and_teacher": linear_cka(student, teacher), **projected_pair},
    }


@torch.no_grad()
def _features(
    job: Job,
    model: Model,
    source: ImageSource | TextSource,
    taps: tuple[str, ...],
    device: torch.device,
    canvas: Preprocessing | TextPreprocessing,
) -> dict[str, Tensor]:
    """Return the features of every readable sample of ``source``: (N, d) float32 on the CPU, by tap."""
    model.to(device).eval()
    parts: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    for batch in job.eval_loader(source, canvas):
        if len(batch):
            output = model(model.prepare(batch.to(device)), taps=taps, logits=False)
            for tap in taps:
                parts[tap].append(output.features[tap].float().cpu())
    return {tap: torch.cat(values).clone() for tap, values in parts.items()}


def _matrix_projections(run: RunFolder) -> list[str]:
    """Return the names of the run's methods whose projector is a matrix, read from its files alone."""
    names = [name for name in run.read_tensors("spectra.safetensors") if name != "steps"]
    if not names:
        raise UserError(
            f"The run {run.path} has no projector with a matrix: it has none at all, or an MLP.",
            "Analyse a run with a linear, orthogonal or inverted projector.",
        )
    return names


def _history(run: RunFolder, spectra: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Return the singular values (T, r) of a projector over the training, and the T steps they were recorded at."""
    history, steps = spectra[name], spectra.get("steps")
    if steps is None or history.ndim != 2 or steps.shape != history.shape[:1] or not history.numel():
        raise UserError(
            f"{run.path / 'spectra.safetensors'} is damaged: it holds no history of {name}.", "Repeat the run."
        )
    if not bool(torch.isfinite(history).all() and (history >= 0).all()):
        raise UserError(
            f"{run.path / 'spectra.safetensors'} is damaged: the history of {name} is not finite.", "Repeat the run."
        )
    return history, steps


def _steps_per_epoch(run: RunFolder) -> float | None:
    """Return None for a run of no epochs."""
    lines = run.read_metrics("validation")
    if lines and (lines[-1].get("epoch"), lines[-1].get("step")) == (0, 0):
        return None
    if not lines or not lines[-1].get("epoch") or "step" not in lines[-1]:
        raise UserError(f"{run.path / 'metrics.jsonl'} has no validation.", "Repeat the run.")
    return float(lines[-1]["step"]) / float(lines[-1]["epoch"])
