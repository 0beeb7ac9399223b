"""Predictions on paper: the table, json, csv and npy, and a folder of pictures."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np
from PIL import Image

from kdcli.base.errors import UserError, is_special
from kdcli.base.files import clear_os_errors, replace_files, write_atomically
from kdcli.base.text import counted, expand_user
from kdcli.data import decode_image
from kdcli.results.evaluation import to_json
from kdcli.results.pictures.samples import plot_samples
from kdcli.results.predict import Prediction, Question, open_prediction
from kdcli.tasks.answers import Answer

Form = Literal["csv", "json", "npy", "folder"]
Table = tuple[str, list[str], list[list[str]]]

_FORMS: Mapping[str, Form] = {".csv": "csv", ".json": "json", ".npy": "npy"}
_BEGINNINGS: Mapping[Form, bytes] = {"csv": b"input,", "json": b'{\n  "task": ', "npy": b"\x93NUMPY"}
_NO_FOLDERS = (".txt", ".tsv", ".jsonl", ".npz", ".parquet", ".xlsx", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".pdf")
"""What looks like a file of a kind that is not written."""
_WANTED = "Name a file .csv, .json or (of embeddings) .npy, or a folder."
_SIDE, _LONGEST = 480, 960
"""Pixels that a picture is wide, and that an image has at most before it is drawn on."""
_LISTED = "predictions.json"
_SHOWN_TEXT = 60
_MOST_NAME = 200
"""Bytes of a file's name before its end."""
_HINT = "Free some space, or give another --output."


@dataclass
class Predictions:
    """All answers.

    Attributes:
        prediction: what was asked.
        found: each sample's place and its answers by role, without what pictures were made of.
        files: by the sample's place, the names of the files that were written of it.
    """

    prediction: Prediction
    found: list[tuple[int, dict[str, Answer]]] = field(default_factory=list)
    files: dict[int, list[str]] = field(default_factory=dict)


def form_of(output: Path, inputs: Sequence[str]) -> Form:
    """Return what is to be written.

    Args:
        output: where.
        inputs: that are read: none of them is written over.

    Raises:
        UserError: there is something else, or its name is that of another kind of file.
    """
    form: Form = "folder" if output.is_dir() else _FORMS.get(output.suffix.lower(), "folder")
    if form == "folder":
        if output.suffix.lower() in _NO_FOLDERS and not output.is_dir():
            raise UserError(f"--output can't be {output}: no such file is written.", _WANTED)
        _check_folder(output)
    elif is_special(output):
        raise UserError(f"{output} is a pipe, socket or device, not a file.", _WANTED)
    elif any(output.resolve() == expand_user(name).resolve() for name in inputs):
        raise UserError(f"--output is {output}, which is read.", "Give another file.")
    elif output.exists() and not _is_own(output, form):
        raise UserError(f"{output} is there, and holds no predictions.", "Give another name, or remove it.")
    return form


def _is_own(file: Path, form: Form) -> bool:
    """Return whether a file begins as one that was written here, or is empty."""
    with clear_os_errors(file, hint=_WANTED), file.open("rb") as stream:
        start = stream.read(64)
    return not start or start.startswith(_BEGINNINGS[form])


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file.", _WANTED)
    known = _listed_in(folder)
    if any(path.is_file() and path.relative_to(folder).as_posix() not in known for path in folder.rglob("*")):
        raise UserError(f"{folder} holds files that are no predictions.", "Give a new or empty folder as --output.")


