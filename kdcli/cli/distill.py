"""``kdcli distill``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcli.base.errors import UserError
from kdcli.base.tasks import DEFAULT_TASK, TASKS
from kdcli.cli import complete
from kdcli.cli.given import config_given, tell_demo
from kdcli.cli.quick_imports import without_collections
from kdcli.cli.sets import Sets, given_keys

if TYPE_CHECKING:
    from kdcli.config.run import RunConfig
    from kdcli.experiments.distill import Output


_MODEL = "Teacher and student"
_DATA = "Data"
_PLAN = "Override the plan"
_TRAIN = "Training"
_TOLD = "Output"
_EPISODES = "Episodes: small tasks with few labels (middle-shot learning)"
"""Panels of the help; what most need stands before them, in none."""

MORE_EXAMPLES = """More examples:

    kdcli distill --teacher hf:facebook/dinov2-small --student resnet18 --data torchvision:CIFAR100 --dry-run

    kdcli distill --teacher resnet50 --student resnet18 --data photos/ --feature-layers pooled:layer3

    kdcli distill --teacher none --student resnet18 --data demo:digits --set optim.weight_decay=0.1

    kdcli distill --teacher resnet50 --student resnet18 --data photos/ --ways 5 --shots 10

    kdcli distill --task image-embedding --teacher hf:facebook/dinov2-small --student resnet18 --data unsorted/

    kdcli distill --task semantic-segmentation --teacher none --student smp:unet/mobilenetv3_small_050 --data masks/

    kdcli distill --task text-classification --teacher hf:org/name --student tiny-bert/ --data reviews.csv

    kdcli distill --task token-classification --teacher hf:org/name --student tiny-bert/ --data entities.conll
