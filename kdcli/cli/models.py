"""The commands of ``kdcli models``. Everything heavy is imported where it is used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcli.base.errors import UserError, did_you_mean
from kdcli.base.facts import MAX_TEXT_LENGTH, PROBE_TOKENS
from kdcli.base.tasks import DEFAULT_TASK, TASKS
from kdcli.base.text import short_repr
from kdcli.cli import complete
from kdcli.cli.command import Command
from kdcli.cli.shared import AsJson, Device

if TYPE_CHECKING:
    from kdcli.models.search.catalogue import Catalogue
    from kdcli.models.search.search import Found

models_app = typer.Typer(help="Find, rank and inspect models.", no_args_is_help=True)


@models_app.command("layers", cls=Command)
def models_layers(
    name: Annotated[
        str,
        typer.Argument(
            help="A name of timm or Hugging Face, a local folder, or a run folder.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="List every layer that can be read, without numbers.")] = False,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Input size in pixels: one side, or height and width. Default: the model's own.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the layers whose features can be distilled, in the order in which they run.

    --feature-layers of kdcli distill takes their names or numbers: 2:4, -1:layer3. Loads no weights.

    Examples:

        kdcli models layers resnet50

        kdcli models layers runs/quickstart --all

        kdcli models layers vit_tiny_patch16_224 --image-size 384 --json

        kdcli models layers smp:unet/mobilenet_v2 --image-size 416x544
    """
    from kdcli.base.text import check_argument

    check_argument("NAME", name)
    from kdcli.base.facts import Preprocessing
    from kdcli.config.models import TeacherConfig
    from kdcli.config.section import read_size
    from kdcli.models import load_teacher
    from kdcli.models.layers import list_layers
    from kdcli.models.settle import settle_teacher
    from kdcli.terminal.console import show_lines, show_table

    size = None if image_size is None else read_size("--image-size", image_size)
    config = settle_teacher(TeacherConfig(name=name, image_size=size))
    untrained = config.name if config.name.startswith("random:") else f"random:{config.name}"
    model = load_teacher(config.model_copy(update={"name": untrained, "weights": None}), seed=0)
    layers = list_layers(model, every=every)
    preprocessing, dims = model.facts.preprocessing, model.facts.feature_dims
    assert isinstance(preprocessing, Preprocessing), "it is loaded as a model of images"
    height, width = preprocessing.image_size
    if as_json:
        listed = [
            {"index": None if every else index, **dataclasses.asdict(layer)} for index, layer in enumerate(layers)
        ]
        typer.echo(
            json.dumps({"model": name, "image_size": [height, width], "always": dims, "layers": listed}, indent=2)
        )
        return
    rows = [
        [layer.name, "-" if every else str(index), layer.kind, str(layer.width), "x".join(map(str, layer.grid)) or "-"]
        for index, layer in enumerate(layers)
    ]
    show_table(f"{name} at {height}x{width} pixels", ["name", "number", "kind", "width", "grid"], rows)
    always = ", ".join(f"{tap} ({width} wide)" for tap, width in dims.items())
    show_lines([f"Always there too: {always}.", "Take them with --feature-layers STUDENT:TEACHER."])


