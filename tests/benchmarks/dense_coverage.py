"""Build every model for masks, depth and boxes, as teacher and as student, and write what came of it as a table.

    python tests/benchmarks/dense_coverage.py --library smp
    python tests/benchmarks/dense_coverage.py --library torchvision --only fcos/resnet18
    python tests/benchmarks/dense_coverage.py --library transformers --task depth-estimation --only dpt

Of segmentation-models-pytorch every architecture with five encoders, of torchvision every detector that it publishes
and a few put together of its parts, of transformers every kind with a head for one of the tasks, from a small config
(``tests/models/tiny_dense.py`` and ``tiny_detectors.py``). No weights are downloaded, and all images are made up.

A model's failure is a row, not the end. Rows are kept in ``--work``, so that the same command goes on where it was
stopped; ``--only`` does its models anew.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from transformers.models.auto import modeling_auto

from kdcli.base.errors import UserError
from kdcli.base.facts import DataFacts, DepthFacts
from kdcli.base.tasks import TASKS
from kdcli.config.models import StudentConfig, TeacherConfig
from kdcli.data import Batch
from kdcli.models import build_student, load_saved, load_teacher
from kdcli.models.base import Model
from kdcli.models.detections import Detections
from kdcli.models.libraries import library_called
from kdcli.models.smp.names import architectures
from kdcli.models.torchvision_detection.networks import NETWORKS
from kdcli.models.transformers.dense_kinds import AUTO, CLASSES
from kdcli.models.transformers.detector_kinds import KINDS
from kdcli.tasks import build_task
from tests.models import tiny_dense, tiny_detectors

FOLDER = Path(__file__).parent / "coverage"
MASKS, DEPTH, BOXES = "semantic-segmentation", "depth-estimation", "object-detection"
LABELS = ("ant", "bee", "cat")
SIZE = 64
ENCODERS = ("resnet18", "mobilenet_v2", "mobilenetv3_small_050", "mit_b0", "vit_tiny_patch16_224")
PARTS = ("fcos/resnet18", "retinanet/mobilenet_v2", "fasterrcnn/mobilenet_v3_large", "ssdlite/mobilenet_v3_small")
"""Of torchvision's detectors that are put together those that are tried."""
LARGER = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 128}
"""Sides of the images of torchvision's detectors that are not run at :data:`SIZE`."""
TOLERANCE = 1e-4
"""Of the largest difference between the outputs of a student and of what was saved of it, relative to the largest."""
YES = "yes"


@dataclass(frozen=True)
class Case:
    """A model to be tried.

    Attributes:
        kind: what ``--only`` calls it: an architecture, a detector, a kind of transformers.
        name: of the row.
        task: that it is for.
        size: side of its images in pixels; None for its own.
        prepare: gives its names as student and as teacher; it may write a folder into the one that it is given.
    """

    kind: str
    name: str
    task: str
    size: int | None
    prepare: Callable[[Path], tuple[str, str]]

    @property
    def key(self) -> str:
        """What tells it from all others of its library."""
        return f"{self.task} {self.name} {self.size}"


@dataclass(frozen=True)
class Row:
    """What came of one model; ``yes``, or the reason why not, beginning with FAULT where it is none of the model's.

    Attributes:
        key: of its :class:`Case`.
        name: of the model.
        task: that it was built for.
        size: (height x width) of its images.
        parameters: of the student, or else of the teacher.
        teacher: as teacher.
        student: as student, saved and reloaded.
        head: shapes of its outputs for one image.
        pooled: width and map of the last features.
        stages: width and map of each.
        reloaded: ``equal`` to the bit, or the largest relative difference of a reloaded student's outputs.
        trained: tensors that got a gradient other than zero, and how many there are.
        seconds: that all of it took.
    """

    key: str
    name: str
    task: str
    size: str
    parameters: int
    teacher: str
    student: str
    head: str
    pooled: str
    stages: str
    reloaded: str
    trained: str
    seconds: float


# --- which models -----------------------------------------------------------------------------------------------------


def named(name: str) -> Callable[[Path], tuple[str, str]]:
    """Return how an architecture is called as student and as untrained teacher."""
    return lambda folder: (name, f"random:{name}")


def smp_cases() -> Iterator[Case]:
    """Yield every pair for masks, and every architecture on one encoder for depth."""
    for task, encoders in ((MASKS, ENCODERS), (DEPTH, ENCODERS[:1])):
        for architecture in architectures():
            for size in (SIZE, 2 * SIZE) if architecture == "pan" else (SIZE,):
                for encoder in encoders:
                    name = f"{architecture}/{encoder}"
                    yield Case(architecture, name, task, size, named(f"smp:{name}"))


