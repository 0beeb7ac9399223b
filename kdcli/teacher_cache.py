"""What was measured of teachers before, in the user's cache folder: by what they are and what they were measured on."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from kdcli import __version__
from kdcli.data import ImageSource, TextSource
from kdcli.data.fingerprint import digest_of
from kdcli.errors import UserError
from kdcli.files import cache_folder, write_atomically
from kdcli.job import Job
from kdcli.provenance import weights_digest
from kdcli.result import Saved

_Kind = TypeVar("_Kind", bound=Saved)

_FORMAT = 1
"""Of what is kept; another one where the same key would be measured otherwise."""


class Remembered:
    """One measurement of a job's teacher.

    It is found again by the teacher's tensors, its name, its input and its costs, by the content and labels of the samples,
    and by what else is given: nothing but where the data lie may change.

    Args:
        job: with a teacher.
        source: the samples that it is measured on.
        what: whatever else the outcome depends on.
    """

    def __init__(self, job: Job, source: ImageSource | TextSource, **what: Any) -> None:
        teacher, data = job.teacher, job.config.data
        assert teacher is not None
        facts = teacher.facts
        key = {
            "format": _FORMAT,
            "kdcli": __version__,
            "teacher": [facts.name, weights_digest(teacher), repr(facts.preprocessing), facts.macs],
            "data": [digest_of(source, job.data), list(job.data.facts.class_names), repr(data.deep_range)],
            **what,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
        self._file = cache_folder() / "teachers" / f"{digest[:40]}.json"

    def recall(self, kind: type[_Kind]) -> _Kind | None:
        """Return what was kept; None where there is nothing, or nothing whole."""
        try:
            return kind.model_validate(json.loads(self._file.read_bytes()))
        except (OSError, ValueError):  # pydantic's errors are ValueErrors
            return None

    def keep(self, found: Saved) -> None:
        """Keep what was measured; a folder that can't be written to costs nothing but time, the next time."""
        text = json.dumps(found.to_json())
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, lambda file: file.write_text(text, encoding="utf-8"))
        except (OSError, UserError):
            return
