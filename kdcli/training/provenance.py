"""What a run learnt from: its record of data and teacher, and whether they are still the same.

``data.jsonl.gz`` has in its first line what all samples have in common, a digest of every split and one of the
teacher's tensors, and then a line a sample: split, name of its file in the data folder or None, ``split[row]`` where it
has no name, size and digest of its content, label.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdcli.base.errors import UserError, reading
from kdcli.base.files import write_atomically
from kdcli.data.fingerprint import AnyData, Fingerprint, find_changes, fingerprint
from kdcli.models.base import Model
from kdcli.runs.folder import RunFolder

FILE = "data.jsonl.gz"
_FORMAT = "kdcli-data-1"
_UNREADABLE = (ValueError, OSError, EOFError, KeyError, TypeError, zlib.error)
"""What reading rubbish raises."""
OLD = (
    "the run has no record of what its data and its teacher were, as it is of an earlier kdcli, which also cut data"
    " without splits of their own in another way, so that samples held out now may have been trained on"
)


@dataclass(frozen=True)
class Record:
    """What a run learnt from.

    Attributes:
        data: its samples.
        teacher: digest of the teacher's tensors; None without a teacher.
        forced: what had changed where ``--force`` went on all the same, a sentence each.
    """

    data: Fingerprint
    teacher: str | None
    forced: tuple[str, ...] = ()

    def of_classes(self, names: tuple[str, ...]) -> Record:
        """Return the record of the samples of some classes alone, and of those without a label."""
        taken = {*names, ""}
        splits = {split: tuple(s for s in samples if s.label in taken) for split, samples in self.data.splits.items()}
        return replace(self, data=replace(self.data, class_names=names, splits=splits))

    def of_result(self) -> dict[str, Any]:
        """Return what ``result.json`` has of it."""
        return {"data": self.data.summary, "teacher_weights": self.teacher, "forced": list(self.forced)}


def take_record(data: AnyData, teacher: Model | None, *, splits: Iterable[str] | None = None) -> Record:
    """Look at data and teacher as they are now.

    Args:
        data: as they are loaded.
        teacher: likewise.
        splits: of the data, these alone.
    """
    return Record(fingerprint(data, splits=splits), None if teacher is None else weights_digest(teacher))


def weights_digest(model: Model) -> str:
    """Return a digest of a model's tensors: of their names, dtypes, shapes and values, wherever the file lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def write_record(run: RunFolder, record: Record) -> None:
    """Write ``data.jsonl.gz``."""
    header = {"format": _FORMAT, "teacher_weights": record.teacher, "forced": list(record.forced)}
    content = record.data.to_bytes(header)
    write_atomically(run.path / FILE, lambda file: file.write_bytes(content))


def read_record(run: RunFolder) -> Record | None:
    """Return the record; None of a run of an earlier kdcli.

    Raises:
        UserError: it is damaged, or has changed since the run ended.
    """
    file = run.path / FILE
    run.check(FILE)
    if not file.exists():
        return None
    with reading(file):
        content = file.read_bytes()
    try:
        data, header = Fingerprint.from_bytes(content)
        if header["format"] != _FORMAT:
            raise ValueError(f"its format is {header['format']!r}")
        return Record(data, header["teacher_weights"], tuple(header["forced"]))
    except _UNREADABLE as error:
        raise _damaged(file, error) from None


def read_forced(run: RunFolder) -> tuple[str, ...]:
    """Return what the record says was forced, from its first line alone.

    Raises:
        UserError: it is damaged, or has changed since the run ended.
    """
    file = run.path / FILE
    run.check(FILE)
    if not file.exists():
        return ()
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return tuple(json.loads(lines.readline())["forced"])
    except _UNREADABLE as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} is damaged: {type(error).__name__}: {error}.", "Put it back from a copy, or repeat the run."
    )


def changes_since(
    before: Record, now: Record, *, splits: Iterable[str], teacher: bool = True, order: bool = False
) -> list[str]:
    """Return what has changed, a phrase each.

    Args:
        before: of the run.
        now: with all the splits.
        splits: to look at.
        teacher: look at its weights too.
        order: whether the order of the samples matters.
    """
    found = []
    if before.data.class_names != now.data.class_names:
        found.append(f"the classes are {_listed(now.data.class_names)}, not {_listed(before.data.class_names)}")
    found += [str(change) for change in find_changes(before.data, now.data, splits=splits, order=order)]
    if teacher and before.teacher != now.teacher:
        found.append("the teacher has other weights")
    return found


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def insist_unchanged(run: RunFolder, changes: list[str], *, what: str) -> list[str]:
    """Refuse to use a run with other data or another teacher than it had, unless it was opened by force.

    Args:
        run: the run.
        changes: what has changed, a phrase each.
        what: what is done all the same, for the sentence about it.

    Returns:
        The sentence to be told with the result; nothing where nothing has changed.

    Raises:
        UserError: something has changed, and the run was not opened by force.
    """
    if not changes:
        return []
    told = "; ".join(changes)
    if not run.force:
        raise UserError(
            f"The run {run.path} began with other data or another teacher: {told}.",
            "Put them back as they were. --force goes on all the same, and the result and the card will say so.",
        )
    return [f"{what} with --force although this had changed since the run began: {told}."]


def recheck(run: RunFolder, now: Record, *, begun: str | None, without: Container[str] = ()) -> tuple[Record, str]:
    """Look whether a run that goes on still has the data and the teacher that it began with.

    Args:
        run: it gets a record where it has none.
        now: what they are.
        begun: where it stands; None where nothing has been learnt yet.
        without: splits that are left alone.

    Returns:
        The record that holds from now on, and a warning or nothing.

    Raises:
        UserError: something has changed, and the run was not opened by force.
    """
    before = read_record(run)
    if before is None:
        write_record(run, now)
        return now, "" if begun is None else f"It can't be told whether data or teacher have changed: {OLD}."
    splits = [split for split in {**before.data.splits, **now.data.splits} if split not in without]
    changes = changes_since(before, now, splits=splits, order=True)
    told = [*run.forced, *insist_unchanged(run, changes, what=f"Resumed at {begun or 'the beginning'}")]
    if not told:
        return before, ""
    now = with_forced(now, before, told)
    run.unfinish()  # its checksums are of the record as it was
    write_record(run, now)
    return now, " ".join(told)


def with_forced(record: Record, before: Record, sentences: list[str]) -> Record:
    """Return ``record`` with what was forced before and now."""
    return replace(record, forced=(*before.forced, *sentences))
