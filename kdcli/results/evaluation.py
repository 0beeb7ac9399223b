"""An evaluation on paper: its folder, files and tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.base.errors import UserError
from kdcli.base.facts import PROBE_TOKENS
from kdcli.base.files import clear_os_errors, replace_files
from kdcli.base.text import DASH, human_count
from kdcli.results.pictures.confusion import plot_confusion
from kdcli.results.pictures.samples import plot_samples
from kdcli.runs.folder import SAMPLES

if TYPE_CHECKING:
    from kdcli.tasks.reports import Layout, Panel

Table = tuple[str, list[str], list[list[str]]]


_SHOWN_CLASSES = 20
"""Rows of the table of classes."""


_TITLE_LENGTH = 28
"""Longer names are cut at their start in pictures."""


_OWN_FILES = ("evaluation.json", "confusion-*.png", SAMPLES)


def output_folder(name: str, output: Path | None) -> Path | None:
    """Return where the files go: ``output``, else ``RUN/evaluation``; None for a bare model without ``output``.

    Raises:
        UserError: when that folder holds something else than an earlier evaluation.
    """
    if output is None:
        if not is_run(name):
            return None
        output = Path(name) / "evaluation"
    is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not is_free and not (output.is_dir() and all(_is_own(file) for file in output.iterdir())):
        raise UserError(
            f"{output} holds files that are not an evaluation's.", "Give a new or empty folder as --output."
        )
    return output


def to_json(evaluation: dict[str, Any]) -> str:
    """Return the text of ``evaluation.json``: every list of numbers, such as a matrix's row, on one line."""
    text = json.dumps(evaluation, indent=2, allow_nan=False)
    # A raw line break is never part of a string.
    return re.sub(r"\[\n[\d\s.,e+\-nul]+\]", lambda match: " ".join(match[0].split()), text) + "\n"


def write_evaluation(
    evaluation: dict[str, Any], folder: Path, *, layout: Layout, pictures: Sequence[Sequence[Panel]] = ()
) -> list[Path]:
    """Write ``evaluation.json`` and pictures of confusion matrices and samples, in place of those before.

    Returns:
        The files.

    Raises:
        UserError: when the folder can't be written to.
    """
    names = ["evaluation.json"]
    num_images, split, data = evaluation["num_images"], evaluation["split"], evaluation["data"]

    def save(temporary: Path) -> None:
        (temporary / "evaluation.json").write_text(to_json(evaluation), encoding="utf-8")
        for role, model in evaluation["models"].items():
            if model.get("confusion") is not None:
                names.append(f"confusion-{role}.png")
                plot_confusion(
                    temporary / names[-1],
                    model["confusion"],
                    class_names=evaluation["class_names"],
                    title=f"{role}: {_end_of(model['name'])}",
                    subtitle=f"{layout.rows[0][0]} {model[layout.rows[0][1]]:.1%}, {num_images} {split} {layout.unit}s"
                    f" of {_end_of(data)}",
                )
        if pictures:
            names.append(SAMPLES)
            plot_samples(temporary / SAMPLES, pictures, title=f"{len(pictures)} {split} samples of {_end_of(data)}")

    with clear_os_errors(folder, hint="Free some space, or give another --output."):
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_files(folder, save)
        for file in folder.iterdir():
            if _is_own(file) and file.name not in names:
                file.unlink()
    return [folder / name for name in names]


def tables(evaluation: dict[str, Any], layout: Layout) -> Iterator[Table]:
    """Yield the tables for the terminal: a column for each model, and for each class a row."""
    models = evaluation["models"]

    def row(label: str, show: Callable[[dict[str, Any]], str | None]) -> list[str]:
        return [label, *(show(model) or DASH for model in models.values())]

    def number(key: str) -> Callable[[dict[str, Any]], str | None]:
        return lambda model: None if model[key] is None else f"{model[key]:.4f}"

    rows = [row(label, number(key)) for label, key in layout.rows]
    if evaluation.get("num_unreadable"):
        rows.insert(1, row("unreadable", lambda _: str(evaluation["num_unreadable"])))
    if "teacher" in models:
        rows.append(row("agreement with the teacher", number("agreement_with_teacher")))
    rows += [
        row("parameters", lambda model: human_count(model["parameters"])),
        row("MACs", lambda model: human_count(model["macs"])),
        row("size in MB", lambda model: f"{model['size_mb']:.2f}"),
        row("latency in ms", lambda model: f"{model['latency']['median_ms']:.2f}"),
        row("latency, interquartile range", lambda model: f"{model['latency']['iqr_ms']:.2f}"),
        row(f"{layout.sample}s per second", lambda model: f"{model['throughput']['images_per_second']:.0f}"),
    ]
    yield "Result", ["", *models], rows

    if layout.by_class is None:
        return
    title, key = layout.by_class
    scored = {role: model for role, model in models.items() if model[key] is not None}
    first = next(iter(scored.values()))[key]
    # Worst first; classes without images last.
    order = sorted(range(len(first)), key=lambda label: (first[label] is None, first[label]))
    yield (
        f"{title} by class" if len(order) <= _SHOWN_CLASSES else f"{_SHOWN_CLASSES} worst of {len(order)} classes",
        ["class", f"{evaluation['samples']}s", *scored],
        [
            [
                evaluation["class_names"][label],
                str(evaluation["class_counts"][label]),
                *(DASH if (value := model[key][label]) is None else f"{value:.4f}" for model in scored.values()),
            ]
            for label in order[:_SHOWN_CLASSES]
        ],
    )


def legend(evaluation: dict[str, Any], layout: Layout) -> Iterator[str]:
    """Yield what the tables are about: what was counted, in how many images or texts, and each column's model."""
    counted, number, unit = evaluation["num_images"], evaluation["num_samples"], evaluation["samples"]
    among = f" in {number} {layout.sample}s" if unit != layout.sample else f" (of {number})" if counted < number else ""
    yield f"data: {counted} {evaluation['split']} {unit}s{among} of {evaluation['data']}"
    for role, model in evaluation["models"].items():
        yield f"{role}: {model['name']}"


def remarks(evaluation: dict[str, Any], layout: Layout) -> Iterator[str]:
    """Yield what the tables leave unsaid."""
    threads = evaluation["threads"]
    processor = f"{threads} CPU thread{'' if threads == 1 else 's'}"
    place = processor if evaluation["device"] == "cpu" else f"{evaluation['device']}, {evaluation['device_name']}"
    noun = layout.sample
    length = "" if noun == "image" else f" A text has {PROBE_TOKENS} tokens, or as many as the model takes."
    yield (
        f"Measured on {place}. Latency: one {noun}, median over repeats; {noun}s per second: in batches of"
        f" {evaluation['batch_size']}. The input is on the device already.{length}"
    )
    yield from evaluation["data_notes"]
    yield from evaluation["forced"]
    yield from evaluation["notes"]
    for name in evaluation["unreadable"]:
        yield f"Skipped an unreadable image: {name}"


def _end_of(name: str) -> str:
    return name if len(name) <= _TITLE_LENGTH else f"…{name[1 - _TITLE_LENGTH :]}"


def _is_own(file: Path) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in _OWN_FILES)


def is_run(name: str) -> bool:
    """Return whether a folder is that of a run, not of a model."""
    return (Path(name) / "config.yaml").is_file() and not (Path(name) / "config.json").is_file()
