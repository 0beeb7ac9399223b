"""What programs use: a run, its plan, and what finished runs are worth, as functions; :mod:`kdcli` offers them lazily.

Every option of ``kdcli distill`` is a keyword by its name, with underscores; a section of the config may be a mapping
(``optim={"weight_decay": 0.1}``), and ``settings`` has dotted keys. What is wrong is a :class:`kdcli.UserError`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.api.objects import Network
from kdcli.api.options import OPTIONS, Named, as_arguments, as_call, config_of, folder_name
from kdcli.api.run import Run
from kdcli.base.errors import UserError
from kdcli.base.names import NormalizeName, ProjectorName, Relation
from kdcli.base.tasks import DEFAULT_TASK

if TYPE_CHECKING:
    from kdcli.plan.plan import Plan

Callback = Callable[[str, Mapping[str, Any]], None]
"""Called with an event of the training and its values; see :mod:`kdcli.terminal.callbacks`."""


def distill(
    *,
    teacher: Named | Network,
    student: Named | Network,
    data: Named | Any | None = None,
    recipe: str | Path | None = None,
    task: str | None = None,
    method: str | None = None,
    projector: ProjectorName | str | None = None,
    relation: Relation | str | None = None,
    normalize: NormalizeName | str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    output: str | Path | None = None,
    baseline: bool | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Iterable[Callback] = (),
    show: bool | str = True,
    **options: Any,
) -> Run:
    """Distil a teacher into a student, as ``kdcli distill`` does, and return the run.

    Args:
        teacher: to imitate; ``none`` for the student alone. A module of your own is a :class:`kdcli.Network`.
        student: to train; likewise.
        data: to learn from: a name or path, a ``datasets`` table, a torch data set of (image, class number), or a
            mapping of splits to those; without any, and without a recipe, the task's embedded demo data.
        recipe: by name or file; the other options override it.
        task: what the student is trained to do, image classification by default.
        method: one method beside the labels' loss.
        projector: in place of the plan's.
        relation: in place of what the plan finds.
        normalize: in place of the plan's.
        epochs: passes over the training data.
        batch_size: samples of a batch.
        lr: peak learning rate.
        seed: of everything random.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        output: the run folder; a new name under ``runs/`` by default.
        baseline: also train the student alone.
        settings: dotted keys of the config, as ``--set`` takes them.
        callbacks: functions that are told of events, in this process, which then trains alone.
        show: True prints what the command line prints, and shows a bar in a notebook; ``"bar"`` a bar alone; False
            warnings alone.
        options: the other options of ``kdcli distill``, and sections of the config as mappings.

    Raises:
        UserError: for anything that can't be had, doesn't fit or goes wrong.
    """
    from kdcli.experiments.distill import distill_run
    from kdcli.experiments.output import Output
    from kdcli.runs.places import RUNS, check_new_folder, free_folder

    given = {key: value for key, value in locals().items() if key in OPTIONS and value is not None}
    config, is_demo = config_of(teacher, student, data, recipe, settings, {**options, **given})
    told = tuple(callbacks)
    if told and config.train.num_processes is None:
        config = config.model_copy(update={"train": config.train.model_copy(update={"num_processes": 1})})
    is_bar = show == "bar" or (show is True and _in_notebook())
    shown = Output("plain" if is_bar else "auto", quiet=is_bar or not show, bar=is_bar, callbacks=told)
    if is_demo and show:
        print(f"No data: taking {config.data.name}, the demo data of {config.task}.")
    if config.episodes is not None:
        raise UserError(
            "Episodes are many students, and this is one run.", "Use the command line: kdcli distill --ways."
        )
    path = config.output or free_folder(RUNS / folder_name(config, recipe))
    check_new_folder(path)
    config = config.model_copy(update={"output": path})
    with tempfile.TemporaryDirectory() as folder:
        arguments = as_arguments(config, Path(folder), quiet=shown.quiet, has_callbacks=bool(told))
        distill_run(config, name="", command=as_call(config), output=shown, dry_run=False, arguments=arguments)
    return Run(path)


def plan(
    *,
    teacher: Named | Network,
    student: Named | Network,
    data: Named | Any | None = None,
    recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """Return every decision of a run with its reason, as ``kdcli distill --dry-run`` shows them; nothing is written.

    Arguments and errors are those of :func:`distill`.
    """
    from kdcli.experiments.distill import planned_job

    return planned_job(config_of(teacher, student, data, recipe, settings, options)[0])[0].plan


def load(run: str | Path | Run) -> Run:
    """Return a run that was made before, finished or not.

    Raises:
        UserError: there is none.
    """
    from kdcli.runs.folder import RunFolder

    return Run(RunFolder.started(Path(run)).path)


def evaluate(
    model: str | Path | Run,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    against: Sequence[str | Path | Run] = (),
    teacher: bool = True,
    task: str | None = None,
    classes: str | None = None,
    settings: Sequence[str] = (),
    batch_size: int = 64,
    device: str = "auto",
    weights: str | Path | None = None,
    data_root: str | Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Measure a run's student or a model by name, its teacher and others beside it; return what evaluation.json has.

    Args:
        model: a run, or the name of a model.
        data: other data than the run's own.
        split: ``test``, ``validation`` or ``train``.
        against: more runs and models.
        teacher: also measure the run's teacher.
        task: of a model; a run has its own.
        classes: of the data, which ones are taken.
        settings: ``data.KEY=VALUE``, how the data are read.
        batch_size: samples of a batch.
        device: ``auto`` is the first GPU, else the CPU.
        weights: a checkpoint file for a model by name.
        data_root: where torchvision's data lie.
        force: go on although data, teacher or files of a run have changed.

    Raises:
        UserError: for a name, split or device that isn't there, or labels that don't fit.
    """
    from kdcli.results.evaluate import evaluate_models

    return evaluate_models(
        _name(model),
        against=[_name(other) for other in against],
        with_teacher=teacher,
        data=None if data is None else str(data),
        data_root=None if data_root is None else Path(data_root),
        classes=classes,
        settings=settings,
        split=split,
        device=device,
        batch_size=batch_size,
        task=task,
        weights=None if weights is None else str(weights),
        force=force,
    ).evaluation


