"""What libraries say, by warnings and by logging: told as a note of kdcli's own, or left out where it is of no use.

The one place that names messages to leave out: each by its category and the beginning of its text, with the reason.
What is not named is shown.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class _Unneeded(NamedTuple):
    category: type[Warning]
    beginning: str


_UNNEEDED = (
    # PIL about images that it decodes all the same. Damaged EXIF says nothing of the pixels; an image too large, or
    # whose pixels are damaged, is unreadable, and counted and named as such.
    *(
        _Unneeded(UserWarning, beginning)
        for beginning in (
            "Corrupt EXIF data.",
            "Possibly corrupt EXIF",
            "Tag data larger than file.",
            "Tag offset too large",
            "Metadata Warning, tag",
            "Image appears to be a malformed MPO file",
            "Invalid APNG, will use default PNG image if possible",
            "image file could not be identified because",
        )
    ),
    _Unneeded(
        FutureWarning, "`isinstance(treespec, LeafSpec)` is deprecated"
    ),  # torch 2.11's own, when it exports to ONNX
    _Unneeded(RuntimeWarning, "Image size ("),  # DecompressionBombWarning
    _Unneeded(UserWarning, "Detected pickle protocol"),  # of a checkpoint that is loaded all the same, or refused
    _Unneeded(UserWarning, "Metric `SpearmanCorrcoef` will save all targets"),  # two numbers for each text
    _Unneeded(
        UserWarning, "The variance of predictions or target is close to zero."
    ),  # the correlation is shown as nan
    _Unneeded(
        UserWarning, "Grad strides do not match bucket view strides."
    ),  # "not an error", of models such as ConvNeXt
)
_UNNEEDED_RECORDS = (
    ("torch.", "No CUDA runtime is found"),  # of a build with CUDA, when it compiles for the CPU
)
"""Logger and beginning of the text."""


@contextmanager
def library_messages() -> Iterator[None]:
    """Within, warnings, and log records from warnings upwards, become lines ``Note from LIBRARY: ...`` on stderr.

    Each once. Filters of Python's ``-W`` and ``PYTHONWARNINGS`` go before those of this module. Everything is as before
    afterwards.
    """
    told: set[tuple[str, str]] = set()

    def tell(library: str, text: str) -> None:
        from kdcli.terminal.console import show_note

        if (library, text) not in told:
            told.add((library, text))
            show_note(f"Note from {library}: {' '.join(text.split())}")

    def show_warning(message: Any, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        text = str(message)
        if not any(issubclass(category, known.category) and text.startswith(known.beginning) for known in _UNNEEDED):
            tell(_library(filename), text)

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:  # asked for, by TORCH_LOGS or the like
            original(logger, record)
            return
        text = record.getMessage()
        if not any(record.name.startswith(name) and text.startswith(start) for name, start in _UNNEEDED_RECORDS):
            tell(record.name.partition(".")[0], text)

    # Handlers are no place for it: most libraries add one of their own, that writes to stderr, when they are imported.
    original = logging.Logger.callHandlers
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        logging.Logger.callHandlers = handle  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            logging.Logger.callHandlers = original  # type: ignore[method-assign]


def _library(filename: str) -> str:
    """Return the package that a warning's file belongs to."""
    *_, package = filename.rpartition("site-packages/")
    return Path(package).parts[0].removesuffix(".py") if package != filename else Path(filename).stem
