"""``kdcli distill`` from a config to a finished run: prepare, show the plan, train, report; or go on with a run."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors
from kdcli.base.result import Result, show_metric
from kdcli.config.keys import check_same_run
from kdcli.config.run import RunConfig
from kdcli.experiments.output import Output
from kdcli.machine.control import Stopped
from kdcli.machine.devices import leave_processes, make_accelerator
from kdcli.machine.launch import launch, processes_to_start, rank
from kdcli.machine.team import Team
from kdcli.results.card import model_card
from kdcli.results.drawn import draw_run
from kdcli.results.outcome import compare_with_alone, lines_of, show_difference
from kdcli.results.report.runs import leave_report
from kdcli.results.snapshots import Snapshots
from kdcli.runs.checkpoint import Checkpoints
from kdcli.runs.folder import SAMPLES, RunFolder
from kdcli.runs.places import check_new_folder, free_folder
from kdcli.runs.snapshots import STRIP, cut_grids
from kdcli.terminal.console import console, show_lines, show_plan, show_table
from kdcli.terminal.reporters import Reporter, SilentReporter
from kdcli.training.downstream import METRICS, table_of
from kdcli.training.job import Job
from kdcli.training.prepare import embedding_job, prepare_job
from kdcli.training.provenance import (
    Record,
    changes_since,
    insist_unchanged,
    read_record,
    recheck,
    take_record,
    with_forced,
    write_record,
)
from kdcli.training.settle import settle_step
from kdcli.training.teachers.check import check_teacher
from kdcli.training.teachers.identity import follow_cache
from kdcli.training.teachers.outputs import decide_cache
from kdcli.training.teachers.probe import probe_teacher
from kdcli.training.trainer import Trainer

_EMBEDDING = "embedding"
_BASELINE = "baseline"
"""Folders of the runs inside a run."""


def distill_run(
    config: RunConfig,
    *,
    name: str,
    command: str,
    output: Output,
    dry_run: bool,
    arguments: Sequence[str] | None = None,
) -> int:
    """Make a new run.

    Args:
        config: of the run.
        name: of its folder under ``runs/``, where the config names none.
        command: the command line, for the records.
        output: what to print.
        dry_run: stop after the plan.
        arguments: of ``kdcli``, by which each of several processes makes this run; by default those of the command
            line.

    Returns:
        The exit code: 0, or 128 and the number of the signal that stopped it.

    Raises:
        UserError: for anything that can't be had, doesn't fit or goes wrong.
    """
    path = config.output or free_folder(Path("runs") / name)
    is_main = rank() == 0
    if not dry_run and is_main:
        check_new_folder(path)
    _check_baseline(config)
    num_processes = processes_to_start(config.train)
    if num_processes > 1 and not dry_run:
        return launch(num_processes, sys.argv[1:] if arguments is None else arguments)
    with output.applied():
        job, accelerator = planned_job(config, tracking=path / "tracking")
        show_plan(job.plan, title=f"Plan: {config.student.name} from {config.teacher.name}", whole=output.whole_plan)
        if output.log_format == "json" and not output.quiet and is_main:
            print(json.dumps({"event": "plan", **job.plan.to_json()}), flush=True)
        if dry_run:
            return 0
        run = RunFolder.create(path) if is_main else RunFolder(path)
        with stoppable(run, output) as stop, run.locked() if is_main else contextlib.nullcontext():
            results = {_label(job): _train(job, run, accelerator, command=command, output=output)}
            if config.baseline:
                results["student alone"] = _train_alone(job.config, run, command=command, output=output)
                _compare(results, run)
            _show_results(results, run, output)
            show_lines(leave_report(run) if rank() == 0 else ())
    return stop.code


def planned_job(config: RunConfig, *, tracking: Path | None = None) -> tuple[Job, Accelerator]:
    """Load data and models, and make the whole plan, the measured teacher included.

    Raises:
        UserError: for anything that can't be had or doesn't fit.
    """
    accelerator = make_accelerator(config.train, tracking=tracking)
    team = Team.of(accelerator)
    with console.status("Loading data and models"):
        job = prepare_job(config, team)
    with console.status("Measuring the teacher"):
        job = probe_teacher(check_teacher(job, team), team)
    with console.status("Measuring a step"):
        return decide_cache(settle_step(follow_cache(job), team), team), accelerator


def resume_run(
    config: RunConfig, path: Path, *, command: str, output: Output, dry_run: bool, force: bool = False
) -> int:
    """Go on with a run, from its last checkpoint to the end of ``config``'s epochs.

    Args:
        config: the run's own, but for what may change.
        path: the run folder.
        command: the command line, for the records of a baseline that was not begun.
        output: what to print.
        dry_run: stop after saying where the run stands.
        force: go on although data, teacher or files of the run have changed.

    Returns:
        The exit code, as of :func:`distill_run`.

    Raises:
        UserError: there is no such run, it is in use, its checkpoints can't be used, ``config`` differs too much, or
            its files, data or teacher have changed.
    """
    run = RunFolder.started(path, force=force)
    run.check()
    stored = run.read_config()
    check_same_run(stored, config, path / "config.yaml")
    _check_not_a_part(path, changed=config.train.epochs != stored.train.epochs)
    if not config.test and run.read_metrics("test"):
        raise UserError(f"The run {path} has been tested already.", "Drop --no-test.")
    _check_baseline(config)
    num_processes = processes_to_start(config.train)
    if num_processes > 1 and not dry_run:
        return launch(num_processes, sys.argv[1:])
    is_main = rank() == 0
    with (
        output.applied(),
        stoppable(run, output) as stop,
        run.locked() if is_main and not dry_run else contextlib.nullcontext(),
    ):
        show_lines([f"{path}: {'finished' if _is_done(run, config) else f'going on from {_where(run, config)}'}"])
        if dry_run:
            return 0
        results = {}
        if _is_done(run, config):
            results["distilled" if config.teacher.name != "none" else "student"] = _result_of(run)
            if is_main and config != stored:  # with a baseline, say: the next resume has to know of it
                run.write_config(config)
        else:
            if run.is_finished and _result_of(run).steps and not Checkpoints(path / "checkpoints").steps():
                raise UserError(
                    f"The run {path} has no checkpoint any more that it could go on from.",
                    "Start a new run with as many --epochs as wanted.",
                )
            accelerator = make_accelerator(config.train, tracking=path / "tracking")
            team = Team.of(accelerator)
            with console.status("Loading data and models"):
                job = prepare_job(config, team)
            known = {key: run.read_plan()[key] for key in ("teacher_metrics", "teacher_samples")}
            # A version that did not measure it began the run, or there is nothing to measure; by force it may be
            # another.
            if known["teacher_metrics"] is None or force:
                job = check_teacher(job, team, refuses=False)
            else:
                job = replace(job, plan=replace(job.plan, **known))
            if force:
                job = probe_teacher(job, team)
            job = decide_cache(job, team)
            results[_label(job)] = _train(job, run, accelerator, command=None, output=output)
        if config.baseline:
            results["student alone"] = _train_alone(config, run, command=command, output=output)
            _compare(results, run)
        _show_results(results, run, output)
        show_lines(leave_report(run) if rank() == 0 else ())
    return stop.code


def _check_not_a_part(path: Path, *, changed: bool) -> None:
    """Refuse to make a part of a run longer: the run itself would no longer fit to it."""
    whole = path.resolve().parent
    if changed and path.resolve().name in (_EMBEDDING, _BASELINE) and (whole / "config.yaml").is_file():
        raise UserError(
            f"{path} is a part of the run {whole}, whose epochs it has.",
            f"Go on with the whole: kdcli distill --resume {shlex.quote(str(whole))}",
        )


def _check_baseline(config: RunConfig) -> None:
    if config.baseline and config.teacher.name == "none":
        raise UserError(
            "A baseline is the student alone, and --teacher none trains it alone already.", "Add --no-baseline."
        )
    if config.baseline and config.task_facts.is_label_free:
        raise UserError(
            f"A baseline is the student alone, and {config.task} has no labels that it could learn from.",
            "Add --no-baseline.",
        )


@dataclass
class _Stop:
    code: int = 0


@contextlib.contextmanager
def stoppable(run: RunFolder, output: Output, *, unit: str = "step") -> Iterator[_Stop]:
    """Say how to go on where a signal stopped the training; the code is then its exit code.

    However it ended, but for an error, the processes part.

    Args:
        run: to go on with.
        output: what to print.
        unit: what :class:`Stopped` counts.
    """
    stop = _Stop()
    try:
        yield stop
    except Stopped as stopped:
        stop.code = stopped.exit_code
        again = f"kdcli distill --resume {shlex.quote(str(run.path))}"
        if output.log_format == "json" and rank() == 0 and not output.quiet:
            print(json.dumps({"event": "stopped", unit: stopped.step, "resume": again}), flush=True)
        show_lines([f"Stopped at {unit} {stopped.step} of {stopped.total_steps}; all is saved. Go on with: {again}"])
    leave_processes()


def _train(
    job: Job,
    run: RunFolder,
    accelerator: Accelerator,
    *,
    command: str | None,
    output: Output,
    beside: RunFolder | None = None,
) -> Result:
    """Train to the end, from the run's last checkpoint where there is one.

    Args:
        job: what to train.
        run: its folder, which this process has locked if it is the main one.
        accelerator: made for the job's config.
        command: for the records of a new run; None to go on with one.
        output: what to print.
        beside: the run that a new one is compared with, and has to have the data of.
    """
    is_main, is_new = accelerator.is_main_process, command is not None
    label = ("distil" if job.trains_classifier or job.is_label_free else "embedding") if job.teacher else "alone"
    reporter = output.reporter(label) if is_main else SilentReporter()
    before: Result | None = None
    record: Record | None = None
    note = ""
    try:
        if is_main and command is not None:  # the config last: with it, it is a run that can be resumed
            run.write_plan(job.plan, command=command)
            run.write_config(job.config)
        if is_main:
            record, note = (_record(job, run, beside), "") if is_new else _checked(job, run)
        if job.config.embedding is not None:
            before = _train_embedding(job, run, output=output)
            accelerator = make_accelerator(job.config.train, tracking=run.path / "tracking")
        with reporter as shown:
            if note:
                shown.warned(note)
            watcher = Snapshots(job, run, accelerator.device, shown.warned)
            trainer = Trainer(job, run, accelerator, shown, watcher=watcher)
            if before is not None:
                stage = _embedding_of(run)
                stage.check_student()
                trainer.start_from(stage.student)
            if not is_new:
                _go_back(trainer, job, run, shown)
            result = trainer.fit()
            if is_main and (note := draw_run(job, run, accelerator.device)):
                shown.warned(note)
    except UserError:
        if is_main and is_new:
            run.discard_if_empty()
        raise
    if before is not None:
        spent = {"steps": before.steps, "seconds": before.seconds}
        result = result.model_copy(update={"embedding": {**before.validation, **spent}})
    if record is not None:
        show_lines(run.write_card(model_card(run, result, pictures=True)))
        result = run.write_result(result.model_copy(update=record.of_result()))
    return result


def _record(job: Job, run: RunFolder, beside: RunFolder | None) -> Record:
    """Write down what a new run learns from."""
    record = take_record(job.data, job.teacher)
    reference = None if beside is None else read_record(beside)
    if beside is not None and reference is not None:
        changes = changes_since(reference, record, splits=record.data.splits, teacher=False)
        told = insist_unchanged(beside, changes, what=f"Begun beside {beside.path.resolve().name}")
        record = with_forced(record, record, told)
    write_record(run, record)
    return record


def _checked(job: Job, run: RunFolder) -> tuple[Record, str]:
    steps = Checkpoints(run.path / "checkpoints").steps()
    now = take_record(job.data, job.teacher)
    return recheck(run, now, begun=f"step {steps[-1]}" if steps else None, without=() if job.config.test else ("test",))


def _go_back(trainer: Trainer, job: Job, run: RunFolder, reporter: Reporter) -> None:
    """Put trainer and run folder to where the last checkpoint was taken, or to the beginning."""
    checkpoint = trainer.checkpoints.load(warn=reporter.warned)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    elif trainer.is_main:
        run.unfinish()
        run.cut_metrics(0)
        cut_grids(run.path, -1)
        run.restore_best(None)
    if trainer.is_main:
        run.update_plan(job.plan)
        run.write_config(job.config)


def _train_embedding(job: Job, run: RunFolder, *, output: Output) -> Result:
    """Train the stage before ``job`` in ``RUN/embedding``, or go on with it, or take what it came to.

    Args:
        job: of the run; data and teacher are shared.
        run: its folder, with plan and config.
        output: what to print.
    """
    config, stage = job.config.embedding_stage(), _embedding_of(run)
    is_begun = (stage.path / "config.yaml").is_file()
    if is_begun and _is_done(stage, config):
        return _result_of(stage)
    accelerator = make_accelerator(config.train, tracking=stage.path / "tracking")
    stage_job = embedding_job(job, Team.of(accelerator))
    if not accelerator.is_main_process:
        return _train(stage_job, stage, accelerator, command=None, output=output)
    with clear_os_errors(stage.path):
        stage.path.mkdir(exist_ok=True)  # what a killed process left of it before it was a run is written over
    with stage.locked():
        command = None if is_begun else run.read_plan()["command"]
        return _train(stage_job, stage, accelerator, command=command, output=output)


def _embedding_of(run: RunFolder) -> RunFolder:
    return RunFolder(run.path / _EMBEDDING, force=run.force)


def _train_alone(config: RunConfig, run: RunFolder, *, command: str, output: Output) -> Result:
    """Train the student alone in ``RUN/baseline``, or go on with that, or take what it came to.

    Args:
        config: the run's, with its methods written out.
        run: its folder.
        command: for the records of a new baseline.
        output: what to print.
    """
    path, alone = run.path / _BASELINE, config.alone()
    baseline = RunFolder(path, force=run.force)
    is_begun = (path / "config.yaml").is_file()
    if is_begun and _is_done(baseline, alone):
        return _result_of(baseline)
    accelerator = make_accelerator(alone.train, tracking=path / "tracking")
    job = prepare_job(alone, Team.of(accelerator))
    if accelerator.is_main_process:
        with clear_os_errors(path):
            path.mkdir(exist_ok=True)  # what a killed process left of it before it was a run is written over
    with baseline.locked() if accelerator.is_main_process else contextlib.nullcontext():
        return _train(job, baseline, accelerator, command=None if is_begun else command, output=output, beside=run)


def _compare(results: dict[str, Result], run: RunFolder) -> None:
    """Put into the run's result, its file and its card how it stands to its student alone."""
    if rank() != 0:
        return
    label, result = next(iter(results.items()))
    noun = run.read_config().task_facts.modality
    outcome = compare_with_alone(run, RunFolder(run.path / _BASELINE, force=run.force), noun=noun)
    if outcome != result.outcome:
        result = run.rewrite_result(result.model_copy(update={"outcome": outcome}))
        show_lines(run.write_card(model_card(run, result, pictures=True)))
    results[label] = result