@models_app.command("search", cls=Command)
def models_search(
    max_params: Annotated[
        str | None, typer.Option(metavar="N", help="Maximum number of parameters, such as 5M.", show_default=False)
    ] = None,
    min_params: Annotated[
        str | None, typer.Option(metavar="N", help="Minimum number of parameters.", show_default=False)
    ] = None,
    max_macs: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Maximum number of multiply-accumulates (MACs) for one image or text, such as 500M.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Only these names; * stands for any letters.", show_default=False),
    ] = None,
    task: Annotated[
        str, typer.Option(help="The student's task, as for distill.", autocompletion=complete.tasks)
    ] = DEFAULT_TASK,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Image size in pixels. Default: each architecture's own."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_TEXT_LENGTH, help=f"Length of a text in tokens. [default: {PROBE_TOKENS}]"),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1_000_000,
            help="Your number of classes. [default: 1000 for images, fewer for other tasks]",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only architectures with published weights (images only).")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 20,
    sort: Annotated[
        str,
        typer.Option(
            help="Order: params or macs (largest first), or latency (fastest first).",
            autocompletion=complete.one_of("params", "macs", "latency"),
        ),
    ] = "params",
    as_json: AsJson = False,
) -> None:
    """List student architectures that fit a budget, with parameters, MACs and latency on this machine.

    Without --task: timm, and transformers' image classifiers. With --task: transformers' networks of that task,
    segmentation-models-pytorch (smp:) and torchvision's detectors. Networks of transformers have their default configs
    (hf:KIND; change them with hf:KIND?key=value). You can give every listed name to --student.

    Counting everything takes minutes the first time; results are kept in the cache folder. --name makes it faster.

    Examples:

        kdcli models search --max-params 5M --max-macs 500M

        kdcli models search --name 'mobilenet*' --max-macs 100M --image-size 160 --sort latency

        kdcli models search --name 'vit_*' --pretrained --max-params 30M --json

        kdcli models search --task text-classification --max-params 100M --length 256

        kdcli models search --task semantic-segmentation --name 'smp:unet/*mobilenet*' --max-params 5M
    """
    from dataclasses import asdict
    from typing import cast

    from kdcli.base.text import check_argument, parse_count

    _check_choice("--task", task, tuple(TASKS))
    _check_choice("--sort", sort, ("params", "macs", "latency"))
    of_images = TASKS[task].reads_images
    if not of_images and (image_size is not None or pretrained):
        option = "--pretrained" if image_size is None else "--image-size"
        raise UserError(
            f"{option} is about images, and the task is {task}.",
            "Leave it out; kinds of networks of text have no weights of their own, and --length is their texts'.",
        )
    if of_images and length is not None:
        raise UserError(
            f"--length is about texts, and the task is {task}.", "Leave it out; the size of images is --image-size."
        )
    if name is not None:
        check_argument("--name", name)
    limits = [
        None if text is None else parse_count(option, text)
        for option, text in (("--max-params", max_params), ("--min-params", min_params), ("--max-macs", max_macs))
    ]
    from kdcli.models.search.catalogue import Catalogue
    from kdcli.models.search.search import Budget, Cache, Sort, nearest_miss, search
    from kdcli.terminal.console import errors, show_lines, show_progress

    size = image_size if of_images else length
    catalogue = Catalogue(task, size=size, pretrained=pretrained, pattern=name, num_classes=classes)
    complete.remember_models(task, catalogue.names)
    cache = Cache()
    budget = Budget(*limits)
    with show_progress() as report:
        found = search(
            catalogue,
            budget,
            sort=cast(Sort, sort),
            limit=limit,
            cache=cache,
            report=report,
        )
    if cache.problem:
        errors.print(cache.problem, markup=False)
    if as_json:
        models = [asdict(entry) for entry in found]
        typer.echo(json.dumps({"task": task, "num_classes": catalogue.num_classes, "models": models}, indent=2))
        return
    if not found:
        show_lines([f"No architecture fits, {catalogue.counted}. {nearest_miss(catalogue, budget, cache)}".rstrip()])
        return
    _show_architectures(found, catalogue, limit=limit, of_images=of_images)


