"""What keys are for: which tasks read them, which may change on resume, which are no part of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from kdcli.base.errors import UserError
from kdcli.base.tasks import TASKS
from kdcli.base.text import redact_all
from kdcli.config.run import RunConfig

_NOT_OF_EVAL_DATA = (
    *("text_column", "text_pair_column", "label_kind", "train_texts", "mask_probability"),
    *("labelled_share", "unlabelled", "workers", "strict"),
)


_LABEL_KEYS = ("data.classes", "data.labels_per_class", "data.labelled_share")


_TEXT_KEYS = (
    *("teacher.max_length", "teacher.pooling", "teacher.prompt", "student.max_length", "student.pooling"),
    *("student.tokenizer", "data.text_column", "data.text_pair_column", "data.label_kind", "data.train_texts"),
    "data.mask_probability",
)


_IMAGE_KEYS = (
    *("teacher.image_size", "teacher.mean", "teacher.std", "teacher.interpolation"),
    *("teacher.crop_mode", "teacher.crop_pct"),
    *("student.image_size", "student.drop_path", "data.image_column", "data.root", "data.deep_range"),
    *("data.classes", "data.train_images", "data.workers", "data.strict", "augment", "train.channels_last"),
)


_OVER_TEXTS = tuple(row.name for row in TASKS.values() if not (row.reads_images or row.is_over_tokens))
_LABELLED_TEXTS = tuple(row.name for row in TASKS.values() if not row.reads_images and row.target == "label")


_KEYS_OF_TASKS = {
    "teacher.pooling": (_OVER_TEXTS, "each token stands for itself"),
    "teacher.prompt": (_OVER_TEXTS, "it reads texts as they are"),
    "student.pooling": (_OVER_TEXTS, "each token stands for itself"),
    "data.mask_probability": (tuple(row.name for row in TASKS.values() if row.head == "masked"), "nothing is masked"),
    "data.label_kind": (_LABELLED_TEXTS, "it reads no such labels"),
    "data.text_pair_column": (_LABELLED_TEXTS, "it reads single texts"),
    "data.unlabelled": (
        tuple(row.name for row in TASKS.values() if not row.reads_images and row.target != "words"),
        "words without labels are those of the data whose label is null",
    ),
}
"""Options about texts -> the tasks that they are for, and why the others have none."""


def check_domain(config: RunConfig) -> None:
    """Refuse options about images where the task is about texts, the other way round, and about labels it has not."""
    is_text = not config.reads_images
    default = RunConfig.model_validate({"teacher": "none", "student": "x", "data": "x"})
    for key in _IMAGE_KEYS if is_text else _TEXT_KEYS:
        value, usual = (reduce(getattr, key.split("."), of) for of in (config, default))
        if value != usual:
            what = "images" if is_text else "texts"
            raise UserError(
                f"{key} is set, which is about {what}, but the task is {config.task}.",
                "Leave it out, or choose another --task.",
            )
    for key, (tasks, why) in _KEYS_OF_TASKS.items():
        value, usual = (reduce(getattr, key.split("."), of) for of in (config, default))
        if is_text and value != usual and config.task not in tasks:
            raise UserError(f"{key} is set, but the task is {config.task}: {why}.", "Leave it out.")
    if not (config.reads_images and config.task_facts.is_label_free):
        if config.eval_data is not None:
            raise UserError(
                f"eval_data is for the task image-embedding, and the task is {config.task}.", "Leave --eval-data out."
            )
        return
    for key in _NOT_OF_EVAL_DATA:
        if config.eval_data is not None and getattr(config.eval_data, key) != getattr(default.data, key):
            raise UserError(
                f"eval_data.{key} has no effect: features are measured on labelled images.", "Leave it out."
            )
    for key in _LABEL_KEYS:
        if reduce(getattr, key.split("."), config) != reduce(getattr, key.split("."), default):
            raise UserError(f"{key} is about labels, and the task {config.task} reads none.", "Leave it out.")


_MAY_CHANGE = {
    "baseline",
    "description",
    "data.name",
    "data.root",
    "data.unlabelled",
    "data.workers",
    "episodes.number",
    "teacher.unchecked",
    "teacher.weights",
    "test",
    "train.checkpoint_every",
    "train.compile",
    "train.device",
    "train.epochs",
    "train.keep_checkpoints",
    "train.num_processes",
    "train.track",
    "train.validate_every",
}
"""What may be another when a run goes on. Where data and weights lie is up to the machine; what they are is in the run's record."""


def comparable(config: RunConfig) -> dict[str, Any]:
    """Return every setting by its dotted name, without tokens of hubs and trackers."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            flat[prefix] = value
        else:
            for key, item in items:
                walk(f"{prefix}.{key}" if prefix else str(key), item)

    walk("", redact_all(config.with_absolute_paths().model_dump(mode="json", exclude={"output"})))
    return flat


def check_same_run(stored: RunConfig, config: RunConfig, path: Path) -> None:
    """Check that a run that was configured by ``stored`` (in the file ``path``) may go on with ``config``.

    Raises:
        UserError: something differs that may not; it says what.
    """
    refuse_differences(comparable(stored), config, path)


def without_later_keys(saved: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return ``saved`` with what this version knows besides: a checkpoint of an earlier one did not have the option."""
    return comparable(config) | saved


def refuse_differences(saved: dict[str, Any], config: RunConfig, path: Path) -> None:
    """Refuse to resume where keys that may not change differ from the saved ones."""
    now = comparable(config)
    keys = sorted(
        key for key in saved.keys() | now.keys() if not any(f"{key}.".startswith(f"{free}.") for free in _MAY_CHANGE)
    )
    differences = [f"{key} {saved.get(key)!r} -> {now.get(key)!r}" for key in keys if saved.get(key) != now.get(key)]
    if differences:
        raise UserError(
            f"{path} was written with other settings: {'; '.join(differences)}.",
            "A run goes on with its own settings, but for epochs and what the machine needs; start a new run for others.",
        )


NOT_OF_THE_RECIPE = (
    "seed",
    "output",
    "description",
    "baseline",
    "test",
    "data.workers",
    "train.device",
    "train.num_processes",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.track",
)
"""Keys that do not make another recipe: the seed, what a run is called, where it computes, what is tested, logged and saved."""


def flatten_settings(config: RunConfig) -> dict[str, Any]:
    """Return every option of ``config`` by its dotted key, without ``NOT_OF_THE_RECIPE``.

    Methods go by name, numbered from the second of a kind: ``methods.projection.weight``,
    ``methods.projection-2.weight``.
    """
    values = config.model_dump(mode="json")
    for stage in (values, values["embedding"] or {}):
        methods: dict[str, Any] = {}
        kinds: Counter[str] = Counter()
        for options in stage.get("methods") or ():
            kind = options.pop("method")
            kinds[kind] += 1
            methods[kind if kinds[kind] == 1 else f"{kind}-{kinds[kind]}"] = options
        stage["methods"] = methods
    return {key: value for key, value in _flatten(values) if key not in NOT_OF_THE_RECIPE}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
