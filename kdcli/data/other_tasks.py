"""Which task a file fits that the run's own task can't read: a table of texts, of words or of images with targets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from kdcli.base.tasks import TASKS, Modality, Target
from kdcli.data.columns import LABEL_NAMES
from kdcli.data.images.path_tables import PATH_NAMES

_TABLES = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".json")
_WORDS = (".conll", ".iob", ".iob2", ".bio")
_LABELS = {*LABEL_NAMES, "sentiment", "category", "score", "rating", "stars"}
_IMAGES = set(PATH_NAMES)
_OF_IMAGES: tuple[tuple[Target, frozenset[str]], ...] = (
    ("pixels", frozenset({"mask", "masks", "segmentation", "annotation"})),
    ("depth", frozenset({"depth", "depth_map", "disparity"})),
    ("boxes", frozenset({"boxes", "bbox", "bboxes", "objects"})),
)


def task_that_reads(path: Path) -> str:
    """Return in a sentence which task reads a file of texts or paths, by ending and columns; ``""`` for no guess."""
    if not path.is_file():  # a pipe would be waited for
        return ""
    suffix = path.suffix.lower()
    if suffix in _WORDS:
        return _told(path, "labelled words", "text", "words")
    if suffix == ".txt":
        return _told(path, "texts", "text", "embedding", "tokens")
    columns = _columns(path, suffix)
    lower = {column.lower() for column in columns}
    if not columns:
        return ""
    if lower & {"tokens", "words"} and lower & {"tags", "ner_tags", "labels"}:
        return _told(path, "labelled words", "text", "words")
    if lower & _IMAGES:
        fitting = next((target for target, names in _OF_IMAGES if lower & names), None)
        return "" if fitting is None else _told(path, f"images with {', '.join(columns[1:4])}", "image", fitting)
    if lower & _LABELS:
        return _told(path, f"texts, with the columns {', '.join(columns[:6])}", "text", "label")
    return _told(path, f"texts, with the columns {', '.join(columns[:6])}", "text", "embedding", "tokens")


def names_targets(path: Path) -> bool:
    """Whether a table's columns name masks, depth or boxes, and none of them a class."""
    lower = {column.lower() for column in _columns(path, path.suffix.lower())}
    return any(lower & names for _, names in _OF_IMAGES) and not lower & {*LABEL_NAMES, "category"}


def _columns(path: Path, suffix: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(100_000)
        if suffix in _TABLES:
            return next(csv.reader([first], delimiter=_TABLES[suffix]), [])
        if suffix in _LINES:
            row = json.loads(first)
            return list(row) if isinstance(row, dict) else []
    except (OSError, ValueError, csv.Error, RecursionError):
        return []
    return []


def _told(path: Path, what: str, modality: Modality, *targets: Target) -> str:
    fitting = [row.name for row in TASKS.values() if row.modality == modality and row.target in targets]
    return f"{path.name} looks like {what}: add --task {' or --task '.join(fitting)}."
