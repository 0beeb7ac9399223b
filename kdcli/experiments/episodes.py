"""Middle-shot learning: a student for each of many small tasks, drawn from one data set, beside plain baselines.

The setting of REFILLED (Ye, Lu, Zhan: Distilling Cross-Task Knowledge via Relationship Matching, CVPR 2020). An episode
is a task of N classes with K labelled images each, the support set; every arm answers the same queries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors
from kdcli.base.result import EpisodesResult, Mean
from kdcli.base.text import redact_all
from kdcli.config.keys import check_same_run
from kdcli.config.run import RunConfig
from kdcli.experiments.distill import Output, stoppable
from kdcli.experiments.episode_arms import OnceReporter, run_episode
from kdcli.experiments.episode_setting import ARMS, Setting, measured_plan, prepare_episodes
from kdcli.machine.control import Control, Every, Stopped
from kdcli.machine.devices import make_accelerator
from kdcli.results.card import episodes_card
from kdcli.results.compare import summarize
from kdcli.results.report.runs import leave_report
from kdcli.runs.folder import RunFolder
from kdcli.runs.places import check_new_folder, free_folder
from kdcli.statistics.intervals import confidence_interval
from kdcli.terminal.console import console, show_lines, show_plan, show_table
from kdcli.training.provenance import Record, recheck, take_record, write_record

_FILE = "episodes.jsonl"


class _Line(BaseModel):
    """A line of ``episodes.jsonl``: the episode's number, names of its classes, images by index, accuracies."""

    episode: int
    classes: list[str]
    support: list[int]
    queries: list[int]
    accuracy: dict[str, float]


def run_episodes(config: RunConfig, *, name: str, command: str, output: Output, dry_run: bool) -> int:
    """Make a new run of episodes; arguments, code and errors as of :func:`kdcli.experiments.distill.distill_run`."""
    path = config.output or free_folder(Path("runs") / name)
    if not dry_run:
        check_new_folder(path)
    with output.applied():
        with console.status("Loading data and models"):
            setting = prepare_episodes(config)
            setting = replace(setting, plan=measured_plan(setting))
        title = f"Plan: {config.student.name} from {config.teacher.name}, in episodes"
        show_plan(setting.plan, title=title, whole=output.whole_plan)
        _print_event(output, "plan", setting.plan.to_json())
        if dry_run:
            return 0
        run = RunFolder.create(path)
        with stoppable(run, output, unit="episode") as stop, run.locked():
            run.write_plan(setting.plan, command=command)
            run.write_config(setting.config)
            record = take_record(setting.data, setting.teacher)
            write_record(run, record)
            try:
                result = _go_through(setting, run, [], record, output)
            except UserError:
                if not (run.path / _FILE).exists():
                    run.discard_if_empty()
                raise
            _show_result(result, run, output)
    return stop.code


def resume_episodes(config: RunConfig, path: Path, *, output: Output, dry_run: bool, force: bool = False) -> int:
    """Go on after the last whole episode; there may be more of them than before.

    Arguments, exit code and errors are those of :func:`kdcli.experiments.distill.resume_run`.
    """
    run = RunFolder.started(path, force=force)
    run.check()
    stored = run.read_config()
    check_same_run(stored, config, path / "config.yaml")
    assert config.episodes is not None
    if config.train.epochs != stored.train.epochs:
        raise UserError(
            f"The students of {path} are trained for {stored.train.epochs} epochs, not {config.train.epochs}.",
            "Start a new run; this one can only have more --episodes.",
        )
    with (
        output.applied(),
        stoppable(run, output, unit="episode") as stop,
        run.locked(),
    ):
        lines = _read_lines(run)
        number = config.episodes.number
        if len(lines) > number:
            raise UserError(f"The run has {len(lines)} episodes already, and {number} are asked for.", "Ask for more.")
        result = run.read_episodes_result() if len(lines) == number else None
        where = "finished" if result is not None else f"going on from episode {len(lines) + 1}"
        show_lines([f"{path}: {where}"])
        if dry_run:
            return 0
        if result is None:
            with console.status("Loading data and models"):
                setting = prepare_episodes(config)
            begun = f"episode {len(lines)}" if lines else None
            record, note = recheck(run, take_record(setting.data, setting.teacher), begun=begun)
            if note:
                show_lines([f"Warning: {note}"])
            _check_lines(lines, setting, run)
            run.unfinish()
            run.write_text(_FILE, "".join(f"{json.dumps(line.model_dump(mode='json'))}\n" for line in lines))
            run.update_plan(setting.plan)
            run.write_config(setting.config)
            result = _go_through(setting, run, lines, record, output)
        _show_result(result, run, output)
    return stop.code


def has_all_episodes(path: Path, config: RunConfig) -> bool:
    """Whether nothing is left to do for ``config`` in the run folder ``path``, which need not exist."""
    assert config.episodes is not None
    result = RunFolder(path).read_episodes_result()
    return result is not None and result.episodes == config.episodes.number