def compare(runs: Iterable[str | Path | Run], *, baseline: str | Path | Run | None = None) -> dict[str, Any]:
    """Put runs side by side, those of one recipe with several seeds as a group; return what ``--json`` prints.

    Args:
        runs: folders of runs, or of a sweep.
        baseline: one of them: also the paired difference to its group.

    Raises:
        UserError: a folder is no run, or the runs can't be compared.
    """
    from kdcli.results.compare import compare_runs, find_runs, read_runs
    from kdcli.results.comparison import to_json

    found = read_runs(find_runs([Path(run) for run in runs]))
    return to_json(compare_runs(found, baseline=None if baseline is None else _name(baseline)))


def probe(
    teachers: str | Path | Run | Sequence[str | Path | Run],
    *,
    data: str | Path,
    task: str = DEFAULT_TASK,
    samples: int = 1000,
    classes: str | None = None,
    features: str = "pooled",
    seed: int = 0,
    device: str = "auto",
    data_root: str | Path | None = None,
) -> dict[str, Any]:
    """Rank teachers by what their features, frozen, know of your classes; return what ``--json`` prints.

    Args:
        teachers: one or several, by name or as runs.
        data: with classes.
        task: one with a class a sample.
        samples: so many training samples are looked at.
        classes: of the data, which ones are taken.
        features: ``pooled`` or ``embedding``.
        seed: of sample and folds.
        device: ``auto`` is the first GPU, else the CPU.
        data_root: where torchvision's data lie.

    Raises:
        UserError: a teacher or the data can't be had, or don't fit.
    """
    from kdcli.results.probe import probe_teachers

    several = [teachers] if isinstance(teachers, (str, Path, Run)) else teachers
    return probe_teachers(
        [_name(teacher) for teacher in several],
        task=task,
        data=str(data),
        data_root=None if data_root is None else Path(data_root),
        samples=samples,
        classes=classes,
        tap=features,
        seed=seed,
        device=device,
        report=lambda what, done, total: None,
    )


def export(
    run: str | Path | Run,
    output: str | Path | None = None,
    *,
    format: str = "safetensors",
    quantize: str | None = None,
    calibration_samples: int = 128,
    push_to: str | None = None,
    public: bool = False,
    force: bool = False,
) -> Path:
    """Write the best student for use without kdcli, load it back and compare; return the folder.

    Args:
        run: a finished run.
        output: where to write; ``RUN/export`` by default.
        format: ``safetensors``, the library's own, ``onnx``, ``torch-export``, ``openvino`` or ``executorch``.
        quantize: ``int8`` for a quantised graph beside ``onnx``, measured on the run's validation samples.
        calibration_samples: training samples that set the ranges of a quantised graph.
        push_to: ``hf:ORG/NAME``: then upload the folder to the Hugging Face hub, privately.
        public: with ``push_to``: everybody may see it.
        force: go on although files of the run have changed; the model card then says so.

    Raises:
        UserError: there is no such run or format, the export gives something else, or the hub can't be had.
    """
    from kdcli.results.formats import export_run
    from kdcli.results.push import push, target_of
    from kdcli.runs.folder import RunFolder

    opened = RunFolder.open(Path(run), force=force)
    target = opened.path / "export" if output is None else Path(output)
    repo = target_of(push_to, public=public)
    export_run(opened, target, form=format, quantize=quantize, calibration=calibration_samples)
    if repo is not None:
        push(target, repo, public=public)
    return target


