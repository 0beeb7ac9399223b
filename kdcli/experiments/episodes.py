"""Middle-shot learning: a student for each of many small tasks, drawn from one data set, beside plain baselines.

The setting of REFILLED (Ye, Lu, Zhan: Distilling Cross-Task Knowledge via Relationship Matching, CVPR 2020). An episode
is a task of N classes with K labelled images each, the support set; every arm answers the same queries.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from kdcli.base.errors import UserError
from kdcli.base.files import clear_os_errors
from kdcli.base.reads import Reads
from kdcli.base.result import EpisodesResult, Mean
from kdcli.base.tasks import DEFAULT_TASK
from kdcli.base.text import redact_all
from kdcli.config.keys import check_same_run
from kdcli.config.run import RunConfig
from kdcli.config.training import EpisodesConfig
from kdcli.data import ImageData, ImageSource, TextSource, open_data
from kdcli.data.images.sources import Subset
from kdcli.experiments.distill import Output, stoppable
from kdcli.experiments.sampling import Episode, EpisodeSampler
from kdcli.machine.control import Control, Every, Stopped
from kdcli.machine.devices import make_accelerator, resolve_precision
from kdcli.machine.launch import is_launched
from kdcli.machine.seeding import stable_seed
from kdcli.machine.team import Team
from kdcli.models import build_student, load_teacher
from kdcli.models.base import Model
from kdcli.models.layers import open_taps
from kdcli.models.roundtrip import check_reloads
from kdcli.models.settle import settle_models
from kdcli.plan.decide import make_plan
from kdcli.plan.plan import Decision, Plan
from kdcli.plan.relation import situation_of
from kdcli.results.card import episodes_card
from kdcli.results.compare import summarize
from kdcli.runs.folder import RunFolder, check_new_folder, free_folder
from kdcli.statistics.intervals import confidence_interval
from kdcli.tasks import build_task
from kdcli.terminal.console import console, errors, show_lines, show_plan, show_table
from kdcli.terminal.reporters import QuietReporter
from kdcli.training.evaluation import evaluate
from kdcli.training.job import Job, student_source
from kdcli.training.prepare import assemble_job, job_costs, teacher_embedder
from kdcli.training.provenance import Record, recheck, take_record, write_record
from kdcli.training.teachers.check import check_teacher
from kdcli.training.teachers.teacher import LiveTeacher
from kdcli.training.trainer import Trainer

ARMS = {
    "distilled": "distilled student",
    "fine_tuned": "student fine-tuned alone",
    "nearest_neighbour": "1-nearest-neighbour on the teacher's features",
    "nearest_class_mean": "nearest class mean of the teacher's features",
    "linear_classifier": "linear classifier on the teacher's features",
}
"""What is compared, and what it is called in tables."""
_FILE = "episodes.jsonl"


def teacher_accuracies(
    support: NDArray[np.float64],
    support_labels: NDArray[np.int64],
    queries: NDArray[np.float64],
    query_labels: NDArray[np.int64],
) -> dict[str, float]:
    """Return what the teacher's features reach without any student.

    All three see L2-normalised features: the label of the nearest support image, the class with the nearest mean (both
    by Euclidean distance), and multinomial logistic regression with an L2 penalty (C = 1).

    Args:
        support: (n, d).
        support_labels: (n,), of at least two classes.
        queries: (m, d).
        query_labels: (m,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    support, queries = normalize(support), normalize(queries)
    classes = np.unique(support_labels)
    means = np.stack([support[support_labels == label].mean(axis=0) for label in classes])
    classifiers = {
        "nearest_neighbour": KNeighborsClassifier(n_neighbors=1).fit(support, support_labels),
        "nearest_class_mean": KNeighborsClassifier(n_neighbors=1).fit(means, classes),
        "linear_classifier": LogisticRegression(C=1.0, max_iter=1000).fit(support, support_labels),
    }
    return {arm: float(np.mean(fitted.predict(queries) == query_labels)) for arm, fitted in classifiers.items()}


@dataclass(frozen=True)
class Stage:
    """A training of a student; its plan's label map is over all of the data's classes."""

    config: RunConfig
    plan: Plan


@dataclass(frozen=True)
class Setting:
    """Everything that the episodes have in common, loaded once.

    Attributes:
        config: resolved.
        plan: what is shown and written.
        stages: arm to the trainings of its student, one after the other.
        data: all of them.
        queries: the split that the queries are drawn from.
        teacher: frozen.
        student: with an N-way head; copied for each training.
        sampler: draws the episodes.
        tap: the teacher's features that its own arms read.
    """

    config: RunConfig
    plan: Plan
    stages: Mapping[str, tuple[Stage, ...]]
    data: ImageData
    queries: ImageSource
    teacher: Model
    student: Model
    sampler: EpisodeSampler
    tap: str

    def job(self, number: int, episode: Episode, stage: Stage, start: Model) -> Job:
        """Return the training of a copy of ``start`` on the support images; the queries are out of its reach."""
        config, plan = stage.config, stage.plan
        names = tuple(self.data.facts.class_names[label] for label in episode.classes)
        support = _subset(self.data.train, episode.support, len(names))
        size = len(support)
        facts = replace(
            self.data.facts, class_names=names, num_train=size, num_labelled=size, num_validation=size, num_test=0
        )
        if plan.label_map is not None:
            plan = replace(plan, label_map=tuple(plan.label_map[label] for label in episode.classes))
        train = config.train.model_copy(update={"validate_every": config.train.epochs})  # nothing is chosen by it
        seed = stable_seed("episode", config.seed, number) % 2**31
        return assemble_job(
            config.model_copy(update={"seed": seed, "train": train}),
            plan,
            data=ImageData(facts, train=support, validation=support, test=None),
            teacher=None if config.teacher.name == "none" else self.teacher,
            student=copy.deepcopy(start).train().requires_grad_(True),  # an averaged one is frozen
        )


def prepare_episodes(config: RunConfig) -> Setting:
    """Load data and models, make the plan, and check that episodes can be drawn.

    Raises:
        UserError: for anything in the config that can't be had, doesn't fit, or has no place in episodes.
    """
    _check_options(config)
    config = settle_models(config)
    episodes = config.episodes
    assert episodes is not None
    data = open_data(config.data, seed=config.seed)
    queries = data.test if episodes.split == "test" else data.validation
    if queries is None:
        raise UserError(
            f"{data.facts.name} has no test split to draw queries from.", "Add --set episodes.split=validation."
        )
    names = data.facts.class_names
    sampler = EpisodeSampler(
        episodes, train=data.train.labels, queries=queries.labels, class_names=names, seed=config.seed
    )
    teacher = load_teacher(config.teacher, seed=config.seed)
    head = [f"class {number + 1} of {episodes.ways}" for number in range(episodes.ways)]
    source = student_source(config, teacher)
    student = build_student(config.student, label_names=head, seed=config.seed, source=source)
    check_reloads(student, label=config.student.name)
    config = open_taps(config, teacher, student)
    situation = situation_of(config, teacher=teacher.facts, student=student.facts, data=data.facts)
    plan = make_plan(situation)
    resolved = plan.resolve(config)
    alone = resolved.alone()
    distilled = [Stage(resolved, plan)]
    if resolved.embedding is not None:
        before = resolved.embedding_stage()
        distilled.insert(0, Stage(before, make_plan(replace(situation, config=before))))
    fine_tuned = Stage(alone, make_plan(situation_of(alone, teacher=None, student=student.facts, data=data.facts)))
    stages = {"distilled": tuple(distilled), "fine_tuned": (fine_tuned,)}
    tap = "embedding" if "embedding" in teacher.facts.feature_dims else "pooled"
    plan = plan.with_decisions(_describe_episodes(config, episodes, f"{tap} ({teacher.facts.feature_dims[tap]})"))
    setting = Setting(resolved, plan, stages, data, queries, teacher, student, sampler, tap)
    batch_size = min(config.train.batch_size, episodes.ways * episodes.shots)
    last = Stage(
        resolved.model_copy(update={"train": config.train.model_copy(update={"batch_size": batch_size})}), plan
    )
    job = setting.job(1, sampler.draw(1), last, student)
    plan = plan.with_decisions(job_costs(job, mixed_precision=resolve_precision(config.train)))
    return replace(setting, plan=plan)


def _measured(setting: Setting) -> Plan:
    """Return the plan with what the teacher is measured to know of all the data's classes, where it has them."""
    team = Team.of(make_accelerator(setting.config.train))
    job = setting.job(1, setting.sampler.draw(1), setting.stages["distilled"][-1], setting.student)
    task = build_task(setting.data.facts, reference=teacher_embedder(setting.teacher))
    return check_teacher(replace(job, plan=setting.plan, task=task, data=setting.data), team).plan


def _check_options(config: RunConfig) -> None:
    """Refuse what has no place in episodes."""
    processes = int(os.environ.get("WORLD_SIZE", 1)) if is_launched() else config.train.num_processes or 1
    refused = {
        "--teacher none: there is nothing to distil, and the student alone is an arm already": config.teacher.name
        == "none",
        f"--task {config.task}: they are of images": config.task != DEFAULT_TASK,
        "--baseline: the student fine-tuned alone is always an arm": config.baseline,
        "data.labels_per_class: --shots says how many labels there are": config.data.labels_per_class is not None,
        "data.unlabelled: an episode has labelled images alone": config.data.unlabelled is not None,
        "--no-test: the queries are test images unless episodes.split=validation": not config.test
        and config.episodes is not None
        and config.episodes.split == "test",
        "--num-processes: an episode is trained by one process": processes > 1,
        "--track: there are hundreds of short trainings": bool(config.train.track),
        "train.compile: every student would be compiled anew": config.train.compile,
    }
    if found := [reason for reason, given in refused.items() if given]:
        raise UserError(f"Episodes can't have {'; nor '.join(found)}.", "Drop it, or drop --ways and --shots.")


def _describe_episodes(config: RunConfig, episodes: EpisodesConfig, features: str) -> list[Decision]:
    return [
        Decision(
            "episodes",
            f"{episodes.number} of {episodes.ways} classes, {episodes.shots} training and {episodes.queries}"
            f" {episodes.split} images of each",
            f"Classes and images are drawn by seed {config.seed} and the episode's number. Every student starts from the"
            " same weights.",
        ),
        Decision(
            "arms",
            "; ".join(ARMS.values()),
            f"All on the same episodes. The teacher's {features}, L2-normalised, without augmentation; logistic regression"
            " with C = 1.",
        ),
    ]


def _subset(source: ImageSource, indices: Sequence[int], ways: int) -> Subset:
    """Return the images of an episode, class by class, with its own labels."""
    return Subset(source, indices, np.repeat(np.arange(ways), len(indices) // ways).tolist())


class OnceReporter(QuietReporter):
    """Says everything once, however many episodes meet with it."""

    def __init__(self) -> None:
        super().__init__(errors)
        self._said: set[str] = set()

    def warned(self, message: str) -> None:
        """Print the warning, unless it was."""
        if message not in self._said:
            self._said.add(message)
            super().warned(message)

    def skipped(self, name: str) -> None:
        """Name the file, unless it was."""
        if name not in self._said:
            self._said.add(name)
            super().skipped(name)

    def skipped_all(self, names: Iterable[str]) -> None:
        """Name each of the files."""
        for name in names:
            self.skipped(name)


def run_episode(
    setting: Setting, number: int, run: RunFolder, reporter: OnceReporter, *, obey: Callable[[], None]
) -> dict[str, float]:
    """Train and test every arm on one episode; nothing is written.

    Args:
        setting: what all episodes have in common, the teacher on its device.
        number: of the episode.
        run: the folder that training errors refer to.
        reporter: told of warnings and unreadable images.
        obey: called between the arms; raises where a signal asked to stop.

    Returns:
        The accuracy on the queries by arm.

    Raises:
        Stopped: a signal asked for it.
        UserError: training can't go on.
    """
    episode = setting.sampler.draw(number)
    queries = _subset(setting.queries, episode.queries, len(episode.classes))
    accuracies: dict[str, float] = {}
    for arm, stages in setting.stages.items():
        student = setting.student
        for stage in stages:
            job = setting.job(number, episode, stage, student)
            # One of its own: what a gradient scaler has learnt must not pass from one training to the next.
            accelerator = make_accelerator(job.config.train)
            trainer = Trainer(job, run, accelerator, reporter, writes=False)
            trainer.fit()
            student = trainer.student
        accuracies[arm] = evaluate(job, student, queries, trainer.team, reporter.skipped_all)[job.monitor]
        obey()
    support, support_labels = _embed(setting, job, job.data.train, reporter)
    if lost := set(range(len(episode.classes))) - set(support_labels.tolist()):
        name = job.data.facts.class_names[min(lost)]
        raise UserError(f"Episode {number}: none of the images of {name} can be read.", "Mend or remove them.")
    return accuracies | teacher_accuracies(support, support_labels, *_embed(setting, job, queries, reporter))


def _embed(
    setting: Setting, job: Job, source: ImageSource | TextSource, reporter: OnceReporter
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the teacher's features (n, d) and the labels (n,) of the images that can be read, without augmentation."""
    teacher = LiveTeacher(setting.teacher, Reads((setting.tap,)))
    device = next(setting.teacher.parameters()).device
    features, labels = [], []
    for batch in job.eval_loader(source, setting.teacher.facts.preprocessing):
        reporter.skipped_all(batch.skipped)
        features.append(teacher(batch.to(device)).features[setting.tap].float().cpu().numpy())
        labels.append(batch.targets.numpy())
    return np.concatenate(features).astype(np.float64), np.concatenate(labels)


class _Line(BaseModel):
    """A line of ``episodes.jsonl``: the episode's number, names of its classes, images by index, accuracies."""

    episode: int
    classes: list[str]
    support: list[int]
    queries: list[int]
    accuracy: dict[str, float]


def run_episodes(config: RunConfig, *, name: str, command: str, output: Output, dry_run: bool) -> int:
    """Make a new run of episodes; arguments, exit code and errors are those of :func:`kdcli.experiments.distill.distill_run`."""
    path = config.output or free_folder(Path("runs") / name)
    if not dry_run:
        check_new_folder(path)
    with output.applied():
        with console.status("Loading data and models"):
            setting = prepare_episodes(config)
            setting = replace(setting, plan=_measured(setting))
        show_plan(setting.plan, title=f"Plan: {config.student.name} from {config.teacher.name}, in episodes")
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
    return run.write_result(result.model_copy(update=record.of_result()))


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