"""
"""What stands below the options."""


def distill(
    context: typer.Context,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A name of timm or Hugging Face, a local folder, a run folder, a checkpoint that names its"
            " architecture, random:NAME (untrained), or none.",
            metavar="MODEL",
            autocompletion=complete.models,
        ),
        Sets("teacher.name"),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="An architecture's name, also with arguments ('NAME?depth=4'), or a smaller copy of the teacher"
            " ('teacher?layers=4').",
            metavar="MODEL",
            autocompletion=complete.models,
        ),
        Sets("student.name"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="demo:digits, demo:scenes, torchvision:NAME, hf:org/name, a folder (class folders, parquet, arrow,"
            " tar; images with masks, depth or boxes; texts), or a file (csv, tsv, jsonl, parquet, tar, txt). Default:"
            " the task's demo data, if there is no recipe. All forms: kdcli guide names.",
            metavar="DATA",
            autocompletion=complete.data,
        ),
        Sets("data.name"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"What the student is trained to do: {', '.join(TASKS)}. [default: {DEFAULT_TASK}]",
            metavar="TASK",
            autocompletion=complete.tasks,
        ),
        Sets("task"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe: its name or file. Other options override it.",
            show_default=False,
            metavar="NAME|FILE",
            autocompletion=complete.recipes,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="A distillation method, such as dkd, crd or refilled; none learns from the labels only. Default: the"
            " plan chooses.",
            metavar="METHOD",
            autocompletion=complete.methods,
        ),
        Sets("method"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training data; 0 evaluates the student as it starts."),
        Sets("train.epochs"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Batch size."), Sets("train.batch_size")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate."), Sets("optim.lr")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda, cuda:1, mps.", metavar="DEVICE", autocompletion=complete.devices),
        Sets("train.device"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The run folder. Default: a new folder under runs/."),
        Sets("output"),
    ] = None,
    baseline: Annotated[
        bool | None,
        typer.Option(
            "--baseline/--no-baseline",
            help="Also train the same student without a teacher, and compare.",
            show_default=False,
        ),
        Sets("baseline"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any key of the config ('kdcli config keys' lists them). May be repeated.",
            autocompletion=complete.settings,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run that was stopped or killed. With a larger --epochs, train a finished run longer.",
            show_default=False,
            autocompletion=complete.runs,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan (all of it with --plan full), and train nothing.")
    ] = False,
    teacher_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A checkpoint file (.safetensors, .pth) for the teacher.", rich_help_panel=_MODEL
        ),
        Sets("teacher.weights"),
    ] = None,
    unchecked_teacher: Annotated[
        bool,
        typer.Option(
            "--unchecked-teacher",
            help="Train even if the teacher is no better than guessing, or has its classes in another order.",
            rich_help_panel=_MODEL,
        ),
        Sets("teacher.unchecked"),
    ] = False,
    student_pretrained: Annotated[
        bool | None,
        typer.Option(
            "--student-pretrained/--no-student-pretrained",
            help="Start the student from its published weights.",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
        Sets("student.pretrained"),
    ] = None,
    data_root: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The folder of torchvision's data.", rich_help_panel=_DATA),
        Sets("data.root"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Take only these classes: names, numbers (0-4,7) or a part (part:1/2, part:2/2+20%).",
            rich_help_panel=_DATA,
        ),
        Sets("data.classes"),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="For image-embedding: labelled images for kNN and linear probe. Default: --data, if they have labels.",
            rich_help_panel=_DATA,
            autocompletion=complete.data,
        ),
        Sets("eval_data.name"),
    ] = None,
    strict_data: Annotated[
        bool,
        typer.Option("--strict-data", help="Stop at the first image that cannot be read.", rich_help_panel=_DATA),
        Sets("data.strict"),
    ] = False,
    relation: Annotated[
        str | None,
        typer.Option(
            help="The relation of the tasks, instead of the plan's: same, cross, random, none.",
            rich_help_panel=_PLAN,
            metavar="RELATION",
            autocompletion=complete.choices_of("relation"),
        ),
        Sets("relation"),
    ] = None,
    projector: Annotated[
        str | None,
        typer.Option(
            help="The projector, instead of the plan's: linear, mlp, orthogonal, inverted, or none for no features."
            " With --method: the projector of that method.",
            rich_help_panel=_PLAN,
            metavar="PROJECTOR",
            autocompletion=complete.choices_of("projector"),
        ),
        Sets("projector"),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            help="The normalisation of the teacher's features, instead of the plan's: none, layer_norm, standardize,"
            " whiten.",
            rich_help_panel=_PLAN,
            metavar="NAME",
            autocompletion=complete.choices_of("normalize"),
        ),
        Sets("normalize"),
    ] = None,
    feature_layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STUDENT:TEACHER",
            help="Layers whose features are compared: pooled, embedding, a layer's name, or its number in 'kdcli"
            " models layers'. May be repeated.",
            rich_help_panel=_PLAN,
        ),
        Sets("feature_layers"),
    ] = None,
    feature_weight: Annotated[
        float | None,
        typer.Option(help="The weight of the feature loss, instead of the plan's.", rich_help_panel=_PLAN),
        Sets("feature_weight"),
    ] = None,
    test: Annotated[
        bool | None,
        typer.Option(
            "--test/--no-test",
            help="Evaluate the best student on the test split at the end. [default: --test]",
            show_default=False,
            rich_help_panel=_PLAN,
        ),
        Sets("test"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", rich_help_panel=_TRAIN), Sets("seed")] = None,
    mixed_precision: Annotated[
        str | None,
        typer.Option(
            help="auto, no, fp16 or bf16.",
            rich_help_panel=_TRAIN,
            metavar="PRECISION",
            autocompletion=complete.choices_of("train.mixed_precision"),
        ),
        Sets("train.mixed_precision"),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(
            help="Number of training processes on this machine. Default: one per GPU.", rich_help_panel=_TRAIN
        ),
        Sets("train.num_processes"),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            metavar="N|TIME",
            help="Steps (200) or time (30s, 10m, 2h) between checkpoints. [default: 10m]",
            rich_help_panel=_TRAIN,
        ),
        Sets("train.checkpoint_every"),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Resume even if data, teacher or files of the run have changed. Model card and result then say so.",
            rich_help_panel=_TRAIN,
        ),
    ] = False,
    cache_teacher: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep what is read of the teacher there, and take it from there in place of running the teacher.",
            rich_help_panel=_TRAIN,
        ),
        Sets("train.cache_teacher"),
    ] = None,
    cache_views: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Augment each image in K ways, taken in turn: epochs after the first K find all in the cache.",
            rich_help_panel=_TRAIN,
        ),
        Sets("train.cache_views"),
    ] = None,
    cache_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Round the teacher's outputs to float32, bfloat16 or float16. [default: float32]",
            rich_help_panel=_TRAIN,
            autocompletion=complete.choices_of("train.cache_dtype"),
        ),
        Sets("train.cache_dtype"),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="Also log to tensorboard, wandb, trackio or mlflow. May be repeated.",
            rich_help_panel=_TOLD,
            metavar="TRACKER",
            autocompletion=complete.choices_of("train.track"),
        ),
        Sets("train.track"),
    ] = None,
    log_format: Annotated[
        str,
        typer.Option(
            help="auto (a live view on a terminal), plain or json.",
            rich_help_panel=_TOLD,
            metavar="FORMAT",
            autocompletion=complete.one_of("auto", "plain", "json"),
        ),
    ] = "auto",
    plan: Annotated[
        str,
        typer.Option(
            help="summary: what decides; full: every decision with its reason.",
            rich_help_panel=_TOLD,
            metavar="EXTENT",
            autocompletion=complete.one_of("summary", "full"),
        ),
    ] = "summary",
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print only warnings and errors.", rich_help_panel=_TOLD)
    ] = False,
    ways: Annotated[
        int | None,
        typer.Option(help="Number of classes of an episode; each episode trains a student.", rich_help_panel=_EPISODES),
        Sets("episodes.ways"),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Labelled training images per class of an episode.", rich_help_panel=_EPISODES),
        Sets("episodes.shots"),
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(help="Number of episodes. [default: 100]", rich_help_panel=_EPISODES),
        Sets("episodes.number"),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(help="Test images per class of an episode. [default: 15]", rich_help_panel=_EPISODES),
        Sets("episodes.queries"),
    ] = None,
) -> None:
    """Train a student with a teacher.

    Loads both by name, compares the teacher's task with yours, chooses the method and projector, and says why. Then
    it trains, keeps the best student by validation, and tests it once.

    'kdcli config keys' lists every key that --set takes.

    Examples:

        kdcli distill --recipe quickstart

        kdcli distill --teacher resnet50 --student resnet18

        kdcli distill --teacher resnet50 --student mobilenetv3_small_050 --data photos/

        kdcli distill --teacher resnet50 --student 'teacher?layers=2&width=0.5' --data photos/

        kdcli distill --resume runs/quickstart --epochs 32
    """
    if log_format not in ("auto", "plain", "json"):
        raise UserError(f"There is no log format {log_format!r}.", "Use auto, plain or json.")
    if plan not in ("summary", "full"):
        raise UserError(f"--plan {plan!r} is neither summary nor full.", "Leave it out for the summary.")
    given, overrides = given_keys(context, distill), set_ or []
    if resume is not None:
        if recipe is not None or "output" in given or any(item.startswith("output=") for item in overrides):
            raise UserError(
                "--resume goes on with a run as it is, in its own folder.", "Drop --recipe and --output, or --resume."
            )
    elif force:
        raise UserError("--force is for --resume: a new run has nothing that could have changed.", "Leave it out.")
    config, is_demo = config_given(given, overrides, recipe=recipe, resume=resume, force=force)
    if is_demo:
        tell_demo(config, log_format=log_format, quiet=quiet)
    with without_collections():
        from kdcli.experiments.distill import Output

    shown = Output(
        "json" if log_format == "json" else "plain" if log_format == "plain" else "auto", quiet, plan == "full"
    )
    name = _file_name(Path(recipe).stem) if recipe else _run_name(config)
    if code := _start(config, name, resume, output=shown, dry_run=dry_run, force=force):
        raise typer.Exit(code)


def _start(config: RunConfig, name: str, resume: Path | None, *, output: Output, dry_run: bool, force: bool) -> int:
    """Begin the run or its episodes, or go on with them; return the exit code."""
    from kdcli.experiments.distill import distill_run, resume_run

    if config.episodes is not None:
        from kdcli.experiments.episodes import resume_episodes, run_episodes

        if resume is not None:
            return resume_episodes(config, resume, output=output, dry_run=dry_run, force=force)
        return run_episodes(config, name=name, command=command_line(), output=output, dry_run=dry_run)
    if resume is not None:
        return resume_run(config, resume, command=command_line(), output=output, dry_run=dry_run, force=force)
    return distill_run(config, name=name, command=command_line(), output=output, dry_run=dry_run)


def _run_name(config: RunConfig) -> str:
    student, teacher, data = map(_file_name, (config.student.name, config.teacher.name, config.data.name))
    return _file_name(f"{student}-from-{teacher}-on-{data}")


def _file_name(text: str) -> str:
    """Return ``text`` as a folder's name: letters, digits and ``._-``, at most 120 bytes, never ``.`` or ``..``."""
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.")
    return name.encode()[:120].decode(errors="ignore") or "run"


def command_line() -> str:
    """Return the command line as it was given, for the run folder, without tokens."""
    from kdcli.base.text import redact

    return shlex.join(["kdcli", *map(redact, sys.argv[1:])])