def calibrate(
    run: str | Path | Run, *, batch_size: int = 64, device: str = "auto", force: bool = False
) -> dict[str, Any]:
    """Fit the temperature of a student's probabilities on its validation split; return what ``--json`` prints.

    It is stored in the run, and read by :func:`predict` and :func:`export`.

    Args:
        run: a finished run with classes.
        batch_size: samples of a batch.
        device: ``auto`` is the first GPU, else the CPU.
        force: go on although files of the run have changed.

    Raises:
        UserError: it is no run of classes.
    """
    from kdcli.results.calibration import calibrate as fit

    found, notes = fit(_name(run), device=device, batch_size=batch_size, force=force)
    return found.to_json() | {"notes": notes}


def analyze_projector(
    run: str | Path | Run, *, split: str = "validation", device: str = "auto", force: bool = False
) -> dict[str, Any]:
    """Show which directions of the features a run's projectors kept; return what ``analysis.json`` has.

    Args:
        run: a finished run with a projector; pictures and ``analysis.json`` go into its folder ``analysis``.
        split: ``validation`` or ``test``.
        device: ``auto`` is the first GPU, else the CPU.
        force: go on although data, teacher or files of the run have changed.

    Raises:
        UserError: there is no such run, or it has no projector that is a matrix.
    """
    from kdcli.results.analyze import analyze_run, choose_projectors
    from kdcli.runs.folder import RunFolder

    (chosen,), _ = choose_projectors([RunFolder.open(Path(run), force=force)], output=None)
    return analyze_run(chosen, split=split, device=device)[0]


def report(
    runs: str | Path | Run | Sequence[str | Path | Run], output: str | Path | None = None, *, force: bool = False
) -> Path:
    """Write a run, or several side by side, as one page of HTML that needs no other file; return the page.

    Args:
        runs: one or several, or folders of sweeps.
        output: the file; ``RUN/report.html`` of one run by default.
        force: go on although files or data of the runs have changed.

    Raises:
        UserError: a folder is no run, or several have no ``output``.
    """
    from kdcli.results.report.runs import report_on

    several = [runs] if isinstance(runs, (str, Path, Run)) else runs
    return report_on([Path(run) for run in several], None if output is None else Path(output), force=force)


def predict(
    model: str | Path | Run,
    inputs: str | Path | Sequence[str | Path] = (),
    *,
    texts: Sequence[str] = (),
    top: int | None = None,
    score: float | None = None,
    teacher: bool = False,
    against: Sequence[str | Path | Run] = (),
    task: str | None = None,
    output: str | Path | None = None,
    batch_size: int = 64,
    device: str = "auto",
    weights: str | Path | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Ask a model about images or texts of your own, prepared as in evaluation; return what ``--json`` prints.

    Args:
        model: a run, or the name of a model.
        inputs: images, folders, files of texts.
        texts: themselves.
        top: so many classes, or boxes.
        score: of boxes, the least.
        teacher: ask the run's teacher too.
        against: more runs and models.
        task: of a model; a run has its own.
        output: a file or folder that is also written.
        batch_size: samples of a batch.
        device: ``auto`` is the first GPU, else the CPU.
        weights: a checkpoint file for a model by name.
        text_column: of tables, the column of the texts.
        text_pair_column: of tables, that of the second texts of pairs.
        force: go on although files of the run have changed.

    Raises:
        UserError: there is no such model or input, or nothing can be read.
    """
    from kdcli.results.predict import Question
    from kdcli.results.predictions import content_of
    from kdcli.results.predictions import predict as ask
    from kdcli.tasks.answers import Choice

    several = [inputs] if isinstance(inputs, (str, Path)) else inputs
    question = Question(
        _name(model),
        inputs=[str(path) for path in several],
        texts=list(texts),
        against=[_name(other) for other in against],
        with_teacher=teacher,
        task=task,
        weights=None if weights is None else str(weights),
        text_column=text_column,
        text_pair_column=text_pair_column,
        choice=Choice(top, score),
        device=device,
        batch_size=batch_size,
        force=force,
    )
    return content_of(ask(question, None if output is None else Path(output)))


def _name(model: str | Path | Run) -> str:
    return str(model.path) if isinstance(model, Run) else str(model)


def _in_notebook() -> bool:
    try:
        shell = get_ipython()  # type: ignore[name-defined]
    except NameError:
        return False
    return bool(type(shell).__name__ == "ZMQInteractiveShell")
