"""``kdcli evaluate``, ``kdcli export`` and ``kdcli analyze-projector``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdcli.base.errors import UserError
from kdcli.cli import complete
from kdcli.cli.newest import newest_or
from kdcli.cli.shared import AsJson, Device


def export(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="A run folder. Default: the newest finished run under runs/.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write. Default: RUN/export.", show_default=False)
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="safetensors, onnx, torch-export, openvino or executorch.",
            autocompletion=complete.one_of("safetensors", "onnx", "torch-export", "openvino", "executorch"),
        ),
    ] = "safetensors",
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="int8",
            help="Also write a quantised graph beside onnx, and measure both on validation.",
            show_default=False,
            autocompletion=complete.one_of("int8"),
        ),
    ] = None,
    calibrate: Annotated[
        int, typer.Option(min=1, metavar="N", help="Training images that set the ranges of a quantised graph.")
    ] = 128,
    push_to: Annotated[
        str | None,
        typer.Option(
            metavar="hf:ORG/NAME", help="Then upload the folder to the Hugging Face hub, privately.", show_default=False
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push-to: everybody may see it.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Export even if files of the run have changed. The model card then says so.")
    ] = False,
) -> None:
    """Write the best student for use without kdcli, and check it.

    `safetensors` is the model's own library's format: timm loads the folder as local-dir:PATH, transformers with
    from_pretrained. The others are graphs that need no library of models: `onnx`, with `--quantize int8` also for whole
    numbers; `torch-export` (torch.export.load), `openvino`, and `executorch` for phones. All but the last take any
    number of samples. Each is loaded back and compared. A student that embeds texts loads in sentence-transformers too.

    Examples:

        kdcli export runs/quickstart

        kdcli export runs/quickstart --format onnx --quantize int8 --output deploy/

        kdcli export runs/quickstart --push-to hf:ORG/NAME
    """
    from kdcli.base.text import check_argument
    from kdcli.runs.folder import RunFolder
    from kdcli.terminal.console import show_lines, show_table

    run = newest_or(run)
    opened = RunFolder.open(run, force=force)
    target = output or run / "export"
    check_argument("--output", target)
    from kdcli.results.formats import export_run
    from kdcli.results.push import push, target_of

    repo = target_of(push_to, public=public)
    done, quantizer = export_run(opened, target, form=format_, quantize=quantize, calibration=calibrate)
    show_lines(f"Warning: {sentence}" for sentence in opened.forced)
    if quantizer is not None:
        show_table("On validation", *quantizer.table())
    show_lines(done.notes)
    show_lines(
        [f"Exported to {target}; loaded back, its outputs differ by at most {done.difference:.1e} of the largest."]
    )
    if repo is not None:
        show_lines(push(target, repo, public=public))


def analyze_projector(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Run folders, or folders of sweeps. Default: the newest finished run under runs/.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="The data to analyse on: validation or test.",
            autocompletion=complete.one_of("validation", "test"),
        ),
    ] = "validation",
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="With several runs: the folder for ranks.png and ranks.json.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Analyse even if data, teacher or files of the run have changed. analysis.json then says so.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show which directions of the features the projector kept, which it dropped, and when.

    Prints singular values and ranks, the split of the residual into knowledge transfer and spectral part on held-out
    data, and linear CKA. Writes RUN/analysis/analysis.json and pictures, among them t-SNE of the features and, for
    images, the loss while the input moves. With several runs it also compares their ranks.

    Examples:

        kdcli analyze-projector runs/quickstart

        kdcli analyze-projector runs/quickstart --split test

        kdcli analyze-projector runs/same runs/cross runs/random --output runs/ranks
    """
    from kdcli.results.compare import find_runs
    from kdcli.runs.folder import RunFolder
    from kdcli.terminal.console import errors, show_lines, show_table, show_wide_table

    opened = [RunFolder.open(run, force=force) for run in find_runs(runs or [newest_or(None)])]
    from kdcli.results.analyze import analyze_run, choose_projectors, compare_projectors, tables
    from kdcli.results.ranks import tabulate

    chosen, left_out = choose_projectors(opened, output=output)
    analyses, files = [], []
    with errors.status("Analysing") as status:
        for number, run in enumerate(chosen, 1):
            if len(chosen) > 1:
                status.update(f"Analysing {number} of {len(chosen)}")
            analysis, written = analyze_run(run, split=split, device=device)
            analyses.append(analysis)
            files += written
    if as_json:
        if len(chosen) > 1:
            compare_projectors(chosen, analyses, output=output)
        found = {"runs": {str(run.path): analysis for run, analysis in zip(chosen, analyses, strict=True)}}
        typer.echo(json.dumps(found | {"left_out": [str(run.path) for run in left_out]}, indent=2))
        return
    if len(chosen) == 1:
        for title, columns, rows in tables(analyses[0]):
            show_table(title, columns, rows)
        show_lines(result["conclusion"] for result in analyses[0]["projectors"].values())
    else:
        summaries, written = compare_projectors(chosen, analyses, output=output)
        files = [*(run.path / "analysis" for run in chosen), *written]
        show_wide_table("Projectors from the start to the end of training", *tabulate(summaries))
        show_lines(f"{summary['run']}: {summary['conclusion']}" for summary in summaries)
    show_lines(f"Left out, without a projector that is a matrix: {run.path}" for run in left_out)
    show_lines(dict.fromkeys(line for analysis in analyses for line in (*analysis["forced"], *analysis["notes"])))
    show_lines(f"Wrote {file}" for file in files)
    if len(chosen) > 1 and output is None:
        show_lines(["Add --output DIR for ranks.png and ranks.json."])


