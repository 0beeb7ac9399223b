"""Analyse the projectors of a finished run: what ``kdcli analyze-projector`` shows and writes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.base.errors import UserError
from kdcli.base.reads import join
from kdcli.base.text import check_argument
from kdcli.data import Source
from kdcli.losses.normalize import identity
from kdcli.machine.devices import resolve_device
from kdcli.methods.adversary import sides_of
from kdcli.methods.base import Method
from kdcli.methods.projected import Projected, channels_last
from kdcli.models.outputs import ModelOutput
from kdcli.projectors.maps import describe_projector, projector_name
from kdcli.projectors.similarity import linear_cka
from kdcli.projectors.spectra import decompose, rank_evolution, singular_values, summarize
from kdcli.results.paper_figures import LANDSCAPE_PANELS, TSNE_PANELS, draw_landscapes, draw_tsne
from kdcli.results.pictures.ranks import plot_ranks
from kdcli.results.pictures.spectra import plot_decomposition, plot_evolution, plot_spectrum
from kdcli.results.ranks import conclude, summarize_ranks
from kdcli.runs.folder import RunFolder
from kdcli.training.job import Job
from kdcli.training.prepare import reopen_job
from kdcli.training.provenance import OLD, changes_since, insist_unchanged, read_record, take_record
from kdcli.training.teachers.teacher import LiveTeacher

Table = tuple[str, list[str], list[list[str]]]
_MAX_POSITIONS = 2**15
"""Of a projector on maps, as far as each sample has one."""
MAX_RUNS = 24
"""So many can be drawn side by side."""
_WITH_A_MATRIX = "Analyse a run with a linear, orthogonal or inverted projector."


def analyze_run(run: RunFolder, *, split: str, device: str) -> tuple[dict[str, Any], list[Path]]:
    """Analyse every projector of ``run`` that is a matrix, on held-out data.

    Spectrum, evolution and CKA are told of every one; the residual, and its picture, where the method brings features
    to one another channel by channel: the difference of features whose relations are compared means nothing. Of maps
    the samples are positions of the common grid, all of them or, where they are many, as many of each image, drawn by a
    fixed seed.

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
    names = _matrix_projections(run)
    job = reopen_job(run)
    source = job.data.validation if split == "validation" else job.data.test
    if source is None:
        raise UserError(f"{job.data.facts.name} has no test split.", "Use --split validation.")
    assert job.teacher is not None
    forced, notes = _check_record(run, job, split)
    found = _projections_named(names, run, job)
    place = resolve_device(device)
    num_samples, features = _features(job, source, place)
    initial, trained = job.initial_projectors(), job.distiller.projector_matrices()

    folder = run.path / "analysis"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't write to {folder}: {error.strerror}.", "Move what stands in its way.") from error
    spectra, run_name = run.read_tensors("spectra.safetensors"), run.path.resolve().name
    results: dict[str, dict[str, Any]] = {}
    files: list[Path] = []
    methods = {id(pair): method for _, method in job.distiller.each_method() for pair in method.projections()}
    for name, pair in found.items():
        history, steps = _history(run, spectra, name)
        subject = _Subject(name, pair, methods[id(pair)], features[name], history, steps)
        result = _numbers_of(subject, moved=_moved(initial[name], trained[name], history[0]))
        files += _draw(subject, result, folder, run)
        file = folder / f"tsne-{name}.png"
        result["tsne"] = draw_tsne(
            file,
            pair,
            subject.features.student,
            subject.features.teacher,
            labels=subject.features.labels,
            class_names=job.data.facts.class_names,
            title=describe_projector(pair.projector, run_name),
            samples=f"{'positions of ' if subject.features.are_positions else ''}{split} {_noun(job)}s",
        )
        if result["tsne"] is None:
            notes.append(f"No t-SNE of {num_samples} {_noun(job)}s: they are too few.")
        else:
            files.append(file)
        results[name] = result
    landscapes = draw_landscapes(folder, job, source, device=place, split=split, run_name=run_name)
    files += [folder / f"landscape-{name}.png" for name in landscapes]
    if not job.config.reads_images:
        notes.append("The loss over directions of the input is drawn for images alone.")
    analysis = {
        "relation": job.plan.relation,
        "split": split,
        "samples": _noun(job),
        "num_samples": num_samples,
        "projectors": results,
        "landscapes": landscapes,
        "forced": [*dict.fromkeys((*run.forced, *forced))],
        "notes": notes,
    }
    run.write_text("analysis/analysis.json", json.dumps(analysis, indent=2) + "\n")
    return analysis, [run.path / "analysis" / "analysis.json", *files]