def _read_lines(run: RunFolder) -> list[_Line]:
    """Return the episodes that are whole; a last line that breaks off, as a killed run leaves it, is left out."""
    file = run.path / _FILE
    if not file.is_file():
        return []
    lines = []
    for number, text in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = _Line.model_validate(json.loads(text))
        except (ValueError, RecursionError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UserError(f"Line {number} of {file} is damaged: {problem}.", "The run has to be repeated.") from None
        if line.episode != number or line.accuracy.keys() != ARMS.keys():
            raise UserError(f"Line {number} of {file} is not episode {number}.", "The run has to be repeated.")
        lines.append(line)
    return lines


def _check_lines(lines: Sequence[_Line], setting: Setting, run: RunFolder) -> None:
    """Refuse to go on with data that give other episodes than before."""
    for line in lines:
        now = _describe(setting, line.episode)
        if (line.classes, line.support, line.queries) != (now["classes"], now["support"], now["queries"]):
            raise UserError(
                f"The data have changed since {run.path} was begun: episode {line.episode} would have other images.",
                "Put the data back as they were, or start a new run.",
            )


def _describe(setting: Setting, number: int) -> dict[str, Any]:
    """Return an episode as ``episodes.jsonl`` has it."""
    episode = setting.sampler.draw(number)
    names = [setting.data.facts.class_names[label] for label in episode.classes]
    return {
        "episode": number,
        "classes": redact_all(names),
        "support": list(episode.support),
        "queries": list(episode.queries),
    }


def _go_through(setting: Setting, run: RunFolder, lines: list[_Line], record: Record, output: Output) -> EpisodesResult:
    """Add the episodes that are missing, write what they came to, and return it.

    Raises:
        Stopped: a signal asked for it; every whole episode is saved.
    """
    config = setting.config
    assert config.episodes is not None
    total = config.episodes.number
    setting.teacher.to(make_accelerator(config.train).device)
    reporter = OnceReporter()
    control = Control(Every.parse(config.train.checkpoint_every))

    def obey() -> None:
        verdict = control.after(len(lines))
        if verdict.is_stop:
            raise Stopped(verdict.exit_code, len(lines), total)

    with control.listening():
        for number in range(len(lines) + 1, total + 1):
            with console.status(f"Episode {number} of {total}"):
                try:
                    accuracies = run_episode(setting, number, run, reporter, obey=obey)
                except Stopped as stopped:  # a training's own step is of no use
                    raise Stopped(stopped.exit_code, len(lines), total) from None
            line = _Line(**_describe(setting, number), accuracy=accuracies)
            with clear_os_errors(run.path), (run.path / _FILE).open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line.model_dump(mode='json'))}\n")
            lines.append(line)
            shown = "  ".join(f"{arm} {value:.4f}" for arm, value in accuracies.items())
            show_lines([f"episode {number}/{total}  {shown}"])
            _print_event(output, "episode", line.model_dump(mode="json"))
            if number < total:
                obey()
    result = summarize_episodes([line.accuracy for line in lines])
    show_lines(run.write_card(episodes_card(run, result, arms=ARMS)))
    result = run.write_result(result.model_copy(update=record.of_result()))
    show_lines(leave_report(run))
    return result


def summarize_episodes(accuracies: Sequence[dict[str, float]]) -> EpisodesResult:
    """Return what the episodes came to.

    Args:
        accuracies: of every arm, an entry an episode.

    Returns:
        ``episodes``, their number; ``accuracy``, for each arm its ``mean`` and the ends of its 95 % t-interval, ``low``
        and ``high`` (None with one episode); ``distilled_minus_fine_tuned``, the same of the paired differences.
    """

    def mean(values: Sequence[float]) -> Mean:
        low, high = confidence_interval(values)
        return Mean(mean=summarize(values).mean, low=low, high=high)

    return EpisodesResult(
        episodes=len(accuracies),
        accuracy={arm: mean([values[arm] for values in accuracies]) for arm in ARMS},
        distilled_minus_fine_tuned=mean([values["distilled"] - values["fine_tuned"] for values in accuracies]),
    )


def _show_result(result: EpisodesResult, run: RunFolder, output: Output) -> None:
    _print_event(output, "result", {"run": str(run.path), **result.to_json()})

    def row(label: str, value: Mean, style: str) -> list[str]:
        interval = "-" if value.low is None else f"{value.low:{style}} to {value.high:{style}}"
        return [label, f"{value.mean:{style}}", interval]

    rows = [row(label, result.accuracy[arm], ".4f") for arm, label in ARMS.items()]
    rows.append(row("distilled minus fine-tuned, paired", result.distilled_minus_fine_tuned, "+.4f"))
    show_table(
        f"Result of {result.episodes} episode{'s' if result.episodes != 1 else ''}",
        ["", "accuracy", "95 % interval"],
        rows,
    )
    show_lines([f"Every episode: {run.path / _FILE}. No student is kept: each episode has its own."])


def _print_event(output: Output, event: str, values: dict[str, Any]) -> None:
    if output.log_format == "json" and not output.quiet:
        print(json.dumps({"event": event, **values}), flush=True)