def _listed_in(folder: Path) -> set[str]:
    """Return the files that an earlier prediction wrote into a folder."""
    try:
        content = json.loads((folder / _LISTED).read_text(encoding="utf-8"))
        names = [str(name) for each in content["predictions"] for name in each["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    root = folder.resolve()  # whoever wrote the list: nothing outside of the folder is taken for a prediction
    return {_LISTED, "predictions.csv", *(name for name in names if root in (root / name).resolve().parents)}


def predict(
    question: Question, output: Path | None, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Predictions:
    """Ask, and write what was found to ``output``, whole or not at all.

    Args:
        question: what is asked.
        output: a file, a folder, or None for nothing.
        progress: is told how many samples of how many have been answered.

    Raises:
        UserError: as :func:`open_prediction`; nothing can be written there, or not of this task.
    """
    form = None if output is None else form_of(output, question.inputs)
    prediction = open_prediction(question, leave_out=output if form == "folder" else None)
    predictions = Predictions(prediction)
    if form == "npy":
        _check_vectors(prediction)
    if output is None:
        _answer(predictions, None, progress)
        return predictions
    with clear_os_errors(output, hint=_HINT):
        if form == "folder":
            before = _listed_in(output)
            with _folders_above(output):
                replace_files(output, lambda folder: _fill(predictions, folder, progress))
            _clean(output, before - _written(predictions))
            return predictions
        with _folders_above(output):
            with TemporaryFile(dir=output.parent):  # what can't be written is known before anything is asked
                pass
            _answer(predictions, None, progress)
            write_atomically(output, lambda file: _write(predictions, file, form))
    return predictions


@contextmanager
def _folders_above(output: Path) -> Iterator[None]:
    """Make the folders above ``output``, and remove them where something goes wrong."""
    made = [folder for folder in output.parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _check_vectors(prediction: Prediction) -> None:
    if not prediction.asking.has_vectors:
        raise UserError(
            f"A .npy file is for embeddings, and the task {prediction.task.name} has none.",
            "Name a .csv or .json file, or a folder.",
        )
    if len(prediction.candidates) > 1:
        raise UserError("A .npy file is for the embeddings of one model.", "Name a .csv file, or ask one by one.")


def _write(predictions: Predictions, file: Path, form: Form | None) -> None:
    if form == "csv":
        file.write_text(to_csv(predictions), encoding="utf-8", errors="backslashreplace", newline="")
    elif form == "json":
        file.write_text(to_json(content_of(predictions)), encoding="utf-8")
    else:
        rows = [answer.records[0]["embedding"] for _, found in predictions.found for answer in found.values()]
        with file.open("wb") as stream:
            np.save(stream, np.array(rows, np.float32))


def _fill(predictions: Predictions, folder: Path, progress: Callable[[int, int], None]) -> None:
    _answer(predictions, folder, progress)
    _write(predictions, folder / "predictions.csv", "csv")
    _write(predictions, folder / _LISTED, "json")


def _written(predictions: Predictions) -> set[str]:
    return {_LISTED, "predictions.csv", *(name for names in predictions.files.values() for name in names)}


def _clean(folder: Path, old: set[str]) -> None:
    """Remove what an earlier prediction wrote and this one did not, and folders that are empty then."""
    for name in old:
        path = folder / name
        path.unlink(missing_ok=True)
        while (path := path.parent) != folder and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _answer(predictions: Predictions, folder: Path | None, progress: Callable[[int, int], None]) -> None:
    """Collect all answers; with a folder, draw each into it."""
    prediction, taken = predictions.prediction, {_LISTED, "predictions.csv"}
    total = len(prediction.items)
    for number, answers in prediction.answers():
        if folder is not None and prediction.asking.has_pictures:
            predictions.files[number] = _draw(prediction, number, answers, folder, taken)
        plain = {role: Answer(answer.records, answer.lines) for role, answer in answers.items()}
        predictions.found.append((number, plain))
        progress(number + 1, total)


def _draw(
    prediction: Prediction, number: int, answers: Mapping[str, Answer], folder: Path, taken: set[str]
) -> list[str]:
    """Write the picture of one image, and the files of its answers; return their names."""
    item, asking = prediction.items[number], prediction.asking
    several = len(answers) > 1
    contents = {
        (f"_{role}{end}" if several else end): values
        for role, answer in answers.items()
        for end, values in asking.files(answer).items()
    }
    stem = _free_name(item.place, [".png", *contents], taken)
    image = decode_image(item.sample, deep_range=asking.deep_range)
    picture = _shrunk(image, _LONGEST)
    plot_samples(folder / f"{stem}.png", [asking.panels(picture, answers)], title=item.name, side=_SIDE)
    for end, values in contents.items():
        file = folder / f"{stem}{end}"
        if file.suffix == ".npy":
            np.save(file, values)
        else:
            Image.fromarray(values).save(file, format="PNG")
    return [f"{stem}{end}" for end in (".png", *contents)]


def _free_name(place: str, ends: Sequence[str], taken: set[str]) -> str:
    """Return a name for the files of one image, like its own, that none of another image has."""
    parent, _, name = Path(place).as_posix().rpartition("/")
    if len(os.fsencode(name)) > _MOST_NAME:
        name = os.fsencode(name)[:_MOST_NAME].decode("utf-8", errors="ignore")
    base, number = f"{parent}/{name}" if parent else name, 1
    while True:
        stem = base if number == 1 else f"{base}-{number}"
        names = {f"{stem}{end}".casefold() for end in ends}
        if not names & taken:
            taken |= names
            return stem
        number += 1


def _shrunk(image: Image.Image, longest: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an image for a picture, uint8 (H, W, 3), with no side longer than that."""
    ratio = min(1.0, longest / max(image.size))
    if ratio < 1:
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def content_of(predictions: Predictions) -> dict[str, Any]:
    """Return what the json file has."""
    prediction = predictions.prediction
    models = {
        candidate.role: {"name": candidate.name, "class_names": list(asked.class_names)}
        for candidate, asked in zip(prediction.candidates, prediction.asked, strict=True)
    }
    return {
        "task": prediction.task.name,
        "models": models,
        "device": str(prediction.device),
        "num_inputs": len(prediction.items),
        "unreadable": list(prediction.unreadable),
        "notes": [*prediction.notes, *(prediction.asking.file_notes() if predictions.files else ())],
        "predictions": [
            {
                "input": prediction.items[number].name,
                **_text_of(prediction, number),
                "answers": {role: answer.records for role, answer in found.items()},
                "files": predictions.files.get(number, []),
            }
            for number, found in predictions.found
        ],
    }


def _text_of(prediction: Prediction, number: int) -> dict[str, str]:
    """Return a sample's own text, or both of a pair."""
    item = prediction.items[number]
    if item.place:
        return {}
    if isinstance(item.sample, str):
        return {"text": item.sample}
    return dict(zip(("text", "text_pair"), item.sample, strict=True))


def to_csv(predictions: Predictions) -> str:
    """Return a line for each class, box or whatever a model says of a sample; one without any where it says nothing."""
    rows: list[dict[str, Any]] = []
    for number, found in predictions.found:
        for role, answer in found.items():
            for rank, record in enumerate(answer.records or [{}], 1):
                first = {"input": predictions.prediction.items[number].name}
                first |= {**_text_of(predictions.prediction, number), "model": role}
                rows.append({**first, "rank": rank if answer.records else "", **_flat(record)})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose lists are columns of their own: ``embedding_0`` and so on."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= {f"{name}_{n}": part for n, part in enumerate(value)} if isinstance(value, list) else {name: value}
    return flat


def table_of(predictions: Predictions, most: int | None = None) -> Table:
    """Return the table for the terminal: a column for each model, and lines for each of the first ``most`` samples."""
    prediction = predictions.prediction
    rows = []
    for number, found in predictions.found[:most]:
        item = prediction.items[number]
        text = " | ".join(_text_of(prediction, number).values())
        name = item.name if item.place else _start_of(" ".join(text.split()))
        for place in range(max(1, *(len(answer.lines) for answer in found.values()))):
            cells = [answer.lines[place] if place < len(answer.lines) else "" for answer in found.values()]
            rows.append([name if place == 0 else "", *cells])
    noun = prediction.task.row().modality
    return "Predictions", [noun, *prediction.roles], rows


def _start_of(text: str) -> str:
    return text if len(text) <= _SHOWN_TEXT else f"{text[: _SHOWN_TEXT - 1]}…"


def remarks(predictions: Predictions, output: Path | None) -> Iterator[str]:
    """Yield what the table leaves unsaid, but for what can't be read."""
    prediction = predictions.prediction
    for candidate in prediction.candidates:
        yield f"{candidate.role}: {candidate.name}"
    yield from prediction.notes
    if predictions.files:
        yield from prediction.asking.file_notes()
    if output is None and prediction.asking.has_pictures:
        yield "Add --output DIR for pictures."
    elif output is None and prediction.asking.has_vectors:
        yield "Add --output FILE.npy or FILE.csv for the embeddings."
    elif output is not None:
        count = sum(map(len, predictions.files.values()))
        yield f"Wrote {output}" + (f", with {counted(count, 'file')} of pictures and answers" if count else "")