def torchvision_cases() -> Iterator[Case]:
    """Yield the published detectors, and a few that are put together."""
    for name in (*(name for name, network in NETWORKS.items() if network.is_published), *PARTS):
        yield Case(name, name, BOXES, LARGER.get(name, SIZE), named(f"torchvision:{name}"))


def transformers_cases() -> Iterator[Case]:
    """Yield every kind that transformers has for a task."""
    for head, task in (("dense", MASKS), ("depth", DEPTH)):
        for kind in sorted(CLASSES[head]):  # type: ignore[index]
            yield Case(kind, kind, task, tiny_dense.SIZES.get(kind), saved_model(head, kind))
    for kind in sorted(KINDS | set(modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES)):
        yield Case(kind, kind, BOXES, SIZE, saved_config(kind))


def saved_model(head: str, kind: str) -> Callable[[Path], tuple[str, str]]:
    """Return what saves an untrained model in a folder, whose weights pass for trained ones."""

    def prepare(folder: Path) -> tuple[str, str]:
        torch.manual_seed(0)
        AUTO[head].from_config(tiny_dense.small_config(kind)).save_pretrained(folder)  # type: ignore[index]
        return str(folder), str(folder)

    return prepare


def saved_config(kind: str) -> Callable[[Path], tuple[str, str]]:
    """Return what writes the config of a detector; of a kind without a small one, its own."""

    def prepare(folder: Path) -> tuple[str, str]:
        if kind in tiny_detectors.TINY:
            tiny_detectors.write_config(folder, kind)
        else:
            (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        return str(folder), f"random:{folder}"

    return prepare


@dataclass(frozen=True)
class Table:
    """What is written of a library: the page's name, title and note, its models, and whose versions are told."""

    file: str
    title: str
    note: str
    cases: Callable[[], Iterator[Case]]
    packages: tuple[str, ...]


TABLES = {
    "smp": Table(
        "smp",
        "segmentation-models-pytorch: every architecture with five encoders",
        "Every architecture for masks with encoders of five families, and for depth with the first of them; PAN at twice"
        " the size, too.",
        smp_cases,
        ("segmentation-models-pytorch", "timm"),
    ),
    "torchvision": Table(
        "torchvision-detection",
        "torchvision: detectors",
        "Every detector that torchvision publishes, and of those that are put together one of each family; all whole, at"
        " small sizes.",
        torchvision_cases,
        ("torchvision",),
    ),
    "transformers": Table(
        "transformers-dense",
        "transformers: segmenters, depth models and detectors, from small configs",
        "Every kind that transformers' auto classes have for semantic segmentation, depth or object detection, from a small"
        " config. Weights of a saved folder pass for trained ones, so a teacher of masks or depth is taken as published"
        " ones are; detectors are untrained.",
        transformers_cases,
        ("transformers",),
    ),
}


# --- one model --------------------------------------------------------------------------------------------------------


def data_for(task: str) -> DataFacts:
    """Return what is known of made-up data."""
    row = TASKS[task]
    names = ("depth",) if row.head == "depth" else LABELS
    depth = DepthFacts(0.1, 8.0) if row.head == "depth" else None
    return DataFacts("made-up", task, names, 8, 8, 4, 4, label_kind=row.target, depth=depth)  # type: ignore[arg-type]


def batch_for(task: str, size: tuple[int, int]) -> Batch:
    """Return two made-up images with labels: of boxes the second has none, of masks and depth a few pixels have none."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)
    targets: Any
    if task == BOXES:
        scale = torch.tensor([size[1], size[0]] * 2)
        boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.5, 0.5, 0.9, 0.8]]) * scale
        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        targets = [{"boxes": boxes, "labels": torch.tensor([0, 2])}, empty]
    elif task == DEPTH:
        targets = 8 * torch.rand(2, *size, generator=generator)
        targets[:, :2] = 0
    else:
        targets = torch.randint(-1, len(LABELS), (2, *size), generator=generator)
    return Batch(images=images, targets=targets, samples=torch.arange(2))


def outputs_of(model: Model, images: Any) -> dict[str, Tensor]:
    """Return the outputs of the model's heads, by name; of a detector those before any box is chosen."""
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for head, value in model(images).heads.items():
            found |= value.raw if isinstance(value, Detections) else {head: value}
    assert found, "no head gave anything"
    for name, value in found.items():
        assert value.isfinite().all(), f"{name} is not finite"
    return found


def learn(student: Model, task: str) -> str:
    """Take one step, and return how many of its tensors have a gradient."""
    size = student.facts.preprocessing.image_size  # type: ignore[union-attr]
    batch = batch_for(task, size)
    rule = build_task(data_for(task), reference=lambda batch: torch.zeros(0))
    student.train()
    torch.manual_seed(2)
    prediction = student(student.prepare(batch), rule.reads(student.facts)).heads[student.facts.predictions[0]]
    loss = rule.supervised_loss(prediction, batch.targets, label_smoothing=0.0)
    assert loss.isfinite(), f"the loss is {loss}"
    loss.backward()
    gradients = [parameter.grad for parameter in student.parameters()]
    assert all(one.isfinite().all() for one in gradients if one is not None), "a gradient is not finite"
    trained = sum(one is not None and bool(one.any()) for one in gradients)
    assert trained, "nothing has a gradient"
    torch.optim.SGD(student.parameters(), lr=1e-3).step()
    student.eval()
    return f"{trained} of {len(gradients)}"


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest number."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def check_saved(student: Model, folder: Path) -> str:
    """Compare what was saved, loaded by kdcli and by the library alone, with the student.

    Returns ``equal``, or by how much kdcli's differs: the memory's layout changes the order of sums.
    """
    student.save(folder)
    images = student.example(2)
    ours, theirs = outputs_of(student, images), outputs_of(load_saved(folder), images)
    assert ours.keys() == theirs.keys()
    differences = {name: difference(theirs[name], value) for name, value in ours.items()}
    for name, found in differences.items():
        assert found <= TOLERANCE, f"{name} of the reloaded student differs by {found:.0e}"
    library = library_called(student.facts.library)
    exported = folder / "exported"
    exported.mkdir()
    library.export(student, exported, projector=None)
    for one in library.reload(student, exported, projector=None):
        found = difference(one.found, one.expected)
        assert found <= TOLERANCE, f"{one.what} by {one.by} alone differ by {found:.0e}"
    largest = max(differences.values())
    return f"{largest:.0e}" if largest else "equal"


def verdict(work: Callable[[], None], *hidden: Path) -> str:
    """Return ``yes``, or why not; names of ``hidden`` folders are left out."""
    try:
        work()
    except UserError as error:
        text = f"no: {error.message}"
    except Exception as error:
        text = f"FAULT: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    else:
        return YES
    for folder in hidden:
        text = text.replace(f"random:{folder}", folder.name).replace(str(folder), folder.name)
    return text


def position(width: int, grid: tuple[int, int] | None) -> str:
    """Return a tap's width and map in short."""
    return f"{width}, {grid[0]}×{grid[1]}" if grid else f"{width}, no map"


def facts_of(model: Model) -> dict[str, Any]:
    """Return the cells that tell what a model offers, its stages opened."""
    outputs = outputs_of(model, model.example(1))
    shapes = [f"{name} {'×'.join(map(str, value.shape[1:]))}" for name, value in outputs.items()]
    try:
        model.open_stages()
    except UserError:
        stages = "none found"
    else:
        facts = model.facts
        stages = "; ".join(position(facts.feature_dims[tap], facts.grids.get(tap)) for tap in facts.stages)
    size = model.facts.preprocessing.image_size  # type: ignore[union-attr]
    return {
        "size": f"{size[0]}×{size[1]}",
        "parameters": model.facts.num_parameters,
        "head": ", ".join(shapes),
        "pooled": position(model.facts.feature_dims["pooled"], model.facts.grids.get("pooled")),
        "stages": stages,
    }


def row_of(case: Case) -> Row:
    """Try a model in both roles."""
    start = time.perf_counter()
    place = Path(tempfile.mkdtemp(prefix="dense-coverage-"))
    folder = place / case.kind.replace("/", "-")
    folder.mkdir()
    cells: dict[str, Any] = {"size": "", "parameters": 0, "head": "", "pooled": "", "stages": ""}
    trained = reloaded = ""

    def as_student() -> None:
        nonlocal cells, trained, reloaded
        config = StudentConfig(name=names[0], image_size=case.size)
        student = build_student(config, data_for(case.task), seed=0)
        trained = learn(student, case.task)
        cells = facts_of(student)
        reloaded = check_saved(student, place / "saved")

    def as_teacher() -> None:
        nonlocal cells
        config = TeacherConfig(name=names[1], image_size=case.size)
        teacher = load_teacher(config, seed=0, task=case.task)
        if cells["head"]:
            outputs_of(teacher, teacher.example(1))
        else:
            cells = facts_of(teacher)

    try:
        names = case.prepare(folder)
    except Exception as error:
        why = f"not built: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        teacher = student = why
    else:
        student, teacher = verdict(as_student, folder, place), verdict(as_teacher, folder, place)
    shutil.rmtree(place)
    seconds = time.perf_counter() - start
    told = {"teacher": teacher, "student": student, "reloaded": reloaded, "trained": trained}
    return Row(case.key, case.name, case.task, seconds=seconds, **told, **cells)


# --- the table --------------------------------------------------------------------------------------------------------

HEADINGS = (
    "task",
    "model",
    "images",
    "parameters",
    "teacher",
    "student",
    "outputs",
    "pooled",
    "stages",
    "reloaded",
    "trained",
)


def page(library: str, rows: list[Row]) -> str:
    """Return the Markdown page of a library's rows."""
    table = TABLES[library]
    faults = sum("FAULT" in text for row in rows for text in (row.teacher, row.student))
    both = sum(row.teacher == row.student == YES for row in rows)
    missing = sum(row.teacher.startswith("not built") for row in rows)
    counts = [f"{name} {sum(row.task == name for row in rows)}" for name in dict.fromkeys(row.task for row in rows)]
    lines = [
        f"# {table.title}",
        "",
        f"Of {len(rows)}{f' ({missing} of them not built)' * bool(missing)}, {count(rows, 'teacher')} work as teacher,"
        f" {count(rows, 'student')} as student and {both} as both. Faults: {faults}. By task: {', '.join(counts)}.",
        "",
        f"{table.note} The teacher is run on an image; the student takes a step on two made-up images with labels, by the"
        " task's own loss, is saved, and gives the same outputs when it is loaded again, by kdcli and by its own library"
        f" alone, but for rounding (below {TOLERANCE:.0e} of the largest). *no* is what kdcli said, with a hint. *outputs*: of the student's"
        f" heads for one image ({len(LABELS)} classes), of detectors before boxes are chosen; *pooled*: width and map of the"
        " last features; *stages*: of the taps at the ends of stages; *reloaded*: how equal they are by kdcli; *trained*: tensors whose gradient is not all zero"
        " in that one step.",
        "",
        f"With {', '.join(f'{name} {number}' for name, number in versions(library).items())}, on a CPU. Repeat it with",
        "",
        f"    python tests/benchmarks/dense_coverage.py --library {library}",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{' --- |' * len(HEADINGS)}",
    ]
    for row in rows:
        cells = [row.task, row.name, row.size, f"{row.parameters:,}", row.teacher, row.student]
        cells += [row.head, row.pooled, row.stages, row.reloaded, row.trained]
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def count(rows: list[Row], column: str) -> int:
    """Return in how many rows a column says yes."""
    return sum(getattr(row, column) == YES for row in rows)


def versions(library: str) -> dict[str, str]:
    """Return the versions of what a library's rows depend on."""
    return {"torch": torch.__version__, **{name: version(name) for name in TABLES[library].packages}}


def read_rows(file: Path, library: str) -> dict[str, Row]:
    """Return every model's last row that was made with the installed versions."""
    entries = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {one["row"]["key"]: Row(**one["row"]) for one in entries if one["versions"] == versions(library)}


def cover(library: str, *, tasks: list[str], only: list[str], work: Path, output: Path) -> list[Row]:
    """Try what has no row yet, and ``only``'s models in any case; write the table of all rows, and return them."""
    cases = list(TABLES[library].cases())
    if unknown := set(only) - {case.kind for case in cases}:
        raise SystemExit(f"{library} has no {', '.join(sorted(unknown))}")
    file = work / f"dense-{library}.jsonl"
    known = read_rows(file, library)
    wanted = [case for case in cases if not tasks or case.task in tasks]
    wanted = [case for case in wanted if (case.kind in only if only else case.key not in known)]
    work.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(wanted, start=1):
        row = known[case.key] = row_of(case)
        gc.collect()
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"versions": versions(library), "row": asdict(row)}) + "\n")
        print(f"{number}/{len(wanted)} {case.key}: teacher {row.teacher}; student {row.student}; {row.head};", end=" ")
        print(f"{row.pooled}; {row.stages}; {row.trained}; {row.seconds:.0f} s", flush=True)
    rows = [known[case.key] for case in cases if case.key in known]
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{TABLES[library].file}.md").write_text(page(library, rows), encoding="utf-8")
    return rows


def main() -> None:
    """Fill a library's table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library", choices=TABLES, required=True)
    parser.add_argument("--task", action="append", choices=(MASKS, DEPTH, BOXES), default=[], help="may be repeated")
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help="may be repeated")
    parser.add_argument("--work", type=Path, default=Path("runs/coverage"), help="where rows are kept")
    parser.add_argument("--output", type=Path, default=FOLDER, help="where the table goes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = cover(
        arguments.library, tasks=arguments.task, only=arguments.only, work=arguments.work, output=arguments.output
    )
    print(f"{len(rows)} rows: {count(rows, 'teacher')} as teacher, {count(rows, 'student')} as student")


if __name__ == "__main__":
    main()
