"""What the outputs in a teacher cache depend on: written beside them, and compared before they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import __version__
from kdcli.base.errors import UserError, reading
from kdcli.base.files import clear_os_errors, write_atomically
from kdcli.base.text import short_repr
from kdcli.config.run import RunConfig
from kdcli.data import Loading
from kdcli.data.fingerprint import digest_of
from kdcli.machine.team import Team
from kdcli.training.teachers.cache import digest_of_weights
from kdcli.training.teachers.forward import form_of
from kdcli.training.teachers.store import Store

if TYPE_CHECKING:
    from kdcli.training.job import Job

_FILE = "cache.json"
_FORM = "train.teacher_forward"
_FORMAT = 1
"""Of the store and of what it is by; another one where the same identity would mean other outputs."""
_TOLD = ("batch_size", "seed", "augment", "workers", "strict", "team", "views", "draws", "by_length")
"""What of a :class:`Loading` is told by itself, or makes no other samples."""
_NAMES = ("name", "weights", "label_names", "unchecked", "sharded", "image_size")
"""What of the teacher's section its tensors and its input tell, or makes no other outputs."""
_LIBRARIES = ("torch", "torchvision", "pillow")
"""Those that make samples and outputs, beside the teacher's own."""

Identity = Mapping[str, Any]


def cache_folder_of(config: RunConfig) -> Path:
    """Return where a run's cache lies: each seed has its own, so that a sweep over seeds has all in one folder."""
    assert config.train.cache_teacher is not None
    return config.train.cache_teacher / f"seed-{config.seed}"


def identity_of(job: Job, team: Team) -> Identity:
    """Return all that a teacher's outputs for a sample's view depend on, as JSON has it.

    What is read of it is not among them: names are kept by themselves.
    """
    config, teacher = job.config, job.teacher
    assert teacher is not None
    names = [f.name for f in fields(Loading) if f.name not in _TOLD]
    loadings = [job.loading(team, training=training) for training in (True, False)]
    found: dict[str, Any] = {
        "format": _FORMAT,
        "kdcli": __version__,
        **{name: _version_of(name) for name in (*_LIBRARIES, teacher.facts.library)},
        "teacher's weights": digest_of_weights(teacher),
        "teacher's input": teacher.facts.preprocessing.describe(),
        "teacher's operations": teacher.facts.macs,
        "training samples": digest_of(job.train_source(), job.data),
        "image size": getattr(job.shared_preprocessing(), "image_size", None),
        "precision": team.precision,
        _FORM: form_of(config).name,
        "data.deep_range": config.data.deep_range,
        "seed": config.seed,
        "train.cache_views": config.train.cache_views,
        "train.cache_dtype": config.train.cache_dtype,
        **{f"teacher.{name}": value for name, value in config.teacher if name not in _NAMES},
        **{f"augment.{name}": value for name, value in config.augment},
        **{name: [getattr(one, name) for one in loadings] for name in names},
    }
    if config.augment.mixup or config.augment.cutmix:  # then a sample's partner is another one in another batch
        share = config.train.batch_size // team.size
        found["train.batch_size"] = config.train.batch_size
        found["images mixed"] = "of the whole batch" if team.is_alone or share % 2 == 0 else f"of {share} a process"
    whole: Identity = json.loads(json.dumps(found, default=str))
    return whole


def _version_of(package: str) -> str | None:
    """Return the version of a package; None of what is in none, as kdcli's own networks."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_identity(folder: Path, identity: Identity) -> bool:
    """Return whether there is a cache in ``folder``.

    Raises:
        UserError: it is one of other outputs; it says what differs.
    """
    file = folder / _FILE
    if not file.exists():
        return False
    with reading(file):
        text = file.read_text(encoding="utf-8")
    try:
        stored = dict(json.loads(text))
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged.", f"Remove {folder}, or give another --cache-teacher.") from None
    keys = dict.fromkeys((*stored, *identity))
    told = [
        f"{key} {short_repr(stored.get(key))} -> {short_repr(identity.get(key))}"
        for key in keys
        if stored.get(key) != identity.get(key)
    ]
    if told:
        raise UserError(
            f"The teacher cache {folder} is of another training: {'; '.join(told)}.",
            "Give another --cache-teacher, remove that folder, or train with what it was made with.",
        )
    return True


def follow_cache(job: Job) -> Job:
    """Return ``job`` with the teacher run as it was for its cache, where there is one and the config leaves that open.

    Otherwise it is measured what is faster, and that may be another form with other last bits.
    """
    config = job.config
    if config.train.cache_teacher is None or not config.reads_images or config.train.teacher_forward is not None:
        return job
    try:
        stored = json.loads((cache_folder_of(config) / _FILE).read_text(encoding="utf-8"))
        changed = {"teacher_forward": stored[_FORM]}
        precision = stored["teacher.precision"] if config.teacher.precision == "auto" else config.teacher.precision
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or a damaged one, which is refused where it is used
        return job
    train = config.train.model_copy(update=changed)
    teacher = config.teacher.model_copy(update={"precision": precision})
    return replace(job, config=config.model_copy(update={"train": train, "teacher": teacher}))


def found_cache(folder: Path, store: Store, identity: Identity) -> None:
    """Begin a cache, unless there is one.

    Raises:
        UserError: nothing can be written there; or there is one of other outputs.
    """
    with clear_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with store.locked():
        if not check_identity(folder, identity):
            text = json.dumps(identity, indent=2)
            write_atomically(folder / _FILE, lambda file: file.write_text(text, encoding="utf-8"))
