"""``kdcli predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdcli.cli import complete
from kdcli.cli.newest import run_and_inputs


def predict(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run folder of kdcli distill, or a model as for evaluate; by default the newest finished run under"
            " runs/.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Images, folders of images, txt files with a text a line, tables (csv, tsv, jsonl, parquet), or - for"
            " texts from standard input.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text itself. May be repeated.", show_default=False)
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of a table's texts.", show_default=False)
    ] = None,
    text_pair_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="That of the second ones, where samples are pairs.", show_default=False),
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="Ask the run's teacher too.")] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN|MODEL",
            help="Ask this one too. May be repeated.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Local checkpoint for MODEL, as for evaluate.", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of a model, where it is not what the model is made for.",
            show_default=False,
            autocompletion=complete.tasks,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="So many classes, boxes at most; by default 5 classes, and all boxes.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Boxes with at least this score; 0.3 by default.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Write a .csv or .json file, of embeddings a .npy file; or a folder with both and, of masks, depth and"
            " boxes, pictures.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of a batch.")] = 64,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", autocompletion=complete.devices)
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although files of a run have changed; the notes say so.")
    ] = False,
) -> None:
    """Ask a finished model about images or texts of your own, prepared as in evaluation.

    Classes with their probabilities, embeddings of length 1, entities of texts, the class or the depth of every pixel,
    boxes in pixels of the upright image. A folder as --output gets, for every image, NAME.png with the image and what
    each model makes of it, and NAME_mask.png with the numbers of classes, or NAME_depth.png in millimetres (.npy in
    metres, where they are more than 65).

    Images that can't be read are left out and named, and the exit code is 1; where none can be read, or something else
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
        show_table(*table_of(predictions))
        show_lines(remarks(predictions, output))
    unreadable = list(predictions.prediction.unreadable)
    for image in unreadable:
        show_note(f"Left out, as it can't be read: {image}")
    if unreadable:
        raise typer.Exit(1)