def evaluate(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run folder, or the name of a model. Default: the newest finished run under runs/.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data, named as for distill. Default: the data of the run.",
            show_default=False,
            autocompletion=complete.data,
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of torchvision's data.", show_default=False)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Take only these classes of the data, as for distill.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="data.KEY=VALUE",
            help="Set how the data are read, as for distill, such as data.ignore_label=11. May be repeated.",
            show_default=False,
            autocompletion=complete.settings,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="test, validation or train. Default: test if there is one, otherwise validation.",
            show_default=False,
            autocompletion=complete.splits,
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN|MODEL",
            help="Also measure this run or model. May be repeated.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Do not measure the run's teacher.")] = False,
    teacher_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A checkpoint for MODEL, as for distill. You can also name 'MODEL?weights=FILE', or the file alone.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task of a MODEL, as for distill, if it has labels. Default: image-classification.",
            show_default=False,
            autocompletion=complete.tasks,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size, also for images per second.")] = 64,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder to write. Default: RUN/evaluation for a run, nothing for a model.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[
        int,
        typer.Option(min=0, max=64, help="Number of samples to draw in samples.png, with the answer of each model."),
    ] = 0,
    as_json: AsJson = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Measure even if data, teacher or files of a run have changed. evaluation.json then says so.",
        ),
    ] = False,
) -> None:
    """Measure a student beside its teacher and other models: accuracy, calibration, agreement and costs.

    Classes: top-1 and top-5 accuracy, expected calibration error (15 bins, l1), cross-entropy, agreement with the
    teacher, accuracy by class. Words: F1, precision and recall of named entities. Masks: overlap and accuracy of
    pixels. Depth: errors. Boxes: average precision. For all: parameters, MACs, size, latency, images per second.
    Computes in float32. Writes evaluation.json and, for classes, a confusion matrix of each model.

    Examples:

        kdcli evaluate runs/quickstart

        kdcli evaluate runs/quickstart --against runs/quickstart/baseline --json

        kdcli evaluate runs/quickstart/export --data demo:digits --split validation

        kdcli evaluate resnet18 --teacher-weights model_best.pth.tar --data photos/

        kdcli evaluate runs/a/student --task semantic-segmentation --data camvid/ --set data.ignore_label=11
    """
    from kdcli.base.text import check_argument

    name = str(newest_or(None)) if name is None else name
    named = (("A run or model", (name, *(against or ()))), ("--data", (data,)), ("--output", (output,)))
    for what, values in (*named, ("--teacher-weights", (teacher_weights,))):
        for value in values:
            if value is not None:
                check_argument(what, value)
    from kdcli.results.evaluate import evaluate_models
    from kdcli.results.evaluation import legend, output_folder, remarks, tables, to_json, write_evaluation
    from kdcli.terminal.console import errors, show_lines, show_table

    folder = output_folder(name, output)
    if show and folder is None:
        raise UserError("--show writes a picture, and nothing says where.", "Give --output DIR.")
    with errors.status("Evaluating"):
        evaluation, layout, pictures = evaluate_models(
            name,
            against=against or [],
            with_teacher=not no_teacher,
            data=data,
            data_root=data_root,
            classes=classes,
            settings=overrides or (),
            split=split,
            device=device,
            batch_size=batch_size,
            task=task,
            weights=teacher_weights,
            force=force,
            show=show,
        )
    if as_json:
        typer.echo(to_json(evaluation), nl=False)
    else:
        show_lines(legend(evaluation, layout))
        for title, columns, rows in tables(evaluation, layout):
            show_table(title, columns, rows)
        show_lines(remarks(evaluation, layout))
    if folder is not None:  # last, so that a full disk costs no measurements
        files = write_evaluation(evaluation, folder, layout=layout, pictures=pictures)
        if not as_json:
            show_lines(f"Wrote {file}" for file in files)
