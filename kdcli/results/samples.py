"""What is evaluated on: the samples of a run, or others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdcli.base import extensions
from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import UNLABELLED, Preprocessing, TextPreprocessing
from kdcli.base.tasks import DEFAULT_TASK, TASKS, find_task
from kdcli.base.text import short_repr
from kdcli.config.data import DataConfig
from kdcli.config.keys import check_domain, options_of
from kdcli.config.parse import parse_config
from kdcli.config.recipes import apply_overrides
from kdcli.config.run import RunConfig
from kdcli.data import EvalBatches, ImageData, Loading, Source, TextData
from kdcli.results.evaluation import is_run
from kdcli.runs.folder import RunFolder
from kdcli.tasks import task_class


def one_of(names: Sequence[str]) -> str:
    """Return a hint that lists names."""
    return f"Use {', '.join(names[:-1])} or {names[-1]}."


def open_run(name: str, *, force: bool) -> RunFolder | None:
    """Return the run called ``name``; None for a model.

    Raises:
        UserError: when the run has no student yet, or ``name`` is a folder of neither, or is taken for a misspelt one.
    """
    path = Path(name)
    if is_run(name):
        return RunFolder.open(path, force=force)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"{name} is neither a run folder (no config.yaml) nor a model (no config.json).",
            "Give a folder that 'kdcli distill' made, or a model's name.",
        )
    is_hub_id = not name.startswith((".", "/", "~")) and name.count("/") == 1
    if is_hub_id and not path.exists() and path.parent.is_dir():  # a misspelt folder looks like one
        siblings = [str(sibling) for sibling in path.parent.iterdir() if sibling.is_dir()]
        raise UserError(
            f"There is no folder {name}. {did_you_mean(name, siblings)}".rstrip(),
            f"A model of the Hugging Face hub is hf:{name} here, as there is a folder {path.parent}.",
        )
    return None


def data_config(
    run: RunFolder | None, data: str | None, root: Path | None, classes: str | None
) -> tuple[DataConfig, int]:
    """Return which data to open, and the seed of their splits."""
    if run is None:
        if data is None:
            raise UserError("A model is evaluated on data, and none are named.", "Name them with --data.")
        chosen, seed = DataConfig(name=data, root=root), 0
    else:
        config = run.read_config()
        chosen, seed = config.data, config.seed
        if data is not None and not same_data(config, data):
            # What belongs to the run's own files and to its training alone is left out.
            options = options_of(DataConfig).items()
            own = [name for name, option in options if option.says(lambda key: key.of_these_data)]
            usual = {name: DataConfig.model_fields[name].get_default() for name in own}
            chosen = chosen.model_copy(update={"name": data, **usual})
        if root is not None:
            chosen = chosen.model_copy(update={"root": root})
    if classes is not None:
        chosen = chosen.model_copy(update={"classes": (classes,)})
    return chosen, seed


_USELESS = ("unlabelled", "train_images", "train_texts", "labels_per_class", "labelled_images", "labelled_share")
"""Keys of data that are about what is trained on."""


def set_data(config: DataConfig, settings: Sequence[str], task: str, run: RunFolder | None) -> DataConfig:
    """Return ``config`` with settings such as ``data.ignore_label=11``: how data are read that are no run's own.

    Args:
        config: names the data.
        settings: ``data.KEY=VALUE`` each.
        task: that they are read for.
        run: that is evaluated on other data than its own; None for a model.

    Raises:
        UserError: another section's key, a key that nothing is read by, a wrong value, or the run's own data.
    """
    if not settings:
        return config
    if run is not None and same_data(run.read_config(), config.name):
        raise UserError("--set is for other data: those of a run are read as they were in training.", "Leave it out.")
    for setting in settings:
        section, _, key = setting.partition("=")[0].strip().partition(".")
        if section != "data" or not key:
            raise UserError(
                f"--set {short_repr(setting)} is no key of data, and nothing else is read here: nothing is trained.",
                "For example: --set data.ignore_label=11",
            )
        if key == "name" or key in _USELESS:
            why = "--data names the data" if key == "name" else "it is about what is trained on"
            raise UserError(f"--set data.{key} has no effect here: {why}.", "Leave it out.")
        if key == "channels":
            raise UserError(
                "--set data.channels has no effect here: every model reads images in its own channels.", "Leave it out."
            )
        if key == "classes" and config.classes is not None:
            raise UserError("The classes are named twice: by --classes and by --set data.classes.", "Leave one out.")
    values = {"teacher": "none", "student": "none", "task": task, "data": config.model_dump(exclude_unset=True)}
    asked = parse_config(apply_overrides(values, settings), source="--set")
    check_domain(asked)
    return asked.data


def same_data(config: RunConfig, data: str) -> bool:
    """Whether ``data`` names the run's own data, whose paths are absolute."""
    named = config.model_copy(update={"data": config.data.model_copy(update={"name": data})})
    return named.with_absolute_paths().data.name == config.data.name


