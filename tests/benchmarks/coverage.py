"""Run every family of models through ``kdcli distill``, as teacher and as student, and write what came of it as a table.

    python tests/benchmarks/coverage.py --library timm
    python tests/benchmarks/coverage.py --library transformers-image --only swin --only vit

Of timm the smallest member (by parameters) of every module that registers models, with random weights, at the smallest
input that it takes; of transformers every kind of network that its auto classes know, from a small config saved as a
folder (``tiny_transformers.py`` beside this file). Every run is the real command on eight images or texts, two steps of
the optimiser, evaluation and saving; a saved student is then reloaded by its own library, and its logits are compared with
those at the moment of saving.

A model's failure is a row, not the end. Rows are kept in ``--work``, so that the same command goes on where it was stopped;
``--only`` does its families anew.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import re
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import tiny_transformers
from conftest import CLASSES, Outcome, run_command, train_tokenizer, write_photos, write_reviews

del sys.path[-2:]  # nobody else's "import coverage" is to find this file

import timm  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from timm.models import _registry as timm_registry  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
)

from kdcli.base.errors import UserError  # noqa: E402
from kdcli.base.reads import Reads  # noqa: E402
from kdcli.config.models import TeacherConfig  # noqa: E402
from kdcli.data import TextBatch  # noqa: E402
from kdcli.models import load_teacher  # noqa: E402
from kdcli.models.base import Model  # noqa: E402
from kdcli.models.transformers.vision import HFModel  # noqa: E402

FOLDER = Path(__file__).parent / "coverage"
SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 384)
"""Sides of inputs in pixels that are tried, the smallest first, and then the model's own."""
LABELS = CLASSES[:2]
STEPS = 2
LARGE = 60e6
"""Parameters of a member beyond which it is run with two blocks, where its constructor takes ``depth``."""
TOLERANCE = 1e-4
"""Of the largest difference between logits, relative to the largest logit."""
VERSIONS = {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
TITLES = {
    "timm": "timm: the smallest member of every module that registers models",
    "transformers-image": "transformers: networks of images, from small configs",
    "transformers-text": "transformers: networks of text, from small configs",
}
YES = "yes"


@dataclass(frozen=True)
class Row:
    """What came of one family; ``yes``, or the reason why not, beginning with FAULT where it is none of the model's.

    Attributes:
        family: a module of timm, or a kind of network of transformers.
        member: the architecture, or the class.
        parameters: of the model that was run as a teacher.
        teacher: as teacher.
        student: as student, reloaded.
        places: the last map or the tokens, and the pooling of texts.
        size: side of the input that it was run at, or the number of tokens.
        other: at another input size.
        seconds: that all of it took.
    """

    family: str
    member: str
    parameters: int
    teacher: str
    student: str
    places: str
    size: str
    other: str
    seconds: float


class Work:
    """The folder with data, runs and rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos, self.reviews = folder / "photos", folder / "reviews"
        if not self.photos.exists():
            counts = {"train": 4, "val": 2, "test": 2}
            write_photos(self.photos, {f"{split}/{name}": n for split, n in counts.items() for name in LABELS})
        if not self.reviews.exists():
            self.reviews.mkdir()
            for seed, (split, count) in enumerate({"train": 8, "validation": 4, "test": 4}.items()):
                write_reviews(self.reviews / f"{split}.csv", count, seed=seed)

    @contextlib.contextmanager
    def run(self, *arguments: str | Path) -> Iterator[tuple[Outcome, Path]]:
        """Distil in two steps; yields what it came to and the run folder, which is removed afterwards."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        options = ("--epochs", "1", "--batch-size", "4", "--device", "cpu", "--quiet", "--output", run)
        try:
            yield run_command("distill", *options, *arguments, cwd=self.folder), run
        finally:
            shutil.rmtree(run, ignore_errors=True)


class Refused(Exception):
    """kdcli said before anything was written why it can't be done."""


def check_outcome(outcome: Outcome, run: Path) -> None:
    """Raise where a command did not train for two steps.

    Raises:
        Refused: it was refused with one message and a hint, and nothing was written.
        AssertionError: anything else went wrong.
    """
    if outcome.exit_code == 2:
        message = outcome.stderr.strip()
        assert message.startswith("Error: "), message
        assert len(re.findall("^Error: ", message, re.MULTILINE)) == 1, message
        assert "\nHint: " in message, message
        assert "Traceback" not in outcome.stdout + message, message
        assert not run.exists(), f"refused only after the run had begun: {message}"
        raise Refused(message.removeprefix("Error: ").partition("\nHint: ")[0])
    assert outcome.exit_code == 0, f"exit code {outcome.exit_code}: {outcome.stderr}"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == STEPS, f"{result['steps']} steps"
    assert result["test"], "it was not tested"


def verdict(work: Callable[[], None]) -> str:
    """Return ``yes``, or the reason why not."""
    try:
        work()
    except Refused as refusal:
        return f"no: {' '.join(re.sub(r'(hf:)?/[^ ]*/models/', '', str(refusal)).split())}"
    except Exception as error:  # a row of the table, whatever it is
        traceback.print_exc()
        return f"FAULT: {type(error).__name__}: {error}"
    return YES


@contextlib.contextmanager
def watched_saves() -> Iterator[list[tuple[Any, Tensor]]]:
    """Note what every model returns at the moment when it is saved, with the inputs that it is of.

    That is the logits; of a model without a classifier its last features.
    """
    seen: list[tuple[Any, Tensor]] = []
    kinds = [kind for base in Model.__subclasses__() for kind in (base, *base.__subclasses__()) if "save" in vars(kind)]
    originals = {kind: kind.save for kind in kinds}

    def watching(original: Callable[[Any, Path], None]) -> Callable[[Any, Path], None]:
        def save(model: Any, folder: Path) -> None:
            inputs, was_training = model.example(2), model.training
            model.eval()
            with torch.no_grad():
                output = model(inputs, Reads(("pooled",)) | model.predictions)
                if isinstance(model, HFModel):
                    inputs = model._native_inputs(inputs)
                expected = last_features(model.module, inputs) if output.logits is None else output.logits
                seen.append((inputs, expected))
            model.train(was_training)
            original(model, folder)

        return save

    for kind, original in originals.items():
        kind.save = watching(original)  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        for kind, original in originals.items():
            kind.save = original  # type: ignore[method-assign]


def last_features(module: Any, inputs: Any) -> Tensor:
    """Return a backbone's last hidden state or map, as its own library computes it."""
    if isinstance(inputs, Tensor):
        return module.forward_features(inputs)
    output = module(**inputs)
    maps = getattr(output, "feature_maps", None)
    return maps[-1] if maps else output.last_hidden_state


def check_equal(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    assert bool(found.isfinite().all()), f"{what}: not finite"
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    assert difference < TOLERANCE, f"{what}: differ by {difference:.1e} of the largest"


def call(module: nn.Module, inputs: Any) -> Any:
    """Run a library's own model on what it was seen to take: an image, or tensors by name."""
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def first_that_works(sizes: list[int], build: Callable[[int], Model]) -> tuple[int, Model]:
    """Return the first size that ``build`` takes with what it made; one with more than a single position, if there is.

    Raises:
        UserError: none is taken.
    """
    why, found = None, None
    for size in sizes:
        try:
            found = size, build(size)
        except UserError as error:
            why = why or error
            continue
        grid = found[1].facts.grids.get("pooled")
        if grid is None or grid[0] * grid[1] > 1:
            break
    if found is None:
        raise why or UserError("no size is left", "")
    return found


# --- images -----------------------------------------------------------------------------------------------------------


def describe_places(model: Model) -> str:
    """Return what the last features are: a map, tokens, a vector or several maps."""
    grid = model.facts.grids.get("pooled")
    dims = model.facts.feature_dims
    width = f"{dims['pooled']}" + (
        f" → {dims['embedding']}" if dims.get("embedding", dims["pooled"]) != dims["pooled"] else ""
    )
    if grid is None:
        return f"{width}, no map"
    prefix = model._num_prefix_tokens  # type: ignore[attr-defined]
    tokens = f", after {prefix} token{'s' * (prefix > 1)}" if prefix else ""
    return f"{width}, {grid[0]}×{grid[1]}{tokens}"


def check_image_features(model: Model, native: Callable[[Tensor], Tensor] | None) -> None:
    """Compare features, map and logits with one another and with what the library's own model returns."""
    images = model.example(2)
    facts = model.facts
    maps = ("pooled",) if "pooled" in facts.grids else ()
    taps = tuple(facts.feature_dims)
    with torch.no_grad():
        output = model(images, Reads(taps, maps=maps) | model.predictions)
        alone = model(images, Reads(("pooled",)))
        if native is not None:
            assert output.logits is not None
            check_equal(output.logits, native(images), "logits against the library's own")
    for tap in taps:
        assert output.features[tap].shape == (2, facts.feature_dims[tap]), f"the width of {tap}"
    check_equal(alone.features["pooled"], output.features["pooled"], "pooled without logits")
    if maps:
        found = output.maps["pooled"]
        assert found.shape == (2, facts.feature_dims["pooled"], *facts.grids["pooled"]), f"the map {tuple(found.shape)}"
        check_equal(found.mean(dim=(2, 3)), output.features["pooled"], "the mean of the map")


def image_options(work: Work, **sizes: int | None) -> list[str | Path]:
    options: list[str | Path] = ["--data", work.photos, "--set", "data.workers=0"]
    for model, size in sizes.items():
        if size is not None:
            options += ["--set", f"{model}.image_size={size}"]
    return options


def image_row(
    work: Work,
    *,
    family: str,
    member: str,
    teacher: str,
    student: str,
    sizes: list[int],
    native: Callable[[Model], Callable[[Tensor], Tensor] | None],
    reload: Callable[[Path], nn.Module],
    classifies: bool = True,
    check: Callable[[Model], None] = lambda model: None,
) -> Row:
    """Run one model of images in both roles.

    Args:
        work: where.
        family: of the row.
        member: of the row.
        teacher: the name that ``--teacher`` takes.
        student: the name that ``--student`` takes.
        sizes: of inputs, to be tried in this order.
        native: the logits that the model's own library computes.
        reload: load a saved student by its own library.
        classifies: whether its library has a classifier of this kind; others are students of image-embedding.
        check: anything more of the teacher's facts.
    """
    start = time.perf_counter()
    parameters, places, size, other = 0, "", None, ""
    task, small_teacher = (
        ("image-classification", "random:test_resnet") if classifies else ("image-embedding", tiny_vit(work))
    )

    def load(size: int) -> Model:
        return load_teacher(TeacherConfig(name=teacher, image_size=size), seed=0)

    def facts() -> None:
        nonlocal parameters, places, size
        try:
            size, model = first_that_works(sizes, load)
        except UserError as error:
            raise Refused(error.message) from error
        parameters, places = model.facts.num_parameters, describe_places(model)
        check_image_features(model, native(model))
        check(model)

    def other_size() -> None:
        assert size is not None
        larger = [candidate for candidate in sizes if candidate > size]
        with contextlib.suppress(UserError):
            _, model = first_that_works(larger, load)
            check_image_features(model, native(model))
            return
        refused = larger[0] if larger else next(candidate for candidate in reversed(SIZES) if candidate < size)
        options = image_options(work, teacher=refused, student=32)
        with work.run("--teacher", teacher, "--student", "test_resnet", *options) as (outcome, run):
            check_outcome(outcome, run)

    def as_teacher() -> None:
        options = image_options(work, teacher=size, student=32)
        with work.run("--teacher", teacher, "--student", "test_resnet", *options) as (outcome, run):
            check_outcome(outcome, run)

    def as_student() -> None:
        options = image_options(work, teacher=32, student=size)
        with (
            watched_saves() as saves,
            work.run("--teacher", small_teacher, "--student", student, "--task", task, *options) as (
                outcome,
                run,
            ),
        ):
            check_outcome(outcome, run)
            inputs, expected = saves[-1]
            module = reload(run / "student").eval()
            with torch.no_grad():
                output = call(module, inputs) if classifies else last_features(module, inputs)
            check_equal(getattr(output, "logits", output), expected, "what the reloaded student returns")

    checked = verdict(facts)
    if size is None:
        return Row(family, member, parameters, checked, verdict(as_student), "", "", "", time.perf_counter() - start)
    as_teacher_ = verdict(as_teacher) if checked == YES else checked
    as_student_ = verdict(as_student)
    other = verdict(other_size)
    seconds = time.perf_counter() - start
    return Row(family, member, parameters, as_teacher_, as_student_, places, str(size), other, seconds)


# --- timm -------------------------------------------------------------------------------------------------------------


def timm_families() -> list[str]:
    found = {
        family
        for family, names in timm_registry._module_to_models.items()
        if any(timm.model_entrypoint(name).__module__.startswith("timm.models.") for name in names)
    }
    return sorted(found)


def smallest_member(family: str, counts: Path) -> str:
    """Return the member with fewest parameters, timm's own test networks aside; what was counted is kept in a file."""
    known = json.loads(counts.read_text()) if counts.is_file() else {}
    known = known if known.get("timm") == timm.__version__ else {"timm": timm.__version__}
    if family not in known:
        numbers = {}
        for name in timm.list_models(module=family):
            if not name.startswith("test_") and name not in timm_registry._deprecated_models:
                with torch.device("meta"):
                    numbers[name] = sum(p.numel() for p in timm.create_model(name, num_classes=1000).parameters())
        known[family] = min(numbers, key=lambda name: (numbers[name], name))
        counts.write_text(json.dumps(known))
    return known[family]


def timm_row(work: Work, family: str) -> Row:
    member = smallest_member(family, work.folder / "timm_smallest.json")
    architecture = member
    with torch.device("meta"):
        module = timm.create_model(architecture)
        classifies = timm.create_model(architecture, num_classes=2).num_classes == 2
    parameters = sum(p.numel() for p in module.parameters())
    if parameters > LARGE and "depth" in signature(type(module)).parameters:
        member += "?depth=2"
    own = timm.get_pretrained_cfg(architecture).input_size[-1]
    sizes = [size for size in SIZES if size < own] + [own]

    def check(model: Model) -> None:
        """Compare the grid of the map with that of timm's own intermediate features, where it has them."""
        module: Any = model.module
        grid = model.facts.grids.get("pooled")
        if grid is None or not isinstance(getattr(module, "forward_intermediates", None), Callable):  # type: ignore[arg-type]
            return
        with torch.no_grad():
            last = module.forward_intermediates(model.example(1), indices=1, intermediates_only=True)[-1]
        shape = last.shape[2:] if last.shape[1] == model.facts.feature_dims["pooled"] else None
        assert shape is None or tuple(shape) == grid, f"a map {grid}, and timm's own is {tuple(last.shape)}"

    return image_row(
        work,
        family=family,
        member=member,
        teacher=f"random:timm:{member}",
        student=member,
        sizes=sizes,
        native=lambda model: model.module if model.facts.num_classes else None,
        reload=lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
        classifies=classifies,
        check=check,
    )


# --- transformers -----------------------------------------------------------------------------------------------------


def build(auto: Any, config: Any, folder: Path) -> nn.Module:
    """Save an untrained model of ``config`` in ``folder``."""
    torch.manual_seed(0)
    module = auto.from_config(config)
    module.save_pretrained(folder)
    return module


def tiny_vit(work: Work) -> Path:
    """Save the teacher of students without a classifier; untrained, but a folder's weights pass for trained."""
    folder = work.folder / "models" / "tiny-vit"
    if not folder.exists():
        build(tiny_transformers.auto_class("vit"), tiny_transformers.small_config("vit"), folder)
    return folder


def hf_image_row(work: Work, family: str) -> Row:
    kind, _, architecture = family.partition("/")
    folder = work.folder / "models" / family.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    classifies = kind in tiny_transformers.image_classifiers()
    try:
        config = tiny_transformers.small_config(kind)
        config.architectures = [architecture] if architecture else None
        if classifies:
            config.id2label, config.label2id = dict(enumerate(LABELS)), {name: i for i, name in enumerate(LABELS)}
        module = build(tiny_transformers.auto_class(kind), config, folder)
    except Exception as error:
        return cannot_be_built(family, error)

    def native(model: Model) -> Callable[[Tensor], Tensor] | None:
        module: Any = model.module
        if not model.facts.num_classes:
            return None
        return lambda images: module(**model._native_inputs(images)).logits  # type: ignore[attr-defined]

    row = image_row(
        work,
        family=family,
        member=type(module).__name__,
        teacher=str(folder),
        student=str(folder),
        sizes=list(tiny_transformers.SIZES),
        native=native,
        reload=(AutoModelForImageClassification if classifies else AutoModel).from_pretrained,
        classifies=classifies,
    )
    shutil.rmtree(folder)
    return row


def cannot_be_built(family: str, error: Exception) -> Row:
    """Return the row of a kind of which transformers itself makes no small model here."""
    why = f"not built: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return Row(family, "", 0, why, why, "", "", "", 0.0)


def text_folder(kind: str, folder: Path) -> nn.Module:
    """Save a small untrained model of text with its tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = train_tokenizer(kind="gpt2" if tiny_transformers.is_decoder(kind) else "bert")
    config = tiny_transformers.small_config(kind, vocab_size=len(tokenizer) + 2)  # Qwen's adds one
    auto: Any = AutoModelForTextEncoding
    if kind in tiny_transformers.text_classifiers():
        auto = AutoModelForSequenceClassification
        config.id2label, config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    module = build(auto, config, folder)
    tokenizer.save_pretrained(folder)
    return module


def hf_text_row(work: Work, family: str) -> Row:
    start = time.perf_counter()
    folder, bert = work.folder / "models" / family, work.folder / "models" / "tiny-bert"
    if not bert.exists():
        text_folder("bert", bert)
    try:
        module = text_folder(family, folder)
    except Exception as error:
        return cannot_be_built(family, error)
    member, parameters, places, length = type(module).__name__, sum(p.numel() for p in module.parameters()), "", ""
    classifies = family in tiny_transformers.text_classifiers()
    task = ("--task", "text-classification" if classifies else "sentence-embedding", "--data", work.reviews)
    texts = ["the film was good", "a very dull plot with a weak end and quite poor music"]

    def load() -> Model:
        try:
            return load_teacher(TeacherConfig(name=str(folder)), seed=0, task="text-classification")
        except UserError as error:
            raise Refused(error.message) from error

    def batch_of(texts: list[str]) -> TextBatch:
        return TextBatch(texts=texts, targets=torch.zeros(len(texts)), samples=torch.arange(len(texts)))

    def facts() -> None:
        nonlocal places, length
        model: Any = load()
        places = f"{model.facts.feature_dims['pooled']}, {model.preprocessing.pooling}"
        length = str(model.preprocessing.max_length)
        inputs = model.prepare(batch_of(texts))
        with torch.no_grad():
            output = model(inputs, Reads(("pooled",)) | model.predictions)
            alone = model(inputs, Reads(("pooled",)))
            check_equal(alone.features["pooled"], output.features["pooled"], "pooled without logits")
            if classifies:
                check_equal(output.logits, model.module(**inputs).logits, "logits against the library's own")

    def padding() -> None:
        model = load()
        with torch.no_grad():
            together, alone = (
                model(model.prepare(batch_of(some)), Reads(("pooled",))).features["pooled"]
                for some in (texts, texts[:1])
            )
        difference = float((together[:1] - alone).abs().max() / alone.abs().max())
        if difference >= TOLERANCE:
            raise Refused(f"features of a text change by {difference:.0e} with the padding beside it")

    def as_teacher() -> None:
        with work.run("--teacher", folder, "--student", bert, *task) as (outcome, run):
            check_outcome(outcome, run)

    def as_student() -> None:
        with watched_saves() as saves, work.run("--teacher", bert, "--student", folder, *task) as (outcome, run):
            check_outcome(outcome, run)
            inputs, expected = saves[-1]
            (saved_as,) = json.loads((run / "student" / "config.json").read_text())["architectures"]
            module = getattr(transformers, saved_as).from_pretrained(run / "student").eval()
            with torch.no_grad():
                found = call(module, inputs).logits if classifies else last_features(module, inputs)
            check_equal(found, expected, "what the reloaded student returns")

    checked = verdict(facts)
    teacher = verdict(as_teacher) if checked == YES else checked
    student = verdict(as_student)
    other = verdict(padding) if checked == YES else ""
    shutil.rmtree(folder)
    return Row(family, member, parameters, teacher, student, places, length, other, time.perf_counter() - start)


LIBRARIES: dict[str, tuple[Callable[[], list[str]], Callable[[Work, str], Row]]] = {
    "timm": (timm_families, timm_row),
    "transformers-image": (tiny_transformers.image_kinds, hf_image_row),
    "transformers-text": (tiny_transformers.text_kinds, hf_text_row),
}


HEADINGS = {
    "timm": ("module", "smallest member", "parameters", "teacher", "student", "features", "run at", "another size"),
    "transformers-image": ("kind", "class", "parameters", "teacher", "student", "features", "run at", "another size"),
    "transformers-text": ("kind", "class", "parameters", "teacher", "student", "features", "tokens", "padding"),
}
NOTES = {
    "timm": "Random weights. A member of more than 60 million parameters has two of its blocks where its constructor allows it.",
    "transformers-image": "Small configs with random weights, saved as a folder; *not built* is what transformers itself "
    "says here. Kinds without a classifier are students of `--task image-embedding`.",
    "transformers-text": "Small configs with random weights, saved as a folder with a small tokenizer; *not built* is what "
    "transformers itself says here. Kinds without a classifier are students of `--task sentence-embedding`.",
}
MEANINGS = {
    "features": "width of `pooled` (→ of `embedding`, where it is another) and positions of its map, after so many class, "
    "distillation and register tokens",
    "run at": "side of the input in pixels in both runs",
    "another size": "whether features, map and logits are right at another input size too",
    "tokens": "the longest text",
    "padding": "whether a text's features are the same beside a longer text, which pads it",
}


def table(library: str, rows: list[Row]) -> str:
    """Return the Markdown page of a library's rows."""
    headings = HEADINGS[library]
    meanings = [f"*{name}*: {MEANINGS[name]}" for name in headings if name in MEANINGS]
    if library == "transformers-text":
        meanings[0] = "*features*: width of the text's embedding, and its pooling"
    missing = sum(row.teacher.startswith("not built") for row in rows)
    lines = [
        f"# {TITLES[library]}",
        "",
        f"Of {len(rows)}{f' ({missing} of them not built)' * bool(missing)}, {count(rows, 'teacher')} work as teacher, {count(rows, 'student')} as student and"
        f" {sum(row.teacher == row.student == YES for row in rows)} as both;"
        f" {count(rows, 'other')} pass the last column. Faults: {sum('FAULT' in text for row in rows for text in asdict(row).values() if isinstance(text, str))}.",
        "",
        f"{NOTES[library]} Each is run by `kdcli distill` as the teacher of a small student, and as the student of a small"
        " teacher: eight training samples, two steps of the optimiser, evaluation, saving. The saved student, reloaded by its"
        " own library, gives the same logits or features. *no* is what kdcli said before anything was written, with exit code 2 and a"
        f" hint. {'; '.join(meanings)}.",
        "",
        f"With {', '.join(f'{name} {version}' for name, version in VERSIONS.items())}, on a CPU. Repeat it with",
        "",
        f"    python tests/benchmarks/coverage.py --library {library}",
        "",
        f"| {' | '.join(headings)} |",
        f"|{' --- |' * len(headings)}",
    ]
    for row in rows:
        cells = [
            row.family,
            row.member,
            f"{row.parameters:,}",
            row.teacher,
            row.student,
            row.places,
            row.size,
            row.other,
        ]
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def count(rows: list[Row], column: str) -> int:
    """Return in how many rows a column says yes."""
    return sum(getattr(row, column) == YES for row in rows)


def read_rows(file: Path) -> dict[str, Row]:
    """Return the last row of every family that was made with the installed versions."""
    if not file.is_file():
        return {}
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return {entry["row"]["family"]: Row(**entry["row"]) for entry in entries if entry["versions"] == VERSIONS}


def cover(library: str, *, only: list[str], work: Path, output: Path) -> list[Row]:
    """Run what has no row yet, and ``only``'s families in any case; write the table of all rows.

    Returns:
        The rows of the table.
    """
    families_of, row_of = LIBRARIES[library]
    families = families_of()
    if unknown := set(only) - set(families):
        raise SystemExit(f"{library} has no {', '.join(sorted(unknown))}; it has: {', '.join(families)}")
    work.mkdir(parents=True, exist_ok=True)
    place, file = Work(work), work / f"{library}.jsonl"
    known = read_rows(file)
    wanted = only or [family for family in families if family not in known]
    for number, family in enumerate(wanted, start=1):
        row = row_of(place, family)
        gc.collect()
        known[family] = row
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"versions": VERSIONS, "row": asdict(row)}) + "\n")
        print(
            f"{number}/{len(wanted)} {family} {row.member}: teacher {row.teacher}; student {row.student}; {row.places};"
            f" {row.size}; {row.other}; {row.seconds:.0f} s",
            flush=True,
        )
    rows = [known[family] for family in families if family in known]
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{library}.md").write_text(table(library, rows), encoding="utf-8")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--only", action="append", default=[], metavar="FAMILY", help="may be repeated")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/coverage"), help="where rows are kept and runs are made"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="where the table goes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    gc.freeze()  # what is imported by now need not be looked through after every run
    rows = cover(
        arguments.library, only=arguments.only, work=arguments.work.absolute(), output=arguments.output.absolute()
    )
    print(f"{len(rows)} rows: {count(rows, 'teacher')} as teacher, {count(rows, 'student')} as student")


if __name__ == "__main__":
    main()
