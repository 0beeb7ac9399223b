"""The commands: parse, call, render. Everything heavy is imported where it is used."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcli import __version__
from kdcli.base.errors import UserError
from kdcli.cli.models import models_app
from kdcli.cli.recipes import recipes_app
from kdcli.terminal.library_messages import library_messages

if TYPE_CHECKING:
    from kdcli.config.run import RunConfig

app = typer.Typer(
    name="kdcli",
    help="Distil compact models from arbitrary pretrained teachers.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipes_app, name="recipes")
app.add_typer(models_app, name="models")


def main() -> None:
    """Run the command line; a user's error is one message, a hint and exit code 2."""
    from kdcli.machine.launch import end_with_the_launcher, is_launched, reporting_to_launcher

    try:
        with library_messages():
            if is_launched():
                end_with_the_launcher()
                with reporting_to_launcher():
                    app()
            else:
                app()
    except UserError as error:
        from kdcli.terminal.console import show_error

        show_error(error)
        raise SystemExit(2) from None


def _version(value: bool) -> None:
    if value:
        typer.echo(f"kdcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Distil compact models from arbitrary pretrained teachers."""


_MODEL = "Models and data"
_PLAN = "Distillation"
_EPISODES = "Middle-shot learning"
_TRAIN = "Training"


@app.command()
def distill(
    recipe: Annotated[
        str | None, typer.Option(help="A recipe by name or file; the other options override it.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the config. May be repeated.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="timm or Hugging Face name, local folder, run folder, a training script's checkpoint that tells its"
            " architecture, random:NAME for an untrained one, or none.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Local checkpoint (.safetensors, .pth) for the teacher.", rich_help_panel=_MODEL
        ),
    ] = None,
    unchecked_teacher: Annotated[
        bool,
        typer.Option(
            "--unchecked-teacher",
            help="Go on with a teacher that was measured to do no better than guessing, or that mixes the classes up.",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    student: Annotated[
        str | None,
        typer.Option(
            help="Name of the student's architecture, also as NAME?option=value&option=value; or 'teacher?layers=4&width=0.5'.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    student_pretrained: Annotated[
        bool | None,
        typer.Option(
            "--student-pretrained/--no-student-pretrained",
            help="Start the student from its published weights.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="demo:digits, torchvision:NAME, hf:org/name, or a folder (class folders, parquet, arrow); texts also as"
            " csv, jsonl or txt.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    data_root: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where torchvision's data lie.", rich_help_panel=_MODEL)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Take these classes alone: names, numbers (0-4,7) or a part (part:1/2, part:2/2+20%).",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Of image-embedding: labelled images for kNN and linear probe; --data by default, where they have labels.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    strict_data: Annotated[
        bool, typer.Option("--strict-data", help="Stop at an unreadable image.", rich_help_panel=_MODEL)
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="image-classification (default), image-embedding (no labels), text-classification, token-classification,"
            " sentence-embedding, masked-lm or causal-lm.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    relation: Annotated[
        str | None,
        typer.Option(help="Override the task relation: same, cross, random, none.", rich_help_panel=_PLAN),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="One method beside the labels' loss, such as dkd, crd or refilled (two stages); none for the labels alone.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    projector: Annotated[
        str | None,
        typer.Option(
            help="Override the projector: linear, mlp, orthogonal, inverted, or none for no features; with --method, "
            "put one into it.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            help="Override the teacher's normalisation: none, layer_norm, standardize, whiten.", rich_help_panel=_PLAN
        ),
    ] = None,
    feature_layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STUDENT:TEACHER",
            help="Features to bring together: pooled, embedding, any layer's name, or its number in 'kdcli models layers'. May "
            "be repeated.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    feature_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the feature loss, in place of the plan's.", rich_help_panel=_PLAN),
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option(
            "--baseline/--no-baseline",
            help="Also train the student alone for the same steps and compare.",
            rich_help_panel=_PLAN,
            show_default=False,
        ),
    ] = None,
    ways: Annotated[
        int | None,
        typer.Option(help="Draw episodes with so many classes; a student for each.", rich_help_panel=_EPISODES),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Labelled training images of each class of an episode.", rich_help_panel=_EPISODES),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Number of episodes. [default: 100]", rich_help_panel=_EPISODES)
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(help="Test images of each class of an episode. [default: 15]", rich_help_panel=_EPISODES),
    ] = None,
    test: Annotated[
        bool | None,
        typer.Option(
            "--test/--no-test",
            help="Evaluate the best student on the test split at the end. [default: test]",
            rich_help_panel=_PLAN,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The run folder; a new name under runs/ by default.", rich_help_panel=_TRAIN),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training data; 0 evaluates the student as it starts.", rich_help_panel=_TRAIN
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images of a batch.", rich_help_panel=_TRAIN)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=_TRAIN)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", rich_help_panel=_TRAIN)] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="auto, no, fp16 or bf16.", rich_help_panel=_TRAIN)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_TRAIN)] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="Also log to tensorboard, wandb, trackio or mlflow. May be repeated.", rich_help_panel=_TRAIN
        ),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(help="Training processes on this machine; one for each GPU by default.", rich_help_panel=_TRAIN),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            metavar="N|TIME",
            help="Steps (200) or time (30s, 10m, 2h) between checkpoints. [default: 10m]",
            rich_help_panel=_TRAIN,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run that was stopped, killed or has run out of epochs (then with more --epochs).",
            show_default=False,
            rich_help_panel=_TRAIN,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Resume although data, teacher or files of the run have changed; card and result say so.",
            rich_help_panel=_TRAIN,
        ),
    ] = False,
    log_format: Annotated[
        str, typer.Option(help="auto (a live view on a terminal), plain or json.", rich_help_panel=_TRAIN)
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Distil a teacher into a student.

    Loads both by name, works out how the teacher's task relates to yours, picks the projector that this calls for
    (and says why), trains, keeps the best student by validation, and tests it once.

    Examples:

        kdcli distill --recipe quickstart

        kdcli distill --teacher resnet50 --student mobilenetv3_small_050 --data photos/

        kdcli distill --teacher hf:facebook/dinov2-small --student resnet18 --data torchvision:CIFAR100 --dry-run

        kdcli distill --teacher resnet50 --student resnet18 --data photos/ --feature-layers pooled:layer3

        kdcli distill --teacher resnet50 --student 'teacher?layers=2&width=0.5' --data photos/

        kdcli distill --teacher none --student resnet18 --data demo:digits --set optim.weight_decay=0.1

        kdcli distill --teacher resnet50 --student resnet18 --data photos/ --ways 5 --shots 10

        kdcli distill --task image-embedding --teacher hf:facebook/dinov2-small --student resnet18 --data unsorted/

        kdcli distill --task text-classification --teacher hf:org/name --student tiny-bert/ --data reviews.csv

        kdcli distill --task token-classification --teacher hf:org/name --student tiny-bert/ --data entities.conll

        kdcli distill --resume runs/quickstart --epochs 32
    """
    from kdcli.config.recipes import apply_overrides, find_recipe, load_recipe, set_key
    from kdcli.config.run import parse_config

    if log_format not in ("auto", "plain", "json"):
        raise UserError(f"There is no log format {log_format!r}.", "Use auto, plain or json.")
    values: dict[str, Any] = {}
    source = "the options"
    if resume is not None:
        if recipe is not None or output is not None or any(item.startswith("output=") for item in set_ or []):
            raise UserError(
                "--resume goes on with a run as it is, in its own folder.", "Drop --recipe and --output, or --resume."
            )
        from kdcli.runs.folder import RunFolder

        values, source = RunFolder.started(resume, force=force).read_values(), str(resume / "config.yaml")
    elif force:
        raise UserError("--force is for --resume: a new run has nothing that could have changed.", "Leave it out.")
    if recipe is not None:
        file = find_recipe(recipe)
        values, source = load_recipe(file), str(file)
    if teacher is not None:
        values = {**values, "teacher": {"name": teacher}}  # another teacher: the recipe's weights are not its own
    values = apply_overrides(values, set_ or [])
    options = {
        "teacher.name": teacher,
        "teacher.weights": teacher_weights,
        "teacher.unchecked": unchecked_teacher or None,
        "student.name": student,
        "student.pretrained": student_pretrained,
        "data.name": data,
        "data.root": data_root,
        "data.classes": classes,
        "data.strict": strict_data or None,
        "eval_data.name": eval_data,
        "task": task,
        "relation": relation,
        "method": method,
        "projector": projector,
        "normalize": normalize,
        "feature_layers": feature_layers or None,
        "feature_weight": feature_weight,
        "baseline": baseline,
        "episodes.ways": ways,
        "episodes.shots": shots,
        "episodes.number": episodes,
        "episodes.queries": queries,
        "test": test,
        "output": output,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "optim.lr": lr,
        "seed": seed,
        "train.mixed_precision": mixed_precision,
        "train.device": device,
        "train.num_processes": num_processes,
        "train.checkpoint_every": checkpoint_every,
        "train.track": track or None,
    }
    for key, value in options.items():
        if value is not None:
            values = set_key(values, key.split("."), value)
    drawn = values.get("episodes")
    absent = [option for option in ("ways", "shots") if isinstance(drawn, dict) and option not in drawn]
    if absent:
        raise UserError(
            f"episodes.{absent[0]}: missing. Episodes have so many classes (--ways) of so many labelled images (--shots).",
            "For example: --ways 5 --shots 10",
        )
    missing = [name for name in ("teacher", "student", "data") if not values.get(name)]
    if missing and recipe is None and resume is None:
        raise UserError(
            f"Say what to distil: {', '.join('--' + name for name in missing)} is missing.",
            "For example: kdcli distill --teacher resnet50 --student mobilenetv3_small_050 --data photos/"
            " (or: kdcli distill --recipe quickstart)",
        )
    config = parse_config(values, source=source)
    from kdcli.experiments.distill import Output, distill_run, resume_run

    shown = Output("json" if log_format == "json" else "plain" if log_format == "plain" else "auto", quiet)
    name = _file_name(Path(recipe).stem) if recipe else _run_name(config)
    if config.episodes is not None:
        from kdcli.experiments.episodes import resume_episodes, run_episodes

        if resume is not None:
            code = resume_episodes(config, resume, output=shown, dry_run=dry_run, force=force)
        else:
            code = run_episodes(config, name=name, command=_command(), output=shown, dry_run=dry_run)
    elif resume is not None:
        code = resume_run(config, resume, command=_command(), output=shown, dry_run=dry_run, force=force)
    else:
        code = distill_run(config, name=name, command=_command(), output=shown, dry_run=dry_run)
    if code:
        raise typer.Exit(code)


def _run_name(config: RunConfig) -> str:
    student, teacher, data = map(_file_name, (config.student.name, config.teacher.name, config.data.name))
    return _file_name(f"{student}-from-{teacher}-on-{data}")


def _file_name(text: str) -> str:
    """Return ``text`` as the name of a folder: letters, digits and ``._-``, at most 120 bytes, never ``.`` or ``..``."""
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.")
    return name.encode()[:120].decode(errors="ignore") or "run"


def _command() -> str:
    from kdcli.base.text import redact

    return shlex.join(["kdcli", *map(redact, sys.argv[1:])])


@app.command()
def sweep(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE", help="Recipes by name or file, or folders of .yaml files.", show_default=False
        ),
    ],
    seeds: Annotated[
        str,
        typer.Option(metavar="N|LIST", help="5 for the seeds 0 to 4, or a list: 3,7,9.", show_default=False),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key in all recipes. May be repeated."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help="Run each recipe with each of these values. May be repeated: with every choice of all.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the runs go, to DIR/RECIPE[-KEY=VALUE]/seed-S; runs/sweeps/RECIPES by default.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Also show the differences to this recipe or variant, paired by seed, with 95 % intervals.",
            show_default=False,
        ),
    ] = None,
    no_test: Annotated[
        bool, typer.Option("--no-test", help="Leave the test split alone; rank the variants by validation.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Worker processes; one for each of several GPUs by default, else all runs in this process.",
            show_default=False,
        ),
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing, compare what there is.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Go on with runs although data, teacher or files of theirs have changed; cards and results say so.",
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the runs' own output too.")] = False,
) -> None:
    """Run recipes over seeds, one after another, and compare them.

    Finished runs are skipped and interrupted ones go on: after Ctrl-C the same command continues. A run that fails is
    reported, and the others go on. Writes compare.csv, compare.md and curves.png. With --no-test the best variant of
    each recipe is found by its mean validation metric.

    Examples:

        kdcli sweep quickstart mine.yaml --seeds 5 --baseline quickstart

        kdcli sweep recipes/ --seeds 3,7,9 --set train.epochs=20 --output runs/sweeps/methods

        kdcli sweep mine.yaml --seeds 3 --vary optim.lr=0.001,0.003 --vary train.batch_size=32,64 --no-test

        kdcli sweep mine.yaml --seeds 3 --vary optim.lr=0.001,0.003 --report-only
    """
    from kdcli.experiments.variants import find_recipes, make_variants, parse_seeds, parse_vary, safe_name

    files = find_recipes(recipes)
    numbers = parse_seeds(seeds)
    variants = make_variants(
        files, overrides=set_ or [], vary=parse_vary(vary or []), no_test=no_test, num_seeds=len(numbers)
    )
    is_folder = len(recipes) == 1 and Path(recipes[0]).is_dir()
    name = Path(recipes[0]).resolve().name if is_folder else "+".join(files)
    from kdcli.experiments.sweep import RANKING_RULE, Sweep, compare_sweep, rank_variants, run_sweep
    from kdcli.terminal.console import show_lines, show_table

    swept = Sweep(output or Path("runs") / "sweeps" / safe_name(name), variants, numbers, force)
    reference = None if baseline is None else swept.find_variant(baseline)
    failed: dict[str, UserError] = {}
    if not report_only:
        code, failed = run_sweep(swept, jobs=jobs, command=_command(), verbose=verbose)
        if code:
            show_lines([f"Stopped; all is saved. Go on with the same command: {_command()}"])
            raise typer.Exit(code)
    if len(failed) < len(swept.runs):
        from kdcli.results.compare import notes, table, write_comparison

        comparison, remarks = compare_sweep(swept, baseline=reference)
        written = write_comparison(comparison, swept.folder)
        show_lines(f"Warning: {warning}" for warning in comparison.warnings)
        _show_wide_table("Comparison", *table(comparison))
        show_lines([*notes(comparison), *remarks])
        if swept.is_untested:
            columns, rows, best = rank_variants(swept, comparison)
            show_table("Ranking without test data", columns, rows)
            show_lines([RANKING_RULE, *best])
        show_lines(f"Wrote {file}" for file in written)
    if failed:
        told = "\n".join(f"  - {label}: {error.message} {error.hint}" for label, error in failed.items())
        raise UserError(
            f"{len(failed)} of {len(swept.runs)} runs failed:\n{told}",
            "Mend what they name; the same command then runs what is missing.",
        )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of kdcli distill.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; RUN/export by default.", show_default=False)
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="safetensors or onnx.")] = "safetensors",
    force: Annotated[
        bool, typer.Option("--force", help="Export although files of the run have changed; the card says so.")
    ] = False,
) -> None:
    """Write the best student for use without kdcli, and check it.

    `safetensors` is the model's own library's format: timm loads the folder as local-dir:PATH, transformers with
    from_pretrained. `onnx` has a dynamic batch size and is checked with onnxruntime. A student that embeds texts loads in
    sentence-transformers too.

    Examples:

        kdcli export runs/quickstart

        kdcli export runs/quickstart --format onnx --output deploy/
    """
    from kdcli.base.errors import did_you_mean
    from kdcli.base.text import check_argument, short_repr
    from kdcli.runs.folder import RunFolder
    from kdcli.terminal.console import show_lines

    formats = ("safetensors", "onnx")
    if format_ not in formats:
        raise UserError(
            f"There is no format {short_repr(format_)}. {did_you_mean(format_, formats)}".rstrip(),
            "Use safetensors or onnx.",
        )
    opened = RunFolder.open(run, force=force)
    target = output or run / "export"
    check_argument("--output", target)
    from kdcli.results.export import export_onnx, export_safetensors

    done = (export_safetensors if format_ == "safetensors" else export_onnx)(opened, target)
    show_lines(f"Warning: {sentence}" for sentence in opened.forced)
    show_lines(done.notes)
    show_lines(
        [f"Exported to {target}; loaded back, its outputs differ by at most {done.difference:.1e} of the largest."]
    )


@app.command()
def analyze_projector(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders of kdcli distill, or of kdcli sweep.", show_default=False),
    ],
    split: Annotated[str, typer.Option(help="Held-out data to analyse on: validation or test.")] = "validation",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of several runs: write ranks.png and ranks.json there.", show_default=False),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Analyse although data, teacher or files of the run have changed; analysis.json says so."
        ),
    ] = False,
) -> None:
    """Show what the projector kept, what it threw away, and how that evolved.

    Prints singular values and ranks, the knowledge-transfer/spectral decomposition on held-out data and linear CKA;
    writes RUN/analysis/analysis.json and plots, among them t-SNE of the features and, for images, the loss while the
    input moves. Several runs are each analysed so, and their ranks are put side by side.

    Examples:

        kdcli analyze-projector runs/quickstart

        kdcli analyze-projector runs/quickstart --split test

        kdcli analyze-projector runs/same runs/cross runs/random --output runs/ranks
    """
    from kdcli.results.compare import find_runs
    from kdcli.runs.folder import RunFolder
    from kdcli.terminal.console import console, show_lines, show_table

    opened = [RunFolder.open(run, force=force) for run in find_runs(runs)]
    from kdcli.results.analyze import analyze_run, choose_projectors, compare_projectors, tables
    from kdcli.results.ranks import tabulate

    chosen, left_out = choose_projectors(opened, output=output)
    analyses, files = [], []
    with console.status("Analysing") as status:
        for number, run in enumerate(chosen, 1):
            if len(chosen) > 1:
                status.update(f"Analysing {number} of {len(chosen)}")
            analysis, written = analyze_run(run, split=split, device=device)
            analyses.append(analysis)
            files += written
    if len(chosen) == 1:
        for title, columns, rows in tables(analyses[0]):
            show_table(title, columns, rows)
        show_lines(result["conclusion"] for result in analyses[0]["projectors"].values())
    else:
        summaries, written = compare_projectors(chosen, analyses, output=output)
        files = [*(run.path / "analysis" for run in chosen), *written]
        _show_wide_table("Projectors from the start to the end of training", *tabulate(summaries))
        show_lines(f"{summary['run']}: {summary['conclusion']}" for summary in summaries)
    show_lines(f"Left out, without a projector that is a matrix: {run.path}" for run in left_out)
    show_lines(dict.fromkeys(line for analysis in analyses for line in (*analysis["forced"], *analysis["notes"])))
    show_lines(f"Wrote {file}" for file in files)
    if len(chosen) > 1 and output is None:
        show_lines(["Add --output DIR for ranks.png and ranks.json."])


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders of kdcli distill, or of kdcli sweep.", show_default=False),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="One of the runs: also show the difference to its group, paired by seed, with a 95 % interval.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write compare.csv, compare.md and curves.png there.", show_default=False),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Compare although files have changed, or data of one name were not the same; it is said."
        ),
    ] = False,
) -> None:
    """Put runs side by side: the settings that differ, and metrics.

    Runs of one recipe with different seeds are a group, shown as mean ± standard deviation and named after its first
    run. Runs that are not finished yet are marked. The student alone of a run with --baseline is the run RUN/baseline.

    Examples:

        kdcli compare runs/quickstart runs/quickstart/baseline

        kdcli compare runs/kd-0 runs/kd-1 runs/alone-0 runs/alone-1 --baseline runs/alone-0

        kdcli compare runs/* --output comparison/

        kdcli compare runs/sweeps/mine --json
    """
    from kdcli.results.compare import compare_runs, find_runs, notes, read_runs, table, to_json, write_comparison
    from kdcli.terminal.console import show_lines

    comparison = compare_runs(read_runs(find_runs(runs), force=force), baseline=baseline)
    files = [] if output is None else write_comparison(comparison, output)
    if json_:
        typer.echo(json.dumps(to_json(comparison), indent=2))
        return
    show_lines(f"Warning: {warning}" for warning in comparison.warnings)
    _show_wide_table("Comparison", *table(comparison))
    show_lines(notes(comparison))
    show_lines([f"Wrote {file}" for file in files] or ["Add --output DIR for compare.csv, compare.md and curves.png."])


def _show_wide_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; one wider than the terminal is folded and printed in parts, each with the first column."""
    import re

    from rich.markup import escape

    from kdcli.terminal.console import console, show_table

    def width(numbers: Iterable[int]) -> int:
        cells = ([part for line in lines for part in line[number].split("\n")] for number in numbers)
        return 1 + sum(3 + max(map(len, parts)) for parts in cells)

    def fold(text: str) -> str:  # at separators where there are some: no number is cut
        return "\n".join(re.findall(r".{1,28}$|.{1,27}[ ._/-]|.{1,28}", text))

    lines = [columns, *rows]
    if width(range(len(columns))) > console.width:
        lines = [[fold(cell) for cell in line] for line in lines]
    start = 1
    while start < len(columns):
        stop = start + 1
        while stop < len(columns) and width([0, *range(start, stop + 1)]) <= console.width:
            stop += 1
        headings, *body = ([line[0], *line[start:stop]] for line in lines)
        show_table(title if start == 1 else "", [escape(heading) for heading in headings], body)
        start = stop


@app.command()
def evaluate(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="A run folder of kdcli distill, or the name of a model.", show_default=False
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Data by name, as for distill; the run's own by default.", show_default=False)
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where torchvision's data lie.", show_default=False)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Take these classes of the data alone, as for distill.", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="test, validation or train; by default test where there is one, else validation.", show_default=False
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN|MODEL", help="Measure this one too. May be repeated.", show_default=False),
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Leave the run's teacher out.")] = False,
    teacher_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Local checkpoint for MODEL, as for distill; also as 'MODEL?weights=FILE', or the file as MODEL.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of a model: image-classification (default), text-classification or token-classification.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a batch, also for images per second.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to write; RUN/evaluation by default, for a model nothing is written.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Measure although data, teacher or files of a run have changed; evaluation.json says so."
        ),
    ] = False,
) -> None:
    """Measure a student beside its teacher and other models: accuracy, calibration, agreement and costs.

    Prints top-1 and top-5, expected calibration error (15 bins, l1), cross-entropy, agreement with the teacher's top-1,
    parameters, MACs, size, latency, images per second and the accuracy of the worst classes; F1, precision and recall of
    named entities; computes in float32.
    Writes evaluation.json and a confusion matrix for each model.

    Examples:

        kdcli evaluate runs/quickstart

        kdcli evaluate runs/quickstart --against runs/quickstart/baseline --json

        kdcli evaluate runs/quickstart/export --data demo:digits --split validation

        kdcli evaluate resnet18 --teacher-weights model_best.pth.tar --data photos/
    """
    from kdcli.base.text import check_argument

    named = (("A run or model", (name, *(against or ()))), ("--data", (data,)), ("--output", (output,)))
    for what, values in (*named, ("--teacher-weights", (teacher_weights,))):
        for value in values:
            if value is not None:
                check_argument(what, value)
    from kdcli.results.evaluate import (
        evaluate_models,
        legend,
        output_folder,
        remarks,
        tables,
        to_json,
        write_evaluation,
    )
    from kdcli.terminal.console import errors, show_lines, show_table

    folder = output_folder(name, output)
    with errors.status("Evaluating"):
        evaluation = evaluate_models(
            name,
            against=against or [],
            with_teacher=not no_teacher,
            data=data,
            data_root=data_root,
            classes=classes,
            split=split,
            device=device,
            batch_size=batch_size,
            task=task,
            weights=teacher_weights,
            force=force,
        )
    if as_json:
        typer.echo(to_json(evaluation), nl=False)
    else:
        show_lines(legend(evaluation))
        for title, columns, rows in tables(evaluation):
            show_table(title, columns, rows)
        show_lines(remarks(evaluation))
    if folder is not None:  # last, so that a full disk costs no measurements
        files = write_evaluation(evaluation, folder)
        if not as_json:
            show_lines(f"Wrote {file}" for file in files)


@app.command("extensions")
def list_extensions() -> None:
    """List the models, tasks, data and methods that installed packages add. Nothing of them is imported.

    Example:

        kdcli extensions
    """
    from kdcli.base.extensions import installed
    from kdcli.terminal.console import show_lines, show_table

    found = installed()
    if not found:
        show_lines(["No installed package adds anything; 'Extending' in the README says how one does."])
        return
    options = {"models": "--student {}:NAME", "tasks": "--task {}", "data": "--data {}:NAME", "methods": "--method {}"}
    rows = [[options[entry.kind].format(entry.name), entry.package, entry.target] for entry in found]
    show_table("Extensions", ["name", "package", "entry point"], rows)
