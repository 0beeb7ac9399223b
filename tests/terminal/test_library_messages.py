"""What libraries say reaches the user as a note of kdcli's own, or not at all; nothing is hidden by accident."""

from __future__ import annotations

import ast
import logging
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import kdcli
from kdcli.terminal.library_messages import library_messages


@pytest.fixture
def notes(capsys):
    """Return what was printed to stderr, and check that nothing went to stdout."""

    def read() -> list[str]:
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return read


def test_warnings_are_notes_of_one_line_once(notes):
    with library_messages():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn_explicit("not\n  writable", UserWarning, "/x/site-packages/torch/utils/a.py", 3)
        warnings.warn_explicit("other", FutureWarning, "/x/site-packages/six.py", 3)
        warnings.warn_explicit("third", UserWarning, "/home/me/extension.py", 3)
    assert notes() == ["Note from torch: not writable", "Note from six: other", "Note from extension: third"]


def test_records_are_notes_whatever_handlers_a_library_adds(notes):
    logger = logging.getLogger("some_library.part")
    raw = logging.StreamHandler(sys.stderr)
    logger.addHandler(raw)
    try:
        with library_messages():
            logger.warning("Retrying in %ds", 5)
            logger.info("nothing")
            logging.getLogger("another").error("failed")
        assert notes() == ["Note from some_library: Retrying in 5s", "Note from another: failed"]
        logger.warning("raw again")
        assert notes() == ["raw again"]
    finally:
        logger.removeHandler(raw)


def test_what_is_of_no_use_is_known_by_category_and_text(notes):
    with library_messages():
        warnings.simplefilter("always")
        from PIL.Image import DecompressionBombWarning

        warnings.warn("Image size (95000000 pixels) exceeds limit", DecompressionBombWarning, stacklevel=1)
        warnings.warn("Corrupt EXIF data.  Expecting to read 2 bytes", UserWarning, stacklevel=1)
        assert notes() == []
        warnings.warn("Image size (95000000 pixels) exceeds limit", FutureWarning, stacklevel=1)
        warnings.warn("EXIF data.  Corrupt", UserWarning, stacklevel=1)
    assert len(notes()) == 2


def test_secrets_and_control_characters_are_not_printed(notes, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-mine")
    with library_messages():
        warnings.warn("\x1b[31mred a-secret-of-mine", UserWarning, stacklevel=1)
    (line,) = notes()
    assert line.endswith(r"\x1b[31mred REDACTED")


def test_filters_of_the_user_stand(notes):
    with library_messages(), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            warnings.warn("stop", UserWarning, stacklevel=1)


def test_everything_is_as_before_afterwards():
    before = warnings.showwarning, logging.Logger.callHandlers, list(warnings.filters)
    with pytest.raises(KeyError), library_messages():
        raise KeyError
    assert (warnings.showwarning, logging.Logger.callHandlers, list(warnings.filters)) == before


def test_transformers_is_never_imported_without_being_quiet():
    quiet, of_transformers = "kdcli.models.transformers.quiet", []
    for file in Path(kdcli.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        imported = plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        if any(name.split(".")[0] == "transformers" for name in imported):
            of_transformers.append(file.stem)
            assert quiet in plain or file.stem == "quiet", file
    assert {"quiet", "text", "vision", "export"} <= set(of_transformers)
    from transformers.utils import logging as messages

    import_module(quiet)
    assert (messages.get_verbosity(), messages.is_progress_bar_enabled()) == (logging.ERROR, False)