_ELSEWHERE = (
    "result.json of the run has the metrics of validation and test, a language model's teacher's too; 'kdcli compare'"
    " puts runs side by side, 'kdcli models probe --teacher RUN' the features of runs and models of images on labelled"
    " data."
)


def named_task(run: RunFolder | None, asked: str | None) -> tuple[str, str | None]:
    """Return the task of a run, or what was asked for of a model, and another package's in its place.

    Raises:
        UserError: there is no such task, or the run has another one.
    """
    tasks = (*TASKS, *extensions.names("tasks"))
    if asked is not None and asked not in tasks:
        raise UserError(f"There is no task {asked!r}. {did_you_mean(asked, tasks)}".rstrip(), one_of(tasks))
    if run is None:
        return find_task(asked or DEFAULT_TASK)
    task, extension = run.read_config().task, run.read_config().extension_task
    if asked not in (None, task, extension):
        raise UserError(f"The run's task is {task}, not {asked}.", "Leave --task out: it is for models.")
    return task, extension


def task_of(run: RunFolder | None, asked: str | None) -> tuple[str, str | None]:
    """Return as :func:`named_task` a task whose samples have labels of their own, which are no tokens."""
    task, extension = named_task(run, asked)
    if TASKS[task].is_label_free or TASKS[task].is_language_model:
        raise UserError(f"kdcli evaluate measures classifiers, and the task {task} has no classes.", _ELSEWHERE)
    return task, extension


def open_samples(config: DataConfig, task: str, seed: int, *, extension: str | None = None) -> ImageData | TextData:
    """Open data with labels that a finished model can be measured by."""
    data = task_class(extension or task).open_classes(config, seed=seed)
    if data.facts.label_kind == "number":
        raise UserError(
            f"kdcli evaluate measures classifiers, and the labels of {config.name} are numbers.",
            _ELSEWHERE,
        )
    return data


def check_pairs(run: RunFolder, samples: ImageData | TextData) -> None:
    """Refuse single texts for a student that was trained on pairs of them, and the other way round."""
    wants = run.read_config().data.text_pair_column is not None
    if wants != samples.has_pairs:
        kinds = ("single texts", "pairs of texts")
        raise UserError(
            f"The run's student was trained on {kinds[wants]}, and {samples.facts.name} has {kinds[not wants]}.",
            "Evaluate it on data of the same kind; pairs are told by the names of their columns, such as premise and "
            "hypothesis.",
        )


def loader_of(
    source: Source, preprocessing: Preprocessing | TextPreprocessing, batch_size: int, config: DataConfig
) -> EvalBatches:
    """Return the batches of a source, for a model that reads it."""
    reduced = config.reduces(training=False)
    loading = Loading(batch_size, workers=config.workers, strict=config.strict, reduced=reduced)
    return source.eval_batches(loading, preprocessing)


def choose_split(samples: ImageData | TextData, asked: str | None) -> tuple[str, Source, list[str]]:
    """Return the split's name, its labelled samples, and what there is to say about them."""
    facts = samples.facts
    if asked == "test" and samples.test is None:
        raise UserError(f"{facts.name} has no test split.", "Use --split validation.")
    split = asked or ("validation" if samples.test is None else "test")
    notes = [] if asked or samples.test is not None else [f"{facts.name} has no test split: validation it is."]
    found = {"train": samples.train, "validation": samples.validation, "test": samples.test}[split]
    assert found is not None
    labelled = [index for index, label in enumerate(found.labels) if label != UNLABELLED]
    if len(labelled) < len(found):
        notes.append(f"{len(found) - len(labelled)} {facts.noun}s of the {split} split have no label and are left out.")
    return split, found.take(labelled), notes
