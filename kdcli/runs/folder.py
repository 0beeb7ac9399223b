"""The run folder: the contract between commands. Every file is written to a temporary name and renamed."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcli import __version__
from kdcli.base.checksums import file_digest, is_as_signed, signed
from kdcli.base.errors import UserError, check_are_files, reading
from kdcli.base.files import (
    clear_os_errors,
    link_file,
    link_files,
    remove_leftovers,
    replace_files,
    utf8_path,
    write_atomically,
    write_redacted,
)
from kdcli.base.result import EpisodesResult, Finished, Metrics, Result, Saved
from kdcli.base.text import check_argument, redact, redact_all
from kdcli.config.parse import as_begun
from kdcli.config.recipes import load_yaml
from kdcli.config.run import RunConfig
from kdcli.plan.plan import Plan
from kdcli.runs.cards import CARD, card_content, is_edited_card, keep_edited_card
from kdcli.runs.packages import parse_of_run, record_packages
from kdcli.runs.places import check_new_folder

_Kind = TypeVar("_Kind", bound=BaseModel)
_Result = TypeVar("_Result", bound=Finished)
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate")
_OPTIONAL_PACKAGES = ("segmentation-models-pytorch",)
_FILES = (
    *("plan.json", "metrics.jsonl", "episodes.jsonl", "data.jsonl.gz"),
    *("projector.safetensors", "spectra.safetensors"),
    *("validation_samples.safetensors", "test_samples.safetensors"),
)
"""Files of a finished run that have a checksum in ``result.json``, as those of the student."""
BESIDE_BEST = "projector.safetensors"
"""What was trained with the best student and is no part of it."""
OF_BEST = (BESIDE_BEST, "validation_samples.safetensors")
"""Files that go with the best student: they are of the epoch that it is of."""
SAMPLES = "samples.png"
"""Some validation samples, and what the run's models make of them; without a checksum: nothing is read from it."""
_PARTS = ("", "embedding", "baseline", "checkpoints", "analysis", "evaluation", "samples")
"""Folders of a run that files are written into."""


class _SavedDecision(BaseModel):
    name: str
    value: str
    reason: str