def _where(run: RunFolder, config: RunConfig) -> str:
    """Return where an unfinished run stands."""
    stage = _embedding_of(run)
    if config.embedding is not None and stage.read_result() is None:
        steps = Checkpoints(stage.path / "checkpoints").steps()
        return f"step {steps[-1]} of the embedding stage" if steps else "the beginning"
    steps = Checkpoints(run.path / "checkpoints").steps()
    return (
        f"step {steps[-1]}" if steps else "the beginning" if config.embedding is None else "the embedding stage's end"
    )


def is_finished(path: Path, config: RunConfig) -> bool:
    """Whether nothing is left to do for ``config`` in the run folder ``path``, which need not exist."""
    run, alone = RunFolder(path), RunFolder(path / _BASELINE)
    # The run's own config has its stages written out, which the baseline's epochs depend on.
    return _is_done(run, config) and (not config.baseline or _is_done(alone, run.read_config().alone()))


def _is_done(run: RunFolder, config: RunConfig) -> bool:
    """Whether the run has been trained for ``config``'s epochs, and tested if it wants that."""
    if run.read_result() is None:
        return False
    stored = run.read_config()
    return stored.train.epochs == config.train.epochs and (stored.test or not config.test)


def _result_of(run: RunFolder) -> Result:
    found = run.read_result()
    assert found is not None
    return found