@dataclass(frozen=True)
class _Subject:
    """One projector of a run.

    Attributes:
        name: of its method, numbered where that has several.
        pair: the projector and what normalises its features.
        method: whose it is.
        features: what it is looked at on.
        history: its singular values over the training, (T, r).
        steps: at which they were recorded, (T,).
    """

    name: str
    pair: Projected
    method: Method
    features: _Features
    history: Tensor
    steps: Tensor


def _numbers_of(subject: _Subject, *, moved: float | None) -> dict[str, Any]:
    """Return what ``analysis.json`` says of a projector, its decomposition still as an object."""
    pair, method = subject.pair, subject.method
    try:
        result = _analyze(pair, subject.features, has_residual=method.is_aligned)
    except ValueError as error:
        raise UserError(f"{subject.name} can't be analysed: {error}.", "Repeat the run, with a lower --lr.") from error
    result["evolution"] = {"steps": subject.steps.tolist(), **rank_evolution(subject.history)}
    result["moved"] = moved
    result |= {"lr_scale": pair.lr_scale, "weight": method.weight, "is_balanced": method.is_balanced}
    result["conclusion"] = conclude(result)
    return result


def _projections_named(names: Sequence[str], run: RunFolder, job: Job) -> dict[str, Projected]:
    found = {name: pair for name, pair in job.distiller.projections().items() if name in names}
    if unknown := set(names) - found.keys():
        raise UserError(
            f"{run.path / 'spectra.safetensors'} does not go with the run's config.yaml: {', '.join(sorted(unknown))}.",
            "Repeat the run.",
        )
    return found


def _draw(subject: _Subject, result: dict[str, Any], folder: Path, run: RunFolder) -> list[Path]:
    """Draw spectrum, evolution and decomposition, of which ``result`` then has the numbers; return the files."""
    name, history = subject.name, subject.history
    title = describe_projector(subject.pair.projector, run.path.resolve().name)
    files = [
        plot_spectrum(
            folder / f"spectrum-{name}.png",
            result["singular_values"],
            rank=result["spectrum"]["rank"],
            title=title,
            reference=history[0],
        ),
        plot_evolution(
            folder / f"evolution-{name}.png",
            subject.steps,
            history,
            ranks=rank_evolution(history),
            title=title,
            epoch_steps=_steps_per_epoch(run),
        ),
    ]
    parts = result["decomposition"]
    if parts is not None:
        files.append(plot_decomposition(folder / f"decomposition-{name}.png", parts, title=title))
        result["decomposition"] = parts.to_json()
    return files


def choose_projectors(runs: Sequence[RunFolder], *, output: Path | None) -> tuple[list[RunFolder], list[RunFolder]]:
    """Return the runs to analyse, and of several those that have no projector that is a matrix.

    Args:
        runs: as asked for.
        output: the folder for what is drawn of several, which is made; None for none.

    Raises:
        UserError: a run is given twice, there are too many, or ``output`` has no use or can't be made.
    """
    if output is not None:
        check_argument("--output", output)
    for path, count in Counter(run.path.resolve() for run in runs).items():
        if count > 1:
            raise UserError(f"The run {path} is given {count} times.", "Give each run once.")
    chosen = [run for run in runs if projector_names(run)] if len(runs) > 1 else list(runs)
    if not chosen:
        raise UserError(f"None of the {len(runs)} runs has a projector with a matrix.", _WITH_A_MATRIX)
    if len(chosen) > MAX_RUNS:
        raise UserError(
            f"{len(chosen)} runs have projectors, and at most {MAX_RUNS} are put side by side.",
            "Give fewer, such as one seed of each recipe.",
        )
    if len(chosen) == 1 and output is not None:
        raise UserError(
            "--output is for several runs that are put side by side, and there is one.",
            f"Leave it out: what is written goes to {chosen[0].path / 'analysis'}.",
        )
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Can't write to {output}: {error.strerror}.", "Give another --output.") from None
    return chosen, [run for run in runs if run not in chosen]


