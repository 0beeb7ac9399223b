"""``kdcli distill``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcli.base.errors import UserError

if TYPE_CHECKING:
    from kdcli.config.run import RunConfig


_MODEL = "Models and data"


_PLAN = "Distillation"


_EPISODES = "Middle-shot learning"


_TRAIN = "Training"


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
    from kdcli.config.parse import parse_config
    from kdcli.config.recipes import apply_overrides, find_recipe, load_recipe, set_key

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
            code = run_episodes(config, name=name, command=command_line(), output=shown, dry_run=dry_run)
    elif resume is not None:
        code = resume_run(config, resume, command=command_line(), output=shown, dry_run=dry_run, force=force)
    else:
        code = distill_run(config, name=name, command=command_line(), output=shown, dry_run=dry_run)
    if code:
        raise typer.Exit(code)


def _run_name(config: RunConfig) -> str:
    student, teacher, data = map(_file_name, (config.student.name, config.teacher.name, config.data.name))
    return _file_name(f"{student}-from-{teacher}-on-{data}")


def _file_name(text: str) -> str:
    """Return ``text`` as the name of a folder: letters, digits and ``._-``, at most 120 bytes, never ``.`` or ``..``."""
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.")
    return name.encode()[:120].decode(errors="ignore") or "run"


def command_line() -> str:
    """Return the command line as it was given, for the run folder, without tokens."""
    from kdcli.base.text import redact

    return shlex.join(["kdcli", *map(redact, sys.argv[1:])])