def _show_architectures(found: Sequence[Found], catalogue: Catalogue, *, limit: int, of_images: bool) -> None:
    from kdcli.base.text import human_count
    from kdcli.models.search.search import LARGEST_BUILT
    from kdcli.terminal.console import show_lines, show_table

    show_table(
        "Architectures",
        ["name", "parameters", "MACs", catalogue.unit, "latency in ms", "published weights"],
        [
            [
                entry.name,
                human_count(entry.parameters),
                human_count(entry.macs),
                "x".join(map(str, entry.input_size)),
                "-" if entry.latency_ms is None else f"{entry.latency_ms:.1f}",
                "yes" if entry.pretrained else "-",
            ]
            for entry in found
        ],
    )
    shown = f"{len(found)} shown{f' (--limit {limit})' if len(found) == limit else ', and no others fit'}."
    noun = "image" if of_images else "text"
    lines = [f"{shown} Counted {catalogue.counted}; latency: median of one {noun}, measured just now on the CPU."]
    if any(entry.latency_ms is None for entry in found):
        lines.append(f"Networks of more than {human_count(LARGEST_BUILT)} parameters are never built here: no latency.")
    if not of_images:
        lines.append(
            "Networks of text have their default configs: 'hf:bert?num_hidden_layers=4&hidden_size=384' is a smaller"
            " one, for example; and a student gets the vocabulary of its tokenizer."
        )
    show_lines(lines)


@models_app.command("probe", cls=Command)
def models_probe(
    teacher: Annotated[
        list[str],
        typer.Option(
            help="A model, named as for distill. 'NAME?weights=FILE' takes weights from a file. Repeat it to compare.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ],
    data: Annotated[
        str, typer.Option(help="Data, named as for distill.", show_default=False, autocompletion=complete.data)
    ],
    teacher_weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A checkpoint for --teacher, if there is only one.", show_default=False),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of torchvision's data.", show_default=False)
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="image-classification, or text-classification with one class per text.", autocompletion=complete.tasks
        ),
    ] = DEFAULT_TASK,
    samples: Annotated[
        int, typer.Option("--samples", "--images", min=4, help="Number of training images or texts to use.")
    ] = 1000,
    classes: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Take only these classes of the data, as for distill.", show_default=False),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="Which features: pooled (the last ones, averaged, or pooled as a text model does) or embedding"
            " (the classifier's input).",
            autocompletion=complete.one_of("pooled", "embedding"),
        ),
    ] = "pooled",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Random seed of sample and folds.")] = 0,
    device: Device = "auto",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the JSON object to this file.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank teachers by how well their frozen features separate your classes, before you train.

    Takes a sample of the training images or texts. Shows the cross-validated accuracy of a linear probe and of nearest
    neighbours, LogME, effective rank and time. Never uses the test split.

    Examples:

        kdcli models probe --teacher resnet50 --teacher hf:facebook/dinov2-small --data photos/

        kdcli models probe --teacher runs/a/student --teacher runs/b/student --data photos/ --samples 500 --json

        kdcli models probe --teacher resnet18 --teacher 'resnet18?weights=model_best.pth.tar' --data photos/

        kdcli models probe --task text-classification --teacher minilm/ --teacher bert/ --data reviews.csv
    """
    from kdcli.base.text import check_argument

    weights = [] if teacher_weights is None else [teacher_weights]
    named = (("--teacher", teacher), ("--teacher-weights", weights), ("--data", [data]))
    for what, values in (*named, ("--output", [output] if output else [])):
        for value in values:
            check_argument(what, value)
    _check_choice("--task", task, tuple(row.name for row in TASKS.values() if row.target == "label"))
    from kdcli.results.probe import check_output, probe_teachers, remarks, table, to_json, write_probe
    from kdcli.terminal.console import show_lines, show_progress, show_table

    if output is not None:
        check_output(output)
    with show_progress() as report:
        probe = probe_teachers(
            teacher,
            weights=teacher_weights,
            task=task,
            data=data,
            data_root=data_root,
            samples=samples,
            classes=classes,
            tap=features,
            seed=seed,
            device=device,
            report=report,
        )
    if as_json:
        typer.echo(to_json(probe), nl=False)
    else:
        show_table(*table(probe))
        show_lines(remarks(probe))
    if output is not None:  # last, so that a full disk costs no measurements
        write_probe(probe, output)
        if not as_json:
            show_lines([f"Wrote {output}"])


def _check_choice(option: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise UserError(
            f"{option} can't be {short_repr(value)}. {did_you_mean(value, valid)}".rstrip(),
            f"Use {', '.join(valid[:-1])} or {valid[-1]}.",
        )