def _label(job: Job) -> str:
    return "distilled" if job.teacher else "student"


def _show_results(results: dict[str, Result], run: RunFolder, output: Output) -> None:
    if output.log_format == "json" and rank() == 0 and not output.quiet:
        by_name = {name: result.to_json() for name, result in results.items()}
        print(json.dumps({"event": "result", "run": str(run.path), **by_name}), flush=True)
    first = next(iter(results.values()))
    rows = []
    for split in ("validation", "test"):
        found = [getattr(result, split) for result in results.values()]
        if first.teacher:
            found.append(first.teacher.get(split, {}))
        part = f" (of {first.teacher_samples[split]})" if split in first.teacher_samples else ""
        # Features alone have another metric than their baseline.
        for metric in dict.fromkeys(metric for metrics in found for metric in metrics):
            if metric not in ("epoch", "step", *METRICS):
                told = [show_metric(metric, metrics[metric]) if metric in metrics else "-" for metrics in found]
                told[-1] += part
                rows.append([f"{split} {metric}", *told])
    for metric in first.last if first.last.get("step") != first.validation["step"] else ():
        if metric not in ("epoch", "step"):
            told = [
                show_metric(metric, result.last[metric]) if metric in result.last else "-"
                for result in results.values()
            ]
            rows.append([f"last {metric}", *told])
    rows.append(["best epoch", *(f"{result.validation['epoch']:.0f}" for result in results.values())])
    rows.append(["steps", *(_with_embedding(result, "steps", result.steps) for result in results.values())])
    if any(result.skipped for result in results.values()):
        rows.append(["unreadable images skipped", *(str(result.skipped) for result in results.values())])
    rows.append(["seconds", *(_with_embedding(result, "seconds", result.seconds) for result in results.values())])
    if first.embedding:
        accuracies = (result.embedding.get("ncm_accuracy") for result in results.values())
        rows.insert(0, ["embedding ncm_accuracy", *("-" if a is None else f"{a:.4f}" for a in accuracies)])
    names = ["", *results, *(["teacher"] if first.teacher else [])]
    if first.outcome is not None:
        names.append("difference")
        for row in rows:
            split, _, metric = row[0].partition(" ")
            if split == first.outcome.split and metric in first.outcome.differences:
                row += ["-"] * (len(names) - 1 - len(row)) + [show_difference(first.outcome.differences[metric])]
    show_table("Result", names, [row + ["-"] * (len(names) - len(row)) for row in rows])
    if (features := table_of(first.test)) is not None:
        show_table("Frozen features", *features)
    if first.outcome is not None:
        show_lines(lines_of(first.outcome))
    drawn = [str(file) for name in (SAMPLES, STRIP) if (file := run.path / name).is_file()]
    show_lines([f"Student: {run.student}", *([f"Samples: {', '.join(drawn)}"] if drawn else [])])
    show_lines([f"Export it: kdcli export {shlex.quote(str(run.path))}"])


def _with_embedding(result: Result, name: str, value: float) -> str:
    """Return ``value``, and before it that of the earlier stage."""
    return f"{result.embedding[name]:.0f} + {value:.0f}" if result.embedding else f"{value:.0f}"
