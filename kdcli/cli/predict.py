"""``kdcli predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import complete
from kdcli.cli.newest import run_and_inputs
from kdcli.cli.shared import AsJson, BatchSize, Device

_SHOWN = 20
"""Samples in the table where a file or a folder gets all of them."""


def predict(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run folder, or the name of a model. Default: the newest finished run under runs/.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Images or folders of images; txt files with one text per line, tables of texts (csv, tsv, jsonl,"
            " parquet), or - for texts from standard input.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text. May be repeated.", show_default=False)
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of the texts in a table.", show_default=False)
    ] = None,
    text_pair_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The column of the second texts, for pairs.", show_default=False),
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="Also ask the teacher of the run.")] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN|MODEL",
            help="Also ask this run or model. May be repeated.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A checkpoint for MODEL, as for evaluate.", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task of a MODEL, if the model does not tell it.",
            show_default=False,
            autocompletion=complete.tasks,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="At most so many classes or boxes. Default: 5 classes, all boxes.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Only boxes with at least this score. Default: 0.3.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Write a .csv or .json file (embeddings: .npy), or a folder with both. For masks, depth and boxes the"
            " folder also gets pictures.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    as_json: AsJson = False,
    force: Annotated[
        bool, typer.Option("--force", help="Continue even if files of the run have changed. The notes then say so.")
    ] = False,
) -> None:
    """Run a trained student or any model on your own images or texts.

    Prints classes with probabilities, embeddings of length 1, named entities, the class or the depth of pixels, or
    boxes in pixels of the upright image. Inputs are prepared as in evaluation.

    With a folder as --output, each image gets NAME.png (the image with the answers), and NAME_mask.png (class numbers)
    or NAME_depth.png (millimetres; .npy in metres where depth is more than 65 m).

    Images that cannot be read are left out and named; the exit code is then 1. If none can be read, or something else
    is wrong, it is 2 and nothing is written.

    Examples:

        kdcli predict runs/quickstart photos/ --top 3

        kdcli predict photos/

        kdcli predict runs/reviews --text "Not a dull moment." --teacher

        kdcli predict runs/scenes holiday.jpg --output pictures/

        kdcli predict resnet18.a1_in1k photos/ --output found.csv
    """
    from kdcli.base.text import check_argument

    name, inputs = run_and_inputs([word for word in (name, *(inputs or ())) if word is not None])
    named = (("A run or model", (name, *(against or ()))), ("An input", inputs or ()), ("--output", (output,)))
    for what, values in (*named, ("--teacher-weights", (teacher_weights,))):
        for value in values:
            if value is not None:
                check_argument(what, value)
    from kdcli.results.predict import Question
    from kdcli.results.predictions import content_of, remarks, table_of, to_json
    from kdcli.results.predictions import predict as ask
    from kdcli.tasks.answers import Choice
    from kdcli.terminal.console import show_lines, show_note, show_progress, show_table

    question = Question(
        name,
        inputs=inputs or (),
        texts=text or (),
        against=against or (),
        with_teacher=teacher,
        task=task,
        weights=teacher_weights,
        text_column=text_column,
        text_pair_column=text_pair_column,
        choice=Choice(top, score),
        device=device,
        batch_size=batch_size,
        force=force,
    )
    with show_progress() as advance:
        predictions = ask(question, output, progress=lambda done, total: advance("Predicting", done, total))
    if as_json:
        typer.echo(to_json(content_of(predictions)), nl=False)
    else:
        most = None if output is None else _SHOWN
        show_table(*table_of(predictions, most))
        if most is not None and len(predictions.found) > most:
            show_lines([f"Shown: the first {most} of {len(predictions.found)}; {output} has all of them."])
        show_lines(remarks(predictions, output))
    unreadable = list(predictions.prediction.unreadable)
    for image in unreadable:
        show_note(f"Left out, as it can't be read: {image}")
    if unreadable:
        raise typer.Exit(1)
