"""What was measured of teachers before, in the user's cache folder: by what they are and what they were measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from kdcli import __version__
from kdcli.base.errors import UserError
from kdcli.base.files import cache_folder, write_atomically
from kdcli.base.result import Saved
from kdcli.config.run import RunConfig
from kdcli.data import Source
from kdcli.data.fingerprint import AnyData, digest_of
from kdcli.models.base import Model
from kdcli.training.provenance import weights_digest

_Kind = TypeVar("_Kind", bound=Saved)

_FORMAT = 2
"""Of what is kept; another one where the same key would be measured otherwise."""


_of_this_process: dict[Path, Saved] = {}
"""What was kept since the process began, where the folder can't be written to."""
_digests: WeakKeyDictionary[Model, str] = WeakKeyDictionary()
"""Of the teachers' tensors, which stay as they are."""


def digest_of_weights(teacher: Model) -> str:
    """Return :func:`~kdcli.training.provenance.weights_digest` of a teacher, made once."""
    if teacher not in _digests:
        _digests[teacher] = weights_digest(teacher)
    return _digests[teacher]


class Kept:
    """One measurement, by what it depends on.

    Args:
        key: all of that, as JSON takes it.
    """

    def __init__(self, key: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
        self._file = cache_folder() / "teachers" / f"{digest[:40]}.json"

    def recall(self, kind: type[_Kind]) -> _Kind | None:
        """Return what was kept; None where there is nothing, or nothing whole."""
        found = _of_this_process.get(self._file)
        if isinstance(found, kind):
            return found
        try:
            return kind.model_validate(json.loads(self._file.read_bytes()))
        except (OSError, ValueError):  # pydantic's errors are ValueErrors
            return None

    def keep(self, found: Saved) -> None:
        """Keep what was measured; a folder that can't be written to costs nothing but time, the next time."""
        _of_this_process[self._file] = found
        text = json.dumps(found.to_json())
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, lambda file: file.write_text(text, encoding="utf-8"))
        except (OSError, UserError):
            return


class Remembered(Kept):
    """One measurement of a teacher on samples.

    It is found again by the teacher's tensors, its name, its input and its costs, by the content and labels of the
    samples, and by what else is given: nothing but where the data lie may change.

    Args:
        config: of the run.
        teacher: what is measured.
        data: whose class names the labels go by.
        source: the samples that it is measured on.
        what: whatever else the outcome depends on.
    """

    def __init__(self, config: RunConfig, teacher: Model, data: AnyData, source: Source, **what: Any) -> None:
        facts = teacher.facts
        key = {
            "format": _FORMAT,
            "kdcli": __version__,
            "teacher": [facts.name, digest_of_weights(teacher), repr(facts.preprocessing), facts.macs],
            "data": [digest_of(source, data), list(data.facts.class_names), repr(config.data.deep_range)],
            **what,
        }
        super().__init__(key)