class _SavedPlan(Saved):
    """What every ``plan.json`` has."""

    relation: str
    decisions: list[_SavedDecision]
    command: str
    versions: dict[str, str]
    unread: tuple[str, ...] = ()
    teacher_metrics: Metrics | None = None
    teacher_samples: int | None = None
    teacher_probe: dict[str, Any] | None = None


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class RunFolder:
    """A folder with everything a training run produced.

    ``config.yaml`` (resolved), ``plan.json``, ``metrics.jsonl``, ``student/`` (native format),
    ``projector.safetensors``, ``spectra.safetensors``, ``checkpoints/``, and, once it is finished, ``result.json`` and
    ``README.md`` (model card), and of a task that has pictures ``samples.png`` and those of :mod:`.snapshots`. A run in
    stages has the earlier one in ``embedding/``, a run folder too.
    A run of episodes has ``config.yaml``, ``plan.json``, ``episodes.jsonl``, and, once it is finished, the last two.
    ``data.jsonl.gz`` says what its samples were, see :mod:`kdcli.training.provenance`;
    ``validation_samples.safetensors`` and ``test_samples.safetensors`` what the best student made of each, see
    :class:`kdcli.training.evaluation.KeptSums`.

    ``config.yaml`` carries its own checksum; those of a finished run's other files are in ``result.json``. A file that
    is not as the run left it is refused when it is read.

    Args:
        path: of the folder.
        force: take changed files as they are.

    Attributes:
        forced: what was taken although it had changed, a sentence each.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path = path
        self.force = force
        self.forced: list[str] = []
        self._made: list[Path] = []

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new run folder; remains of a run that was killed before it was one are written over.

        Raises:
            UserError: when the folder holds something else, or can't be made.
        """
        check_new_folder(path)
        run = cls(path)
        with clear_os_errors(path):
            run._made = [folder for folder in path.parents if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path, *, force: bool = False) -> RunFolder:
        """Open an existing run to read its student.

        Raises:
            UserError: when there is no run, it has not produced a student yet, or that has changed.
        """
        run = cls.started(path, force=force)
        with reading(path):
            if not (path / "student" / "config.json").is_file():
                if run.read_config().episodes is not None:
                    raise UserError(
                        f"The run {path} is of episodes: it has trained many students and kept none.",
                        "'kdcli compare' shows what they reached. For a student, distil without --ways and --shots.",
                    )
                raise UserError(
                    f"The run {path} has no student yet.",
                    f"Wait for its first validation; if it was stopped: kdcli distill --resume {path}",
                )
        run.check_student()
        return run

    @classmethod
    def started(cls, path: Path, *, force: bool = False) -> RunFolder:
        """Open a run that was started, whatever it came to.

        Raises:
            UserError: when there is no run, or something in it is no file.
        """
        check_argument("A run folder", path)
        with reading(path):
            if not (path / "config.yaml").is_file():
                raise UserError(
                    f"{path} is not a run folder: it has no config.yaml.", "Give a folder that 'kdcli distill' made."
                )
            for part in _PARTS:
                remove_leftovers(path / part)
            check_are_files(path)
        return cls(path, force=force)

    def discard_if_empty(self) -> None:
        """Remove the folder and those made for it above, unless there is a student or a checkpoint in it."""
        for folder in (self.path, self.path / "embedding"):
            if (folder / "student" / "config.json").is_file() or any((folder / "checkpoints").glob("step-*")):
                return
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from writing to the run meanwhile.

        The system frees the lock when the process ends, however it ends: a lock file that is left behind locks nothing.

        Raises:
            UserError: another process has the run; it says which.
        """
        lock = FileLock(self.path / ".lock")
        owner = self.path / ".lock-owner"
        with clear_os_errors(self.path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                who = "another process"
                with contextlib.suppress(FileNotFoundError):  # it writes it next, or has just let go
                    who = owner.read_text(encoding="utf-8")
                raise UserError(
                    f"The run {self.path} is in use by {who}.", "Wait for it, or stop it; it can be resumed."
                ) from None
        try:
            now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
            self.write_text(".lock-owner", f"process {os.getpid()} on {socket.gethostname()} since {now}")
            yield
        finally:
            with contextlib.suppress(OSError):
                owner.unlink(missing_ok=True)
            lock.release()

    @property
    def student(self) -> Path:
        """The folder of the best student, in its library's own format."""
        return self.path / "student"

    def check(self, *names: str) -> None:
        """Check files against the checksums that the finished run left; an unfinished one has none yet.

        Args:
            names: of files that are to be read; by default all that have a checksum.

        Raises:
            UserError: one is missing or has changed.
        """
        checksums = self._checksums()
        for name in names or checksums:
            if name not in checksums:
                continue
            file = self.path / name
            with reading(file):
                if not file.is_file():
                    self._blame(file, "is a folder" if file.is_dir() else "is missing")
                elif file_digest(file) != checksums[name]:
                    self._blame(file, "is not as the run left it: its checksum is another")

    def check_student(self, *, weights: bool = True) -> None:
        """Check the files of the student as :meth:`check` does, its weights too unless they are not read."""
        names = [name for name in self._checksums() if name.startswith("student/")]
        if names := [name for name in names if weights or not name.endswith(".safetensors")]:
            self.check(*names)

    def _checksums(self) -> dict[str, str]:
        return self._read_saved("result.json", Finished).files if self.is_finished else {}

    def _blame(self, file: Path, what: str) -> None:
        if not self.force:
            raise UserError(
                f"{file} {what}.", "Put it back from a copy, or repeat the run; --force takes the run as it is."
            )
        if (sentence := f"{file.relative_to(self.path)} {what}.") not in self.forced:
            self.forced.append(sentence)

    def read_values(self, name: str = "config.yaml") -> dict[str, Any]:
        """Return the values of the resolved config, or of another that :meth:`write_config` wrote.

        Raises:
            UserError: it can't be read, or is not as it was written.
        """
        file = self.path / name
        with reading(file):
            if not is_as_signed(file.read_bytes()):
                self._blame(file, "is not as kdcli wrote it: it is damaged or was changed")
        return as_begun(load_yaml(file))

    def read_config(self, name: str = "config.yaml") -> RunConfig:
        """Return the resolved config; errors are those of :meth:`read_values`."""
        return parse_of_run(self.path, self.read_values(name), name)

    def read_plan(self) -> dict[str, Any]:
        """Return the content of ``plan.json``.

        Raises:
            UserError: when it can't be read or lacks what a plan has.
        """
        self.check("plan.json")
        return self._read_saved("plan.json", _SavedPlan).model_dump()

    def _read_saved(self, name: str, kind: type[_Kind]) -> _Kind:
        file = self.path / name
        try:
            return kind.model_validate(json.loads(file.read_bytes()))
        except OSError as error:
            raise UserError(f"Can't read {file}: {error}.", "Give a folder that 'kdcli distill' made.") from None
        except ValidationError as error:
            problem = error.errors()[0]
            where = "".join(f"{part}: " for part in problem["loc"])
            raise UserError(f"{file} is damaged: {where}{problem['msg']}.", "The run has to be repeated.") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is damaged: no JSON: {error}.", "The run has to be repeated.") from None

    def read_metrics(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl`` of one kind: ``train``, ``validation`` or ``test``.

        A last line that breaks off, as a killed run leaves it, is left out.

        Raises:
            UserError: when any other line is not JSON, or the file has changed.
        """
        self.check("metrics.jsonl")
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        *ended, last = file.read_bytes().split(b"\n")
        lines = []
        for number, text in enumerate([*ended, last], start=1):
            try:
                line = json.loads(text)
                if not all(isinstance(value, (int, float)) for key, value in line.items() if key != "event"):
                    raise ValueError("it has values that are no numbers")
                if line["event"] == event:
                    lines.append(line)
            except (ValueError, AttributeError, KeyError) as error:
                if number > len(ended):
                    break  # of a run that was killed, or of one that is writing
                raise UserError(
                    f"Line {number} of {file} is damaged: {error}.", "Repair or remove that line, or repeat the run."
                ) from None
        return lines

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file of the run, or nothing when it has none.

        Raises:
            UserError: when the file is damaged.
        """
        self.check(name)
        file = self.path / name
        if not file.is_file():
            return {}
        try:
            return load_file(utf8_path(file))
        # Headers of impossible tensors make torch raise what it trips over: RuntimeError, OverflowError, KeyError, ...
        except Exception as error:
            raise UserError(f"{file} is damaged: {error}.", "The run has to be repeated.") from None

    def write_config(self, config: RunConfig, name: str = "config.yaml") -> None:
        """Write ``config``, without the output folder and with whole paths, so that it can be run again as it is."""
        whole = config.with_absolute_paths()
        values = whole.model_dump(mode="json", exclude_none=True, exclude={"output"})
        _keep_nulls(values, whole.model_dump(mode="json", exclude_defaults=True, exclude={"output"}))
        text = yaml.safe_dump(redact_all(values), sort_keys=False, allow_unicode=True)
        content = signed(redact(text).encode("utf-8", "backslashreplace"))
        write_atomically(self.path / name, lambda file: file.write_bytes(content))
        record_packages(self.path, config)

    def write_plan(self, plan: Plan, *, command: str) -> None:
        """Write ``plan.json``, with the command line and the versions of what computes."""
        versions = {
            "kdcli": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            **{name: found for name in _OPTIONAL_PACKAGES if (found := _version_of(name)) is not None},
        }
        values = {**plan.to_json(), "command": command, "versions": versions}
        self.write_text("plan.json", json.dumps(redact_all(values), indent=2) + "\n")

    def update_plan(self, plan: Plan) -> None:
        """Put into ``plan.json`` what may be another when a run goes on, and take out what no longer holds.

        It is the run's length, how the teacher's outputs are come by, and the teacher's measurements. Of a run that
        goes on by force the teacher may be another too.
        """
        values = self._read_saved("plan.json", _SavedPlan).to_json()
        measured = ("teacher measured", "teacher probed")
        may_go = {"teacher outputs", "teacher cache", *(measured if self.force else ())}
        names = {"training", "episodes", *measured, *may_go, *(("teacher",) if self.force else ())}
        new = {decision.name: decision.to_json() for decision in plan.decisions if decision.name in names}
        kept = [old for old in values["decisions"] if old["name"] in new or old["name"] not in may_go]
        values["decisions"] = [new.pop(old["name"], old) for old in kept]
        values["decisions"] += new.values()
        found = plan.to_json()
        values |= {key: found[key] for key in ("teacher_metrics", "teacher_samples")}
        if self.force:
            values["teacher_probe"] = found["teacher_probe"]
        self.write_text("plan.json", json.dumps(redact_all(values), indent=2) + "\n")

    def unfinish(self) -> None:
        """Take back that the run is finished, for it goes on; a card that somebody has edited stays."""
        with clear_os_errors(self.path):
            (self.path / "result.json").unlink(missing_ok=True)
            (self.path / SAMPLES).unlink(missing_ok=True)
            if not is_edited_card(self.path / CARD):
                (self.path / CARD).unlink(missing_ok=True)

    def write_card(self, text: str) -> list[str]:
        """Write the model card; returns what :func:`keep_edited_card` has to say."""
        with clear_os_errors(self.path):
            notes = keep_edited_card(self.path)
        write_atomically(self.path / CARD, lambda file: file.write_bytes(card_content(text)))
        return notes

    def write_text(self, name: str, text: str) -> None:
        """Write one file whole or not at all, without tokens of hubs and trackers."""
        write_atomically(self.path / name, lambda file: write_redacted(file, text))

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Write a safetensors file whole or not at all."""
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_atomically(self.path / name, lambda file: save_file(contiguous, file))

    def write_samples(self, split: str, sums: dict[str, Tensor]) -> None:
        """Write what the best student made of every sample of a split, or remove it where there are no sums."""
        name = f"{split}_samples.safetensors"
        if sums:
            self.write_tensors(name, sums)
        else:
            with clear_os_errors(self.path):
                (self.path / name).unlink(missing_ok=True)

    def add_metrics(self, event: str, values: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with clear_os_errors(self.path), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

    def metrics_size(self) -> int:
        """Return the length of ``metrics.jsonl`` in bytes, once all of it is on the disk."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return 0
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        return file.stat().st_size

    def cut_metrics(self, size: int) -> None:
        """Drop what ``metrics.jsonl`` holds beyond ``size`` bytes: lines that will be written again."""
        file = self.path / "metrics.jsonl"
        content = file.read_bytes() if file.is_file() else b""
        if len(content) < size:
            raise UserError(
                f"{file} is shorter than when the checkpoint was written: {len(content)} bytes, not {size}.",
                "Put the file back as it was, or repeat the run.",
            )
        write_atomically(file, lambda temporary: temporary.write_bytes(content[:size]))

    def write_student(self, save: Callable[[Path], None]) -> None:
        """Replace ``student/`` file by file with what ``save(folder)`` writes."""
        with clear_os_errors(self.path):
            replace_files(self.student, save)

    @property
    def is_finished(self) -> bool:
        """Whether there is a ``result.json``."""
        return (self.path / "result.json").exists()

    def write_result(self, result: _Result) -> _Result:
        """Write ``result.json``: the run is finished.

        Returns:
            ``result`` with the checksums of the run's files, as it is written.
        """
        files = [self.path / name for name in _FILES]
        files += sorted(self.student.rglob("*")) if self.student.is_dir() else []
        checksums = {file.relative_to(self.path).as_posix(): file_digest(file) for file in files if file.is_file()}
        return self.rewrite_result(result.model_copy(update={"files": checksums}))

    def rewrite_result(self, result: _Result) -> _Result:
        """Write ``result.json`` with the checksums of files that it has: nothing but the result itself has changed.

        Returns:
            ``result`` with its own checksum, as it is written.
        """
        result = result.with_checksums(result.files)
        self.write_text("result.json", json.dumps(result.to_json(), indent=2) + "\n")
        return result

    def read_result(self) -> Result | None:
        """Return the content of ``result.json``; None while the run is not finished."""
        return self._read_saved("result.json", Result) if self.is_finished else None

    def read_episodes_result(self) -> EpisodesResult | None:
        """Return the content of ``result.json`` of a run of episodes; None while it is not finished."""
        return self._read_saved("result.json", EpisodesResult) if self.is_finished else None

    def restore_best(self, saved: Path | None) -> None:
        """Put back the best student and its files as they were at a checkpoint: ``saved``, or none at all."""
        with clear_os_errors(self.path):
            if saved is None:
                shutil.rmtree(self.student, ignore_errors=True)
            else:
                replace_files(self.student, lambda folder: link_files(saved / "student", folder))
            for name in OF_BEST:
                if saved is not None and (saved / name).is_file():
                    write_atomically(self.path / name, partial(link_file, saved / name))
                else:
                    (self.path / name).unlink(missing_ok=True)


def _keep_nulls(values: dict[str, Any], changed: dict[str, Any]) -> None:
    """Put the nulls of ``changed`` into ``values``: options that were switched off although their default is on."""
    for key, value in changed.items():
        if value is None:
            values[key] = None
        elif isinstance(value, dict):
            _keep_nulls(values[key], value)