def compare_projectors(
    runs: Sequence[RunFolder], analyses: Sequence[dict[str, Any]], *, output: Path | None
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Put the ranks of several analysed runs side by side.

    Args:
        runs: at most ``MAX_RUNS``.
        analyses: of each what :func:`analyze_run` returned.
        output: an existing folder for ``ranks.png`` and ``ranks.json``; None writes nothing.

    Returns:
        What :func:`kdcli.results.ranks.summarize_ranks` says of every projector, and the files written.
    """
    paths = [run.path.resolve() for run in runs]
    root = os.path.commonpath([path.parent for path in paths])
    summaries: list[dict[str, Any]] = []
    panels = []
    for run, path, analysis in zip(runs, paths, analyses, strict=True):
        found = summarize_ranks(path.relative_to(root).as_posix(), analysis)
        summaries += found
        spectra = run.read_tensors("spectra.safetensors")
        for name, summary in zip(analysis["projectors"], found, strict=True):
            history, steps = _history(run, spectra, name)
            panels.append((summary["run"], f"{summary['relation']}, {summary['projector']}", steps, history))
    if output is None:
        return summaries, []
    RunFolder(output).write_text("ranks.json", json.dumps(summaries, indent=2) + "\n")
    picture = plot_ranks(output / "ranks.png", panels, title="Projectors over the training")
    return summaries, [output / "ranks.json", picture]


def _moved(initial: Tensor, matrix: Tensor, first_values: Tensor) -> float | None:
    """Return ``‖P − P_0‖_F / ‖P_0‖_F``; None where ``P_0`` is not what the run started with, by its singular values."""
    start, end = initial.double().cpu(), matrix.double().cpu()
    values = first_values.double()
    if start.shape != end.shape or not torch.allclose(singular_values(start), values, rtol=1e-3, atol=0):
        return None
    return float((end - start).norm() / start.norm())


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
    if job.config.task_facts.target == "words":
        return "word"
    return "token" if job.config.task_facts.is_language_model else job.data.facts.noun


def tables(analysis: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of one run for the terminal."""
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
        if parts is not None:
            samples, unit = f"{analysis['num_samples']} {analysis['split']} {noun}s", noun
            if result["num_positions"] is not None:
                samples, unit = f"{result['num_positions']} positions of {samples}", "position"
            yield (
                f"Squared residual on {samples}{result['residual_of']}",
                ["part", f"per {unit}", "share"],
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
        if (drawn := result["tsne"]) is not None and drawn["knn_accuracy"]:
            yield (
                f"Features of the {drawn['features_of']}, {drawn['num_samples']} {noun}s",
                ["", f"{drawn['neighbours']}-NN accuracy"],
                [[TSNE_PANELS[panel], f"{value:.1%}"] for panel, value in drawn["knn_accuracy"].items()],
            )
    for name, drawn in analysis["landscapes"].items():
        keys = ("loss", "relative_range", "relative_curvature")
        yield (
            f"{name}: loss while {drawn['num_images']} {analysis['split']} images move",
            ["", "at the images", "range over that", "curvature over that"],
            [
                [LANDSCAPE_PANELS[kind], *("-" if panel[key] is None else f"{panel[key]:.4g}" for key in keys)]
                for kind, panel in drawn["panels"].items()
            ],
        )


@torch.no_grad()
def _analyze(pair: Projected, features: _Features, *, has_residual: bool) -> dict[str, Any]:
    """Analyse one projector on features of the same samples."""
    projector: Any = pair.projector
    matrix = projector.matrix().detach().cpu()
    student, teacher = features.student, features.teacher
    student_side, teacher_side = pair.project(student, teacher)
    normalized = pair.of_teacher(teacher)
    if projector.direction == "teacher_to_student":
        source, target = normalized, student_side
        projected_pair = {"student_and_projected_teacher": linear_cka(student_side, teacher_side)}
    else:
        source, target = student, normalized  # the residual before the student side is normalised
        projected_pair = {"projected_student_and_teacher": linear_cka(student_side, teacher_side)}
    before = projector.direction == "student_to_teacher" and pair.normalize_student is not identity
    return {
        "kind": projector_name(projector),
        "direction": projector.direction,
        "spectrum": summarize(matrix).to_json(),
        "singular_values": singular_values(matrix).tolist(),
        "decomposition": decompose(source, target, matrix) if has_residual else None,
        "residual_of": ", before the student's side is normalised" if before and has_residual else "",
        "num_positions": len(student) if features.are_positions else None,
        "linear_cka": {"student_and_teacher": linear_cka(student, teacher), **projected_pair},
    }


@dataclass(frozen=True)
class _Features:
    """What a projector is applied to: of every sample, or of positions of its maps.

    Attributes:
        student: (N, d_s), float32 on the CPU.
        teacher: (N, d_t), likewise.
        are_positions: whether the rows are positions.
        labels: classes int64 (N,), ``UNLABELLED`` for none; None where the rows have no classes of their own.
    """

    student: Tensor
    teacher: Tensor
    are_positions: bool
    labels: Tensor | None


def _given(output: ModelOutput) -> ModelOutput:
    return output


@torch.no_grad()
def _features(job: Job, source: Source, device: torch.device) -> tuple[int, dict[str, _Features]]:
    """Return the number of readable samples of ``source``, and by name what each projector is applied to."""
    distiller, model = job.distiller.to(device).eval(), job.teacher
    assert model is not None
    methods = {name: method for name, method in distiller.each_method() if method.projections()}
    student, student_reads = distiller.student, join(method.student_reads for method in methods.values())
    teacher = LiveTeacher(model.to(device).eval(), join(method.teacher_reads for method in methods.values()))
    most = max(1, _MAX_POSITIONS // max(1, len(source)))
    generator = torch.Generator().manual_seed(0)
    num_samples = 0
    has_rows = job.data.facts.label_kind in ("class", "words")  # features then are of what has one class each
    targets: list[Tensor] = []
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in distiller.projections()}
    of_maps: set[str] = set()
    for batch in job.eval_loader(source, job.shared_preprocessing()):
        if not len(batch):
            continue
        batch = batch.to(device)
        ours = student(student.prepare(batch), student_reads)
        scene = distiller.scene(batch, teacher(batch), partial(_given, ours))
        sides = [pair for method in methods.values() for pair in sides_of(method, scene)]
        for (name, parts), pair in zip(found.items(), sides, strict=True):
            parts.append(_rows(*pair, most=most, generator=generator))
            of_maps |= {name} if pair[0].ndim > 2 else set()
        num_samples += len(sides[0][0])
        if has_rows:
            targets.append(batch.targets.cpu())
    distiller.methods.cpu()  # where the features are
    labels = torch.cat(targets) if has_rows else None
    return num_samples, {
        name: _Features(
            torch.cat([student for student, _ in parts]),
            torch.cat([teacher for _, teacher in parts]),
            name in of_maps,
            None if name in of_maps else labels,
        )
        for name, parts in found.items()
    }


def _rows(student: Tensor, teacher: Tensor, *, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return features as they are, of maps at most so many positions of each sample."""
    if student.ndim == 2:
        return student.float().cpu(), teacher.float().cpu()
    ours, theirs = (side.flatten(1, 2).float().cpu() for side in channels_last(student, teacher))
    order = torch.rand(ours.shape[:2], generator=generator).argsort(dim=1)[:, :most, None]
    ours, theirs = (side.gather(1, order.expand(-1, -1, side.shape[2])).flatten(0, 1) for side in (ours, theirs))
    return ours, theirs


def projector_names(run: RunFolder) -> list[str]:
    """Return the names of the run's methods whose projector is a matrix, read from its files alone."""
    return [name for name in run.read_tensors("spectra.safetensors") if name != "steps"]


def _matrix_projections(run: RunFolder) -> list[str]:
    """Return the names of the run's methods whose projector is a matrix.

    Raises:
        UserError: there is none.
    """
    names = projector_names(run)
    if not names:
        raise UserError(
            f"The run {run.path} has no projector with a matrix: it has none at all, or an MLP.",
            _WITH_A_MATRIX,
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
